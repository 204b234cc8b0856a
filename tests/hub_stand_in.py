"""A Hugging Face Hub on loopback, backed by a folder: tests load and push without a network.

It answers the part of the Hub's HTTP API that from_pretrained, pipeline, hf_hub_download and
push_to_hub call; other requests get a 404 that names them. The client reads HF_ENDPOINT at import:
use it from a subprocess.
Source: the calls that huggingface_hub 1.33 and 2.4 make (hf_api.py, _commit_api.py,
file_download.py) and the X-Error-Code headers that their utils/_http.py reads.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

USER = "someone"

_REPO = r"(?P<repo>[^/]+/[^/]+)"
_FILE_ROUTE = re.compile(rf"/(?P<kind>datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_REPO_ROUTE = re.compile(
    rf"/api/(?P<kind>models|datasets)/{_REPO}"
    r"(/(?P<action>revision|tree|preupload|commit)/(?P<revision>[^/]+)(/(?P<path>.*))?)?"
)
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class HubStandIn:
    """Serves root/models/<owner>/<name> and root/datasets/<owner>/<name> while it is entered.

    A repo is a folder, its files as they are now; the only branch is main, and only the newest
    commit can be asked for by its hash. Pushes write into the folder.

    Args:
        root: may be missing; a push creates it.
        broken: answer 503 to everything; may be switched while it runs. The client retries that
            for 23 s, unless the subprocess makes `time.sleep` return at once.
    Attributes:
        endpoint: the URL to use in place of https://huggingface.co.
        requests: (method, path without query) of every request, in order of arrival.
        private: folders of the repos that were created as private.
    """

    def __init__(self, root: Path, broken: bool = False):
        self.root = Path(root)
        self.broken = broken
        self.requests: list[tuple[str, str]] = []
        self.private: set[Path] = set()

    def __enter__(self) -> "HubStandIn":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path) -> dict[str, str]:
        """Variables to merge into a subprocess's environment; `home` takes its cache."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            # A user's values would override HF_HOME, and a proxy would get the requests.
            "HF_HUB_CACHE": str(Path(home) / "hub"),
            "HF_MODULES_CACHE": str(Path(home) / "modules"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_TOKEN": "hf_test",
            # Without Xet, because with it the client fetches the same files in another way.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            # A repo without safetensors makes transformers call a conversion Space in a thread.
            "DISABLE_SAFETENSORS_CONVERSION": "1",
        }


