"""Evaluation of sub-networks and policies on labelled examples: metrics, parameters, FLOPs and time."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from limbert.core.config import DataConfig, RuntimeConfig, RuntimePrecision
from limbert.core.subnet import Subnet
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.load import load_evaluation_data, load_task_data
from limbert.data.long_texts import LongTexts, average_windows, window_starts
from limbert.data.task_registry import compute_task_metrics
from limbert.data.tasks import Task, requested_task_type
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError
from limbert.evaluation.results import (
    POLICIES_NAME,
    Calibration,
    DatasetSplit,
    PolicyResult,
    SubnetResult,
    policy_row_key,
    replace_json_lines,
)
from limbert.inference.compiled import SubnetCompiler, resolve_runtime
from limbert.inference.engine import Engine
from limbert.inference.load import load_checkpoint, override_data_config, warn_about_skipped_rows
from limbert.inference.policy import Policy, named_policy, operating_points, reject_token_level_task, resolve_policy
from limbert.inference.predict import (
    batch_counter,
    inference_batches,
    predict_subnet_logits,
    run_policy,
    runtime_logits,
)
from limbert.inference.runtimes import Runtime
from limbert.inference.segments import CompiledPolicy
from limbert.method.calibration import (
    CALIBRATED_TASK_TYPES,
    TEMPERATURES_KEY,
    calibration_error,
    fit_temperature,
    temperature_of,
)
from limbert.model.checkpoint import library_versions
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

Progress = Callable[[str, int, int], None]  # (what runs, steps done, steps in all)


def no_progress(title: str, done: int, total: int) -> None:
    """The default of ``progress``: reports nothing."""


def evaluate(
    run: str | Path,
    *,
    subnets: Sequence[str] = (),
    policy: Policy | str | None = None,
    widths: Sequence[float] | None = None,
    exit_threshold: float | None = None,
    exit_rule: str | None = None,
    layers: str | None = None,
    long_texts: LongTexts = "truncate",
    batch_size: int = 64,
    runtime: str = "torch",
    precision: str = "fp32",
    device: str = "auto",
    progress: Progress = no_progress,
    **data: Any,
) -> list[SubnetResult] | list[PolicyResult]:
    """Evaluate sub-networks, or one policy, on the development set.

    The result of an operating point in fp32 on the run's own data is also saved in the run (``policies.jsonl``).

    Args:
        run: elastic model, or a stock model fine-tuned on the task (then ``data=`` or ``task=`` says on what).
        subnets: names: ``WIDTHxDEPTH``, or found by a search; default: all.
        policy: a policy, or the name of a policy or operating point, instead of sub-networks.
        widths: of a policy given by name; this and the next two: see `named_policy`.
        exit_threshold: likewise.
        exit_rule: likewise.
        layers: layers that a depth keeps, ``first`` or ``spread``; default: the model's rule.
        long_texts: ``truncate`` texts, or read them in overlapping ``windows`` whose logits are averaged.
        batch_size: examples per batch; only the time depends on it.
        runtime: ``torch``, ``onnxruntime``, ``openvino``, or ``auto``: the fastest for sub-networks, else torch.
        precision: ``fp32``, ``bf16`` (torch: under autocast) or ``int8``, where the runtime has it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        progress: called with what runs, steps done and steps in all.
        data: settings of `DataConfig` (``data=``, ``dev=``, ``text_column=`` ...) instead of the training's.

    Returns:
        One result per sub-network, in their order; or one for the policy.

    Raises:
        LimbertError: for a model, name or data that cannot be used.
    """
    run = os.path.expanduser(run)
    config = RuntimeConfig(runtime, precision, max_drop=100.0)  # type: ignore[arg-type]  # checked by the dataclass
    task_type = requested_task_type(DataConfig(task=data.get("task")))  # a stock model does not record its head
    head = TASK_TYPE_SPECS[task_type].head if task_type else None
    checkpoint = load_checkpoint(run, head=head, device=config.model_device(device))
    model = checkpoint.model
    if layers is not None:
        model.space = replace(model.space, layers=layers)  # type: ignore[arg-type]  # checked by the dataclass
        model.record.pop(TEMPERATURES_KEY, None)  # names mean other sub-networks now
    named = {name: model.subnet(name) for name in subnets}
    data_config = override_data_config(checkpoint.data_config, **data)
    if checkpoint.task is not None:
        task, splits = checkpoint.task, load_evaluation_data(data_config, checkpoint.task)
    else:
        loaded = load_task_data(data_config, seed=0)
        task, splits = loaded.task, loaded.dev
    warn_about_skipped_rows(splits)
    read_from = data_config.dev or data_config.data or task.name

    def tokenize() -> dict[str, TokenizedExamples]:
        tokenized = {}
        for name, part in splits.items():
            tokenized[name] = checkpoint.tokenize(part, task=task, long_texts=long_texts)
            checkpoint.log_inputs(f"{name} of {read_from}", part, tokenized[name])
        return tokenized

    own = checkpoint.data_config if model.record else data_config  # what compiled precisions are measured on
    source = replace(checkpoint, task=task, data_config=own)
    if policy is None:
        selected = named or model.subnets() | model.searched_subnets()
        largest = next(iter(selected.values()))
        name = resolve_runtime(source, largest, config)
        load = None if name == "torch" else SubnetCompiler(source, runtime=name, precision=config.precision).load
        return evaluate_subnets(
            model,
            tokenize(),
            task=task,
            subnets=selected,
            batch_size=batch_size,
            precision=config.precision,
            load=load,
            progress=partial(progress, "evaluating"),
        )
    reject_token_level_task(task.task_type, f"policy {policy}")
    chosen = policy
    if isinstance(chosen, str):
        settings: dict[str, Any] = {"widths": widths, "exit_threshold": exit_threshold, "exit_rule": exit_rule}
        chosen = named_policy(chosen, model.record, task_type=task.task_type, **settings)
    resolve_policy(chosen, model, task_type=task.task_type)  # refuses it before the examples are tokenised
    compiled = None
    if runtime not in ("torch", "auto"):
        if chosen.subnet is not None:
            raise ConfigError(f"policy {chosen} is one sub-network; for runtime {runtime}: --subnet {chosen.subnet}")
        compiled = SubnetCompiler(source, runtime=runtime, precision=config.precision).load_policy(chosen)
    eval_datasets = tokenize()
    result = evaluate_policy(
        model,
        eval_datasets,
        task=task,
        policy=chosen,
        batch_size=batch_size,
        precision=config.precision,
        compiled=compiled,
        progress=partial(progress, "evaluating"),
    )
    as_trained = not data and long_texts == "truncate" and config.precision == "fp32" and compiled is None
    if as_trained and isinstance(policy, str) and policy in operating_points(model.record) and os.access(run, os.W_OK):
        row = policy_row(
            policy,
            result,
            split="development",
            source=read_from,
            num_examples=sum(len(examples) for examples in eval_datasets.values()),
            batch_size=batch_size,
            device=model.network.device.type,
        )
        replace_json_lines(Path(run) / POLICIES_NAME, [row], key=policy_row_key)
    return [result]


def evaluate_subnets(
    model: ElasticModel,
    eval_datasets: Mapping[str, TokenizedExamples],
    *,
    task: Task,
    subnets: Mapping[str, Subnet],
    batch_size: int = 64,
    precision: RuntimePrecision = "fp32",
    load: Callable[[Subnet], Runtime] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[SubnetResult]:
    """Results of the named sub-networks on the named datasets of labelled examples, in the order of ``subnets``.

    The model runs without dropout; its mode is restored. With ``load`` each sub-network runs in the runtime that it
    returns, one after the other. ``flops`` is the mean over all datasets.
    """
    cost = CostModel(model)
    passes = [*eval_datasets.values()] * (1 if load is None else len(subnets))
    after_batch = batch_counter(passes, batch_size=batch_size, progress=progress)
    metrics: dict[str, dict[str, float]] = {name: {} for name in subnets}
    temperatures = {name: temperature_of(model, subnet) for name, subnet in subnets.items()}
    errors: dict[str, list[Calibration]] = {name: [] for name in subnets}
    for set_name, examples in eval_datasets.items():
        if load is None:
            logits = predict_subnet_logits(
                model, examples, subnets=subnets, batch_size=batch_size, precision=precision, after_batch=after_batch
            )
        else:
            logits = {
                name: runtime_logits(load(subnet), examples, batch_size=batch_size, after_batch=after_batch)
                for name, subnet in subnets.items()
            }
        prefix = "" if len(eval_datasets) == 1 else f"{set_name}/"
        for name, raw in logits.items():
            found, calibration = _score(task, raw / temperatures[name], raw, examples, prefix=prefix)
            metrics[name] |= found
            errors[name] += calibration
    lengths, rows_per_text = _lengths(eval_datasets)
    return [
        SubnetResult(
            name,
            count_parameters(model, subnet),
            rows_per_text * cost.mean_flops(subnet, lengths),
            metrics[name],
            _mean_calibration(errors[name], temperatures[name]),
        )
        for name, subnet in subnets.items()
    ]


def fit_temperatures(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    task: Task,
    subnets: Mapping[str, Subnet],
    precision: RuntimePrecision = "fp32",
) -> None:
    """Fit the temperatures of sub-networks on labelled examples, and put them into the model's record."""
    if task.task_type in CALIBRATED_TASK_TYPES:
        logits = predict_subnet_logits(model, examples, subnets=subnets, batch_size=64, precision=precision)
        record_temperatures(model.record, logits, examples, task=task)


