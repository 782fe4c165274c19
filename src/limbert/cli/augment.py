"""``limbert augment``: more training examples for distillation, made by replacing words."""

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
    max_length: Annotated[int, typer.Option(help="longest input of the teacher in tokens")] = DataConfig.max_length,
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
        int | None, typer.Option(help="processes of one thread each (default: one per core; one with a GPU)", min=1)
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace a result with other settings in the output")] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Write augmented training examples: words are replaced by candidates of a masked language model or word vectors.

    If interrupted, run the same command again to resume.

    Example: limbert augment --task mrpc --data glue/MRPC --lm bert-base-uncased --output augmented/mrpc

    Example: limbert train --task mrpc --data glue/MRPC --model ENCODER --augmented augmented/mrpc/train_aug.tsv \
        --output runs/mrpc
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # inherited by worker processes
    opt.prepare_libraries(None)
    import torch

    from limbert.augment.generate import augment as run_augmentation
    from limbert.cli import show
    from limbert.inference.load import usable_cores

    with show.titled_progress_bar() as advance:
        result = run_augmentation(
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
            precision=precision,
            task=task,
            data=data,
            train=train,
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
            task_type=task_type,
            label_names=opt.split_commas(label_names),
            label_separator=label_separator,
            skip_bad_rows=skip_bad_rows,
            max_length=max_length,
            workers=workers or (1 if torch.cuda.is_available() else usable_cores()),
            overwrite=overwrite,
            progress=advance,
        )
    if as_json:
        show.print_json(result.to_dict())
        return
    rate = f", {result.masks_per_minute} per minute" if result.masks_per_minute else ""
    show.stdout.print(
        f"Saved {result.num_augmented} augmented examples of {result.num_examples} training examples to {result.path} "
        f"({result.num_masked_words} masked words{rate}). Next: limbert train --augmented {result.path}",
        highlight=False,
        soft_wrap=True,
    )
