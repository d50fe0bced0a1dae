"""Which run of Weights & Biases a training logs to."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import wandb
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities import rank_zero_only

from rsna_bcd.models import tracking


class Server(BaseHTTPRequestHandler):
    """Answers as the server of W&B does to who is asking, or as its class is told to."""

    code = 200
    answer: ClassVar[Any] = {"data": {"viewer": {"id": "me"}}}

    def do_POST(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        content = json.dumps(self.answer).encode()
        self.send_response(self.code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_address[1]}"
        monkeypatch.setenv("WANDB_BASE_URL", address)
        yield address
        running.shutdown()


@pytest.mark.parametrize(
    ("code", "answer", "part"),
    [
        (200, Server.answer, None),
        (401, {"error": "no"}, "refuses the key of WANDB_API_KEY.*wandb login --relogin"),
        (200, {"data": {"viewer": None}}, "refuses the key"),
        (502, {}, "answers HTTP Error 502"),
        (200, "no JSON object", "refuses the key"),
    ],
)
def test_connection_problem_names_the_server_or_the_key(
    code: int, answer: Any, part: str | None, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "code", code)
    monkeypatch.setattr(Server, "answer", answer)
    problem = tracking.connection_problem("0" * 40)
    assert problem is None if part is None else re.search(part, str(problem))


def test_without_a_network_training_is_recorded_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        begun = time.monotonic()
        logger = tracking.wandb_logger("project", "name", tmp_path)
    assert time.monotonic() - begun < 15
    assert isinstance(logger, WandbLogger)
    assert logger._offline
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert re.search("cannot be reached .*refused.*recorded offline; .*wandb sync", said)


def test_a_run_that_cannot_begin_online_is_recorded_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a team that the key does not belong to, for instance."""

    def refuse(**_: Any) -> None:
        raise wandb.errors.CommError("entity absent not found during upsertBucket")

    monkeypatch.setattr(tracking, "wandb_key", lambda: "0" * 40)
    monkeypatch.setattr(tracking, "connection_problem", lambda _: None)
    monkeypatch.setattr(wandb, "init", refuse)
    logger = tracking.wandb_logger("project", "name", tmp_path, entity="absent")
    assert isinstance(logger, WandbLogger)
    assert logger._offline
    said = capsys.readouterr().out
    assert "entity absent not found" in said
    assert "entity=absent" in said


@pytest.mark.parametrize("mode", ["offline", "dryrun"])
def test_wandb_mode_of_the_environment_decides(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tracking, "connection_problem")
    monkeypatch.setenv("WANDB_MODE", mode)
    logger = tracking.wandb_logger("project", "name", tmp_path)
    assert isinstance(logger, WandbLogger)
    assert logger._offline
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert isinstance(tracking.wandb_logger("project", "name", tmp_path), DummyLogger)


def test_the_key_is_taken_from_the_environment_or_netrc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert tracking.wandb_key() is None
    netrc.write_text(f"machine api.wandb.ai login user password {'b' * 40}\n")
    netrc.chmod(0o600)
    assert tracking.wandb_key() == "b" * 40
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert tracking.wandb_key() == "a" * 40


def test_a_resumed_run_keeps_its_id_group_and_tags(tmp_path: Path) -> None:
    first: Any = tracking.wandb_logger("project", "name", tmp_path, group="all", tags=["x"])
    again = tracking.wandb_logger("project", "name", tmp_path)
    with pytest.MonkeyPatch.context() as patch:  # only the first rank writes it
        patch.setattr(rank_zero_only, "rank", 1)
        tracking.wandb_logger("project", "name", tmp_path / "second")
    assert not (tmp_path / "second" / tracking.ID_FILE).exists()
    other = tracking.wandb_logger("project", "name", tmp_path / "other")
    assert first.version == again.version != other.version
    assert (first._wandb_init["group"], first._wandb_init["tags"]) == ("all", ["x"])
