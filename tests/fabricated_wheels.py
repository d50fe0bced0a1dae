"""Packages with nothing in them, in the place of those that a bundle carries."""

import base64
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from rsna_bcd.bundling.lock import Locked

_SETUP = "from setuptools import setup; setup(name={!r}, version={!r}, py_modules=[{!r}])\n"


def stub_wheel(folder: Path, name: str, version: str) -> Path:
    """Write a wheel with one empty module."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    files = {
        f"{module}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {k: hashlib.sha256(v.encode()).digest() for k, v in files.items()}
    record = [
        f"{k},sha256={base64.urlsafe_b64encode(d).decode().rstrip('=')},{len(files[k])}\n"
        for k, d in digests.items()
    ]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"])
    wheel = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return wheel


def stub_source(folder: Path, name: str, version: str) -> Path:
    """Write a source distribution that setuptools builds."""
    module = name.replace("-", "_")
    stem = f"{name}-{version}"
    source = folder / f"{stem}.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        for path, content in (
            (f"{stem}/setup.py", _SETUP.format(name, version, module)),
            (f"{stem}/{module}.py", ""),
            (f"{stem}/PKG-INFO", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    return source


def written_lock(lock: Iterable[Locked], stubs: Mapping[str, Path]) -> str:
    """A lock as `uv` writes it, in which some packages are stubs."""
    text = ""
    for entry in lock:
        stub = stubs.get(entry.name)
        digest = hashlib.sha256(stub.read_bytes()).hexdigest() if stub else ""
        hashes = (f"sha256:{digest}",) if stub else entry.hashes
        text += f"{entry.name}=={entry.version}" + (f" ; {entry.marker}" if entry.marker else "")
        text += "".join(f" \\\n    --hash={value}" for value in hashes) + "\n    # via\n"
        text += "".join(f"    #   {parent}\n" for parent in sorted(entry.wanted_by))
    return text
