"""A corpus on a cluster of three raylets, with what goes wrong there. Judge: AudioTagger here.

Each test runs the command as a person does, in a process of its own, and kills something in the
middle: whatever dies, each clip has one row in the end, the one that it has on one machine.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("ray", reason="the extra ray is not installed")
pytest.importorskip("psutil", reason="psutil comes with ray")

import psutil
from ray.cluster_utils import Cluster

from modeling_ast import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, AudioTagger
from tests.conftest import ROOT, TINY, randomise
from tests.corpora import add_bad_files, check_equal, rows_of, write_folder

pytestmark = pytest.mark.ray

CLIPS, SHARD_ROWS = 1600, 64
# In seconds; longer than any of these takes on a busy machine.
PATIENCE_SECONDS = 600


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


STORE_PORT = free_port()
# These variables make s3fs, and Amazon's own libraries, use our server instead of Amazon's.
STORE = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{STORE_PORT}",
    "AWS_ACCESS_KEY_ID": "anybody",
    "AWS_SECRET_ACCESS_KEY": "anything",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = ASTConfig(**TINY)
    randomise(ASTForAudioClassification(config)).save_pretrained(folder)
    ASTFeatureExtractor.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tagger(model):
    return AudioTagger.from_pretrained(model, "cpu", num_workers=0)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """The folder, and key -> path of its 1,600 small files, two of them bad."""
    folder = tmp_path_factory.mktemp("clips")
    keys = write_folder(folder, CLIPS - 2) + add_bad_files(folder)
    return folder, {key: str(folder / key) for key in keys}


@pytest.fixture(scope="module")
def object_store():
    """A server of S3's protocol on this machine, which every process can reach; or a skip."""
    pytest.importorskip("s3fs", reason="the protocol s3 needs s3fs")
    moto = pytest.importorskip("moto.server", reason="needs moto, flask and flask-cors")
    server = moto.ThreadedMotoServer("127.0.0.1", STORE_PORT, verbose=False)
    server.start()
    import s3fs

    yield s3fs.S3FileSystem(endpoint_url=STORE["AWS_ENDPOINT_URL"])
    server.stop()


@pytest.fixture(scope="module")
def environment():
    """Environment variables for the processes that are started here."""
    paths = [str(ROOT / "tests" / "faulty_machine"), str(ROOT)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**STORE, "PYTHONPATH": os.pathsep.join(paths)}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def cluster(environment):
    """Three raylets of two CPUs each; their processes have faults, and the store's address."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    yield cluster
    cluster.shutdown()


class Run:
    """The command, in a process of its own."""

    def __init__(self, verb, model, source, output, cluster, *flags):
        self.output = output
        command = [sys.executable, "-m", "modeling_ast", verb, str(model), str(source)]
        command += ["--engine", "ray", "--address", cluster.address, "--output", str(output)]
        command += ["--shard-rows", str(SHARD_ROWS), "--models", "2", *map(str, flags)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )

    def shards(self):
        """The number of rows that the manifest counts."""
        path = self.output / "manifest.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for(self, condition, what):
        """Waits for a condition while the run goes on; returns its value."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not (found := condition()):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, f"no {what} within {PATIENCE_SECONDS} s"
            time.sleep(0.02)
        return found

    def wait_for_shards(self, number):
        self.wait_for(lambda: self.shards() >= number, f"{number} shards")
        assert self.shards() < CLIPS / SHARD_ROWS, "the run has ended before the fault"

    def finish(self, status=1):
        """Waits for the end, with status 1 because two clips are bad. Returns the output."""
        out, err = self.process.communicate(timeout=PATIENCE_SECONDS)
        assert self.process.returncode == status, err
        assert "Traceback" not in err
        return out, err


