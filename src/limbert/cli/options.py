"""Options that several verbs share, and the preparation that all of them need."""

import gc
import logging
import os
from dataclasses import dataclass
from typing import Annotated

import typer

from limbert.cli.config_options import ConfigOptions
from limbert.cli.console import log_handler
from limbert.cli.interrupt import quiet_interrupt
from limbert.core.config import DataConfig, PhaseConfig, RuntimeConfig, config_field
from limbert.core.verb_config import BudgetConfig
from limbert.errors import ConfigError

Run = Annotated[str, typer.Argument(help="elastic model", metavar="RUN")]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads (default: all)", min=1, metavar="N")]
Device = Annotated[str, typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda or cuda:1")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", help="examples per batch; does not change the results", min=1, metavar="N")
]
LongTexts = Annotated[
    str, typer.Option("--long-texts", help="truncate, or windows: overlapping parts whose logits are averaged")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table", rich_help_panel="Output")]


@dataclass(frozen=True)
class TrainingRun:
    """Options of ``train`` and ``pretrain`` beside their configs."""

    one_phase: tuple[str, ...] = config_field(
        (), "setting of a phase, such as width.hidden_weight=0.5; repeatable", option="set", repeats=True
    )
    threads: int | None = config_field(None, "CPU threads (default: all)", minimum=1)
    overwrite: bool = config_field(False, "replace a result with other settings", panel="Output")
    json: bool = config_field(False, "print JSON instead of a table", panel="Output")


@dataclass(frozen=True)
class _Space:
    widths: tuple[float, ...] | None = config_field(None, "such as 0.25,0.5,0.75,1.0 (default: the recipe's)")
    depths: tuple[float, ...] | None = config_field(None, "such as 0.5,0.75,1.0 (default: the recipe's)")
    layers: str | None = config_field(None, "layers a depth keeps: first or spread (default: the recipe's)")


@dataclass(frozen=True)
class _Policy:
    policy: str | None = config_field(
        None,
        "static:WIDTHxDEPTH, width (gates), depth (exits), width+depth, cascade:SMALL,LARGE (sub-networks), or an "
        "operating point such as balanced",
    )
    widths: tuple[float, ...] | None = config_field(
        None, "with gates: the width of each choice, such as 0.5,0.75,0.75,0.75; else one width"
    )
    exit_threshold: float | None = config_field(None, "exits: threshold of the exit rule at which inputs exit")
    exit_rule: str | None = config_field(
        None, "entropy, confidence or patience (default: entropy; for regression patience)"
    )


def data_options(*fields: str) -> ConfigOptions:
    """Options of `DataConfig` that replace a run's own settings."""
    return ConfigOptions(DataConfig, "Data", only=fields, as_overrides=True)


_TRAINING, _PHASE_FIELDS = "Model and training", ("epochs", "max_steps", "batch_size", "learning_rate")
TRAINING = {
    "space": ConfigOptions(_Space, _TRAINING, as_overrides=True),
    "every_phase": ConfigOptions(PhaseConfig, _TRAINING, only=_PHASE_FIELDS, as_overrides=True),
    "run": ConfigOptions(TrainingRun, _TRAINING),
}
POLICY = ConfigOptions(_Policy, "Sub-network or policy", as_overrides=True)
COSTS = ConfigOptions(
    BudgetConfig, "Budget", only=("max_latency", "max_params", "max_flops", "max_size"), as_overrides=True
)
RUNTIME = ConfigOptions(RuntimeConfig, "Runtime")
BUDGET = ConfigOptions(BudgetConfig, "Budget", as_overrides=True)


def check_policy_options(policy: dict[str, object], subnets: object) -> None:
    """Raise ConfigError for a policy beside sub-networks, or policy settings without a policy."""
    if policy and "policy" not in policy:
        raise ConfigError("--widths, --exit-threshold and --exit-rule need a --policy")
    if policy and subnets:
        raise ConfigError("provide either --subnet or --policy; one sub-network is also --policy static:WIDTHxDEPTH")


def prepare_libraries(threads: int | None) -> None:
    """Import the large libraries, set the thread count, and silence their own output to the terminal.

    Garbage collection is off meanwhile: importing makes millions of objects and hardly any garbage, and collecting
    takes a fifth of the start-up time, and again at exit.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    gc.disable()
    try:
        with quiet_interrupt():
            import huggingface_hub
            import torch
            import transformers
            import transformers.modeling_utils
    finally:
        gc.freeze()
        gc.enable()
    logger = logging.getLogger("limbert")
    logger.setLevel(logging.INFO)
    logger.handlers = [log_handler]
    huggingface_hub.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
