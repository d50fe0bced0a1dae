"""What `requirements.lock` says: each package's version and hashes, and who asked for it."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

from rsna_bcd.errors import InputError

_ENTRY = re.compile(r"([\w.-]+)==([^\s;\\]+)(?:\s*;\s*([^\\]+))?")
_VIA = re.compile(r"\s+#\s+(?:via\s+)?([\w.-]+)")
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Locked:
    """One entry of the lock.

    Attributes:
        name: of the package.
        version: the one and only.
        marker: for which Pythons and machines; "" for all.
        hashes: of its files, `sha256:...`.
        wanted_by: names of the packages that require it.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    wanted_by: frozenset[str]

    def fits(self, python: str) -> bool:
        """Whether it is for Python `python` ("3.12"), on a machine like this one."""
        full = {"python_version": python, "python_full_version": f"{python}.0"}
        return not self.marker or Marker(self.marker).evaluate({**full, "extra": ""})


def read_lock(file: Path) -> list[Locked]:
    """Read a lock as `uv pip compile --generate-hashes` writes it, annotations included.

    Raises:
        InputError: no such file, or it lacks hashes or annotations.
    """
    if not file.is_file():
        raise InputError(f"There is no {file}. Run in the source tree, or say lock=...")
    text = file.read_text(encoding="utf-8")
    locked = []
    for block in re.split(r"^(?=\w)", text, flags=re.MULTILINE):
        entry = _ENTRY.match(block)
        if entry is None:
            continue
        name, version, marker = entry.groups(default="")
        hashes = tuple(re.findall(r"--hash=(\S+)", block))
        lines = [line for line in block.splitlines() if not line.rstrip().endswith("# via")]
        wanted_by = {m[1] for line in lines if (m := _VIA.match(line))}
        if not hashes or not wanted_by:
            raise InputError(
                f"{file}: {name} has no hash, or no comment on who wants it. Compile it with "
                "`uv pip compile --generate-hashes`, as `make lock` does."
            )
        names = frozenset(map(canonicalize_name, wanted_by))
        locked.append(Locked(canonicalize_name(name), version, marker.strip(), hashes, names))
    return locked


def requirements_of(project: Path) -> set[str]:
    """Names of the packages that a `pyproject.toml` requires, those of extras left out."""
    required = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
    return {canonicalize_name(m[0]) for line in required if (m := _NAME.match(line))}


def closure(lock: Iterable[Locked], roots: Iterable[str]) -> set[str]:
    """Names of `roots` and of all that they require, directly or not.

    Raises:
        InputError: a root is not in the lock.
    """
    required: dict[str, set[str]] = {}
    for entry in lock:
        required.setdefault(entry.name, set())
        for parent in entry.wanted_by:
            required.setdefault(parent, set()).add(entry.name)
    found: set[str] = set()
    ahead: set[str] = {canonicalize_name(root) for root in roots}
    if unknown := ahead - required.keys():
        raise InputError(f"requirements.lock has no {', '.join(sorted(unknown))}. Mend the list.")
    while ahead:
        found |= ahead
        ahead = set().union(*(required[name] for name in ahead)) - found
    return found


def as_requirements(lock: Iterable[Locked], names: set[str], python: str) -> Mapping[str, str]:
    """Entries for one Python as pip and uv read them, hashes included, by name.

    Args:
        lock: from `read_lock`.
        names: whose entries.
        python: such as "3.12".

    Raises:
        InputError: the lock is not for this Python.
    """
    lines = {
        entry.name: f"{entry.name}=={entry.version}"
        + "".join(f" \\\n    --hash={value}" for value in entry.hashes)
        for entry in lock
        if entry.name in names and entry.fits(python)
    }
    if not lines and names:
        raise InputError(f"requirements.lock has nothing for python={python}.")
    return lines
