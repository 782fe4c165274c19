"""Folders and files on local disks and in object stores, for the input and output of batch prediction."""

import json
import os
import re
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
    """A ``pyarrow.fs`` file system and the path of a file, folder or pattern in it; can be pickled."""

    filesystem: Any
    path: str

    @classmethod
    def from_uri(cls, uri: str) -> "Storage":
        """Open a local path or a URI; options of the store follow a ``?`` (``s3://bucket/x?region=...``)."""
        import fsspec.core
        from pyarrow import ArrowException, fs

        scheme, separator, rest = uri.partition("://")
        if not separator:
            return cls(fs.LocalFileSystem(), str(Path(uri).expanduser().absolute()))
        if scheme in ("local", "file"):
            return cls(fs.LocalFileSystem(), "/" + rest.partition("/")[2])
        path, _, options = rest.partition("?")
        bucket = path.partition("/")[0]
        try:
            return cls(fs.FileSystem.from_uri(f"{scheme}://{bucket}" + f"?{options}" * bool(options))[0], path)
        except (ArrowException, OSError, NotImplementedError) as arrow_error:
            try:
                filesystem, path = fsspec.core.url_to_fs(uri)
            except (ImportError, ValueError, TypeError) as error:
                raise ConfigError(f"cannot open {uri}: {first_line(arrow_error)}; {first_line(error)}") from error
            return cls(fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path)

    @property
    def is_local(self) -> bool:
        """Whether the files are on a disk of this machine."""
        return str(self.filesystem.type_name) == "local"

    def list_files(self) -> list[Any]:
        """The file at the path, the input files below the folder, or the files that match the pattern.

        ``*``, ``?`` and ``[...]`` match within one folder, ``**`` matches any number of folders. Names that start with
        a dot or an underscore are skipped unless the pattern spells them. Below a folder, output folders are skipped.

        Returns:
            ``pyarrow.fs.FileInfo`` in the order of their paths.
        """
        from fsspec.utils import glob_translate
        from pyarrow import fs

        parts = self.path.rstrip("/").split("/")
        wildcard = next((index for index, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
        is_folder, root = wildcard == len(parts), "/".join(parts[:wildcard])
        with raise_as(DataError, f"{self.path} cannot be read"):
            matches = re.compile(glob_translate("/".join(parts + ["**", "*"] * is_folder))).match
            (info,) = self.filesystem.get_file_info([root or "/"])
            if info.type == fs.FileType.File:
                return [info]
            recursive, listed = is_folder or wildcard + 1 < len(parts), []
            if info.type == fs.FileType.Directory and self.is_local:
                listed = self.filesystem.get_file_info([*_walk(root or "/", recursive=recursive)])
            elif info.type == fs.FileType.Directory:
                listed = self.filesystem.get_file_info(fs.FileSelector(root, recursive=recursive))
        infos = {f"{'/' * root.startswith('/')}{info.path.lstrip('/')}": info for info in listed if info.is_file}
        outputs = {os.path.dirname(path) for path in infos if os.path.basename(path) == SETTINGS_NAME} - {root}

        def is_input(path: str) -> bool:
            names = path.removeprefix(root).strip("/").split("/")
            if not matches(path) or any(name.startswith((".", "_")) and name not in parts for name in names):
                return False
            in_output = any(path.startswith(f"{folder}/") for folder in outputs)
            return not is_folder or (path.lower().endswith(INPUT_SUFFIXES) and not in_output)

        chosen = [info for path, info in sorted(infos.items()) if is_input(path)]
        if not chosen:
            raise DataError(f"{self.path}: no such file, and no folder with {', '.join(INPUT_SUFFIXES)} files")
        return chosen

    def file_names(self) -> set[str]:
        """The names of the files in this folder; empty if the folder does not exist."""
        from pyarrow import fs

        with raise_as(StorageError, f"{self.path} cannot be read"):
            infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return {info.base_name for info in infos if info.is_file}

    def read(self, name: str) -> bytes:
        """The content of a file in this folder."""
        path = f"{self.path}/{name}"
        with raise_as(StorageError, f"{path} cannot be read"), self.filesystem.open_input_file(path) as file:
            return bytes(file.read())

    def write(self, name: str, content: Any) -> None:
        """Write or replace a file in this folder atomically; the folder is made if it does not exist.

        Args:
            name: of the file.
            content: bytes or an Arrow buffer.
        """
        with raise_as(StorageError, f"cannot write {self.path}/{name}"):
            if self.is_local:
                Path(self.path).mkdir(parents=True, exist_ok=True)
                with atomic_file(Path(self.path) / name) as file:
                    file.buffer.write(content)
                return
            stream = self.filesystem.open_output_stream(f"{self.path}/{name}")
            stream.write(content)
            stream.close()  # not in a `with`: closing after a failed write would publish half of the object

    def remove_stale_files(self) -> None:
        """Delete temporary files that killed processes left in this folder more than an hour ago."""
        for path in Path(self.path).glob(".*.new-*") if self.is_local else ():
            with suppress(FileNotFoundError):  # renamed or deleted by another process meanwhile
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()


def _walk(root: str, *, recursive: bool) -> Iterator[str]:
    """Paths of the files in a local folder; links are followed, but each folder is listed once."""

    def fail(error: OSError) -> None:
        raise error

    listed = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        yield from (os.path.join(folder, name) for name in names if real not in listed)
        subfolders[:] = sorted(subfolders) if recursive and real not in listed else []
        listed.add(real)


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
    """Start the output folder of a job, or continue the one that has these settings.

    Returns:
        The names of the files in it.
    """
    names = output.file_names()
    if names and SETTINGS_NAME not in names:
        raise ConfigError(f"output {output.path} is not empty and holds no batch prediction; choose another folder")
    content = json.dumps(settings, indent=1, ensure_ascii=False).encode()
    if not names:
        output.write(SETTINGS_NAME, content)
    elif settings["skip_bad_rows"] and _read_settings(output) == settings | {"skip_bad_rows": False}:
        output.write(SETTINGS_NAME, content)  # finished shards had no bad rows
    check_settings(output, settings)
    output.remove_stale_files()
    return names


def check_settings(output: Storage, settings: dict[str, Any]) -> None:
    """Refuse an output folder that was started with other settings."""
    old = _read_settings(output)
    changes = [name for name in {**old, **settings} if old.get(name) != settings.get(name)]
    if changes:
        texts = [f"{name} {json.dumps(old.get(name))} -> {json.dumps(settings.get(name))}" for name in changes]
        if "sources" in changes:
            before, now = old.get("sources", {}), settings["sources"]
            paths = [path for path in {**before, **now} if before.get(path) != now.get(path)]
            texts[changes.index("sources")] = f"input {paths[0]}" + f" and {len(paths) - 1} more" * (len(paths) > 1)
        raise ConfigError(
            f"output {output.path} was started with other settings ({', '.join(texts)}); "
            "use the same settings again, or choose another folder"
        )


def _read_settings(output: Storage) -> dict[str, Any]:
    try:
        return dict(json.loads(output.read(SETTINGS_NAME)))
    except (ValueError, TypeError):
        raise ConfigError(f"{output.path}/{SETTINGS_NAME} is no JSON object; choose another folder") from None
