"""``limbert train``: from a pretrained encoder and labelled data to an elastic model."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import DataConfig, GatesConfig, TrainConfig, config_field
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.evaluation.results import SubnetResult
    from limbert.train.recipes import Recipe

_LARGE_REGRESSION_LABEL = 100  # above it, labels are too large for the learning rates of an encoder
_MODEL_OF_RUN = "RUN"  # the model where --model is not given


@dataclass(frozen=True)
class _Kind:
    seeds: tuple[int, ...] | None = config_field(None, "train once per seed; prints mean and spread", panel="Output")
    subnet: str | None = config_field(None, "fine-tune and export only this sub-network of RUN")
    format: str | None = config_field(None, "with --subnet: hf (Transformers), onnx or openvino", panel="Output")


@config_options(
    data_config=ConfigOptions(DataConfig, "Data"),
    config=ConfigOptions(TrainConfig, "Model and training", defaults={"model": _MODEL_OF_RUN}),
    gates=ConfigOptions(GatesConfig, "Gates", only=("count", "target", "cost"), as_overrides=True),
    kind=ConfigOptions(_Kind, "Model and training", as_overrides=True),
    **opt.TRAINING,
)
def train(
    data_config: DataConfig,
    config: TrainConfig,
    space: dict[str, Any],
    every_phase: dict[str, Any],
    gates: dict[str, Any],
    kind: dict[str, Any],
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
        raise ConfigError("provide --model MODEL, or RUN")
    config = config if elastic_run is None else replace(config, model=elastic_run)
    opt.prepare_libraries(run.threads)
    overrides = {"space": space, "every_phase": every_phase, "gates": gates, "one_phase": run.one_phase}
    overrides_of_run: dict[str, Any] = overrides | {"phases": config.phases}
    _train(config, data_config, overrides_of_run, overwrite=run.overwrite, as_json=run.json, **kind)


def _train(
    config: TrainConfig,
    data_config: DataConfig,
    overrides: dict[str, Any],
    *,
    overwrite: bool,
    as_json: bool,
    seeds: tuple[int, ...] = (),
    subnet: str | None = None,
    format: str = "hf",
) -> None:
    from limbert.cli import console
    from limbert.cli.training import baseline_of, build_recipe, run_in_terminal
    from limbert.train import run
    from limbert.train.distributed import init_distributed

    init_distributed()  # first, so that an error of any process is reported once
    spread: list[dict[str, float]] = []
    if subnet is not None:
        recipe = build_recipe(config, overrides | {"phases": ["specialise"]})
        results = run_in_terminal(
            lambda progress: run.specialise(
                config, subnet, data_config, recipe=recipe, format=format, overwrite=overwrite,
                callbacks=[progress], progress=progress.prepare,
            )
        )  # fmt: skip
        following = f"Saved sub-network {subnet} to {config.output} ({format})."
    elif seeds:
        recipe = build_recipe(config, overrides)
        found = run_in_terminal(
            lambda progress: run.train_seeds(
                config, recipe, data_config, seeds, overwrite=overwrite, callbacks=[progress], progress=progress.prepare
            )
        )
        rows = run.over_seeds(found)
        results, spread = [row for row, _ in rows], [deviation for _, deviation in rows]
        following = f"Saved elastic models to {', '.join(f'{config.output}/seed-{seed}' for seed in found)}."
    else:
        results = train_with_progress(config, build_recipe(config, overrides), data_config, overwrite=overwrite)
        following = f"Saved elastic model to {config.output}. Next: limbert evaluate {config.output}"
    if as_json:
        console.print_json([result.to_dict() for result in results])
        return
    folder = f"{config.output}/seed-{seeds[0]}" if seeds else config.output
    console.print_results(results, baseline=baseline_of(folder), spread=spread)
    console.say(following)


def train_with_progress(
    config: TrainConfig, recipe: "Recipe", data_config: DataConfig, *, overwrite: bool
) -> "list[SubnetResult]":
    """Run the training in the terminal, or read the results of a run that is finished already.

    Raises:
        typer.Exit: when interrupted by Ctrl-C or SIGTERM.
    """
    from limbert.cli.console import note
    from limbert.cli.training import run_in_terminal
    from limbert.data.load import load_task_data
    from limbert.train.run import train_task

    data = load_task_data(data_config, seed=config.seed)
    for line in data.description:
        note(line)
    for name, examples in ({"train": data.train} | data.dev).items():
        if examples.bad_rows:
            note(f"{examples.bad_rows} malformed row{'s' * (examples.bad_rows != 1)} of {name} skipped")
    if data.task.task_type == "regression":
        largest = max(abs(float(label)) for label in data.train.labels or (0.0,))
        if largest > _LARGE_REGRESSION_LABEL:
            note(f"labels reach {largest:g}; a regression head learns values up to about 10 fastest: scale them first")

    def run(progress: Any) -> "list[SubnetResult]":
        return train_task(
            config, recipe, data.config, data=data, callbacks=[progress], progress=progress.prepare, overwrite=overwrite
        )

    return run_in_terminal(run)
