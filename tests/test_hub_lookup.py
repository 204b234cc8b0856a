"""hub_lookup, against a server on this machine and a port where none listens."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from modeling_ast.hub_lookup import hub_lookup

NO_SERVER = "http://127.0.0.1:9"


class Refuses(BaseHTTPRequestHandler):
    """Answers every request with 404."""

    def do_HEAD(self):
        self.server.asked += 1
        self.send_response(404)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Refuses)
    server.asked = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_hub_that_answers_is_asked_once(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    for _ in range(3):
        with hub_lookup():
            assert not constants.is_offline_mode()
    assert server.asked == 1


def test_a_hub_that_cannot_be_reached_is_not_asked_again(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", NO_SERVER)
    with pytest.raises(ZeroDivisionError), hub_lookup():
        assert constants.is_offline_mode()
        # Only the cache is searched, in which there is nothing.
        with pytest.raises(LocalEntryNotFoundError):
            hf_hub_download("some/model", "config.json", cache_dir=tmp_path)
        with hub_lookup():  # one in another changes nothing
            assert constants.is_offline_mode()
        assert constants.is_offline_mode()
        raise ZeroDivisionError
    assert not constants.is_offline_mode()


def test_the_choice_of_the_user_stays(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", NO_SERVER)
    with hub_lookup():
        assert constants.is_offline_mode()
    assert constants.is_offline_mode()
