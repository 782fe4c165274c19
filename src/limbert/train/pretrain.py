"""Elastic pre-training: the phases of a run on the hidden words of a text instead of a task's labels."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from limbert.core.config import Precision, TaskKind, TrainConfig
from limbert.core.corpus_config import CorpusConfig
from limbert.core.subnet import Subnet
from limbert.data.mlm.corpus import corpus_files
from limbert.data.masked_rows import MaskedRows, all_rows, held_back
from limbert.data.mlm.masking import Masking
from limbert.data.mlm.packing import PackedRows, load_stream, pack
from limbert.errors import DataError
from limbert.method.importance import Piece
from limbert.model.elastic import ElasticModel
from limbert.run.content import Content, corpus_content, sequences_digest
from limbert.evaluation.subnets import Result
from limbert.run.masked_evaluation import evaluate_masked, masked_scores
from limbert.run.masked_start import MaskedStart, load_masked_model, load_masked_start
from limbert.train.phases import check_material
from limbert.train.distributed import Processes
from limbert.train.recipes import Recipe
from limbert.train.trainer import Surroundings, step_seed
from limbert.train.run import PhasedRun

LEAST_SEQUENCES = 10  # of a corpus, before some are kept back


@dataclass(frozen=True)
class MaskedWork:
    """What one phase works on. The answers that it trains are those for hidden tokens: a classification each.

    Attributes:
        name: the phase's, for reports and saved states.
        model: trained in place; takes ``positions``.
        train: sequences to learn from.
        validation: sequences kept back from training; they choose and score.
        precision: of the passes that need no gradients.
        surroundings: device, seed, workspace and monitor.
        keeps_order: whether heads and neurons are in an order that was trained already, so that it must stay.
    """

    name: str
    model: ElasticModel
    train: MaskedRows
    validation: MaskedRows
    precision: Precision
    surroundings: Surroundings
    keeps_order: bool
    kind: TaskKind = "classification"

    def scoring_batches(self, batch_size: int) -> Iterator[Iterable[Piece]]:
        """Batches of the validation slice with their hidden tokens as labels, in pieces on the model's device."""
        processes = Processes.of(self.surroundings.accelerator)
        for indices in self.validation.in_order(batch_size=batch_size):
            parts = processes.parts(self.validation.collate(indices))
            yield ((self._on_device(self.validation.ready(part)), share.labels) for part, share in parts)

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.surroundings.accelerator.device
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def scores(self, subnets: Mapping[str, Subnet]) -> dict[str, float]:
        """The share of hidden tokens that sub-networks find, by name."""
        found = masked_scores(self.model, self.validation, subnets=subnets, precision=self.precision)
        return {name: one.accuracy for name, one in found.items()}


@dataclass(frozen=True)
class CorpusMaterials:
    """What the phases of one run work on: sequences to learn from, to choose by and to report on."""

    start: MaskedStart
    train: MaskedRows
    validation: MaskedRows
    dev: MaskedRows


class PretrainingRun(PhasedRun[CorpusMaterials]):
    """Pre-training on a corpus; for the arguments see `PhasedRun`.

    Args:
        config, recipe, others: as there.
        corpus: the text, and how it is read and masked.
        content: of `corpus_content`, where it is known already.
    """

    def __init__(
        self,
        config: TrainConfig,
        recipe: Recipe,
        *,
        corpus: CorpusConfig,
        content: Content | None = None,
        **others: Any,
    ) -> None:
        check_material(recipe.phases, "text")
        content = content or corpus_content(corpus, config.model)
        super().__init__(config, recipe, data_config=corpus, content=content, **others)
        self.corpus = corpus

    def _materials(self) -> CorpusMaterials:
        start = load_masked_start(self.config)
        corpus, config = self.corpus, self.config
        masking = Masking.of(start.tokenizer, share=corpus.mask_share, whole_word=corpus.whole_word)
        reported = corpus_files(corpus.dev)
        packed = self._packed(corpus.corpus, start, apart_from=reported)
        if len(packed) < LEAST_SEQUENCES:
            raise DataError(
                f"corpus {', '.join(corpus.corpus)}: {len(packed.stream.ids)} tokens fill {len(packed)} sequences of "
                f"{packed.length}; at least {LEAST_SEQUENCES} are needed"
            )
        left_out = len(corpus_files(corpus.corpus)) - len(corpus_files(corpus.corpus, apart_from=reported))
        if left_out:
            files = "1 file" if left_out == 1 else f"{left_out} files"
            self.monitor.note(f"{files} of the corpus, being development text, will only be reported on")
        share, limit = config.validation, config.validation_limit
        if corpus.dev:
            train, (validation,) = held_back(packed, masking, slices=1, share=share, limit=limit, seed=config.seed)
            dev = all_rows(self._packed(corpus.dev, start), masking, limit=limit, seed=config.seed)
        else:
            train, (validation, dev) = held_back(packed, masking, slices=2, share=share, limit=limit, seed=config.seed)
        return CorpusMaterials(start, train, validation, dev)

    def _packed(self, names: tuple[str, ...], start: MaskedStart, *, apart_from: tuple[Path, ...] = ()) -> PackedRows:
        def progress(done: int, total: int) -> None:
            self.monitor.preparing("corpus", "tokenising (MB)", done, total)

        stream = load_stream(names, self.corpus, start.tokenizer, apart_from=apart_from, progress=progress)
        return pack(stream, start.tokenizer, max_length=min(self.corpus.max_length, start.longest))

    def _digests(self, materials: CorpusMaterials) -> dict[str, str]:
        parts = {"training": materials.train, "validation": materials.validation, "development": materials.dev}
        return {f"{name}_sequences": sequences_digest(part) for name, part in parts.items()}

    def _phases(self, materials: CorpusMaterials) -> list[str]:
        """The phases of this run: the plain one is left out where the start is a masked-language model already."""
        phases, lacking = list(self.recipe.phases), materials.start.lacking
        if lacking != "nothing":
            what = "its weights" if lacking == "weights" else "its head for hidden words"
            self.monitor.note(f"{self.config.model} lacks {what}; random ones are taken")
        elif self.config.phases is None and "mlm" in phases:
            phases.remove("mlm")
            self.monitor.note(f"{self.config.model} is a masked-language model; phase mlm is skipped")
        return phases

    def _load(self, folder: Path) -> ElasticModel:
        return load_masked_model(folder, self.recipe.space)

    def _work(self, name: str, model: ElasticModel, materials: CorpusMaterials) -> MaskedWork:
        return MaskedWork(
            name,
            model=model,
            train=materials.train.seeded(step_seed(self.config.seed, name, 0)),
            validation=materials.validation,
            precision=self.config.precision,
            surroundings=self._surroundings(),
            keeps_order="width" in materials.start.phases,
        )

    def _measure(self, model: ElasticModel, materials: CorpusMaterials, subnets: dict[str, Subnet]) -> list[Result]:
        return evaluate_masked(model, materials.dev, subnets=subnets, precision=self.config.precision)

    def _record(self, materials: CorpusMaterials, phases: list[str]) -> dict[str, Any]:
        return {
            "objective": "masked-lm",
            "phases": [*materials.start.phases, *phases],
            "settings": self.settings,
        }
