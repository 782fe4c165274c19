"""``limbert train``: from a pretrained encoder and labelled data to an elastic model."""

from typing import TYPE_CHECKING, Any

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import DataConfig, GatesConfig, TrainConfig

if TYPE_CHECKING:
    from limbert.evaluation.results import SubnetResult
    from limbert.train.recipes import Recipe

_LARGE_REGRESSION_LABEL = 100  # above it, labels are too large for the learning rates of an encoder


@config_options(
    data_config=ConfigOptions(DataConfig, "Data"),
    config=ConfigOptions(TrainConfig, "Model and training"),
    gates=ConfigOptions(GatesConfig, "Gates", only=("count", "target", "cost"), as_overrides=True),
    **opt.TRAINING,
)
def train(
    data_config: DataConfig,
    config: TrainConfig,
    space: dict[str, Any],
    every_phase: dict[str, Any],
    gates: dict[str, Any],
    run: opt.TrainingRun,
) -> None:
    """Train an elastic model. If interrupted, run the same command again to resume from the last checkpoint.

    \b
    Example: limbert train --task mrpc --data glue/MRPC --model bert-base-uncased --output runs/mrpc
    Example: limbert train --task mrpc --data glue/MRPC --model runs/mrpc --phases gates --output runs/gates
    Example: limbert train --task ner --data WNUT17 --model bert-base-uncased --output runs/wnut17
    Example: torchrun --nproc-per-node 4 -m limbert train --data tickets --model ... --output ...
    """
    opt.prepare_libraries(run.threads)
    overrides = {"space": space, "every_phase": every_phase, "gates": gates, "one_phase": run.one_phase}
    _train(config, data_config, overrides | {"phases": config.phases}, overwrite=run.overwrite, as_json=run.json)


def _train(
    config: TrainConfig, data_config: DataConfig, overrides: dict[str, Any], *, overwrite: bool, as_json: bool
) -> None:
    from limbert.cli import console
    from limbert.cli.training import build_recipe
    from limbert.train.distributed import init_distributed

    init_distributed()  # first, so that an error of any process is reported once
    recipe = build_recipe(config, overrides)
    results = train_with_progress(config, recipe, data_config, overwrite=overwrite)
    if as_json:
        console.print_json([result.to_dict() for result in results])
    else:
        console.print_results(results)
        console.say(f"Saved elastic model to {config.output}. Next: limbert evaluate {config.output}")


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
