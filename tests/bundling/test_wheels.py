"""The lock: entries for one Python, dependencies, agreement with installed packages."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
from fabricated_wheels import stub_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rsna_bcd.bundling.wheels import (
    collect_wheels,
    direct_requirements,
    read_lock,
    with_dependencies,
)
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
def lock_file(tmp_path: Path) -> Path:
    file = tmp_path / "requirements.lock"
    file.write_text(LOCK)
    return file


def test_read_lock_selects_the_entries_of_one_python(lock_file: Path) -> None:
    lock = read_lock(lock_file, "3.12")
    assert {name: entry.requirement for name, entry in lock.items()} == {
        "ape-x": "ape-x==1.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab",
        "bee": "bee==2.0 \\\n    --hash=sha256:bb",
        "cat": "cat==4.0 \\\n    --hash=sha256:c4",
    }
    assert lock["ape-x"].required_by == {"ours", "bee"}
    assert read_lock(lock_file, "3.11")["cat"].requirement.startswith("cat==3.0 ")


def test_with_dependencies_is_transitive(lock_file: Path) -> None:
    lock = read_lock(lock_file, "3.12")
    assert set(with_dependencies(lock, ["ape_x"])) == {"ape-x", "cat"}
    assert set(with_dependencies(lock, ["bee"])) == {"bee", "ape-x", "cat"}
    with pytest.raises(InputError, match="no emu, fox"):
        with_dependencies(lock, ["fox", "ape-x", "emu"])


@pytest.mark.parametrize("line", ["    --hash=sha256:bb\n", "    # via ours (pyproject.toml)\n"])
def test_read_lock_refuses_a_lock_without_hashes_or_annotations(lock_file: Path, line: str) -> None:
    lock_file.write_text(LOCK.replace(line, ""))
    with pytest.raises(InputError, match="bee has no hash, or no comment"):
        read_lock(lock_file, "3.12")
    with pytest.raises(InputError, match="There is no"):
        read_lock(lock_file.with_name("absent.lock"), "3.12")


def test_read_lock_agrees_with_installed_metadata() -> None:
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    lock = read_lock(ROOT / "requirements.lock", here)
    assert direct_requirements(ROOT / "pyproject.toml") <= lock.keys()
    for package in ("hydra-core", "nbformat", "rich"):
        required = map(Requirement, importlib.metadata.requires(package) or [])
        always = {canonicalize_name(r.name) for r in required if r.marker is None}
        assert always
        assert {name for name, entry in lock.items() if package in entry.required_by} == always
        assert always < with_dependencies(lock, [package]).keys()


def test_collect_wheels_refuses_a_wheel_with_another_hash(tmp_path: Path) -> None:
    stub_wheel(tmp_path, "bee", "2.0")
    with pytest.raises(InputError, match=r"(?s)Could not get bee.*wheelhouse=.*Got +[0-9a-f]{64}"):
        collect_wheels(
            {"bee": f"bee==2.0 --hash=sha256:{64 * '0'}"},
            tmp_path / "wheels",
            python="3.12",
            from_source=[],
            wheelhouse=tmp_path,
        )