class _Refusal(Exception):
    """An answer that is an error; `code` is what huggingface_hub makes its exception from."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = ""):
        super().__init__(message)
        self.status = status
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.headers = {name: value for name, value in headers.items() if value}


class _Handler(BaseHTTPRequestHandler):
    """One connection; a request is refused, or answered by the method that its path names."""

    # The client keeps connections open, so every answer carries its length.
    protocol_version = "HTTP/1.1"
    server_version = "hub_stand_in"

    def log_message(self, *message: object) -> None:
        """The hub's `requests` is the log."""

    def respond(self) -> None:
        # Read the body even of refused requests, as it would be parsed as the next request.
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub: HubStandIn = self.server.hub
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.hub.requests.append((self.command, url.path))
        try:
            if self.hub.broken:
                raise _Refusal(503, "the stand-in is set to fail")
            self.route(url.path)
        except _Refusal as refusal:
            self.send({"error": str(refusal)}, refusal.status, refusal.headers)

    do_GET = do_HEAD = do_POST = respond

    def route(self, path: str) -> None:
        reading = self.command in ("GET", "HEAD")
        if path == "/api/validate-yaml":
            return self.send({"errors": [], "warnings": []})
        if path == "/api/whoami-v2":
            self.check_token()
            return self.send({"type": "user", "name": USER, "fullname": USER, "orgs": []})
        if path == "/api/repos/create" and not reading:
            return self.create_repo()
        if (match := _FILE_ROUTE.fullmatch(path)) and reading:
            folder = self.find_repo("datasets" if match["kind"] else "models", match)
            return self.send_file(folder, unquote(match["path"]))
        if match := _REPO_ROUTE.fullmatch(path):
            folder = self.find_repo(match["kind"], match)
            if reading and match["action"] in (None, "revision"):
                return self.send(self.describe_repo(folder))
            if reading and match["action"] == "tree":
                return self.send(self.list_tree(folder, unquote(match["path"] or "")))
            if not reading and match["action"] == "preupload":
                return self.send({"files": self.choose_uploads(folder)})
            if not reading and match["action"] == "commit":
                return self.commit(folder)
        raise _Refusal(404, f"the stand-in has no {self.command} {path}")

    def check_token(self) -> None:
        if not self.headers.get("Authorization", "").startswith("Bearer hf_"):
            raise _Refusal(401, "Invalid username or password.")

    def find_repo(self, kind: str, match: re.Match) -> Path:
        folder = _below(self.hub.root / kind, unquote(match["repo"]))
        if not folder.is_dir():
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        revision = unquote(match["revision"] or "main")
        if revision not in ("main", _commit_hash(folder)):
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return folder

    def page(self, folder: Path) -> str:
        name = folder.relative_to(self.hub.root).as_posix()
        return f"{self.hub.endpoint}/{name.removeprefix('models/')}"

    def create_repo(self) -> None:
        self.check_token()
        wanted = json.loads(self.body)
        kind = "datasets" if wanted.get("type") == "dataset" else "models"
        owner = wanted.get("organization") or USER
        folder = _below(self.hub.root / kind, f"{owner}/{wanted['name']}")
        # With exist_ok=True the client reads the URL from the 409, too.
        status = 409 if folder.is_dir() else 200
        folder.mkdir(parents=True, exist_ok=True)
        if status == 200 and wanted.get("visibility") == "private":
            self.hub.private.add(folder)
        self.send({"url": self.page(folder)}, status)

    def describe_repo(self, folder: Path) -> dict:
        card = folder / "README.md"
        header = card.read_text("utf-8").split("\n---", 1)[0] if card.is_file() else ""
        return {
            "id": "/".join(folder.parts[-2:]),
            "sha": _commit_hash(folder),
            "private": folder in self.hub.private,
            "siblings": [{"rfilename": path} for path in _list_files(folder)],
            # What pipeline(model=...) infers its task from.
            **dict(re.findall(r"^(pipeline_tag|library_name): *(\S+)", header, re.MULTILINE)),
        }

    def list_tree(self, folder: Path, path: str) -> list[dict]:
        top = _below(folder, path)
        if not top.is_dir():
            raise _Refusal(404, f"{path} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        entries = []
        for entry in sorted(top.rglob("*") if recursive else top.iterdir()):
            facts = {"type": "directory", "oid": "0" * 40}
            if entry.is_file():
                facts = {"type": "file", "oid": _git_oid(entry), "size": entry.stat().st_size}
            entries.append({"path": entry.relative_to(folder).as_posix(), **facts})
        return entries

    def choose_uploads(self, folder: Path) -> list[dict]:
        """Makes the client send all files inside the commit, so that LFS and Xet are not needed."""
        self.check_token()
        files = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            old = _below(folder, path)
            file = {"path": path, "uploadMode": "regular", "shouldIgnore": False}
            files.append(file | {"oid": _git_oid(old) if old.is_file() else None})
        return files

    def commit(self, folder: Path) -> None:
        self.check_token()
        if "create_pr" in self.query:
            raise _Refusal(400, "the stand-in has no pull requests")
        for operation in map(json.loads, self.body.splitlines()):
            key, value = operation["key"], operation["value"]
            if key == "header":
                continue
            target = _below(folder, value["path"])
            if key == "file":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(value["content"]))
            elif key == "deletedFile" and target.is_file():
                target.unlink()
            else:
                raise _Refusal(400, f"the stand-in cannot do {key} of {value['path']}")
        oid = _commit_hash(folder)
        self.send({"commitOid": oid, "commitUrl": f"{self.page(folder)}/commit/{oid}"})

    def send_file(self, folder: Path, path: str) -> None:
        file, commit = _below(folder, path), _commit_hash(folder)
        if not file.is_file():
            # The commit's hash lets the client remember that the file does not exist.
            raise _Refusal(404, "Entry not found", "EntryNotFound", commit)
        content, size = file.read_bytes(), file.stat().st_size
        headers = {"ETag": f'"{_git_oid(file)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if not wanted or int(wanted[1]) >= size:
            return self.send(content, 200, headers)
        start, end = int(wanted[1]), min(int(wanted[2] or size), size - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        self.send(content[start : end + 1], 206, headers)

    def send(
        self, answer: bytes | dict | list, status: int = 200, headers: dict | None = None
    ) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _below(folder: Path, path: str) -> Path:
    # Checked by name without resolving links, as a test may link a folder into the root.
    if path.startswith("/") or ".." in path.split("/"):
        raise _Refusal(400, f"{path} leads out of its folder")
    return folder / path


def _list_files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _git_oid(file: Path) -> str:
    """Git's name for the content: the Hub's ETag, and what the client skips unchanged files by."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit_hash(folder: Path) -> str:
    """Changes with the files; from sizes and times, so that no request reads all the weights."""
    stats = [(path, (folder / path).stat()) for path in _list_files(folder)]
    state = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.sha1(repr((folder, state)).encode()).hexdigest()
