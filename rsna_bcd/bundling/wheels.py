"""Wheels for a machine without a network: this package's own, and those that it lacks."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rsna_bcd.errors import InputError

_OWN = "rsna_bcd-*.whl"
LIST = "requirements.txt"  # beside the wheels: what they were fetched for


def build_own_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of this package, whose `pyproject.toml` is in `source`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    _run(
        ["hatchling", "build", "--target", "wheel", "--directory", str(folder.resolve())],
        f"The wheel of {source} could not be built. `make env` brings what that needs.",
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
        wanted: requirements with hashes, by name (`lock.as_requirements`).
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
        InputError: they cannot be had.
    """
    text = f"# for Python {python}\n" + "".join(f"{wanted[name]}\n" for name in sorted(wanted))
    if before is not None and _reads(before / LIST) == text:
        for wheel in before.glob("*.whl"):
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


def _reads(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


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


def _run(module: Sequence[str], remedy: str, folder: Path | None = None) -> str:
    """Run a Python module by itself; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", *module], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        raise InputError(f"{remedy}\n  {module[0]}: {said[-1]}")
    return done.stdout
