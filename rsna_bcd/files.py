"""Reading files that lie on disk or in a zip archive.

A path may lead into an archive: `rsna.zip/train_images/1/2.dcm` is the member
`train_images/1/2.dcm` of `rsna.zip`. Ordinary paths cost nothing more: an archive is looked for
only where the operating system says that a part of the path is no folder.
"""

import os
import zipfile
import zlib
from collections import defaultdict
from functools import cache
from pathlib import Path

from rsna_bcd.errors import InputError

_TOP = "."


class ArchiveError(InputError):
    """An archive, or one of its members, that cannot be read."""


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ArchiveError: the archive or this member of it is damaged, encrypted, or compressed in a way
            that Python does not know.
    """
    try:
        return path.read_bytes()
    except NotADirectoryError:
        archive, member = _locate(path)
        return archive.read(member)


def is_file(path: Path) -> bool:
    """Whether there is such a file on disk or in an archive."""
    if path.is_file():
        return True
    try:
        archive, member = _locate(path)
    except NotADirectoryError:
        return False
    return member in archive.members


def list_names(folder: Path) -> frozenset[str]:
    """List the names in a folder; none if there is no such folder.

    Raises:
        OSError: the folder cannot be listed.
        ArchiveError: the archive is damaged.
    """
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 - names are all that is needed
    except FileNotFoundError:
        return frozenset()
    except NotADirectoryError:
        try:
            archive, member = _locate(folder)
        except NotADirectoryError:
            return frozenset()
        return archive.folders.get(member, frozenset())


def version_stamp(path: Path) -> str:
    """Size and time of last change of a file, or size and checksum of a member of an archive.

    Raises:
        OSError: there is no such file.
        ArchiveError: the archive is damaged.
    """
    try:
        status = path.stat()
    except NotADirectoryError:
        archive, member = _locate(path)
        info = archive.member(member)
        return f"{info.file_size} crc32 {info.CRC:08x}"
    return f"{status.st_size} {status.st_mtime_ns}"


class _Archive:
    """An open zip archive.

    Attributes:
        members: by path in the archive.
        folders: names of files and folders in each folder; the topmost one is `.`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            raise ArchiveError(
                f"{path} is no zip archive, or was cut short ({error}). Download it again."
            ) from None
        self._descriptor = os.open(path, os.O_RDONLY)
        self.members: dict[str, zipfile.ZipInfo] = {}
        names: defaultdict[str, set[str]] = defaultdict(set)
        for info in infos:
            # Some programs write backslashes, a leading "./", or entries for folders.
            name = info.filename.replace("\\", "/").removeprefix("./").strip("/")
            if not info.is_dir():
                self.members[name] = info
            while name:
                parent, _, last = name.rpartition("/")
                if last in names[parent or _TOP]:
                    break  # and so are the folders above
                names[parent or _TOP].add(last)
                name = parent
        self.folders = {folder: frozenset(of_folder) for folder, of_folder in names.items()}

    def member(self, name: str) -> zipfile.ZipInfo:
        """Find a member.

        Raises:
            FileNotFoundError: there is none.
        """
        if name not in self.members:
            raise FileNotFoundError(2, "No such file in the archive", str(self.path / name))
        return self.members[name]

    def read(self, name: str) -> bytes:
        """Read and decompress a member, and compare its size and checksum.

        `zipfile` decompresses in small pieces, which takes four times as long. Reading at a
        position leaves no state behind: threads and forked processes may share the archive.

        Raises:
            ArchiveError: the member is damaged, encrypted or compressed in another way.
        """
        info = self.member(name)
        encrypted, method = info.flag_bits & 1, info.compress_type
        if encrypted or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            reason = "encrypted" if encrypted else f"compression method {method}"
            raise ArchiveError(
                f"cannot be read from {self.path.name} ({reason}). Unpack it with another program"
            )
        # APPNOTE.TXT 4.3.7: 30 bytes, the last four of which are the lengths of what follows them.
        header = os.pread(self._descriptor, 30, info.header_offset)
        skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        start = info.header_offset + 30 + skipped
        content = os.pread(self._descriptor, info.compress_size, start)
        try:
            if method == zipfile.ZIP_DEFLATED:
                content = zlib.decompressobj(-15).decompress(content, info.file_size + 1)
        except zlib.error:
            content = b""
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise ArchiveError(f"damaged in the archive. Download {self.path.name} again")
        return content


def _locate(path: Path) -> tuple[_Archive, str]:
    """Find the archive that a path leads into, and the path within it.

    Raises:
        NotADirectoryError: no part of the path is an archive.
        ArchiveError: the archive is damaged.
    """
    for parent in (path, *path.parents):
        if parent.is_file():
            if parent.suffix.lower() != ".zip" and not zipfile.is_zipfile(parent):
                break
            member = path.relative_to(parent).as_posix()
            changed = parent.stat().st_mtime_ns
            return _open_archive(parent, changed), member
    raise NotADirectoryError(20, "Not a folder and not in an archive", str(path))


@cache
def _open_archive(path: Path, changed: int) -> _Archive:
    """Open an archive once; an archive that was replaced is opened again."""
    return _Archive(path)
