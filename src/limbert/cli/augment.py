"""``limbert augment``: more training examples for distillation, made by replacing words."""

import os
from dataclasses import dataclass
from typing import Any

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import AugmentConfig, DataConfig, config_field

_DATA_FIELDS = ("task", "data", "train", "text_column", "pair_column", "label_column", "task_type", "label_names",
                "label_separator", "skip_bad_rows", "max_length")  # fmt: skip


@dataclass(frozen=True)
class _Process:
    workers: int | None = config_field(
        None, "processes of one thread each (default: one per core; one with a GPU)", minimum=1
    )
    overwrite: bool = config_field(False, "replace a result with other settings", panel="Output")


@config_options(
    data=ConfigOptions(
        DataConfig, "Data", only=_DATA_FIELDS, helps={"max_length": "longest input of the teacher in tokens"}
    ),
    config=ConfigOptions(AugmentConfig, "Augmentation"),
    process=ConfigOptions(_Process, "Augmentation"),
)
def augment(
    data: DataConfig,
    config: AugmentConfig,
    process: _Process,
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
    from limbert.cli import console
    from limbert.inference.load import usable_cores

    workers = process.workers or (1 if torch.cuda.is_available() else usable_cores())
    given: dict[str, Any] = vars(config) | {name: getattr(data, name) for name in _DATA_FIELDS}
    with console.ProgressBar() as progress:
        result = run_augmentation(**given, workers=workers, overwrite=process.overwrite, progress=progress)
    if as_json:
        console.print_json(result.to_dict())
        return
    rate = f", {result.masks_per_minute} per minute" if result.masks_per_minute else ""
    console.say(
        f"Saved {result.num_augmented} augmented examples of {result.num_examples} training examples to {result.path} "
        f"({result.num_masked_words} masked words{rate}). Next: limbert train --augmented {result.path}"
    )
