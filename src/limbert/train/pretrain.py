"""Elastic pre-training: the phases of a run on the hidden words of a text instead of a task's labels."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from limbert.core.config import CorpusConfig, Precision, TaskKind, TrainConfig
from limbert.core.space import Space
from limbert.core.subnet import Subnet
from limbert.data.mlm.corpus import corpus_files
from limbert.data.mlm.masking import MaskedRows, Masking, all_rows, held_back
from limbert.data.mlm.packing import PackedRows, load_stream, pack
from limbert.errors import DataError
from limbert.evaluation.results import Result
from limbert.evaluation.subnets import count_parameters
from limbert.method.importance import Piece
from limbert.model import checkpoint
from limbert.model.elastic import ElasticModel
from limbert.model.families import longest_input
from limbert.model.flops import CostModel
from limbert.model.shared_forward import plan_passes, run_pass
from limbert.model.sparse_prediction import accept_positions
from limbert.train.context import Surroundings, step_seed
from limbert.train.distributed import Processes
from limbert.train.fingerprint import Content, corpus_content, sequences_digest
from limbert.train.phases import check_material
from limbert.train.recipes import Recipe
from limbert.train.run import PhasedRun


@dataclass(frozen=True)
class MaskedScores:
    """What one sub-network reaches on hidden words.

    Attributes:
        loss: mean cross-entropy in nats a hidden token.
        accuracy: share of the hidden tokens that it ranks first.
    """

    loss: float
    accuracy: float

    @property
    def metrics(self) -> dict[str, float]:
        """By name; perplexity is ``exp(loss)``."""
        return {"accuracy": self.accuracy, "loss": self.loss, "perplexity": math.exp(min(self.loss, 700.0))}


@torch.no_grad()
def masked_scores(
    model: ElasticModel,
    rows: MaskedRows,
    *,
    subnets: Mapping[str, Subnet],
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> dict[str, MaskedScores]:
    """Scores of sub-networks, all on the same hidden words.

    Args:
        model: takes ``positions``; evaluated without dropout, its mode is restored.
        rows: what is asked.
        subnets: by name.
        batch_size: sequences a batch.
        precision: ``"bf16"`` runs under autocast.
    """
    network, device = model.network, model.network.device
    training = network.training
    network.eval()
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    sums = {subnet: torch.zeros(2, dtype=torch.float64, device=device) for subnet in subnets.values()}
    asked = 0
    try:
        for indices in rows.in_order(batch_size=batch_size):
            batch = {name: tensor.to(device) for name, tensor in rows.ready(rows.collate(indices)).items()}
            labels = batch.pop("labels")
            asked += len(labels)
            for shared in plan_passes(sums):
                with model.at(shared.scope), autocast:
                    answers = run_pass(model, shared, batch)
                for subnet, answer in answers.items():
                    logits = answer.logits.float()  # (hidden, vocabulary)
                    right = (logits.argmax(-1) == labels).sum()
                    sums[subnet] += torch.stack([F.cross_entropy(logits, labels, reduction="sum"), right.float()])
    finally:
        network.train(training)
    found = {subnet: (total / asked).tolist() for subnet, total in sums.items()}
    return {name: MaskedScores(*found[subnet]) for name, subnet in subnets.items()}


def evaluate_masked(
    model: ElasticModel, rows: MaskedRows, *, subnets: Mapping[str, Subnet], precision: Precision = "fp32"
) -> list[Result]:
    """Results of the named sub-networks. FLOPs are those of the layers for a full sequence, without the vocabulary."""
    scores = masked_scores(model, rows, subnets=subnets, precision=precision)
    cost, tokens = CostModel(model), rows.packed.length

    def flops(subnet: Subnet) -> int:
        widths = subnet.widths().values()
        return sum(cost.layer_flops(heads=heads, neurons=neurons, tokens=tokens) for heads, neurons in widths)

    return [
        Result(name, count_parameters(model, subnet), flops(subnet), scores[name].metrics)
        for name, subnet in subnets.items()
    ]


_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


@dataclass(frozen=True)
class MaskedStart:
    """A start that is loaded.

    Attributes:
        network: the masked-language model; what the checkpoint lacks is random, by the run's seed.
        tokenizer: the model's.
        lacking: what is random: ``"weights"`` (all of them), ``"head"`` or ``"nothing"``.
        phases: phases of earlier runs that it has behind it.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    lacking: str
    phases: tuple[str, ...]

    @property
    def longest(self) -> int:
        """Tokens that it has positions for."""
        return longest_input(self.network.config)

    def model(self, space: Space) -> ElasticModel:
        """The start as an elastic model that takes ``positions``."""
        return _elastic(self.network, space)


def load_masked_start(config: TrainConfig) -> MaskedStart:
    """Load the model that pre-training begins from.

    A folder with a config and a tokenizer but no weights is a start from random weights.

    Raises:
        CheckpointError: if the config, the tokenizer or the weights cannot be read.
        UnsupportedModelError: for a family that is not supported.
    """
    model_config, tokenizer = checkpoint.load_config_and_tokenizer(config.model)
    torch.manual_seed(config.seed)
    folder = Path(config.model)
    if folder.is_dir() and not any(path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)):
        network = AutoModelForMaskedLM.from_config(model_config, dtype=torch.float32)
        return MaskedStart(network, tokenizer, "weights", ())
    loaded: Any
    loaded, record = checkpoint.load(config.model, head="masked-lm", output_loading_info=True)
    network, info = loaded
    lacking = "head" if info["missing_keys"] else "nothing"
    return MaskedStart(network, tokenizer, lacking, tuple(record.get("phases", ())))


def load_masked_model(folder: Path, space: Space) -> ElasticModel:
    """The result of a finished phase, as an elastic model that takes ``positions``."""
    network, _ = checkpoint.load(folder, head="masked-lm")
    return _elastic(network, space)


def _elastic(network: PreTrainedModel, space: Space) -> ElasticModel:
    model = ElasticModel(network, space=space)
    accept_positions(network)
    return model


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
