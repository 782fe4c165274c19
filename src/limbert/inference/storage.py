"""Folders and files on local disks and in object stores, for the input and output of batch prediction."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.core import has_magic, url_to_fs
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem
from pyarrow import ArrowException, fs

from limbert.errors import ConfigError, DataError, LimbertError, StorageError, first_line
from limbert.files import atomic_file, changed_settings

SETTINGS_NAME = "_limbert.json"  # in an output folder; readers of Parquet folders skip names with an underscore
INPUT_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
_STALE_SECONDS = 3600  # age at which a temporary file is taken for the remains of a killed process


class _LocalFiles(LocalFileSystem):
    """Follows links to folders too, and skips no folder that cannot be read, nor a link to a folder above itself."""

    def info(self, path: Any, **_: Any) -> dict[str, Any]:
        return super().info(os.fspath(path))  # of an entry of `os.scandir` fsspec describes the link

    def walk(self, path: str, maxdepth: int | None = None, on_error: Any = "raise", **options: Any) -> Iterator[Any]:
        return super().walk(path, maxdepth, on_error=on_error, **options)  # fsspec omits errors below the first level


@dataclass(frozen=True)
class Storage:
    """An fsspec file system and the path of a file, folder or pattern in it; can be pickled."""

    filesystem: Any
    path: str

    @classmethod
    def from_uri(cls, uri: str) -> "Storage":
        """Open a local path or a URI; options of the store follow a ``?`` (``s3://bucket/x?region=...``)."""
        scheme, separator, rest = uri.partition("://")
        if not separator or scheme in ("file", "local"):
            return cls(_LocalFiles(), _LocalFiles._strip_protocol(uri))
        path, question_mark, options = rest.partition("?")
        try:
            store, _ = fs.FileSystem.from_uri(f"{scheme}://{path.partition('/')[0]}{question_mark}{options}")
            return cls(ArrowFSWrapper(store), path.rstrip("/"))
        except (ArrowException, OSError, NotImplementedError) as error:
            reason = first_line(error)
        try:
            return cls(*url_to_fs(uri))
        except (ImportError, ValueError, TypeError) as error:
            raise ConfigError(f"cannot open {uri}: {reason}; {first_line(error)}") from error

    @property
    def is_local(self) -> bool:
        """Whether the files are on a disk of this machine."""
        return isinstance(self.filesystem, _LocalFiles)

    def list_files(self) -> dict[str, tuple[int, str]]:
        """The file at the path, the input files below the folder, or the files that match the pattern.

        ``*``, ``?`` and ``[...]`` match within one folder, ``**`` matches any number of folders. Links are followed.
        Names that start with a dot or an underscore are skipped unless the pattern spells them, and below a folder
        output folders are.

        Returns:
            Bytes and time of modification (empty where the store has none) by path, in the order of the paths.
        """
        found: dict[str, Any] = {}
        is_pattern = has_magic(self.path) and not self.filesystem.isfile(self.path)
        with raise_as(DataError, f"{self.path} cannot be read"), suppress(FileNotFoundError):
            find = self.filesystem.glob if is_pattern else self.filesystem.find
            found = find(self.path, detail=True, on_error="raise")
        spelled, is_folder = self.path.split("/"), not is_pattern and self.path not in found
        outputs = {os.path.dirname(path) for path in found if os.path.basename(path) == SETTINGS_NAME} - {self.path}

        def is_input(path: str) -> bool:
            if any(name.startswith((".", "_")) and name not in spelled for name in path.split("/")):
                return False
            in_output = any(path.startswith(f"{folder}/") for folder in outputs)
            return not is_folder or (path.lower().endswith(INPUT_SUFFIXES) and not in_output)

        chosen = sorted(path for path, info in found.items() if info["type"] == "file" and is_input(path))
        if not chosen:
            raise DataError(f"{self.path}: no such file, and no folder with {', '.join(INPUT_SUFFIXES)} files")
        return {path: (int(found[path]["size"]), str(found[path].get("mtime", ""))) for path in chosen}

    def file_names(self) -> set[str]:
        """The names of the files in this folder; empty if the folder does not exist."""
        self.filesystem.invalidate_cache()  # other processes write here
        with raise_as(StorageError, f"{self.path} cannot be read"), suppress(FileNotFoundError):
            return {os.path.basename(path) for path in self.filesystem.find(self.path, maxdepth=1, on_error="raise")}
        return set()

    def read(self, name: str) -> bytes:
        """The content of a file in this folder."""
        with raise_as(StorageError, f"{self.path}/{name} cannot be read"):
            return bytes(self.filesystem.cat_file(f"{self.path}/{name}"))

    def write(self, name: str, content: Any) -> None:
        """Write or replace a file (bytes or an Arrow buffer) atomically; the folder is made if it does not exist."""
        with raise_as(StorageError, f"cannot write {self.path}/{name}"):
            if self.is_local:
                os.makedirs(self.path, exist_ok=True)
                with atomic_file(f"{self.path}/{name}") as file:
                    file.buffer.write(content)
                return
            stream = self.filesystem.open(f"{self.path}/{name}", "wb")
            stream.write(content)
            stream.close()  # not in a `with`: closing after a failed write would publish half of the object

    def remove_stale_files(self) -> None:
        """Delete temporary files that killed processes left in this folder more than an hour ago."""
        for path in Path(self.path).glob(".*.new-*") if self.is_local else ():
            with suppress(FileNotFoundError):  # renamed or deleted by another process meanwhile
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


@contextmanager
def raise_as(error_type: type[LimbertError], message: str) -> Iterator[None]:
    """Turn errors of files and of Arrow into ``error_type``: the message and the reason, in one line."""
    try:
        yield
    except LimbertError:
        raise
    except (OSError, ValueError, ArrowException) as error:
        raise error_type(f"{message}: {getattr(error, 'strerror', None) or first_line(error)}") from error


def open_output(output: Storage, settings: dict[str, Any]) -> set[str]:
    """Start the output folder of a job, or continue the one with these settings; returns the names of its files.

    Raises:
        ConfigError: for a folder with other files, or that was started with other settings.
    """
    names = output.file_names()
    if names and SETTINGS_NAME not in names:
        raise ConfigError(f"output {output.path} is not empty and holds no batch prediction; choose another folder")
    text = json.dumps(settings, indent=1, ensure_ascii=False)
    if not names:
        output.write(SETTINGS_NAME, text.encode())
    output.remove_stale_files()
    try:
        old, new = dict(json.loads(output.read(SETTINGS_NAME))), json.loads(text)  # lists instead of tuples
    except (ValueError, TypeError):
        raise ConfigError(f"{output.path}/{SETTINGS_NAME} is no JSON object; choose another folder") from None
    changes = [*changed_settings(old, new).values()]
    if changes:
        more = f" and {len(changes) - 3} more" * (len(changes) > 3)
        raise ConfigError(
            f"output {output.path} was started with other settings ({', '.join(changes[:3])}{more}); "
            "use the same settings again, or choose another folder"
        )
    return names
