"""Whether two runs are the same one: their settings compared, and what the names in these stand for."""

import json
from typing import Any

from limbert.errors import ConfigError
from limbert.train.distributed import Processes

# Names of data and models in the settings, and what in "content" each stands for: equal content may lie elsewhere.
_STAND_FOR = {
    ("train", "model"): {"model_files"},
    ("data", "data"): {"training_rows", "development_rows"},
    ("data", "train"): {"training_rows"},
    ("data", "dev"): {"development_rows"},
    ("data", "augmented"): {"augmented_rows"},
    ("corpus", "corpus"): {"corpus_text"},
    ("corpus", "dev"): {"development_text"},
}


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs in the settings of two runs, for people; empty where they are the same run.

    Settings differ as ``name old -> new``, content as ``other training rows``. Where the content is known and equal its
    name does not count; where either is not known (a run of an older version, a model on the hub) only the name does.

    Args:
        old, new: as `workspace.settings_of` gives them.
    """
    before, after = old.get("content") or {}, new.get("content") or {}
    known = [name for name in after if before.get(name) is not None and after[name] is not None]
    equal = {name for name in known if before[name] == after[name]}
    skipped = {name for name, content in _STAND_FOR.items() if content <= equal}
    if old.get("recipe") == new.get("recipe"):
        skipped.add(("train", "recipe"))  # the name of the same values
    named = _changed(_without(old, skipped), _without(new, skipped))
    if _changed(_without(old, {*_STAND_FOR} | skipped), _without(new, {*_STAND_FOR} | skipped)):
        return named  # such as a seed, by which rows are chosen: then other content says nothing more
    return ", ".join([named] * bool(named) + [f"other {name.replace('_', ' ')}" for name in known if name not in equal])


def agree(processes: Processes, settings: dict[str, Any], tokens: dict[str, str]) -> None:
    """Make sure that all processes train the same run, together: else they wait for each other, or learn nonsense.

    Args:
        processes: those of the run.
        settings: of this one, as `workspace.settings_of` gives them.
        tokens: digests of what it made of the data.

    Raises:
        ConfigError: if one has other settings or data, naming them; in all processes.
    """
    mine = settings | {"content": (settings.get("content") or {}) | tokens}
    first, *others = processes.gather(mine)
    for rank, other in enumerate(others, start=1):
        changed = differences(first, other)
        if changed:
            raise ConfigError(
                f"process {rank} has other settings or data than process 0 ({changed}); "
                "start all processes of a run with the same command and the same data"
            )


def _without(settings: dict[str, Any], names: set[tuple[str, str]]) -> dict[str, Any]:
    return {
        part: {name: value for name, value in values.items() if (part, name) not in names}
        if isinstance(values, dict)
        else values
        for part, values in settings.items()
        if part != "content"
    }


def _changed(old: Any, new: Any, path: str = "") -> str:
    """The settings that differ, as ``name old -> new``."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            _changed(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
            for key in [*old, *(key for key in new if key not in old)]
            if old.get(key) != new.get(key)
        ]
        return ", ".join(part for part in parts if part)
    return f"{path} {json.dumps(old)} -> {json.dumps(new)}"