def record_temperatures(
    record: dict[str, Any], logits: Mapping[str, np.ndarray], examples: TokenizedExamples, *, task: Task
) -> None:
    """Fit a temperature to the logits of each sub-network, and put them into the record, ``limbert.json``."""
    fitted = {name: fit_temperature(own, _labels(examples), task_type=task.task_type) for name, own in logits.items()}
    record[TEMPERATURES_KEY] = record.get(TEMPERATURES_KEY, {}) | fitted


def evaluate_policy(
    model: ElasticModel,
    eval_datasets: Mapping[str, TokenizedExamples],
    *,
    task: Task,
    policy: Policy,
    batch_size: int = 32,
    precision: RuntimePrecision = "fp32",
    compiled: CompiledPolicy | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PolicyResult:
    """Evaluate a policy on the named datasets; the first batch runs once more before the time is measured.

    With ``compiled`` that runs instead of the engine.
    """
    engine = compiled or Engine(model, policy, task_type=task.task_type, precision=precision)
    device = model.network.device
    after_batch = batch_counter(eval_datasets.values(), batch_size=batch_size, progress=progress)
    engine.run(next(inference_batches(next(iter(eval_datasets.values())), batch_size=batch_size, device=device))[1])
    metrics: dict[str, float] = {}
    outputs, errors = [], list[Calibration]()
    for set_name, examples in eval_datasets.items():
        output = run_policy(engine, examples, batch_size=batch_size, device=device, after_batch=after_batch)
        raw, prefix = output.logits * output.temperatures[:, None], "" if len(eval_datasets) == 1 else f"{set_name}/"
        found, calibration = _score(task, output.logits, raw, examples, prefix=prefix)
        outputs.append(output)
        metrics |= found
        errors += calibration
    lengths, rows_per_text = _lengths(eval_datasets)
    widths = np.concatenate([output.widths for output in outputs])
    layers_run = np.concatenate([output.layers_run for output in outputs])
    return PolicyResult(
        policy=policy,
        metrics=metrics,
        flops_mean=rows_per_text * float(np.concatenate([output.flops for output in outputs]).mean()),
        flops_full=rows_per_text * CostModel(model).mean_flops(model.full, lengths),
        time_per_example=rows_per_text * sum(output.seconds for output in outputs) / len(lengths),
        width_shares=[_fractions(layer) for layer in widths.T],
        exit_shares={int(layers): fraction for layers, fraction in _fractions(layers_run).items()},
        calibration=_mean_calibration(errors, None),
    )


def _score(
    task: Task, logits: np.ndarray, raw_logits: np.ndarray, examples: TokenizedExamples, *, prefix: str
) -> tuple[dict[str, float], list[Calibration]]:
    """Metrics by prefixed name, and the calibration of both logits; none for tasks without probabilities."""
    per_text, texts = average_windows(task, logits, examples)
    metrics = {prefix + metric: value for metric, value in compute_task_metrics(task, per_text, texts).items()}
    if task.task_type not in CALIBRATED_TASK_TYPES:
        return metrics, []
    both = (per_text, average_windows(task, raw_logits, examples)[0])
    errors = (calibration_error(values, _labels(texts), task_type=task.task_type) for values in both)
    return metrics, [Calibration(*errors)]


def _mean_calibration(parts: Sequence[Calibration], temperature: float | None) -> Calibration | None:
    """The mean over development sets."""
    if not parts:
        return None
    return Calibration(fmean(part.error for part in parts), fmean(part.raw_error for part in parts), temperature)


def _labels(examples: TokenizedExamples) -> np.ndarray:
    if examples.labels is None:
        raise ConfigError("the examples have no labels to compare predictions with")
    return examples.labels.numpy()


def count_parameters(model: ElasticModel, subnet: Subnet) -> int:
    """Parameters of a sub-network, embeddings and head included, tied ones once."""
    return sum(parameter.numel() for parameter in model.view(subnet).parameters())


def policy_row(
    name: str,
    result: PolicyResult,
    *,
    split: DatasetSplit,
    source: str | None,
    num_examples: int,
    batch_size: int,
    device: str,
) -> dict[str, Any]:
    """A row of ``policies.jsonl``; ``source`` is the folder, file or task that the split came from."""
    return {
        "name": name,
        "data": split,
        "source": source,
        "examples": num_examples,
        **result.to_dict(),
        "batch_size": batch_size,
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }


def _lengths(eval_datasets: Mapping[str, TokenizedExamples]) -> tuple[np.ndarray, float]:
    """Tokens per row of all datasets, and the mean number of rows per text: long texts may have several windows."""
    lengths = np.concatenate([examples.lengths for examples in eval_datasets.values()])
    return lengths, len(lengths) / sum(len(window_starts(examples)[0]) for examples in eval_datasets.values())


def _fractions(values: np.ndarray) -> dict[float, float]:
    """The fraction of the values that equal each value, in ascending order."""
    counts = Counter(values.tolist())
    return {value: counts[value] / len(values) for value in sorted(counts)}
