"""Options that several verbs share; their help is the config dataclasses' own."""

import gc
import logging
import os
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from limbert.core.config import DataConfig, GatesConfig, PhaseConfig, TrainConfig, field_help
from limbert.errors import ConfigError


def _config_option(config: type, name: str, *flags: str) -> Any:
    return typer.Option(*flags, help=field_help(config, name), show_default=False)


TaskName = Annotated[str | None, _config_option(DataConfig, "task", "--task")]
Data = Annotated[str | None, _config_option(DataConfig, "data", "--data")]
TrainFile = Annotated[str | None, _config_option(DataConfig, "train", "--train")]
DevFile = Annotated[str | None, _config_option(DataConfig, "dev", "--dev")]
TextColumn = Annotated[str | None, _config_option(DataConfig, "text_column", "--text-column")]
PairColumn = Annotated[str | None, _config_option(DataConfig, "pair_column", "--pair-column")]
LabelColumn = Annotated[str | None, _config_option(DataConfig, "label_column", "--label-column")]
TaskType = Annotated[str | None, _config_option(DataConfig, "task_type", "--task-type")]
LabelNames = Annotated[str | None, _config_option(DataConfig, "label_names", "--label-names")]
TrainLimit = Annotated[int | None, _config_option(DataConfig, "train_limit", "--train-limit")]
Augmented = Annotated[str | None, _config_option(DataConfig, "augmented", "--augmented")]
SkipBadRows = Annotated[bool, _config_option(DataConfig, "skip_bad_rows", "--skip-bad-rows")]
MaxLength = Annotated[int | None, _config_option(DataConfig, "max_length", "--max-length")]
HeldOut = Annotated[float | None, _config_option(DataConfig, "held_out", "--held-out")]
LabelSeparator = Annotated[str | None, _config_option(DataConfig, "label_separator", "--label-separator")]
LabelColumns = Annotated[str | None, _config_option(DataConfig, "label_columns", "--label-columns")]
Metric = Annotated[str | None, _config_option(DataConfig, "metric", "--metric")]
Stride = Annotated[int | None, _config_option(DataConfig, "stride", "--stride")]
Epochs = Annotated[float | None, _config_option(PhaseConfig, "epochs", "--epochs")]
MaxSteps = Annotated[int | None, _config_option(PhaseConfig, "max_steps", "--max-steps")]
BatchSize = Annotated[int | None, _config_option(PhaseConfig, "batch_size", "--batch-size")]
LearningRate = Annotated[float | None, _config_option(PhaseConfig, "learning_rate", "--learning-rate")]
GateCount = Annotated[int | None, _config_option(GatesConfig, "count", "--gates")]
GateTarget = Annotated[str | None, _config_option(GatesConfig, "target", "--gate-target")]
GateCost = Annotated[float | None, _config_option(GatesConfig, "cost", "--gate-cost")]
Seed = Annotated[int, _config_option(TrainConfig, "seed", "--seed")]
RunPrecision = Annotated[str, _config_option(TrainConfig, "precision", "--precision")]
SpaceWidths = Annotated[
    str | None, typer.Option("--widths", help="widths, such as 0.25,0.5,0.75,1.0 (default: the recipe's)")
]
SpaceDepths = Annotated[
    str | None, typer.Option("--depths", help="depths, such as 0.5,0.75,1.0 (default: the recipe's)")
]
SpaceLayers = Annotated[
    str | None, typer.Option("--layers", help="layers a depth keeps: first or spread (default: recipe's)")
]
PhaseOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="any setting of one phase, PHASE.SETTING=VALUE, such as width.hidden_weight=0.5"),
]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads (default: all)", min=1)]
Device = Annotated[str, typer.Option("--device", help="auto (a GPU, where torch finds one), cpu, cuda or cuda:1")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for machines instead of a table")]


def require_tensorboard(requested: bool) -> None:
    """Refuse a log that would not be written: accelerate passes over a library that is missing.

    Raises:
        ConfigError: if it is asked for and cannot be.
    """
    if requested and not any(find_spec(name) for name in ("tensorboard", "tensorboardX")):
        raise ConfigError("--tensorboard needs tensorboard; pip install tensorboard")


def split_commas(text: str | None) -> tuple[str, ...] | None:
    """The parts of a comma-separated option; None stays None."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def parse_floats(text: str | None, option_name: str) -> tuple[float, ...] | None:
    """The numbers of an option such as ``0.25,0.5,1.0``.

    Raises:
        ConfigError: for a part that is no number.
    """
    try:
        return None if text is None else tuple(float(part) for part in split_commas(text) or ())
    except ValueError:
        raise ConfigError(f"{option_name} {text!r} is not a list of numbers such as 0.25,0.5,1.0") from None


def space_overrides(widths: str | None, depths: str | None, layers: str | None) -> dict[str, Any]:
    """The settings of a space as a recipe's are replaced; None changes nothing."""
    return {"widths": parse_floats(widths, "--widths"), "depths": parse_floats(depths, "--depths"), "layers": layers}


def parse_positive_ints(text: str, option_name: str) -> tuple[int, ...]:
    """The whole numbers of an option such as ``1,32``, each once.

    Raises:
        ConfigError: for a part that is none, or below 1, or no part at all.
    """
    parts = split_commas(text) or ()
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option_name} {text!r} is not a list of whole numbers such as 1,32")
    return tuple(dict.fromkeys(int(part) for part in parts))


def prepare_libraries(threads: int | None) -> None:
    """Import the large libraries, set the thread count, and quiet those that write to the terminal by themselves.

    Garbage collection waits meanwhile: importing makes millions of objects and next to no garbage, and collecting
    among them takes a fifth of the time until the first answer, and again when the process ends.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    gc.disable()
    try:
        import huggingface_hub
        import torch
        import transformers
        import transformers.modeling_utils
    finally:
        gc.freeze()
        gc.enable()
    if logging.lastResort is not None:  # warnings of the library, as plain lines on standard error
        logging.getLogger("limbert").addHandler(logging.lastResort)
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
