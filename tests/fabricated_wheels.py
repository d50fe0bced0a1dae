"""Empty packages, in the place of the real wheels of a bundle."""

import base64
import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

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


def lock_with_stubs(lock: Path, stubs: Mapping[str, Path]) -> str:
    """The text of a lock, with the hashes of stubs in the place of those of real packages."""
    text = lock.read_text(encoding="utf-8")
    for name, stub in stubs.items():
        digest = hashlib.sha256(stub.read_bytes()).hexdigest()
        entry = rf"(^{re.escape(name)}==[^\\]*\\\n)(?:    --hash=.*\n)+"
        text, found = re.subn(entry, rf"\1    --hash=sha256:{digest}\n", text, flags=re.MULTILINE)
        assert found == 1, name
    return text
