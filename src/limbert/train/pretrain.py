"""Elastic pre-training: the phases of a run on the masked words of a text instead of a task's labels."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from limbert.core.config import CorpusConfig, Precision, TrainConfig, configs_from_options
from limbert.core.space import Space
from limbert.core.subnet import Subnet
from limbert.data.mlm.corpus import corpus_files, pack_corpus
from limbert.data.mlm.masking import (
    CounterMaskingCollator,
    MaskedSequences,
    sample_sequences,
    split_validation_sequences,
)
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
from limbert.train.output_run import RunData, arguments_of_run, run_phases, start_processes
from limbert.train.phases import check_supervision
from limbert.train.recipes import Recipe, recipe_for
from limbert.train.run_folder import run_settings
from limbert.train.subnet_trainer import step_seed

logger = logging.getLogger(__name__)

MIN_SEQUENCES = 10  # of a corpus, before a validation split is taken
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


def pretrain(
    model: str, *, corpus: str | Sequence[str], output: str | Path, recipe: str | Recipe = "pretrain", **options: Any
) -> list[SubnetResult]:
    """Pre-train an elastic encoder on a corpus, as ``limbert pretrain`` does.

    Args:
        model: a masked language model, an encoder, or a folder with a config and a tokenizer but no weights.
        corpus: files, folders and globs.
        output: folder of the result, for ``limbert.train`` or `ElasticModel.from_pretrained`.
        recipe: a bundled one by name, a TOML file, or a `Recipe`.
        options: other fields of `CorpusConfig` and `TrainConfig`; ``callbacks`` of the Trainer, ``progress``, called
            with the current step of the preparations, and its finished and all parts, and ``overwrite``.

    Returns:
        Parameters, FLOPs and metrics of all sub-networks on held-out sequences.

    Raises:
        TrainingInterrupted: after a signal; the same call resumes.
        LimbertError: with a one-line message, for everything else.
    """
    extra = {name: options.pop(name) for name in ("callbacks", "progress", "overwrite") if name in options}
    corpora = (corpus,) if isinstance(corpus, str) else tuple(corpus)
    options |= {"model": model, "corpus": corpora, "output": str(output)}
    options |= {"recipe": recipe} if isinstance(recipe, str) else {}
    config, corpus_config = configs_from_options(options, TrainConfig, CorpusConfig)
    return pretrain_corpus(config, recipe_for(config) if isinstance(recipe, str) else recipe, corpus_config, **extra)


def pretrain_corpus(
    config: TrainConfig, recipe: Recipe, corpus: CorpusConfig, *, progress: Progress = no_progress, **options: Any
) -> list[SubnetResult]:
    """`pretrain` with its settings as config objects; the recipe has the batch sizes of one process."""
    check_supervision(recipe.phases, "text")
    recipe = recipe.with_world_size(start_processes(config))
    corpus_files(corpus.corpus, exclude=corpus_files(corpus.dev))  # before the model is read
    with PartialState().local_main_process_first():
        data, fingerprint = _load_run_data(config, recipe, corpus, progress=progress)
    return run_phases(
        config.output,
        run_settings(config, recipe.to_dict(), corpus, fingerprint=fingerprint),
        lambda: data,
        partial(arguments_of_run, config, task_type="classification"),
        progress=progress,
        **options,
    )


def mlm_metrics(
    model: ElasticModel,
    subnets: Mapping[str, Subnet],
    *,
    sequences: MaskedSequences,
    batch_size: int = 32,
    precision: Precision = "fp32",
) -> dict[str, dict[str, float]]:
    """Metrics of sub-networks on the same masked tokens: ``accuracy``, ``loss`` (nats per token) and ``perplexity``.

    The model has sparse prediction; the sequences are evaluated in order, with the masks of epoch 0.
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
    model: ElasticModel, subnets: Mapping[str, Subnet], *, sequences: MaskedSequences, precision: Precision = "fp32"
) -> list[SubnetResult]:
    """Results of sub-networks by name. FLOPs are those of the layers for a full sequence, without the vocabulary."""
    metrics = mlm_metrics(model, subnets, sequences=sequences, precision=precision)
    cost, tokens = CostModel(model), int(sequences.lengths.max())

    def flops(subnet: Subnet) -> int:
        widths = subnet.layer_widths().values()
        return sum(cost.layer_flops(heads=heads, neurons=neurons, tokens=tokens) for heads, neurons in widths)

    return [
        SubnetResult(name, count_parameters(model, subnet), flops(subnet), metrics[name])
        for name, subnet in subnets.items()
    ]


