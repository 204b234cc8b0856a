"""The folder of the page: what is in it, and where the runtime comes from.

How the page works in a browser is in test_clients.py.
"""

import base64
import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
from contextlib import contextmanager

import pytest

from modeling_ast.commands import main

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

from modeling_ast.exporting import web_page
from modeling_ast.exporting.web_page import PAGE_FILES, RUNTIME, RUNTIME_FILES, RUNTIME_VERSION

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")


def archive_of(files):
    """What npm calls a package: a tar file with a folder `package`."""
    buffer = io.BytesIO()
    described = json.dumps({"name": RUNTIME, "version": RUNTIME_VERSION})
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for name, text in {"package.json": described, **files}.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            packed.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


ARCHIVE = archive_of({f"dist/{name}": f"stands in for {name}" for name in RUNTIME_FILES})


def integrity_of(archive):
    return f"sha512-{base64.b64encode(hashlib.sha512(archive).digest()).decode()}"


@contextmanager
def registry(archive=ARCHIVE, claimed=ARCHIVE):
    """A server that stands in for npm's; it gives `archive` and says that it is `claimed`."""

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            address = f"http://127.0.0.1:{self.server.server_port}/{RUNTIME}.tgz"
            version = {
                "name": RUNTIME,
                "version": RUNTIME_VERSION,
                "dist": {"tarball": address, "integrity": integrity_of(claimed)},
            }
            described = {
                "name": RUNTIME,
                "dist-tags": {"latest": RUNTIME_VERSION},
                "versions": {RUNTIME_VERSION: version},
            }
            wants_archive = self.path.endswith(".tgz")
            answer = archive if wants_archive else json.dumps(described).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def npm(monkeypatch, tmp_path):
    """npm without this computer's settings and cache; call it with the address of a registry."""
    monkeypatch.setattr(web_page, "RUNTIME_INTEGRITY", integrity_of(ARCHIVE))
    (tmp_path / "npmrc").touch()
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_noproxy", "127.0.0.1")
    return lambda address: monkeypatch.setenv("npm_config_registry", address)


@needs_npm
def test_npm_fetches_the_runtime_once(exported_folder, tmp_path, npm, capsys):
    """The second page takes it from npm's cache: the registry is gone."""
    with registry() as address:
        npm(address)
        assert main(["page", str(exported_folder), str(tmp_path / "page")]) == 0
    # The address is the key of the cache.
    again = ["page", str(exported_folder), str(tmp_path / "page"), "--force"]
    assert main(again) == 0
    folder = tmp_path / "page"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == PAGE_FILES
    for name in RUNTIME_FILES:
        assert (folder / "vendor" / name).read_text() == f"stands in for {name}"
    assert capsys.readouterr().out.count(f"wrote {folder}; ") == 2


def said_by(capsys):
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1, err
    return err


REMEDY = (
    f"or unpack what `npm pack {RUNTIME}@{RUNTIME_VERSION}` gives elsewhere and name its folder"
)


@needs_npm
def test_without_a_network_a_sentence_says_what_to_do(tmp_path, npm, capsys):
    npm("http://127.0.0.1:9/")
    assert main(["page", "model", str(tmp_path / "page")]) == 1
    said = said_by(capsys)
    assert f"npm cannot fetch {RUNTIME}@{RUNTIME_VERSION} (ECONNREFUSED: " in said
    assert f"connect to the internet, {REMEDY} by --runtime" in said
    assert not (tmp_path / "page").exists()


@needs_npm
def test_an_archive_that_is_not_what_the_registry_says_is_refused(tmp_path, npm, capsys):
    with registry(archive=archive_of({"dist/ort.wasm.min.mjs": "another"})) as address:
        npm(address)
        assert main(["page", "model", str(tmp_path / "page")]) == 1
    assert "npm cannot fetch" in (said := said_by(capsys)) and "EINTEGRITY" in said


@needs_npm
def test_an_archive_that_was_never_published_is_refused(tmp_path, npm, capsys):
    """By a registry that describes what it gives."""
    other = archive_of({"dist/ort.wasm.min.mjs": "another"})
    with registry(archive=other, claimed=other) as address:
        npm(address)
        assert main(["page", "model", str(tmp_path / "page")]) == 1
    assert f"is not the published {RUNTIME}@{RUNTIME_VERSION}: its SHA-512 is" in said_by(capsys)
    assert not (tmp_path / "page").exists()


def test_without_npm_a_sentence_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["page", "model", str(tmp_path / "page")]) == 1
    assert f"npm, which is not here; install it, {REMEDY} by --runtime" in said_by(capsys)


def test_a_folder_that_is_no_runtime_is_refused(tmp_path, capsys):
    assert main(["page", "model", str(tmp_path / "page"), "--runtime", str(tmp_path)]) == 1
    assert f"{tmp_path} has no dist/ort.wasm.min.mjs; give the folder of the npm" in said_by(capsys)
