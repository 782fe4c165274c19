"""Augment the training examples of a task: find candidates for their words, then sample texts with words replaced.

Examples are worked on in shards of fixed size. A finished shard is a file in ``train_aug.work``, so that an interrupted
run resumes, and the output does not depend on the number of processes. ``train_aug.*`` appears when all is done.
"""

import functools
import itertools
import json
import shutil
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from limbert.augment.augmented_file import AugmentationResult, AugmentedFile
from limbert.augment.candidates import WordCandidateGenerator, load_masked_lm, read_word_vectors
from limbert.augment.resumable_map import ShardFunction, map_shards
from limbert.augment.words import FUNCTION_WORDS, read_stop_words, sample_augmented_texts
from limbert.core.config import AugmentConfig, DataConfig, TrainConfig, configs_from_options, shows_options
from limbert.core.space import Space
from limbert.data.augmented import LOGITS_COLUMN, SOURCE_ID_COLUMN, compute_source_id
from limbert.data.load import read_train_table
from limbert.data.readers import Examples
from limbert.data.sources import TrainTable
from limbert.data.tasks import Task
from limbert.data.tokenize import tokenize_texts
from limbert.errors import ConfigError, DataError
from limbert.inference.base_model import TaskBaseCheckpoint, load_base_checkpoint
from limbert.inference.predict import predict_subnet_logits

EXAMPLES_PER_SHARD = 128  # part of the result: texts of a shard share model calls

ProgressCallback = Callable[[str, int, int], None]


@shows_options(AugmentConfig, DataConfig)
def augment(
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: ProgressCallback = lambda what, done, total: None,
    **options: Any,
) -> AugmentationResult:
    """Write augmented training examples to ``train_aug.*`` in an output folder, as ``limbert augment`` does.

    Run the same call again to resume after an interruption: it ends with the same file.

    Args:
        workers: processes of one thread each; the output does not depend on them. More than one start with ``spawn``,
            so a script needs the usual ``if __name__ == "__main__"``.
        overwrite: replace a result with other settings, finished or not.
        progress: called with the current step, and its finished shards and all its shards.
        options: those below; ``lm`` and ``output`` are required.

    Raises:
        ConfigError: unknown or contradictory options, or the output holds a result with other settings.
        DataError: a missing or unusable file, column or row.
        CheckpointError: for the language model or the teacher.
        StorageError: if the output cannot be written.
    """
    config, data = configs_from_options(options, AugmentConfig, DataConfig)
    training, rows = _read_labelled_rows(data)
    output = AugmentedFile.open(config, data, training, rows=rows)
    if not overwrite and (result := output.finished_result()) is not None:
        return result
    _check_inputs(config, training.task)
    output.create_work_folder(overwrite=overwrite)
    items, starts = [*enumerate(rows)], range(0, len(rows), EXAMPLES_PER_SHARD)
    shards = {output.work / f"{start:08d}.json": items[start : start + EXAMPLES_PER_SHARD] for start in starts}
    old, started = {path for path in shards if path.exists()}, time.monotonic()
    load = functools.partial(_load_augmenter, config, data, training.task, output, num_rows=len(rows))
    map_shards(load, shards, workers=workers, progress=functools.partial(progress, "augmenting"))
    minutes = (time.monotonic() - started) / 60
    counts = {path: json.loads(path.read_text(encoding="utf-8"))["counts"] for path in shards}  # augmented, masked
    new_masks = sum(masked for path, (_, masked) in counts.items() if path not in old)
    num_augmented, num_masked = (sum(column) for column in zip(*counts.values(), strict=True))
    if not num_augmented:
        shutil.rmtree(output.work, ignore_errors=True)
        raise DataError("no word was replaced in any training example; nothing was written")
    per_minute = round(new_masks / minutes) if new_masks else None
    result = AugmentationResult(output.path, len(rows), num_augmented, num_masked, per_minute)
    output.finish([*shards], result)
    return result