def to_elastic_mlm(network: PreTrainedModel, space: Space, *, completed_phases: Sequence[str] = ()) -> ElasticModel:
    """A masked language model as an elastic model with sparse prediction."""
    model = ElasticModel(network, space=space, record={"phases": [*completed_phases]})
    enable_sparse_prediction(network)
    return model


def _load_base(config: TrainConfig, recipe: Recipe) -> tuple[ElasticModel, PreTrainedTokenizerBase, bool]:
    """The base model of a run, its tokenizer, and whether it is a masked language model already.

    Without weights in its folder they are random, by the run's seed.
    """
    model_config, tokenizer = checkpoint.load_config_and_tokenizer(config.model)
    torch.manual_seed(config.seed)
    folder = Path(config.model)
    if folder.is_dir() and not any(path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)):
        logger.info("%s has no weights; it starts from random values", config.model)
        network = AutoModelForMaskedLM.from_config(model_config, dtype=torch.float32)
        return to_elastic_mlm(network, recipe.space), tokenizer, False
    loaded = checkpoint.load_network(config.model, head="masked-lm", new_head=True)
    if loaded.new_parameters:
        logger.info("%s has no language-model head; it starts from random values", config.model)
    model = to_elastic_mlm(loaded.network, recipe.space, completed_phases=loaded.record.get("phases", ()))
    return model, tokenizer, not loaded.new_parameters


def _load_run_data(
    config: TrainConfig, recipe: Recipe, corpus: CorpusConfig, *, progress: Progress
) -> tuple[RunData, str]:
    """What the run trains on, and its fingerprint."""
    model, tokenizer, is_mlm = _load_base(config, recipe)
    max_length = min(corpus.max_length, max_input_length(model.config))
    train, validation, dev = _load_splits(config, corpus, tokenizer, max_length=max_length, progress=progress)
    phases = recipe.configured_phases()
    if is_mlm and config.phases is None and "mlm" in recipe.phases:
        logger.info("%s is a masked language model already; phase mlm is skipped", config.model)
        phases = [(phase, settings) for phase, settings in phases if phase.name != "mlm"]

    def load_phase(folder: Path) -> ElasticModel:
        return to_elastic_mlm(checkpoint.load_network(folder, head="masked-lm").network, recipe.space)

    data = RunData(
        model=model,
        phases=phases,
        training={
            "train_dataset": lambda phase: train.with_seed(step_seed(config.seed, phase, 0)),
            "eval_dataset": validation,
            "evaluate_subnets": partial(mlm_metrics, sequences=validation, precision=config.precision),
            "metric": "accuracy",
            "processing_class": tokenizer,
            "load": load_phase,
        },
        evaluate=partial(evaluate_mlm, sequences=dev, precision=config.precision),
        record={"objective": "masked-lm"},
        num_examples=len(dev),
    )
    return data, json_fingerprint([train.fingerprint, validation.fingerprint, dev.fingerprint])


def _load_splits(
    config: TrainConfig,
    corpus: CorpusConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    progress: Progress,
) -> tuple[MaskedSequences, MaskedSequences, MaskedSequences]:
    """Sequences to train on, to choose checkpoints by, and to report on."""
    dev_files = corpus_files(corpus.dev)

    def pack(patterns: tuple[str, ...], *, exclude: tuple[Path, ...] = ()) -> MaskedSequences:
        report = partial(progress, "tokenising (MB)")
        packed = pack_corpus(patterns, corpus, tokenizer, max_length=max_length, exclude=exclude, progress=report)
        collator = CounterMaskingCollator(
            tokenizer, mlm_probability=corpus.mask_share, whole_words=corpus.whole_word, seed=config.seed
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
