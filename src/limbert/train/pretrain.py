"""Elastic pre-training: the phases of a run on the masked words of a text instead of a task's labels."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from limbert.core.config import CorpusConfig, Precision, TrainConfig, configs_from_options
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
from limbert.evaluation.evaluate import Progress, count_parameters, no_progress
from limbert.evaluation.results import SubnetResult
from limbert.files import json_fingerprint
from limbert.model import checkpoint
from limbert.model.elastic import ElasticModel
from limbert.model.families import max_input_length
from limbert.model.flops import CostModel
from limbert.model.inference_mode import autocast, evaluation_mode
from limbert.model.shared_forward import plan_shared_forwards, run_shared_forward
from limbert.model.sparse_prediction import enable_sparse_prediction
from limbert.train.base_trainer import step_seed
from limbert.train.distributed import init_distributed, local_main_process_first
from limbert.train.output_run import RunData, run_phases
from limbert.train.phases import check_supervision
from limbert.train.recipes import Recipe, load_recipe, override_recipe, with_trained_space
from limbert.train.run_folder import run_settings

logger = logging.getLogger(__name__)

MIN_SEQUENCES = 10  # of a corpus, before a validation split is taken
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


def pretrain(
    model: str,
    *,
    corpus: str | Sequence[str],
    output: str | Path,
    recipe: str | Recipe = "pretrain",
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = no_progress,
    overwrite: bool = False,
    **options: Any,
) -> list[SubnetResult]:
    """Pre-train an elastic encoder on a corpus, as ``limbert pretrain`` does.

    Args:
        model: a masked language model, an encoder, or a folder with a config and a tokenizer but no weights.
        corpus: files, folders and globs.
        output: folder of the result, for ``limbert.train`` or `ElasticModel.from_pretrained`.
        recipe: a bundled one by name, a TOML file, or a `Recipe`.
        callbacks: of the Trainer.
        progress: called with the current step of the preparations, and its finished and all parts.
        overwrite: replace a run with other settings.
        options: other fields of `CorpusConfig` and `TrainConfig`.

    Returns:
        Parameters, FLOPs and metrics of all sub-networks on held-out sequences.

    Raises:
        TrainingInterrupted: after a signal; the same call resumes.
        LimbertError: in one line for everything else.
    """
    options |= {
        "model": model,
        "corpus": (corpus,) if isinstance(corpus, str) else tuple(corpus),
        "output": str(output),
    }
    if isinstance(recipe, str):
        options["recipe"] = recipe
    config, corpus_config = configs_from_options(options, TrainConfig, CorpusConfig)
    if isinstance(recipe, str):
        recipe = with_trained_space(override_recipe(load_recipe(recipe), phases=config.phases), model)
    return pretrain_corpus(config, recipe, corpus_config, callbacks=callbacks, progress=progress, overwrite=overwrite)


def pretrain_corpus(
    config: TrainConfig,
    recipe: Recipe,
    corpus: CorpusConfig,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> list[SubnetResult]:
    """`pretrain` with its settings as config objects; the recipe has the batch sizes of one process."""
    check_supervision(recipe.phases, "text")
    recipe = recipe.with_world_size(init_distributed())
    with local_main_process_first():
        data, fingerprint = _load_run_data(config, recipe, corpus, progress=progress)
    return run_phases(
        config,
        recipe,
        settings=run_settings(config, recipe.to_dict(), corpus, fingerprint=fingerprint),
        load_data=lambda: data,
        callbacks=callbacks,
        progress=progress,
        overwrite=overwrite,
    )


def mlm_metrics(
    model: ElasticModel,
    sequences: MaskedSequences,
    *,
    subnets: Mapping[str, Subnet],
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> dict[str, dict[str, float]]:
    """Metrics of sub-networks on the same masked tokens: ``accuracy``, ``loss`` (nats per token) and ``perplexity``.

    Args:
        model: with sparse prediction.
        sequences: evaluated in order, with the masks of epoch 0.
        subnets: by name.
        batch_size: sequences in a batch.
        precision: ``"bf16"`` runs under autocast.
    """
    device = model.network.device
    sums = {subnet: torch.zeros(2, dtype=torch.float64, device=device) for subnet in subnets.values()}
    num_masked = 0
    with evaluation_mode(model.network):
        for indices in sequences.sequential_batches(batch_size=batch_size):
            inputs = sequences.prepare_inputs(sequences.collate(indices))
            batch = {name: tensor.to(device) for name, tensor in inputs.items()}
            labels = batch.pop("labels")
            num_masked += len(labels)
            for shared in plan_shared_forwards(sums):
                with model.at(shared.merged_subnet), autocast(device, precision):
                    outputs = run_shared_forward(model, shared, batch)
                for subnet, output in outputs.items():
                    logits = output.logits.float()  # (masked, vocabulary)
                    correct = (logits.argmax(-1) == labels).sum()
                    sums[subnet] += torch.stack([F.cross_entropy(logits, labels, reduction="sum"), correct.float()])
    metrics = {}
    for name, subnet in subnets.items():
        loss, accuracy = (sums[subnet] / num_masked).tolist()
        metrics[name] = {"accuracy": accuracy, "loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    return metrics


def evaluate_mlm(
    model: ElasticModel, sequences: MaskedSequences, *, subnets: Mapping[str, Subnet], precision: Precision = "fp32"
) -> list[SubnetResult]:
    """Results of sub-networks by name. FLOPs are those of the layers for a full sequence, without the vocabulary."""
    metrics = mlm_metrics(model, sequences, subnets=subnets, precision=precision)
    cost, tokens = CostModel(model), int(sequences.lengths.max())

    def flops(subnet: Subnet) -> int:
        widths = subnet.layer_widths().values()
        return sum(cost.layer_flops(heads=heads, neurons=neurons, tokens=tokens) for heads, neurons in widths)

    return [
        SubnetResult(name, count_parameters(model, subnet), flops(subnet), metrics[name])
        for name, subnet in subnets.items()
    ]


class MlmBaseCheckpoint(NamedTuple):
    """A base model for pre-training."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    missing: Literal["weights", "head", "nothing"]  # what the checkpoint lacks and is random
    completed_phases: tuple[str, ...]  # of earlier runs


