"""The two kinds of pieces that augmentation is cut into: candidates for the words of texts, then copies of rows."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from limbert.core.augmentation import AugmentConfig
from limbert.core.config import DataConfig, TrainConfig
from limbert.core.space import Space
from limbert.augment.sampling import Choice, origin_of, sample_copies
from limbert.data.tokenize import tokenize
from limbert.data.readers import Examples
from limbert.data.neighbours import read_neighbours
from limbert.data.tasks import Task
from limbert.augment.words import FUNCTION_WORDS, read_stop_words
from limbert.data.write import RowFormat
from limbert.errors import ConfigError
from limbert.evaluation.subnets import subnet_logits
from limbert.augment.candidates import WordChooser, open_masked_lm
from limbert.run.shards import ShardJob
from limbert.inference.base_model import Start, load_start

TEXTS, ROWS = 32, 64  # in a piece; part of the result, as texts of one piece share batches


@dataclass(frozen=True)
class TextsJob(ShardJob):
    """The candidates for the words of some texts: one JSON line a text, below one with the number of masks."""

    config: AugmentConfig
    texts: list[str]
    name: str = "texts"

    def start(self) -> Callable[[int], str]:
        config = self.config
        network, tokenizer = open_masked_lm(config.lm)
        chooser = WordChooser(
            network,
            tokenizer,
            neighbours=None if config.neighbours == "embeddings" else read_neighbours(config.neighbours),
            keep=FUNCTION_WORDS if config.stop_words is None else read_stop_words(config.stop_words),
            count=config.candidates,
            context=config.context,
            precision=config.precision,
        )

        def make(number: int) -> str:
            found, masked = chooser.choose(self.texts[number * TEXTS : (number + 1) * TEXTS])
            lines = [[[choice.start, choice.end, choice.words] for choice in choices] for choices in found]
            return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [masked, *lines])

        return make


@dataclass(frozen=True)
class RowsJob(ShardJob):
    """The copies of some rows as they stand in the file that is made, below a line with their number.

    A teacher's logits follow where one is named.
    """

    config: AugmentConfig
    data: DataConfig
    task: Task
    rows: list[Sequence[object]]
    texts: list[tuple[str, ...]]  # the one or two texts of each row
    numbers: list[tuple[int, ...]]  # of these texts among all different ones
    places: tuple[int, ...]  # of the text columns
    layout: RowFormat
    folder: Path
    name: str = "rows"

    def start(self) -> Callable[[int], str]:
        teacher = None if self.config.with_logits is None else self._teacher(self.config.with_logits)
        read = functools.lru_cache(64)(lambda number: _read_choices(self.folder / f"texts-{number:06d}"))
        count = self.config.copies_of(len(self.rows))

        def make(piece: int) -> str:
            made: list[tuple[int, tuple[str, ...]]] = []
            for row in range(piece * ROWS, min((piece + 1) * ROWS, len(self.rows))):
                copies = sample_copies(
                    self.texts[row],
                    [read(number // TEXTS)[number % TEXTS] for number in self.numbers[row]],
                    count=count,
                    probability=self.config.probability,
                    generator=np.random.default_rng([self.config.seed, row]),
                )
                made += [(row, copy) for copy in copies]
            logits = None if teacher is None or not made else teacher([copy for _, copy in made])
            lines = [
                self._line(row, copy, None if logits is None else logits[place])
                for place, (row, copy) in enumerate(made)
            ]
            return "".join([f"{len(lines)}\n", *lines])

        return make

    def _line(self, row: int, copy: tuple[str, ...], logits: np.ndarray | None) -> str:
        cells = list(self.rows[row])
        for place, text in zip(self.places, copy, strict=True):
            cells[place] = text
        more = [] if logits is None else [" ".join(f"{value:.4f}" for value in logits)]
        return self.layout.line([*cells, origin_of(self.texts[row]), *more])

    def _teacher(self, path: str) -> Callable[[list[tuple[str, ...]]], np.ndarray]:
        """Answers with the logits ``(copies, outputs)``, in the order of the task's labels."""
        start = open_teacher(path, self.task)
        model = start.model(Space())
        length = min(self.data.max_length, start.longest)
        order = [start.task.labels.index(name) for name in self.task.labels] or [0]

        def answer(copies: list[tuple[str, ...]]) -> np.ndarray:
            pairs = tuple(copy[1] for copy in copies) if len(copies[0]) > 1 else None
            examples = Examples(tuple(copy[0] for copy in copies), pairs, None)
            tokens = tokenize(examples, start.tokenizer, max_length=length, cache=False)
            found = subnet_logits(
                model, tokens, subnets={"full": model.full}, batch_size=64, precision=self.config.precision
            )
            return found["full"][:, order]

        return answer


def open_teacher(path: str, task: Task) -> Start:
    """A model that is fine-tuned on the task, stock or elastic.

    Raises:
        ConfigError: if it is not.
        CheckpointError: if it cannot be read.
    """
    start = load_start(TrainConfig(model=path, output="-"), task)
    if not start.finetuned:
        wanted = ", ".join(task.labels) or "one score"
        raise ConfigError(f"teacher {path} is not fine-tuned for this task; it must answer {wanted}")
    return start


def _read_choices(path: Path) -> list[list[Choice]]:
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1]  # the first is the number of masks
    return [[Choice(start, end, tuple(words)) for start, end, words in json.loads(line)] for line in lines]
