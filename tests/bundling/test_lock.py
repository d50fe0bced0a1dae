"""What is read of `requirements.lock`."""

import importlib.metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rsna_bcd.bundling.lock import Locked, as_requirements, closure, read_lock, requirements_of
from rsna_bcd.errors import InputError

ROOT = Path(__file__).parents[2]

LOCK = """\
Ape_x==1.0 ; sys_platform == 'linux' \\
    --hash=sha256:aa \\
    --hash=sha256:ab
    # via
    #   ours (pyproject.toml)
    #   bee
bee==2.0 \\
    --hash=sha256:bb
    # via ours (pyproject.toml)
cat==3.0 ; python_full_version < '3.12' and sys_platform == 'linux' \\
    --hash=sha256:c3
    # via ape-x
cat==4.0 ; python_full_version >= '3.12' and sys_platform == 'linux' \\
    --hash=sha256:c4
    # via ape-x
dog==5.0 ; sys_platform == 'win32' \\
    --hash=sha256:dd
    # via bee
"""


@pytest.fixture
def lock(tmp_path: Path) -> list[Locked]:
    file = tmp_path / "requirements.lock"
    file.write_text(LOCK)
    return read_lock(file)


def test_every_entry_is_read(lock: list[Locked]) -> None:
    assert [(e.name, e.version) for e in lock] == [
        ("ape-x", "1.0"), ("bee", "2.0"), ("cat", "3.0"), ("cat", "4.0"), ("dog", "5.0"),
    ]  # fmt: skip
    assert lock[0].hashes == ("sha256:aa", "sha256:ab")
    assert lock[0].wanted_by == {"ours", "bee"}
    assert lock[1].marker == ""


def test_what_is_required_comes_along(lock: list[Locked]) -> None:
    assert closure(lock, ["ape_x"]) == {"ape-x", "cat"}
    assert closure(lock, ["bee"]) == {"bee", "ape-x", "cat", "dog"}
    with pytest.raises(InputError, match="no emu, fox"):
        closure(lock, ["fox", "ape-x", "emu"])


def test_a_python_has_its_own_versions(lock: list[Locked]) -> None:
    names = closure(lock, ["bee"])
    assert as_requirements(lock, names, "3.12") == {
        "ape-x": "ape-x==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab",
        "bee": "bee==2.0 \\\n    --hash=sha256:bb",
        "cat": "cat==4.0 \\\n    --hash=sha256:c4",
    }
    assert as_requirements(lock, {"cat"}, "3.11")["cat"].startswith("cat==3.0 ")


@pytest.mark.parametrize("line", ["    --hash=sha256:bb\n", "    # via ours (pyproject.toml)\n"])
def test_a_lock_that_says_too_little_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "requirements.lock"
    file.write_text(LOCK.replace(line, ""))
    with pytest.raises(InputError, match="bee has no hash, or no comment"):
        read_lock(file)
    with pytest.raises(InputError, match="There is no"):
        read_lock(tmp_path / "absent.lock")


def test_it_agrees_with_what_is_installed() -> None:
    """By reference: for three packages, with what their own metadata require."""
    lock = read_lock(ROOT / "requirements.lock")
    names = {entry.name for entry in lock}
    assert requirements_of(ROOT / "pyproject.toml") <= names
    for package in ("hydra-core", "nbformat", "rich"):
        required = map(Requirement, importlib.metadata.requires(package) or [])
        always = {canonicalize_name(r.name) for r in required if r.marker is None}
        assert always
        assert {e.name for e in lock if package in e.wanted_by} == always
        assert always < closure(lock, [package])
