"""The folder of an unfinished run: its settings, which another run must not have, and its lock."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limbert.core.config import CorpusConfig, DataConfig, TrainConfig
from limbert.errors import ConfigError, StorageError
from limbert.files import changed_settings, locked
from limbert.model.checkpoint import read_record, write_json
from limbert.train.distributed import all_gather_object, run_on_main

_SETTINGS_NAME = "settings.json"
_IGNORED = ("output", "checkpoint_every", "tensorboard", "device")  # settings that do not change the result
_LOCATIONS = ("data", "train", "dev", "augmented", "corpus", "fingerprints")  # replaced by the fingerprint of the data


def run_settings(
    config: TrainConfig,
    recipe: Mapping[str, Any],
    data_config: DataConfig | CorpusConfig,
    *,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """Everything that decides a run's result, as JSON values; ``fingerprint`` is that of the data, if it is known."""
    train = {name: value for name, value in asdict(config).items() if name not in _IGNORED}
    source = "data" if isinstance(data_config, DataConfig) else "corpus"
    values = {"train": train, "recipe": dict(recipe), source: asdict(data_config), "content": {"data": fingerprint}}
    parsed: dict[str, Any] = json.loads(json.dumps(values))  # tuples become lists, as when read back
    return parsed


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """How the settings of two runs differ, ``train.seed 1 -> 2, ...``; empty for the same run.

    Where both fingerprints of the data are known they count instead of its location; the name of a recipe with equal
    values does not count. A setting that one of them lacks is None.
    """
    changed, content = changed_settings(old, new), "content.data"
    known = [settings.get("content", {}).get("data") for settings in (old, new)]
    skipped = {content, *(["train.recipe"] if old.get("recipe") == new.get("recipe") else [])}
    if None not in known:
        skipped |= {f"{part}.{name}" for part in ("data", "corpus") for name in _LOCATIONS}
    shown = [text for name, text in changed.items() if name not in skipped]
    return ", ".join(shown or ["other data"] * (content in changed and None not in known))


def is_run_finished(output: str | Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> bool:
    """Whether the output holds the result of a run with these settings.

    ConfigError if it holds something else, unless ``overwrite`` allows another trained model to be replaced.
    """
    output = Path(output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    record = read_record(output) if output.is_dir() else {}
    if not record:
        raise ConfigError(f"output {output} exists and is not a model trained by Limbert; choose another folder")
    changed = "" if overwrite else describe_differences(record.get("settings", {}), settings)
    if changed:
        raise ConfigError(f"output {output} has other settings ({changed}); choose another folder or --overwrite")
    return not overwrite


@contextmanager
def run_folder(path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> Iterator[None]:
    """Collective: inside, a run's work folder exists with its settings, and other runs cannot write there.

    The lock ends with the block, or with this process in whatever way. What a killed run left half-written is deleted
    at the beginning, a folder without results at the end. ``overwrite`` deletes an unfinished run with other settings.

    Raises:
        ConfigError: for such a run, another run that is writing there, or another process with other settings.
        StorageError: if the folder cannot be read or written.
    """
    first, *others = all_gather_object(dict(settings))
    for index, other in enumerate(others, start=1):
        if changed := describe_differences(first, other):
            raise ConfigError(
                f"process {index} has other settings or data than process 0 ({changed}); "
                "start all processes of a run with the same command and the same data"
            )
    with ExitStack() as stack:
        run_on_main(lambda: _open(path, settings, stack, overwrite=overwrite))
        yield


def _open(path: Path, settings: Mapping[str, Any], stack: ExitStack, *, overwrite: bool) -> None:
    """Prepare the folder and lock it until the stack ends."""
    file = path / _SETTINGS_NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else settings
        changed = describe_differences(found, settings)
        if changed and not overwrite:
            raise ConfigError(
                f"{path} holds an unfinished run with other settings ({changed}); finish it with its own "
                "command and data, delete the folder, choose another output, or use --overwrite"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(path.with_name(path.name + ".lock")))  # beside the folder, which comes and goes
        stack.callback(_delete_without_results, path)
        if changed:
            shutil.rmtree(path, ignore_errors=True)
        path.mkdir(exist_ok=True)
        for half_written in [*path.glob("*/.*.new-*"), *path.glob("*/.*.old-*")]:
            shutil.rmtree(half_written, ignore_errors=True)
        if not file.exists():
            write_json(file.with_suffix(".new"), settings)
            file.with_suffix(".new").rename(file)
    except TimeoutError:
        raise ConfigError(f"another run is writing to {path}; wait until it ends, or choose another") from None
    except json.JSONDecodeError as error:
        raise StorageError(f"cannot read {file}: {error}") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _delete_without_results(path: Path) -> None:
    if path.is_dir() and [entry.name for entry in path.iterdir()] == [_SETTINGS_NAME]:
        shutil.rmtree(path, ignore_errors=True)
