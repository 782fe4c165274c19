"""Augment the training examples of a task: candidate words for all texts, then examples with words replaced.

Both steps are mapped in shards of fixed size. A finished shard is a file in ``train_aug.work``, so that an interrupted
run resumes, and the output does not depend on the number of processes. ``train_aug.*`` appears when all is done.
"""

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from limbert.augment.augmented_file import AugmentationResult, AugmentedFile
from limbert.augment.candidates import WordCandidateGenerator, load_masked_lm, read_word_vectors
from limbert.augment.resumable_map import BatchFunction, map_in_shards, open_shards
from limbert.augment.words import FUNCTION_WORDS, ReplaceableWord, read_stop_words, sample_augmented_texts
from limbert.core.config import AugmentConfig, DataConfig, TrainConfig, configs_from_options
from limbert.core.space import Space
from limbert.data.augmented import LOGITS_COLUMN, SOURCE_ID_COLUMN, compute_source_id
from limbert.data.load import read_train_table
from limbert.data.readers import Examples, TrainTable
from limbert.data.tasks import Task
from limbert.data.tokenize import tokenize_texts
from limbert.errors import ConfigError, DataError
from limbert.inference.base_model import TaskBaseCheckpoint, load_base_checkpoint
from limbert.inference.predict import predict_subnet_logits

TEXTS_PER_BATCH, EXAMPLES_PER_BATCH = 32, 64  # part of the result: texts of a batch share model calls

_INTEGERS = List(Value("int64"))
_CANDIDATE_FEATURES = Features(
    start=_INTEGERS, end=_INTEGERS, candidates=List(List(Value("string"))), masked=Value("int64")
)

ProgressCallback = Callable[[str, int, int], None]


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
        options: the fields of `AugmentConfig` (``lm`` and ``output`` are required) and of `DataConfig`.

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
    unique_texts = [*dict.fromkeys(text for example in output.texts_of(rows) for text in example)]
    old_shards, started = {*output.work.glob("*.arrow")}, time.monotonic()
    candidates = map_in_shards(
        functools.partial(_load_candidates, config),
        unique_texts,
        output.work,
        name="candidates",
        batch_size=TEXTS_PER_BATCH,
        features=_CANDIDATE_FEATURES,
        workers=workers,
        progress=functools.partial(progress, "choosing words"),
    )
    minutes = (time.monotonic() - started) / 60
    new_masks = sum(sum(Dataset.from_file(str(path))["masked"]) for path in {*output.work.glob("*.arrow")} - old_shards)
    lines = map_in_shards(
        functools.partial(_load_sampling, config, data, training.task, output, rows, unique_texts),
        range(len(rows)),
        output.work,
        name="examples",
        batch_size=EXAMPLES_PER_BATCH,
        features=Features(line=Value("string")),
        workers=workers if config.with_logits is not None else 1,
        progress=functools.partial(progress, "writing augmented examples"),
    )
    if not len(lines):
        shutil.rmtree(output.work, ignore_errors=True)
        raise DataError("no word was replaced in any training example; nothing was written")
    result = AugmentationResult(
        output.path,
        num_examples=len(rows),
        num_augmented=len(lines),
        num_masked_words=sum(candidates["masked"]),
        masks_per_minute=round(new_masks / minutes) if new_masks else None,
    )
    output.finish(lines, result)
    return result


def _read_labelled_rows(data: DataConfig) -> tuple[TrainTable, list[Sequence[object]]]:
    """The training table, and its rows that have a text and a label of the task."""
    training = read_train_table(data)
    training = replace(training, table=training.table.with_all_columns()[0])  # augmented examples repeat whole rows
    for name in {SOURCE_ID_COLUMN, LOGITS_COLUMN} & {*training.table.columns}:
        raise DataError(f"{training.table.name}: it has a column {name!r}; it is augmented already")
    usable = training.examples.parse_labels(training.label_parser.parse, skip_bad_rows=data.skip_bad_rows)
    return training, training.table.rows_at(usable.line_numbers)


def _check_inputs(config: AugmentConfig, task: Task) -> None:
    """Refuse unusable models and files before anything is written."""
    load_masked_lm(config.lm)
    if config.neighbours != "embeddings":
        read_word_vectors(config.neighbours, max_words=100)
    if config.stop_words is not None:
        read_stop_words(config.stop_words)
    if config.with_logits is not None:
        _load_teacher(config.with_logits, task)


def _load_candidates(config: AugmentConfig) -> BatchFunction:
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

    def find_candidates(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        words, masked = generator.generate(batch["item"])
        return {
            "start": [[word.start for word in text] for text in words],
            "end": [[word.end for word in text] for text in words],
            "candidates": [[word.candidates for word in text] for text in words],
            "masked": masked,
        }

    return find_candidates


def _load_sampling(
    config: AugmentConfig,
    data: DataConfig,
    task: Task,
    output: AugmentedFile,
    rows: list[Sequence[object]],
    unique_texts: list[str],
) -> BatchFunction:
    teacher = None if config.with_logits is None else _load_teacher_logits(config, data, task)
    candidates = open_shards(output.work, "candidates")
    text_ids = {text: number for number, text in enumerate(unique_texts)}
    texts = output.texts_of(rows)
    count = config.augmented_per_example(len(rows))

    def words_of(text: str) -> list[ReplaceableWord]:
        found = candidates[text_ids[text]]
        spans = zip(found["start"], found["end"], found["candidates"], strict=True)
        return [ReplaceableWord(start, end, tuple(words)) for start, end, words in spans]

    def sample(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        augmented = [
            (row, variant)
            for row in batch["item"]
            for variant in sample_augmented_texts(
                texts[row],
                [words_of(text) for text in texts[row]],
                count=count,
                probability=config.probability,
                generator=np.random.default_rng([config.seed, row]),
            )
        ]
        logits: Any = [None] * len(augmented)
        if teacher is not None and augmented:
            logits = teacher([variant for _, variant in augmented])
        lines = [
            output.format_row(rows[row], variant, compute_source_id(texts[row]), values)
            for (row, variant), values in zip(augmented, logits, strict=True)
        ]
        return {"line": lines}

    return sample


def _load_teacher(path: str, task: Task) -> TaskBaseCheckpoint:
    teacher = load_base_checkpoint(TrainConfig(model=path, output="-", phases=()), task)  # it is fine-tuned
    if not teacher.is_finetuned:
        outputs = ", ".join(task.labels) or "one score"
        raise ConfigError(f"teacher {path} is not fine-tuned for this task; it must predict {outputs}")
    return teacher


def _load_teacher_logits(
    config: AugmentConfig, data: DataConfig, task: Task
) -> Callable[[list[tuple[str, ...]]], np.ndarray]:
    """A function that returns the teacher's logits ``(examples, outputs)`` in the order of the task's labels."""
    teacher = _load_teacher(str(config.with_logits), task)
    model = teacher.load_model(Space())
    max_length = min(data.max_length, teacher.max_length)
    order = [teacher.task.labels.index(name) for name in task.labels] or [0]

    def predict(texts: list[tuple[str, ...]]) -> np.ndarray:
        firsts, *pairs = zip(*texts, strict=True)
        examples = Examples(firsts, pairs[0] if pairs else None, None)
        tokens = tokenize_texts(examples, teacher.tokenizer, max_length=max_length, use_cache=False)
        logits = predict_subnet_logits(
            model, tokens, subnets={"full": model.full}, batch_size=64, precision=config.precision
        )
        return logits["full"][:, order]

    return predict