def processes(name):
    """Ray's processes that run this task."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if name in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


def test_a_machine_is_lost(model, tagger, clips, cluster, tmp_path):
    folder, wanted = clips
    run = Run("tag", model, folder, tmp_path / "out", cluster)
    run.wait_for_shards(2)
    lost = next(node for node in cluster.worker_nodes)
    cluster.remove_node(lost, allow_graceful=False)
    out, _ = run.finish()
    assert f"{CLIPS} files, 2 of them bad" in out
    check_equal(rows_of(run.output), tagger, wanted)
    cluster.add_node(num_cpus=2)


def test_a_model_a_decoder_and_a_writer_are_killed(model, tagger, clips, cluster, tmp_path):
    """The process of a writer that is in the middle of a shard."""
    folder, wanted = clips
    run = Run("tag", model, folder, tmp_path / "out", cluster)
    run.wait_for_shards(1)
    run.wait_for(lambda: processes("ray::MapWorker(MapBatches(TagActor))"), "model")[0].kill()
    run.wait_for(lambda: processes("ray::MapBatches(Decoder"), "decoder")[0].kill()
    run.wait_for(lambda: kill_writer(run.output), "writer")
    assert run.shards() < CLIPS / SHARD_ROWS
    run.finish()
    check_equal(rows_of(run.output), tagger, wanted)
    assert not list(run.output.glob("*.partial"))


def kill_writer(output):
    """Kills a process that has written half a shard; returns whether there was one."""
    half = {str(path) for path in output.glob("*.partial")}
    for process in processes("ray::MapBatches(write_shard)") if half else []:
        try:
            if half & {file.path for file in process.open_files()}:
                process.kill()
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def test_the_driver_is_killed_and_started_again(model, tagger, clips, cluster, tmp_path):
    folder = tmp_path / "clips"
    folder.symlink_to(clips[0])
    first = Run("tag", model, folder, tmp_path / "out", cluster)
    first.wait_for_shards(3)
    first.process.send_signal(signal.SIGKILL)
    assert first.process.wait() == -signal.SIGKILL, "the run has ended before the fault"
    before = (first.output / "manifest.jsonl").read_bytes()
    done = before[: before.rindex(b"\n") + 1]
    Run("tag", model, folder, first.output, cluster).finish()
    wanted = {key: str(folder / key) for key in clips[1]}
    rows = rows_of(first.output)
    check_equal(rows, tagger, wanted)
    # Finished clips are not done again.
    assert (first.output / "manifest.jsonl").read_bytes().startswith(done)
    manifest = (first.output / "manifest.jsonl").read_bytes()
    _, err = Run("tag", model, folder, first.output, cluster, "--padding", "longest").finish()
    assert "has results with padding 'max_length', not 'longest'" in err
    assert (first.output / "manifest.jsonl").read_bytes() == manifest


def test_more_bad_clips_than_are_allowed_stop_the_run(model, cluster, tmp_path):
    folder = tmp_path / "clips"
    write_folder(folder, 60)
    for number in range(40):
        (folder / f"bad{number:02d}.wav").write_text("no audio")
    flags = ("--most-bad", 0.2)
    _, err = Run("tag", model, folder, tmp_path / "out", cluster, *flags).finish()
    line = err.splitlines()[-1]
    assert "clips are bad, more than 0.2 of them (bad" in line and "--most-bad" in line
    bad = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert all("cannot be decoded" in row["error"] for row in bad)
    # The rest is done if more bad clips are allowed, and new clips are done as well.
    write_folder(folder, 5, first=1000)
    flags = ("--most-bad", 0.9, "--json")
    out, _ = Run("tag", model, folder, tmp_path / "out", cluster, *flags).finish()
    result = json.loads(out)
    assert (result["files"], result["bad"]) == (105, 40)
    assert len(rows_of(tmp_path / "out")) == 105


def test_detect_finds_the_events_of_one_machine(model, clips, cluster, tmp_path):
    from modeling_ast.commands import main

    folder = tmp_path / "recordings"
    write_folder(folder, 6)
    (folder / "broken.mp3").write_text("no audio")
    flags = ("--window", "0.3", "--hop", "0.1", "--threshold", "0.05", "--min-length", "0")
    alone = tmp_path / "events.json"
    assert main(["detect", str(model), str(folder), "--output", str(alone), *flags]) == 1
    run = Run("detect", model, folder, tmp_path / "out", cluster, *flags)
    run.finish()
    rows = rows_of(run.output)
    expected = json.loads(alone.read_text())["recordings"]
    assert rows.keys() == {row["file"] for row in expected}
    for row in expected:
        found = rows[row["file"]]
        assert (found["error"], found["seconds"]) == (row["error"], row["seconds"])
        assert len(found["events"]) == len(row["events"])
        for ours, theirs in zip(found["events"], row["events"]):
            assert ours["label"] == theirs["label"] and ours["onset"] == theirs["onset"]
            assert abs(ours["score"] - theirs["score"]) < 1e-5
    assert sum(len(row["events"]) for row in expected) > 0


def test_a_recording_that_crashes_its_decoder_is_a_row(model, cluster, tmp_path):
    """The actor that detects decodes the recordings itself, and dies with the decoder."""
    folder = tmp_path / "recordings"
    write_folder(folder, 6)
    (folder / "deadly.wav").write_bytes(next(folder.rglob("*.flac")).read_bytes())
    run = Run("detect", model, folder, tmp_path / "out", cluster)
    run.finish()
    rows = rows_of(run.output)
    errors = {os.path.basename(name): row["error"] for name, row in rows.items()}
    assert "deadly.wav killed each process that decoded it" in errors.pop("deadly.wav")
    assert list(errors.values()) == [None] * 6


def test_clips_of_an_object_store(model, tagger, cluster, object_store, tmp_path):
    """Every process reads them over S3's own protocol."""
    folder = tmp_path / "clips"
    keys = write_folder(folder, 30) + add_bad_files(folder)
    object_store.mkdir("corpus")
    for key in keys:
        object_store.pipe_file(f"corpus/clips/{key}", (folder / key).read_bytes())
    run = Run("tag", model, "s3://corpus/clips", tmp_path / "out", cluster)
    run.finish()
    rows = rows_of(run.output)
    assert rows.keys() == set(keys)
    clips = {key: str(folder / key) for key in keys[:-2]}
    check_equal({key: rows[key] for key in clips}, tagger, clips)
    assert "cannot be decoded" in rows["broken.mp3"]["error"]
    assert "100 samples" in rows["short.wav"]["error"]
    _, err = Run("tag", model, "s3://nowhere/clips", tmp_path / "none", cluster).finish()
    assert err.splitlines()[-1].startswith("error: ")
