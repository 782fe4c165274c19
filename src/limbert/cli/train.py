"""``limbert train``: from a pretrained encoder and labelled data to an elastic model."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.core.config import DataConfig, TrainConfig, field_help

if TYPE_CHECKING:
    from limbert.evaluation.results import SubnetResult
    from limbert.train.recipes import Recipe

_LARGE_REGRESSION_LABEL = 100  # above it, labels are too large for the learning rates of an encoder


def train(
    model: Annotated[str, typer.Option(help=field_help(TrainConfig, "model"), show_default=False)],
    output: Annotated[str, typer.Option(help=field_help(TrainConfig, "output"), show_default=False)],
    task: opt.TaskName = None,
    data: opt.Data = None,
    train: opt.TrainFile = None,
    dev: opt.DevFile = None,
    text_column: opt.TextColumn = None,
    pair_column: opt.PairColumn = None,
    label_column: opt.LabelColumn = None,
    task_type: opt.TaskType = None,
    label_names: opt.LabelNames = None,
    train_limit: opt.TrainLimit = None,
    augmented: opt.Augmented = None,
    skip_bad_rows: opt.SkipBadRows = False,
    max_length: opt.MaxLength = None,
    held_out: opt.HeldOut = None,
    label_separator: opt.LabelSeparator = None,
    label_columns: opt.LabelColumns = None,
    metric: opt.Metric = None,
    stride: opt.Stride = None,
    recipe: Annotated[str, typer.Option(help=field_help(TrainConfig, "recipe"))] = "limbert",
    phases: Annotated[str | None, typer.Option(help=field_help(TrainConfig, "phases"), show_default=False)] = None,
    widths: opt.SpaceWidths = None,
    depths: opt.SpaceDepths = None,
    layers: opt.SpaceLayers = None,
    epochs: opt.Epochs = None,
    max_steps: opt.MaxSteps = None,
    batch_size: opt.BatchSize = None,
    learning_rate: opt.LearningRate = None,
    gates: opt.GateCount = None,
    gate_target: opt.GateTarget = None,
    gate_cost: opt.GateCost = None,
    phase_overrides: opt.PhaseOverrides = None,
    seed: opt.Seed = 42,
    precision: opt.RunPrecision = "fp32",
    validation: Annotated[float, typer.Option(help=field_help(TrainConfig, "validation"))] = 0.1,
    checkpoint_every: Annotated[float, typer.Option(help=field_help(TrainConfig, "checkpoint_every"))] = 120.0,
    tensorboard: Annotated[bool, typer.Option(help=field_help(TrainConfig, "tensorboard"))] = False,
    overwrite: Annotated[bool, typer.Option(help="replace a run with other settings in the output")] = False,
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
) -> None:
    """Train an elastic model. If interrupted, run the same command again to resume from the last checkpoint.

    Example: limbert train --task mrpc --data glue/MRPC --model bert-base-uncased --output runs/mrpc

    Example: limbert train --task mrpc --data glue/MRPC --model runs/mrpc --phases gates --output runs/mrpc-gates

    Example: torchrun --nproc-per-node 4 -m limbert train --task mrpc --data glue/MRPC --model ... --output ...

    Example: limbert train --task ner --data WNUT17 --model bert-base-uncased --output runs/wnut17
    """
    data_config = DataConfig(
        task=task,
        data=data,
        train=train,
        dev=dev,
        text_column=text_column,
        pair_column=pair_column,
        label_column=label_column,
        task_type=task_type,  # type: ignore[arg-type]  # checked by the dataclass
        label_names=opt.split_commas(label_names),
        train_limit=train_limit,
        augmented=augmented,
        skip_bad_rows=skip_bad_rows,
        max_length=DataConfig.max_length if max_length is None else max_length,
        held_out=held_out,
        label_separator=label_separator,
        label_columns=opt.split_commas(label_columns),
        metric=metric,
        stride=stride,
    )
    opt.require_tensorboard(tensorboard)
    config = TrainConfig(
        model=model,
        output=output,
        recipe=recipe,
        phases=opt.split_commas(phases),
        seed=seed,
        precision=precision,  # type: ignore[arg-type]
        validation=validation,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard,
    )
    overrides = {
        "space": opt.space_overrides(widths, depths, layers),
        "every_phase": {
            "epochs": epochs,
            "max_steps": max_steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
        },
        "gates": {"count": gates, "target": gate_target, "cost": gate_cost},
        "one_phase": phase_overrides or [],
        "phases": config.phases,
    }
    opt.prepare_libraries(threads)
    _train(config, data_config, overrides, overwrite=overwrite, as_json=as_json)


def _train(
    config: TrainConfig, data_config: DataConfig, overrides: dict[str, Any], *, overwrite: bool, as_json: bool
) -> None:
    from limbert.cli import show
    from limbert.cli.terminal_run import build_recipe
    from limbert.train.distributed import init_distributed

    init_distributed()  # first, so that an error of any process is reported once
    recipe = build_recipe(config, overrides)
    results = train_with_progress(config, recipe, data_config, overwrite=overwrite)
    if as_json:
        show.print_json([result.to_dict() for result in results])
    else:
        show.stdout.print(show.results_table(results))
        show.stdout.print(
            f"Saved elastic model to {config.output}. Next: limbert evaluate {config.output}",
            highlight=False,
            soft_wrap=True,
        )


def train_with_progress(
    config: TrainConfig, recipe: "Recipe", data_config: DataConfig, *, overwrite: bool
) -> "list[SubnetResult]":
    """Run the training in the terminal, or read the results of a run that is finished already.

    Raises:
        typer.Exit: when interrupted by Ctrl-C or SIGTERM.
    """
    from limbert.cli import show
    from limbert.cli.terminal_run import run_in_terminal
    from limbert.data.load import load_task_data
    from limbert.train.run import train_task

    data = load_task_data(data_config, seed=config.seed)
    data_config = data.config
    for line in data.description:
        show.stderr.print(line, markup=False, highlight=False, soft_wrap=True)
    show.print_skipped_rows({"train": data.train} | data.dev)
    if data.task.task_type == "regression":
        largest = max(abs(float(label)) for label in data.train.labels or (0.0,))
        if largest > _LARGE_REGRESSION_LABEL:
            show.stderr.print(
                f"labels reach {largest:g}; a regression head learns values of about 0 to 10 fastest: scale them first",
                highlight=False,
                soft_wrap=True,
            )
    return run_in_terminal(
        lambda progress: train_task(
            config,
            recipe,
            data_config,
            data=data,
            callbacks=[progress],
            progress=progress.prepare,
            overwrite=overwrite,
        )
    )
