"""``limbert train``: from a pretrained encoder and labelled data to an elastic model."""

import shlex
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import DataConfig, GatesConfig, TrainConfig, config_field
from limbert.errors import ConfigError

_MODEL_OF_RUN = "RUN"  # the model where --model is not given
_HELPS = {"max_length": "longest input in tokens; the rest is cut off (default: 128, with --subnet that of RUN)"}


@dataclass(frozen=True)
class _RunOptions:
    seeds: tuple[int, ...] | None = config_field(
        None, "train once per seed and print mean and standard deviation", panel="Output"
    )
    subnet: str | None = config_field(None, "fine-tune and export only this sub-network of RUN")
    format: str | None = config_field(None, "with --subnet: hf (Transformers), onnx or openvino", panel="Output")


@config_options(
    data=ConfigOptions(DataConfig, "Data", helps=_HELPS, as_overrides=True),
    config=ConfigOptions(TrainConfig, "Model and training", defaults={"model": _MODEL_OF_RUN}),
    gates=ConfigOptions(GatesConfig, "Gates", only=("count", "target", "cost"), as_overrides=True),
    run_options=ConfigOptions(_RunOptions, "Model and training", as_overrides=True),
    **opt.TRAINING,
)
def train(
    data: dict[str, Any],
    config: TrainConfig,
    space: dict[str, Any],
    every_phase: dict[str, Any],
    gates: dict[str, Any],
    run_options: dict[str, Any],
    run: opt.TrainingRun,
    elastic_run: Annotated[str | None, typer.Argument(metavar="RUN", help="instead of --model", hidden=True)] = None,
) -> None:
    """Train an elastic model. If interrupted, run the same command again to resume.

    \b
    Example: limbert train --task mrpc --data glue/MRPC --model bert-base-uncased --output runs/mrpc
    Example: limbert train --task mrpc --data MRPC --model runs/mrpc --phases gates --output gated
    Example: limbert train runs/mrpc --subnet 0.5x0.75 --output mrpc-small
    Example: torchrun --nproc-per-node 4 -m limbert train --data tickets --model ... --output ...
    """
    if (elastic_run is None) == (config.model == _MODEL_OF_RUN):
        not_both = "" if elastic_run is None else ", not both"
        raise ConfigError(f"provide either --model MODEL or RUN (an elastic model){not_both}")
    config = config if elastic_run is None else replace(config, model=elastic_run)
    opt.prepare_libraries(run.threads)
    overrides = {"space": space, "every_phase": every_phase, "gates": gates, "one_phase": run.one_phase}
    _train(config, data, overrides, overwrite=run.overwrite, as_json=run.json, **run_options)


def _train(
    config: TrainConfig,
    data: dict[str, Any],
    overrides: dict[str, Any],
    *,
    overwrite: bool,
    as_json: bool,
    seeds: tuple[int, ...] = (),
    subnet: str | None = None,
    format: str | None = None,
) -> None:
    if subnet is not None and (seeds or config.phases):
        raise ConfigError("--subnet runs the one phase specialise once; leave out --seeds and --phases")
    if subnet is None and format is not None:
        raise ConfigError("--format is for --subnet; export a trained model with limbert export")
    from limbert.cli import console
    from limbert.cli.training import baseline_of, run_in_terminal
    from limbert.train import run
    from limbert.train.distributed import init_distributed
    from limbert.train.recipes import recipe_for

    init_distributed()  # first, so that an error of any process is reported once
    recipe = recipe_for(config, **overrides if subnet is None else overrides | {"phases": ["specialise"]})

    def start(progress: Any) -> Any:
        options = {"callbacks": [progress], "progress": progress.prepare, "overwrite": overwrite}
        options["command"] = shlex.join(["limbert", *sys.argv[1:]])
        if subnet is not None:
            return run.specialise(config, subnet, data, recipe=recipe, format=format or "hf", **options)
        if seeds:
            return run.train_seeds(config, recipe, DataConfig(**data), seeds, **options)
        return run.train_task(config, recipe, DataConfig(**data), **options)

    results, spread, folder = run_in_terminal(start), [], config.output
    next_step = f"Saved elastic model to {folder}. Next: limbert evaluate {folder}"
    if seeds:
        folders = [f"{config.output}/seed-{seed}" for seed in seeds]
        folder, next_step = folders[0], f"Saved elastic models to {', '.join(folders)}."
        rows = run.over_seeds(results)
        results, spread = [row for row, _ in rows], [deviation for _, deviation in rows]
    elif subnet is not None:
        next_step = f"Saved sub-network {subnet} to {folder} ({format or 'hf'})."
    if as_json:
        deviations = [{"spread": values} for values in spread] or [{}] * len(results)
        console.print_json([row.to_dict() | extra for row, extra in zip(results, deviations, strict=True)])
        return
    console.print_results(results, baseline=baseline_of(folder), spread=spread)
    console.say(next_step)