def _read_labelled_rows(data: DataConfig) -> tuple[TrainTable, list[dict[str, Any]]]:
    """The training table, and its rows that have a text and a label of the task."""
    training = read_train_table(data)
    table = training.table
    rows = table.rows_at(training.parsed.rows)
    for name in {SOURCE_ID_COLUMN, LOGITS_COLUMN} & {*table.columns, *(name for row in rows for name in row)}:
        raise DataError(f"{table.name}: it has a column {name!r}; it is augmented already")
    if len({*table.columns}) < len(table.columns):
        columns = ", ".join(table.columns)
        raise DataError(f"{table.name}: two columns have one name; expected different names: {columns}")
    return training, rows


def _check_inputs(config: AugmentConfig, task: Task) -> None:
    """Refuse unusable models and files before anything is written."""
    load_masked_lm(config.lm)
    if config.neighbours != "embeddings":
        read_word_vectors(config.neighbours, max_words=100)
    if config.stop_words is not None:
        read_stop_words(config.stop_words)
    if config.with_logits is not None:
        _load_teacher(config.with_logits, task)


def _load_augmenter(
    config: AugmentConfig, data: DataConfig, task: Task, output: AugmentedFile, *, num_rows: int
) -> ShardFunction:
    """A function from numbered training rows to the lines of their augmented examples, with counts."""
    network, tokenizer = load_masked_lm(config.lm)
    generator = WordCandidateGenerator(
        network,
        tokenizer,
        neighbours=None if config.neighbours == "embeddings" else read_word_vectors(config.neighbours),
        stop_words=FUNCTION_WORDS if config.stop_words is None else read_stop_words(config.stop_words),
        num_candidates=config.candidates,
        max_tokens=config.context,
        precision=config.precision,
    )
    predict_logits = None if config.with_logits is None else _logits_function(config, data, task)
    options: dict[str, Any] = {"count": config.augmented_per_example(num_rows), "probability": config.probability}

    def augment_rows(rows: list[Any]) -> dict[str, Any]:
        texts = [output.texts_of(row) for _, row in rows]
        unique = [*dict.fromkeys(itertools.chain.from_iterable(texts))]
        words, masked = generator.generate(unique)
        words_of = dict(zip(unique, words, strict=True))
        augmented = []
        for (number, row), original in zip(rows, texts, strict=True):
            options["generator"] = np.random.default_rng([config.seed, number])
            variants = sample_augmented_texts(original, [words_of[text] for text in original], **options)
            augmented += [(row, variant, compute_source_id(original)) for variant in variants]
        logits: Any = [None] * len(augmented)
        if predict_logits is not None and augmented:
            logits = predict_logits([variant for _, variant, _ in augmented])
        lines = [output.format_row(*example, values) for example, values in zip(augmented, logits, strict=True)]
        return {"counts": [len(lines), sum(masked)], "lines": lines}

    return augment_rows


def _load_teacher(path: str, task: Task) -> TaskBaseCheckpoint:
    teacher = load_base_checkpoint(TrainConfig(model=path, output="-", phases=()), task)  # it is fine-tuned
    if not teacher.is_finetuned:
        outputs = ", ".join(task.labels) or "one score"
        raise ConfigError(f"teacher {path} is not fine-tuned for this task; it must predict {outputs}")
    return teacher


def _logits_function(
    config: AugmentConfig, data: DataConfig, task: Task
) -> Callable[[list[tuple[str, ...]]], np.ndarray]:
    """A function that returns the teacher's logits ``(examples, outputs)`` in the order of the task's labels."""
    teacher = _load_teacher(str(config.with_logits), task)
    model, max_length = teacher.load_model(Space()), min(data.max_length, teacher.max_length)
    order = [teacher.task.labels.index(name) for name in task.labels] or [0]

    def predict(texts: list[tuple[str, ...]]) -> np.ndarray:
        firsts, *pairs = zip(*texts, strict=True)
        examples = Examples(firsts, pairs[0] if pairs else None, None)
        tokens = tokenize_texts(examples, teacher.tokenizer, max_length=max_length, use_cache=False)
        subnets = {"full": model.full}
        logits = predict_subnet_logits(model, tokens, subnets=subnets, batch_size=64, precision=config.precision)
        return logits["full"][:, order]

    return predict
