"""``limbert augment``: more training rows for distillation, made by replacing words."""

import os
from typing import Annotated

import typer

from limbert.cli import options as opt
from limbert.core.config import AugmentConfig, DataConfig, field_help


def augment(
    lm: Annotated[str, typer.Option(help=field_help(AugmentConfig, "lm"), show_default=False)],
    output: Annotated[str, typer.Option(help=field_help(AugmentConfig, "output"), show_default=False)],
    task: opt.TaskName = None,
    data: opt.Data = None,
    train: opt.TrainFile = None,
    text_column: opt.TextColumn = None,
    pair_column: opt.PairColumn = None,
    label_column: opt.LabelColumn = None,
    task_type: opt.TaskType = None,
    label_names: opt.LabelNames = None,
    label_separator: opt.LabelSeparator = None,
    skip_bad_rows: opt.SkipBadRows = False,
    max_length: Annotated[
        int | None, typer.Option(help="longest input of the teacher in tokens (default: 128)")
    ] = None,
    neighbours: Annotated[str, typer.Option(help=field_help(AugmentConfig, "neighbours"))] = "embeddings",
    copies: Annotated[int | None, typer.Option(help=field_help(AugmentConfig, "copies"), show_default=False)] = None,
    candidates: Annotated[int, typer.Option(help=field_help(AugmentConfig, "candidates"))] = 15,
    probability: Annotated[float, typer.Option(help=field_help(AugmentConfig, "probability"))] = 0.4,
    stop_words: Annotated[
        str | None, typer.Option(help=field_help(AugmentConfig, "stop_words"), show_default=False)
    ] = None,
    context: Annotated[int, typer.Option(help=field_help(AugmentConfig, "context"))] = 128,
    with_logits: Annotated[
        str | None, typer.Option(help=field_help(AugmentConfig, "with_logits"), show_default=False)
    ] = None,
    seed: opt.Seed = 42,
    precision: opt.RunPrecision = "fp32",
    workers: Annotated[
        int | None, typer.Option(help="processes of one thread each (default: one a core, or one with a GPU)", min=1)
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace a result with other settings in the output")] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Write copies of the training rows with words replaced by what a masked language model, or word vectors, suggest.

    Killed or stopped, the same command goes on where it was.

    Example: limbert augment --task mrpc --data glue/MRPC --lm bert-base-uncased --output augmented/mrpc

    Example: limbert train --task mrpc --data glue/MRPC --model ENCODER --augmented augmented/mrpc/train_aug.tsv \
        --output runs/mrpc
    """
    config = AugmentConfig(
        lm=lm,
        output=output,
        neighbours=neighbours,
        copies=copies,
        candidates=candidates,
        probability=probability,
        stop_words=stop_words,
        context=context,
        with_logits=with_logits,
        seed=seed,
        precision=precision,  # type: ignore[arg-type]  # checked by the dataclass
    )
    data_config = DataConfig(
        task=task,
        data=data,
        train=train,
        text_column=text_column,
        pair_column=pair_column,
        label_column=label_column,
        task_type=task_type,  # type: ignore[arg-type]
        label_names=opt.split_commas(label_names),
        label_separator=label_separator,
        skip_bad_rows=skip_bad_rows,
        max_length=DataConfig.max_length if max_length is None else max_length,
    )
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # the worker processes are to be as quiet as this one
    opt.prepare_libraries(None)
    import torch

    from limbert.augment.generate import augment as run_augmentation
    from limbert.cli import show
    from limbert.inference.load import usable_cores

    with show.titled_progress_bar() as advance:
        made = run_augmentation(
            config,
            data_config,
            workers=workers or (1 if torch.cuda.is_available() else usable_cores()),
            overwrite=overwrite,
            progress=advance,
        )
    if as_json:
        show.print_json(made.to_dict())
        return
    rate = f", {made.masks_per_minute} a minute" if made.masks_per_minute else ""
    show.stdout.print(
        f"{made.num_augmented} copies of {made.num_examples} rows in {made.path} ({made.num_masked_words} words masked{rate})",
        highlight=False,
        soft_wrap=True,
    )
