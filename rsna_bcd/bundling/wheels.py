"""Wheels for a machine without a network: this package's own, and the locked ones that it lacks."""

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

from rsna_bcd.errors import InputError

LIST = "requirements.txt"  # beside the wheels: the requirements they were fetched for

_OWN = "rsna_bcd-*.whl"
_ENTRY = re.compile(r"([\w.-]+)==([^\s;\\]+)(?:\s*;\s*([^\\]+))?")
_VIA = re.compile(r"\s+#\s+(?:via\s+)?([\w.-]+)")


@dataclass(frozen=True)
class Locked:
    """A package of the lock: `name==version` with hashes, and the packages that require it."""

    requirement: str
    required_by: frozenset[str]


def read_lock(file: Path, python: str) -> dict[str, Locked]:
    """Read the packages for one Python from a lock, by name.

    Args:
        file: written by `uv pip compile --generate-hashes`, with annotations.
        python: such as "3.12", on a machine like this one.

    Raises:
        InputError: no such file, or it lacks hashes or annotations.
    """
    if not file.is_file():
        raise InputError(f"There is no {file}. Run in the source tree, or say lock=...")
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    lock: dict[str, Locked] = {}
    for block in re.split(r"^(?=\w)", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
        entry = _ENTRY.match(block)
        if entry is None:
            continue
        name, version, marker = entry.groups(default="")
        hashes = re.findall(r"--hash=(\S+)", block)
        lines = [line for line in block.splitlines() if not line.rstrip().endswith("# via")]
        required_by = {m[1] for line in lines if (m := _VIA.match(line))}
        if not hashes or not required_by:
            raise InputError(
                f"{file}: {name} has no hash, or no comment with the package that requires it. "
                "Compile it with `uv pip compile --generate-hashes`, as `make lock` does."
            )
        if not marker or Marker(marker.strip()).evaluate(environment):
            name = canonicalize_name(name)
            parts = (f"{name}=={version}", *(f"--hash={value}" for value in hashes))
            required = frozenset(map(canonicalize_name, required_by))
            lock[name] = Locked(" \\\n    ".join(parts), required)
    return lock


def with_dependencies(lock: Mapping[str, Locked], roots: Iterable[str]) -> dict[str, str]:
    """Requirements, by name, of packages and of all that they require, directly or not."""
    ahead: set[str] = {canonicalize_name(root) for root in roots}
    if unknown := ahead - lock.keys():
        raise InputError(
            f"requirements.lock has no {', '.join(sorted(unknown))} for this Python. Correct the "
            "list of names, or python=."
        )
    found: dict[str, str] = {}
    while ahead:
        found |= {name: lock[name].requirement for name in ahead}
        ahead = {name for name in lock.keys() - found if lock[name].required_by & ahead}
    return found


def direct_requirements(project: Path) -> set[str]:
    """Names of the packages that a `pyproject.toml` requires, without its extras."""
    required = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return {canonicalize_name(m[0]) for line in required if (m := re.match(r"[\w.-]+", line))}


def build_own_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of the package whose `pyproject.toml` is in `source`."""
    folder.mkdir(parents=True, exist_ok=True)
    _run(
        ["hatchling", "build", "--target", "wheel", "--directory", str(folder.resolve())],
        f"The wheel of {source} could not be built. `make env` installs its requirements.",
        source,
    )
    (wheel,) = folder.glob(_OWN)
    return wheel


def collect_wheels(
    wanted: Mapping[str, str],
    folder: Path,
    *,
    python: str,
    from_source: Collection[str],
    wheelhouse: Path | None,
    before: Path | None = None,
    platforms: Sequence[str] = (),
) -> list[Path]:
    """Fetch wheels at the versions and hashes of the lock.

    Args:
        wanted: requirements with hashes, by name.
        folder: where to; may hold other wheels.
        python: of the machine that they are for ("3.12"), otherwise like this one.
        from_source: names of those that are published without a wheel, and pure Python: theirs are
            built here.
        wheelhouse: a folder of the published files, instead of the registry.
        before: a folder of an earlier time; if it was for the same list, its wheels are taken.
        platforms: tags of the machine, such as manylinux_2_28_x86_64; empty: those of this one.

    Returns:
        All wheels in the folder.

    Raises:
        InputError: they cannot be fetched.
    """
    text = f"# for Python {python}\n" + "".join(f"{wanted[name]}\n" for name in sorted(wanted))
    list_before = None if before is None else before / LIST
    if list_before and list_before.is_file() and list_before.read_text(encoding="utf-8") == text:
        for wheel in list_before.parent.glob("*.whl"):
            if not wheel.match(_OWN):
                shutil.copy2(wheel, folder)
    else:
        sources = wanted.keys() & set(from_source)
        place = [] if wheelhouse is None else ["--no-index", "--find-links", str(wheelhouse)]
        machine = ["--python-version", python, *(f"--platform={tag}" for tag in platforms)]
        ready = ["download", "--only-binary", ":all:", *machine, "--dest"]
        _pip([*ready, str(folder), *place], wanted, wanted.keys() - sources)
        _pip(["wheel", "--no-build-isolation", "--wheel-dir", str(folder), *place], wanted, sources)
    (folder / LIST).write_text(text, encoding="utf-8")
    return sorted(folder.glob("*.whl"))


def _pip(command: Sequence[str], wanted: Mapping[str, str], names: Collection[str]) -> None:
    """Run pip on the requirements of `names`, as they are, hashes checked."""
    if not names:
        return
    checked = ["--quiet", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as listed:
        listed.writelines(f"{wanted[name]}\n" for name in sorted(names))
        listed.flush()
        _run(
            ["pip", *command, *checked, "--requirement", listed.name],
            f"Could not get {', '.join(sorted(names))}. Try again with a network, or put the files "
            "that requirements.lock names into a folder and say wheelhouse=<folder>.",
        )


def _run(module: Sequence[str], remedy: str, folder: Path | None = None) -> None:
    """Run a Python module by itself."""
    done = subprocess.run(
        [sys.executable, "-m", *module], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise InputError(f"{remedy}\n  {module[0]}: {said[-1]}")
