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

from limbert.core.config import CorpusConfig, Precision, TaskType, TrainConfig
from limbert.core.space import Space
from limbert.core.subnet import Subnet
from limbert.data.mlm.corpus import corpus_files
from limbert.data.mlm.masking import (
    CounterMaskingCollator,
    MaskedSequences,
    sample_sequences,
    split_validation_sequences,
)
from limbert.data.mlm.packing import pack_corpus
from limbert.errors import DataError
from limbert.evaluation.results import SubnetResult
from limbert.evaluation.subnets import count_parameters
from limbert.method.importance import WeightedMicroBatch
from limbert.model import checkpoint
from limbert.model.elastic import ElasticModel
from limbert.model.families import max_input_length
from limbert.model.flops import CostModel
from limbert.model.shared_forward import plan_shared_forwards, run_shared_forward
from limbert.model.sparse_prediction import enable_sparse_prediction
from limbert.train.context import TrainingContext, step_seed
from limbert.train.distributed import DistributedContext
from limbert.train.fingerprint import Fingerprints, corpus_fingerprints
from limbert.train.phases import check_supervision
from limbert.train.recipes import Recipe
from limbert.train.run import PhasedRun


@dataclass(frozen=True)
class MlmScores:
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
def mlm_scores(
    model: ElasticModel,
    dataset: MaskedSequences,
    *,
    subnets: Mapping[str, Subnet],
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> dict[str, MlmScores]:
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
        for indices in dataset.sequential_batches(batch_size=batch_size):
            batch = {
                name: tensor.to(device) for name, tensor in dataset.prepare_inputs(dataset.collate(indices)).items()
            }
            labels = batch.pop("labels")
            asked += len(labels)
            for shared in plan_shared_forwards(sums):
                with model.at(shared.merged_subnet), autocast:
                    answers = run_shared_forward(model, shared, batch)
                for subnet, answer in answers.items():
                    logits = answer.logits.float()  # (hidden, vocabulary)
                    right = (logits.argmax(-1) == labels).sum()
                    sums[subnet] += torch.stack([F.cross_entropy(logits, labels, reduction="sum"), right.float()])
    finally:
        network.train(training)
    found = {subnet: (total / asked).tolist() for subnet, total in sums.items()}
    return {name: MlmScores(*found[subnet]) for name, subnet in subnets.items()}


def evaluate_mlm(
    model: ElasticModel, dataset: MaskedSequences, *, subnets: Mapping[str, Subnet], precision: Precision = "fp32"
) -> list[SubnetResult]:
    """Results of the named sub-networks. FLOPs are those of the layers for a full sequence, without the vocabulary."""
    scores = mlm_scores(model, dataset, subnets=subnets, precision=precision)
    cost, tokens = CostModel(model), int(dataset.lengths.max())

    def flops(subnet: Subnet) -> int:
        widths = subnet.layer_widths().values()
        return sum(cost.layer_flops(heads=heads, neurons=neurons, tokens=tokens) for heads, neurons in widths)

    return [
        SubnetResult(name, count_parameters(model, subnet), flops(subnet), scores[name].metrics)
        for name, subnet in subnets.items()
    ]


_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


@dataclass(frozen=True)
class MlmBaseCheckpoint:
    """A start that is loaded.

    Attributes:
        network: the masked-language model; what the checkpoint lacks is random, by the run's seed.
        tokenizer: the model's.
        lacking: what is random: ``"weights"`` (all of them), ``"head"`` or ``"nothing"``.
        phases: phases of earlier runs that it has behind it.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    missing: str
    completed_phases: tuple[str, ...]

    @property
    def max_length(self) -> int:
        """Tokens that it has positions for."""
        return max_input_length(self.network.config)

    def load_model(self, space: Space) -> ElasticModel:
        """The start as an elastic model that takes ``positions``."""
        return _to_elastic(self.network, space)


def load_mlm_base(config: TrainConfig) -> MlmBaseCheckpoint:
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
        return MlmBaseCheckpoint(network, tokenizer, "weights", ())
    loaded: Any
    loaded, record = checkpoint.load_network(config.model, head="masked-lm", output_loading_info=True)
    network, info = loaded
    lacking = "head" if info["missing_keys"] else "nothing"
    return MlmBaseCheckpoint(network, tokenizer, lacking, tuple(record.get("phases", ())))


def load_mlm_model(folder: Path, space: Space) -> ElasticModel:
    """The result of a finished phase, as an elastic model that takes ``positions``."""
    network, _ = checkpoint.load_network(folder, head="masked-lm")
    return _to_elastic(network, space)


def _to_elastic(network: PreTrainedModel, space: Space) -> ElasticModel:
    model = ElasticModel(network, space=space)
    enable_sparse_prediction(network)
    return model


MIN_SEQUENCES = 10  # of a corpus, before some are kept back


@dataclass(frozen=True)
class MlmPhaseSetup:
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
    train_dataset: MaskedSequences
    eval_dataset: MaskedSequences
    precision: Precision
    context: TrainingContext
    is_rewired: bool
    task_type: TaskType = "classification"

    def importance_batches(self, batch_size: int) -> Iterator[Iterable[WeightedMicroBatch]]:
        """Batches of the validation slice with their hidden tokens as labels, in pieces on the model's device."""
        processes = DistributedContext.from_accelerator(self.context.accelerator)
        for indices in self.eval_dataset.sequential_batches(batch_size=batch_size):
            parts = processes.all_shards(self.eval_dataset.collate(indices))
            yield ((self._to_device(self.eval_dataset.prepare_inputs(part)), share.labels) for part, share in parts)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.context.accelerator.device
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def validation_scores(self, subnets: Mapping[str, Subnet]) -> dict[str, float]:
        """The share of hidden tokens that sub-networks find, by name."""
        found = mlm_scores(self.model, self.eval_dataset, subnets=subnets, precision=self.precision)
        return {name: one.accuracy for name, one in found.items()}


@dataclass(frozen=True)
class MlmRunData:
    """What the phases of one run work on: sequences to learn from, to choose by and to report on."""

    base: MlmBaseCheckpoint
    train_dataset: MaskedSequences
    eval_dataset: MaskedSequences
    dev_dataset: MaskedSequences


class PretrainingRun(PhasedRun[MlmRunData]):
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
        fingerprints: Fingerprints | None = None,
        **kwargs: Any,
    ) -> None:
        check_supervision(recipe.phases, "text")
        fingerprints = fingerprints or corpus_fingerprints(corpus, config.model)
        super().__init__(config, recipe, data_config=corpus, fingerprints=fingerprints, **kwargs)
        self.corpus = corpus

    def _load_data(self) -> MlmRunData:
        start = load_mlm_base(self.config)
        corpus, config = self.corpus, self.config
        reported = corpus_files(corpus.dev)
        packed = self._pack_corpus(corpus.corpus, start, exclude=reported)
        if len(packed) < MIN_SEQUENCES:
            raise DataError(
                f"corpus {', '.join(corpus.corpus)}: {int((packed.lengths - 2).sum())} tokens fill {len(packed)} "
                f"sequences of {min(corpus.max_length, start.max_length)}; at least {MIN_SEQUENCES} are needed"
            )
        left_out = len(corpus_files(corpus.corpus)) - len(corpus_files(corpus.corpus, exclude=reported))
        if left_out:
            files = "1 file" if left_out == 1 else f"{left_out} files"
            self.callback.on_message(f"{files} of the corpus, being development text, will only be reported on")
        share, limit = config.validation, config.validation_limit
        if corpus.dev:
            train, (validation,) = split_validation_sequences(
                packed, num_splits=1, fraction=share, max_sequences=limit, seed=config.seed
            )
            dev = sample_sequences(self._pack_corpus(corpus.dev, start), max_sequences=limit, seed=config.seed)
        else:
            train, (validation, dev) = split_validation_sequences(
                packed, num_splits=2, fraction=share, max_sequences=limit, seed=config.seed
            )
        return MlmRunData(start, train, validation, dev)

    def _pack_corpus(
        self, paths: tuple[str, ...], base: MlmBaseCheckpoint, *, exclude: tuple[Path, ...] = ()
    ) -> MaskedSequences:
        def progress(done: int, total: int) -> None:
            self.callback.on_prepare("corpus", "tokenising (MB)", done, total)

        length = min(self.corpus.max_length, base.max_length)
        packed = pack_corpus(paths, self.corpus, base.tokenizer, max_length=length, exclude=exclude, progress=progress)
        collator = CounterMaskingCollator(
            base.tokenizer,
            mlm_probability=self.corpus.mask_share,
            whole_words=self.corpus.whole_word,
            seed=self.config.seed,
        )
        return MaskedSequences(packed, collator)

    def _dataset_fingerprints(self, data: MlmRunData) -> dict[str, str]:
        parts = {"training": data.train_dataset, "validation": data.eval_dataset, "development": data.dev_dataset}
        return {f"{name}_sequences": part.fingerprint for name, part in parts.items()}

    def _phases(self, data: MlmRunData) -> list[str]:
        """The phases of this run: the plain one is left out where the start is a masked-language model already."""
        phases, lacking = list(self.recipe.phases), data.base.missing
        if lacking != "nothing":
            what = "its weights" if lacking == "weights" else "its head for hidden words"
            self.callback.on_message(f"{self.config.model} lacks {what}; random ones are taken")
        elif self.config.phases is None and "mlm" in phases:
            phases.remove("mlm")
            self.callback.on_message(f"{self.config.model} is a masked-language model; phase mlm is skipped")
        return phases

    def _load_phase_result(self, folder: Path) -> ElasticModel:
        return load_mlm_model(folder, self.recipe.space)

    def _phase_setup(self, name: str, model: ElasticModel, data: MlmRunData) -> MlmPhaseSetup:
        return MlmPhaseSetup(
            name,
            model=model,
            train_dataset=data.train_dataset.with_seed(step_seed(self.config.seed, name, 0)),
            eval_dataset=data.eval_dataset,
            precision=self.config.precision,
            context=self._training_context(),
            is_rewired="width" in data.base.completed_phases,
        )

    def _evaluate_subnets(
        self, model: ElasticModel, data: MlmRunData, subnets: dict[str, Subnet]
    ) -> list[SubnetResult]:
        return evaluate_mlm(model, data.dev_dataset, subnets=subnets, precision=self.config.precision)

    def _checkpoint_record(self, data: MlmRunData, phases: list[str]) -> dict[str, Any]:
        return {
            "objective": "masked-lm",
            "phases": [*data.base.completed_phases, *phases],
            "settings": self.settings,
        }
