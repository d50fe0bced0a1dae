"""Which run of Weights & Biases a training logs to."""

from pathlib import Path

import pytest
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from rsna_bcd.models import tracking


@pytest.mark.parametrize(("key", "offline"), [(None, True), ("0" * 40, False)])
def test_wandb_is_offline_where_nobody_is_logged_in(
    key: str | None, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "wandb_key", lambda: key)
    logger = tracking.wandb_logger("project", "name", tmp_path)
    assert isinstance(logger, WandbLogger)
    assert logger._offline is offline


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


def test_only_the_first_rank_writes_the_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    tracking.wandb_logger("project", "name", tmp_path)
    assert not (tmp_path / tracking.ID_FILE).exists()


def test_a_resumed_run_keeps_its_id_group_and_tags(tmp_path: Path) -> None:
    first = tracking.wandb_logger("project", "name", tmp_path, group="all", tags=["x"])
    again = tracking.wandb_logger("project", "name", tmp_path)
    other = tracking.wandb_logger("project", "name", tmp_path / "other")
    assert first.version == again.version != other.version
    assert (first._wandb_init["group"], first._wandb_init["tags"]) == ("all", ["x"])
