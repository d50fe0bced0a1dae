"""What all stages share: the record of a folder, and errors as one message."""

import subprocess
import sys
from pathlib import Path

import pytest

from rsna_bcd._records import check_same_config, write_record
from rsna_bcd.errors import InputError

RECORD = {"crop": {"height": 1024, "margin": 0.02}, "splits": ["train", "test"], "name": "a"}


def test_settle_tells_new_from_equal(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "config.yaml"
    assert not check_same_config(file, RECORD, overwrite=False)
    write_record(file, RECORD)
    assert check_same_config(file, RECORD, overwrite=False)
    assert [path.name for path in file.parent.iterdir()] == ["config.yaml"]


def test_settle_refuses_other_settings_and_shows_only_what_differs(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    write_record(file, RECORD)
    other = {**RECORD, "crop": {"height": 512, "margin": 0.02}, "seed": 1}
    with pytest.raises(InputError) as error:
        check_same_config(file, other, overwrite=False)
    message = str(error.value)
    assert "crop.height: 1024 -> 512" in message
    assert "seed: (absent) -> 1" in message
    assert "overwrite=true" in message
    assert "margin" not in message
    assert not check_same_config(file, other, overwrite=True)


def run(stage: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"rsna_bcd.{stage}", *overrides],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["paths.data=nowhere"], "nowhere"),
        (["paths=mars"], "paths/mars"),
        (["no_such_key=1"], "no_such_key"),
    ],
)
def test_an_input_error_is_one_message_and_exit_code_1(
    overrides: list[str], part: str, tmp_path: Path
) -> None:
    done = run("prepare", *overrides, cwd=tmp_path)
    assert done.returncode == 1
    assert part in done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("prepare", "paths.output=file/below", cwd=tmp_path)
    assert done.returncode == 1
    assert "paths.output" in done.stderr
    assert "Traceback" not in done.stderr
