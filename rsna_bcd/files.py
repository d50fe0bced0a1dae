"""Read files on disk or in a zip archive; write, lock and hash files.

A path may lead into an archive: `rsna.zip/train_images/1/2.dcm` is the member
`train_images/1/2.dcm` of `rsna.zip`. Ordinary paths cost nothing more: an archive is looked for
only where the operating system says that a part of the path is no folder.
"""

import fcntl
import hashlib
import json
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from rsna_bcd.errors import InputError, StorageError

UNFINISHED = ".part"  # suffix of a file that is being written
_TOP = "."


@contextmanager
def atomic_file(
    path: Path, mode: str = "wb", *, sync: bool = False, **options: Any
) -> Iterator[Any]:
    """Open a file that takes the place of `path` once it is written without an error.

    Its name is `<name>.part` until then: one process writes it, and one that resumes after
    `kill -9` overwrites the leftover.

    Args:
        path: of the file; its folder is made.
        mode: to write in.
        sync: wait until the disk has it, so that a power cut cannot leave an empty file.
        options: of `Path.open`.

    Raises:
        OSError: it cannot be written; an earlier file is still there.
    """
    name = f"{path.name}{UNFINISHED}"
    with _replacing(path, name) as unfinished, unfinished.open(mode, **options) as file:
        yield file
        if sync:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def _replacing(path: Path, name: str) -> Iterator[Path]:
    """A path beside `path`, of another name, that is renamed to it unless an error occurs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(name)
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: bytes | str) -> None:
    """Write a small file (text as UTF-8) and its folder; it is always the old or the new one.

    Several processes, also on several machines, may write it at once: the last one wins.

    Raises:
        StorageError: it cannot be written.
    """
    if isinstance(content, str):
        content = content.encode()
    try:
        name = f"{path.name}.{os.uname().nodename}-{os.getpid()}{UNFINISHED}"
        with _replacing(path, name) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        raise storage_error(path, error) from error


def write_csv(frame: Any, csv: Path) -> None:
    """Write a pandas table without its index, as `write_file`. Floats keep all their digits."""
    write_file(csv, frame.to_csv(index=False))


def read_json_lines(
    file: Path, read_entry: Callable[[Any], None], *, cut_damage: bool = False
) -> bool:
    """Read a file of JSON lines, to which lines are appended, from the first to the last.

    An incomplete last line, left by a process that was killed, is cut off.

    Args:
        file: that exists.
        read_entry: gets each entry; a ValueError, KeyError or TypeError means a damaged line.
        cut_damage: cut the file off at the first damaged line.

    Returns:
        Whether a damaged line was cut off.

    Raises:
        InputError: a line is damaged, and not `cut_damage`.
    """
    content, good, is_damaged = file.read_bytes(), 0, False
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        try:
            read_entry(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            if not cut_damage:
                raise InputError(
                    f"{file} is damaged ({error}). Start from scratch with overwrite=true."
                ) from error
            is_damaged = True
            break
        good += len(line)
    if good < len(content):
        os.truncate(file, good)
    return is_damaged


def storage_error(path: Path, error: OSError) -> StorageError:
    """The exception to raise when a file cannot be written."""
    return StorageError(
        f"{path} cannot be written: {error.strerror}. Make room or choose another "
        "paths.output=..., and run again: finished work is kept."
    )


@contextmanager
def locked(folder: Path, remedy: str, name: str = "lock") -> Iterator[int]:
    """Keep other processes out of a folder until the block or this process ends, however it ends.

    The folder is made if it is absent. The file that is locked stays: if it were deleted, one
    process could hold the deleted file and another its successor.

    Yields:
        A descriptor of the file, open for appending.

    Raises:
        InputError: another process has it; `remedy` ends the sentence "Wait for it, or ...".
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Open for writing, as else NFS locks it on this machine only.
    handle = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another process is at work on {folder}. Wait for it, or {remedy}."
            ) from None
        yield handle
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(folder: Path, pattern: str) -> str:
    """SHA-256 of the names and contents of the files below a folder that match a pattern."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob(pattern)):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()


def parts_sha256(*parts: bytes) -> str:
    """SHA-256 of several parts, in this order, each followed by a zero byte."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part + b"\0")
    return digest.hexdigest()


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


def version_stamp(path: Path, name: str) -> str:
    """Identify a version of a file, to recognise one that was replaced.

    Args:
        path: of the file.
        name: its path in the folder of images, wherever that folder is.

    Returns:
        `name`, then size and time of last change, or size and checksum of a member of an archive.

    Raises:
        OSError: there is no such file.
        ArchiveError: the archive is damaged.
    """
    try:
        status = path.stat()
    except NotADirectoryError:
        archive, member = _locate(path)
        info = archive.member(member)
        return f"{name} {info.file_size} crc32 {info.CRC:08x}"
    return f"{name} {status.st_size} {status.st_mtime_ns}"


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
