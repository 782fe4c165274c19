"""Elastic pre-training: the phases of a run on the hidden words of a text instead of a task's labels."""

import hashlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from limbert.core.config import CorpusConfig, Precision, TrainConfig
from limbert.core.space import Space
from limbert.core.subnet import Subnet
from limbert.data.mlm.corpus import corpus_files
from limbert.data.mlm.masking import MaskedSequences, TokenMasking, sample_sequences, split_validation_sequences
from limbert.data.mlm.packing import PackedSequences, load_token_stream, pack_sequences
from limbert.errors import DataError
from limbert.evaluation.evaluate import count_parameters
from limbert.evaluation.results import SubnetResult
from limbert.files import json_fingerprint
from limbert.model import checkpoint
from limbert.model.elastic import ElasticModel
from limbert.model.families import max_input_length
from limbert.model.flops import CostModel
from limbert.model.shared_forward import plan_shared_forwards, run_shared_forward
from limbert.model.sparse_prediction import enable_sparse_prediction
from limbert.train.distributed import init_distributed
from limbert.train.gates import Progress
from limbert.train.phases import check_supervision
from limbert.train.recipes import Recipe
from limbert.train.run import RunData, run_phases
from limbert.train.run_folder import run_settings
from limbert.train.trainer import step_seed

logger = logging.getLogger(__name__)


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
    cost, tokens = CostModel(model), dataset.packed.sequence_length

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


MIN_SEQUENCES = 10  # of a corpus, before a validation split is taken
_BLOCK_SIZE, _MAX_BLOCKS = 1 << 16, 1024  # of a corpus at most 64 MB are read for its fingerprint


def pretrain_corpus(
    config: TrainConfig,
    recipe: Recipe,
    corpus: CorpusConfig,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = lambda description, done, total: None,
    overwrite: bool = False,
) -> list[SubnetResult]:
    """Pre-train on a corpus, as ``limbert pretrain`` does.

    Args:
        config: base model, output, seed, precision.
        recipe: with the batch sizes of one process.
        corpus: the text, and how it is read and masked.
        callbacks: of the Trainer.
        progress: told of preparations.
        overwrite: replace a run with other settings.

    Raises:
        LimbertError: see `run_phases`.
    """
    check_supervision(recipe.phases, "text")
    recipe = recipe.with_world_size(init_distributed())
    fingerprint = json_fingerprint([_text_fingerprint(paths) for paths in (corpus.corpus, corpus.dev) if paths])
    return run_phases(
        config,
        recipe,
        settings=run_settings(config, recipe.to_dict(), corpus, fingerprint=fingerprint),
        load_data=lambda: _load_run_data(config, recipe, corpus, progress=progress),
        callbacks=callbacks,
        progress=progress,
        overwrite=overwrite,
    )