def load_mlm_base(config: TrainConfig) -> MlmBaseCheckpoint:
    """Load the base model of a run; without weights in its folder they are random, by the run's seed.

    Raises:
        CheckpointError: if config, tokenizer or weights cannot be read.
        UnsupportedModelError: for a family that is not supported.
    """
    model_config, tokenizer = checkpoint.load_config_and_tokenizer(config.model)
    torch.manual_seed(config.seed)
    folder = Path(config.model)
    if folder.is_dir() and not any(path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)):
        network = AutoModelForMaskedLM.from_config(model_config, dtype=torch.float32)
        return MlmBaseCheckpoint(network, tokenizer, "weights", ())
    loaded = checkpoint.load_network(config.model, head="masked-lm", new_head=True)
    completed = tuple(loaded.record.get("phases", ()))
    return MlmBaseCheckpoint(loaded.network, tokenizer, "head" if loaded.new_parameters else "nothing", completed)


def to_elastic_mlm(network: PreTrainedModel, space: Space) -> ElasticModel:
    """A masked language model as an elastic model with sparse prediction."""
    model = ElasticModel(network, space=space)
    enable_sparse_prediction(network)
    return model


def _load_run_data(
    config: TrainConfig, recipe: Recipe, corpus: CorpusConfig, *, progress: Progress
) -> tuple[RunData, str]:
    """What the run trains on, and its fingerprint."""
    base = load_mlm_base(config)
    train, validation, dev = _load_splits(config, corpus, base, progress=progress)
    fingerprint = json_fingerprint([train.fingerprint, validation.fingerprint, dev.fingerprint])
    data = RunData(
        tokenizer=base.tokenizer,
        load_base=lambda: to_elastic_mlm(base.network, recipe.space),
        load_phase=lambda folder: to_elastic_mlm(
            checkpoint.load_network(folder, head="masked-lm").network, recipe.space
        ),
        train_dataset=lambda phase: train.with_seed(step_seed(config.seed, phase, 0)),
        distill_dataset=None,
        eval_dataset=validation,
        evaluate_subnets=lambda model, subnets: mlm_metrics(
            model, validation, subnets=subnets, precision=config.precision
        ),
        evaluate_dev=lambda model, subnets: evaluate_mlm(model, dev, subnets=subnets, precision=config.precision),
        metric="accuracy",
        num_dev_examples=len(dev),
        baseline=None,
        record={"objective": "masked-lm"},
        completed_phases=base.completed_phases,
        skipped_phase=_skipped_phase(config, recipe, base),
        task_type="classification",
    )
    return data, fingerprint


def _load_splits(
    config: TrainConfig, corpus: CorpusConfig, base: MlmBaseCheckpoint, *, progress: Progress
) -> tuple[MaskedSequences, MaskedSequences, MaskedSequences]:
    """Sequences to train on, to choose checkpoints by, and to report on."""
    max_length = min(corpus.max_length, max_input_length(base.network.config))
    dev_files = corpus_files(corpus.dev)

    def pack(patterns: tuple[str, ...], *, exclude: tuple[Path, ...] = ()) -> MaskedSequences:
        packed = pack_corpus(
            patterns,
            corpus,
            base.tokenizer,
            max_length=max_length,
            exclude=exclude,
            progress=lambda done, total: progress("tokenising (MB)", done, total),
        )
        collator = CounterMaskingCollator(
            base.tokenizer, mlm_probability=corpus.mask_share, whole_words=corpus.whole_word, seed=config.seed
        )
        return MaskedSequences(packed, collator)

    sequences = pack(corpus.corpus, exclude=dev_files)
    if len(sequences) < MIN_SEQUENCES:
        raise DataError(
            f"corpus {', '.join(corpus.corpus)}: {(sequences.lengths - 2).sum()} tokens fill {len(sequences)} "
            f"sequences of {max_length}; at least {MIN_SEQUENCES} are needed"
        )
    excluded = len(corpus_files(corpus.corpus)) - len(corpus_files(corpus.corpus, exclude=dev_files))
    if excluded:
        files = "1 file" if excluded == 1 else f"{excluded} files"
        logger.info("%s of the corpus are development text and will only be evaluated on", files)
    limit, seed = config.validation_limit, config.seed
    split = partial(split_validation_sequences, sequences, fraction=config.validation, max_sequences=limit, seed=seed)
    if corpus.dev:
        train, (validation,) = split(num_splits=1)
        return train, validation, sample_sequences(pack(corpus.dev), max_sequences=limit, seed=seed)
    train, (validation, dev) = split(num_splits=2)
    return train, validation, dev


def _skipped_phase(config: TrainConfig, recipe: Recipe, base: MlmBaseCheckpoint) -> str | None:
    """Phase mlm if the base is a masked language model already, unless it was asked for."""
    if base.missing != "nothing":
        what = "weights" if base.missing == "weights" else "language-model head"
        logger.info("%s has no %s; it starts from random values", config.model, what)
        return None
    if config.phases is not None or "mlm" not in recipe.phases:
        return None
    logger.info("%s is a masked language model already; phase mlm is skipped", config.model)
    return "mlm"
