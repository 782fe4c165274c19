"""Folders and files on local disks and in object stores, for the input and output of batch prediction."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbert.errors import ConfigError, DataError, LimbertError, StorageError, first_line
from limbert.files import atomic_file

SETTINGS_NAME = "_limbert.json"  # in an output folder; readers of Parquet folders skip names with an underscore
INPUT_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
_STALE_SECONDS = 3600  # age at which a temporary file is taken for the remains of a killed process


@dataclass(frozen=True)
class Storage:
    """An fsspec file system and the path of a file, folder or pattern in it; can be pickled."""

    filesystem: Any
    path: str

    @classmethod
    def from_uri(cls, uri: str) -> "Storage":
        """Open a local path or a URI; options of the store follow a ``?`` (``s3://bucket/x?region=...``)."""
        from fsspec.core import url_to_fs
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow import ArrowException, fs

        scheme, separator, rest = uri.partition("://")
        path, question_mark, options = rest.partition("?")
        reason = ""
        if separator and scheme not in ("file", "local"):
            try:
                store, _ = fs.FileSystem.from_uri(f"{scheme}://{path.partition('/')[0]}{question_mark}{options}")
                return cls(ArrowFSWrapper(store), path.rstrip("/"))
            except (ArrowException, OSError, NotImplementedError) as error:
                reason = f"{first_line(error)}; "
        try:
            return cls(*url_to_fs(uri))
        except (ImportError, ValueError, TypeError) as error:
            raise ConfigError(f"cannot open {uri}: {reason}{first_line(error)}") from error

    @property
    def is_local(self) -> bool:
        """Whether the files are on a disk of this machine."""
        return "file" in self.filesystem.protocol

    def list_files(self) -> dict[str, tuple[int, str]]:
        """The file at the path, the input files below the folder, or the files that match the pattern.

        ``*``, ``?`` and ``[...]`` match within one folder, ``**`` matches any number of folders. Names that start with
        a dot or an underscore are skipped unless the pattern spells them. Below a folder, output folders are skipped.

        Returns:
            Bytes and time of modification (empty where the store has none) by path, in the order of the paths.
        """
        from fsspec.core import has_magic

        files, parts, is_folder = self.filesystem, self.path.split("/"), not has_magic(self.path)
        found: dict[str, Any] = {}
        with raise_as(DataError, f"{self.path} cannot be read"), suppress(FileNotFoundError):
            if files.isfile(self.path):
                is_folder, found = False, {self.path: files.info(self.path)}
            else:
                found = (files.find if is_folder else files.glob)(self.path, detail=True, on_error="raise")
            for path in [path for path, info in found.items() if info.get("islink")]:  # fsspec describes the link
                if files.isfile(path):
                    found[path] = files.info(os.path.realpath(path))
                elif files.isdir(path):
                    raise DataError(f"{path} is a link to a folder; choose its target, or files by a pattern: */*.csv")
        outputs = {os.path.dirname(path) for path in found if os.path.basename(path) == SETTINGS_NAME} - {self.path}

        def is_input(path: str) -> bool:
            if any(name.startswith((".", "_")) and name not in parts for name in path.split("/")):
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
                Path(self.path).mkdir(parents=True, exist_ok=True)
                with atomic_file(Path(self.path) / name) as file:
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
    from pyarrow import ArrowException

    try:
        yield
    except (OSError, ValueError, ArrowException) as error:
        if isinstance(error, LimbertError):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise error_type(f"{message}: {str(reason).splitlines()[0]}") from error


def open_output(output: Storage, settings: dict[str, Any]) -> set[str]:
    """Start the output folder of a job, or continue the one with these settings; returns the names of its files."""
    names = output.file_names()
    if names and SETTINGS_NAME not in names:
        raise ConfigError(f"output {output.path} is not empty and holds no batch prediction; choose another folder")
    if not names:
        output.write(SETTINGS_NAME, json.dumps(settings, indent=1, ensure_ascii=False).encode())
    check_settings(output, settings)
    output.remove_stale_files()
    return names


def check_settings(output: Storage, settings: dict[str, Any]) -> None:
    """Refuse an output folder that was started with other settings."""
    settings = json.loads(json.dumps(settings))  # as they are read: lists instead of tuples
    try:
        old = dict(json.loads(output.read(SETTINGS_NAME)))
    except (ValueError, TypeError):
        raise ConfigError(f"{output.path}/{SETTINGS_NAME} is no JSON object; choose another folder") from None
    changes = [name for name in {**old, **settings} if old.get(name) != settings.get(name)]
    if changes:
        texts = [f"{name} {json.dumps(old.get(name))} -> {json.dumps(settings.get(name))}" for name in changes[:3]]
        more = f" and {len(changes) - 3} more" * (len(changes) > 3)
        raise ConfigError(
            f"output {output.path} was started with other settings ({', '.join(texts)}{more}); "
            "use the same settings again, or choose another folder"
        )