def _load_run_data(config: TrainConfig, recipe: Recipe, corpus: CorpusConfig, *, progress: Progress) -> RunData:
    base = load_mlm_base(config)
    masking = TokenMasking.from_tokenizer(base.tokenizer, mask_fraction=corpus.mask_share, whole_word=corpus.whole_word)
    dev_files = corpus_files(corpus.dev)

    def pack(paths: tuple[str, ...], *, exclude: tuple[Path, ...] = ()) -> PackedSequences:
        def advance(done: int, total: int) -> None:
            progress("tokenising (MB)", done, total)

        stream = load_token_stream(paths, corpus, base.tokenizer, exclude=exclude, progress=advance)
        return pack_sequences(stream, base.tokenizer, max_length=min(corpus.max_length, base.max_length))

    packed = pack(corpus.corpus, exclude=dev_files)
    if len(packed) < MIN_SEQUENCES:
        raise DataError(
            f"corpus {', '.join(corpus.corpus)}: {len(packed.stream.ids)} tokens fill {len(packed)} sequences of "
            f"{packed.sequence_length}; at least {MIN_SEQUENCES} are needed"
        )
    left_out = len(corpus_files(corpus.corpus)) - len(corpus_files(corpus.corpus, exclude=dev_files))
    if left_out:
        files = "1 file" if left_out == 1 else f"{left_out} files"
        logger.info("%s of the corpus, being development text, will only be reported on", files)
    split = {"fraction": config.validation, "max_sequences": config.validation_limit, "seed": config.seed}
    if corpus.dev:
        train, (validation,) = split_validation_sequences(packed, masking, num_splits=1, **split)
        dev = sample_sequences(pack(corpus.dev), masking, max_sequences=config.validation_limit, seed=config.seed)
    else:
        train, (validation, dev) = split_validation_sequences(packed, masking, num_splits=2, **split)
    return RunData(
        tokenizer=base.tokenizer,
        load_base=lambda: base.load_model(recipe.space),
        load_phase=lambda folder: load_mlm_model(folder, recipe.space),
        train_dataset=lambda phase: train.with_seed(step_seed(config.seed, phase, 0)),
        distill_dataset=None,
        eval_dataset=validation,
        evaluate_subnets=lambda model, subnets: {
            name: {"accuracy": scores.accuracy, "loss": scores.loss}
            for name, scores in mlm_scores(model, validation, subnets=subnets, precision=config.precision).items()
        },
        evaluate_dev=lambda model, subnets: evaluate_mlm(model, dev, subnets=subnets, precision=config.precision),
        metric="accuracy",
        record={"objective": "masked-lm"},
        completed_phases=base.completed_phases,
        skipped_phase=_skipped_phase(config, recipe, base),
        fingerprints={
            name: _sequences_fingerprint(part)
            for name, part in (("training sequences", train), ("validation sequences", validation))
        },
        task_type="classification",
    )


def _skipped_phase(config: TrainConfig, recipe: Recipe, base: MlmBaseCheckpoint) -> str | None:
    """Phase mlm, where the base is a masked-language model already."""
    if base.missing != "nothing":
        what = "its weights" if base.missing == "weights" else "its head for hidden words"
        logger.info("%s lacks %s; random ones are taken", config.model, what)
        return None
    if config.phases is not None or "mlm" not in recipe.phases:
        return None
    logger.info("%s is a masked-language model; phase mlm is skipped", config.model)
    return "mlm"


def _sequences_fingerprint(sequences: MaskedSequences) -> str:
    ids = sequences.packed.stream.ids
    blocks = [ids[start : start + _BLOCK_SIZE].tolist() for start in _block_offsets(len(ids), max_blocks=64)]
    return json_fingerprint([sequences.start, sequences.count, sequences.packed.sequence_length, len(ids), blocks])


def _text_fingerprint(paths: tuple[str, ...]) -> str:
    """Of the text in files, in their order; neither their names nor their times of change count."""
    try:
        files = [(path, path.stat().st_size) for path in corpus_files(paths)]
        total = sum(size for _, size in files)
        digest = hashlib.sha256()
        for path, size in files:
            digest.update(f"{path.suffix.lower()} {size} ".encode())
            with path.open("rb") as opened:
                for start in _block_offsets(size, max_blocks=_MAX_BLOCKS * size // max(1, total)):
                    opened.seek(start)
                    digest.update(opened.read(_BLOCK_SIZE))
    except OSError as error:
        raise DataError(f"corpus {', '.join(paths)}: {error.filename}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()[:32]


def _block_offsets(size: int, *, max_blocks: int) -> Iterator[int]:
    """Where blocks begin: all of them end to end, or so many (at least one) evenly, the last at the end."""
    if -(-size // _BLOCK_SIZE) <= max(1, max_blocks):
        yield from range(0, size, _BLOCK_SIZE)
    elif max_blocks <= 1:
        yield 0
    else:
        yield from (number * (size - _BLOCK_SIZE) // (max_blocks - 1) for number in range(max_blocks))
