"""Folders on a disk or in an object store: what files are there, and how a new one appears whole or not at all.

Everything goes through ``pyarrow.fs``: local paths, ``s3://``, ``gs://``, and what fsspec knows. A local file is
written beside its place and renamed; an object store shows an object only when all of it has arrived.
"""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.errors import ConfigError, DataError, StorageError
from limbert.inference.batch.paths import first_wildcard, glob_regex, visible_files, walk_files

_STALE_SECONDS = 3600  # seconds since the last write, after which nobody is at it any more
_NO_HARD_LINK_ERRNOS = (
    errno.EPERM,
    errno.ENOTSUP,
    errno.ENOSYS,
    errno.EXDEV,
)  # what file systems without hard links answer


@dataclass(frozen=True)
class FileInfo:
    """One file.

    Attributes:
        path: in its file system.
        bytes: its size.
        modified: seconds since 1970, 0.0 where the store does not say.
    """

    path: str
    bytes: int
    modified: float


@dataclass(frozen=True)
class StoragePath:
    """A file system and a path in it. Travels to other processes.

    Attributes:
        filesystem: a ``pyarrow.fs.FileSystem``.
        path: of a file, a folder or a pattern, as the file system writes it.
    """

    filesystem: Any
    path: str

    @classmethod
    def from_uri(cls, uri: str) -> "StoragePath":
        """The place of a local path or a URI; settings of a store stand behind ``?`` (``s3://b/x?region=...``).

        Raises:
            ConfigError: for a scheme that nothing here can open.
        """
        from pyarrow import ArrowException, fs

        scheme, found, rest = uri.partition("://")
        if not found:
            return cls(fs.LocalFileSystem(), str(Path(uri).expanduser().absolute()))
        path, _, query = rest.partition("?")
        root, _, inner = path.partition("/")
        known = f"{scheme}://{root}" + (f"?{query}" if query else "")
        if scheme in ("local", "file"):
            return cls(fs.LocalFileSystem(), "/" + rest.partition("/")[2])
        try:
            return cls(fs.FileSystem.from_uri(known)[0], f"{root}/{inner}")
        except (ArrowException, OSError, NotImplementedError) as error:
            return cls(*_with_fsspec(scheme, uri, error))

    @property
    def is_local(self) -> bool:
        """Whether it is a path on a disk that this machine sees."""
        return str(self.filesystem.type_name) == "local"

    def list_files(self, suffixes: tuple[str, ...]) -> list[FileInfo]:
        """The files that the path names: one, those of a folder with these suffixes, or those that fit a pattern.

        A folder is read with all folders in it, but for those with answers of a batch: who writes these into a folder
        of the input does not mean to read them. In a pattern ``*``, ``?`` and ``[...]`` stay within a folder and ``**``
        is any number of them. Files and folders whose names begin with a dot or an underscore are left out of folders
        and patterns; a pattern may spell the name of such a folder.

        Returns:
            In the order of their paths.

        Raises:
            DataError: nothing is there, or it cannot be read.
        """
        from pyarrow import fs

        parts, wild = self.path.split("/"), first_wildcard(self.path)
        root = self.path.rstrip("/") if wild is None else "/".join(parts[:wild])
        try:
            (info,) = self.filesystem.get_file_info([root or "/"])
            if info.type == fs.FileType.File:
                return [_file_info(info)]
            listed = []
            if info.type == fs.FileType.Directory:
                listed = self._list_folder(root or "/", recursive=wild is None or wild + 1 < len(parts))
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {_reason(error)}") from error
        if wild is None:
            meant = visible_files([info.path for info in listed], root)
            fitting = [info for info in listed if info.path in meant and info.path.lower().endswith(suffixes)]
        else:
            fits = glob_regex(self.path)
            fitting = [info for info in listed if fits.fullmatch(info.path)]
        chosen = [_file_info(info) for info in fitting if not info.base_name.startswith((".", "_"))]
        if not chosen:
            raise DataError(f"{self.path}: no such file, or none that fits; expected {', '.join(suffixes)}")
        return sorted(chosen, key=lambda found: found.path)

    def _list_folder(self, root: str, *, recursive: bool) -> list[Any]:
        """The files of a folder, with those of all folders in it where ``recursive``."""
        from pyarrow import fs

        if recursive and self.is_local:  # Arrow's own walk goes round in links without end
            return list(self.filesystem.get_file_info([*walk_files(root)]))
        infos = self.filesystem.get_file_info(fs.FileSelector(root, recursive=recursive))
        return [info for info in infos if info.type == fs.FileType.File]

    def file_names(self) -> set[str]:
        """The names of the files in this folder; empty where it is not there.

        Raises:
            StorageError: if it cannot be read.
        """
        from pyarrow import fs

        try:
            infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read: {_reason(error)}") from error
        return {info.base_name for info in infos if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes:
        """A file of this folder.

        Raises:
            StorageError: if it cannot be read.
        """
        try:
            with self.filesystem.open_input_file(f"{self.path}/{name}") as file:
                return bytes(file.read())
        except OSError as error:
            raise StorageError(f"{self.path}/{name} cannot be read: {_reason(error)}") from error

    def write(self, name: str, content: Any) -> None:
        """Put a file into this folder, replacing one of the same name: whole, or not at all.

        Args:
            name: of the file.
            content: bytes or an Arrow buffer.

        Raises:
            StorageError: if it cannot be written.
        """
        try:
            if self.is_local:
                _write_and_rename(Path(self.path), name, content)
                return
            stream = self.filesystem.open_output_stream(f"{self.path}/{name}")
            stream.write(content)  # closed only when all is in: closing is what makes an object appear
            stream.close()
        except OSError as error:
            raise StorageError(f"cannot write {self.path}/{name}: {_reason(error)}") from error

    def write_new(self, name: str, content: bytes) -> bool:
        """Put a file into this folder where none of this name is: whole, or not at all.

        Returns:
            False if there is one. On a disk with hard links only one of several that create it at a time is told True.
            Elsewhere all may be, and the last one's file stays: read it back later.

        Raises:
            StorageError: if it cannot be written.
        """
        if not self.is_local:
            if name in self.file_names():
                return False
            self.write(name, content)
            return True
        try:
            return _write_new(Path(self.path), name, content)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}/{name}: {_reason(error)}") from error

    def mkdir(self) -> None:
        """Make the folder where folders exist.

        Raises:
            StorageError: if it cannot be made.
        """
        try:
            if self.is_local:
                Path(self.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {_reason(error)}") from error

    def remove_stale_files(self) -> None:
        """Delete the halves that killed processes left. What was touched in the last hour another may be writing."""
        if not self.is_local:
            return
        for path in Path(self.path).glob(".*.new-*"):
            with suppress(FileNotFoundError):  # renamed or swept meanwhile
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


def _with_fsspec(scheme: str, address: str, cause: Exception) -> tuple[Any, str]:
    """The file system and the path in it, for schemes that Arrow itself does not know."""
    import fsspec.core
    from pyarrow import fs

    if scheme not in fsspec.available_protocols() or scheme in ("s3", "gs", "gcs", "hdfs"):
        raise ConfigError(f"cannot open {address}: {_reason(cause)}") from cause
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
    except (ImportError, ValueError) as error:
        raise ConfigError(f"cannot open {address}: {_reason(error)}") from error


def _write_and_rename(folder: Path, name: str, content: Any) -> None:
    with _temporary_file(folder, name, content) as fresh:
        os.replace(fresh, folder / name)


def _write_new(folder: Path, name: str, content: Any) -> bool:
    """Like `_replace`, but False where a file of this name is."""
    with _temporary_file(folder, name, content) as fresh:
        try:
            os.link(fresh, folder / name)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINK_ERRNOS:
                raise
            if (folder / name).exists():
                return False
            os.replace(fresh, folder / name)
        return True


@contextmanager
def _temporary_file(folder: Path, name: str, content: Any) -> Iterator[Path]:
    """A file on the disk beside its place; gone afterwards if it was not renamed."""
    fresh = folder / f".{name}.new-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with fresh.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)


def _file_info(info: Any) -> FileInfo:
    return FileInfo(info.path, int(info.size), info.mtime.timestamp() if info.mtime else 0.0)


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0]
