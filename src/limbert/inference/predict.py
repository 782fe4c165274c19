"""Batched inference over tokenised examples: logits of sub-networks, outputs of policies, and readable predictions."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbert.core.config import RuntimePrecision, require
from limbert.core.subnet import Subnet
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.long_texts import average_windows, window_starts
from limbert.data.task_registry import decode_predictions
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples, evaluation_batches
from limbert.errors import CheckpointError, ConfigError, explain_out_of_memory
from limbert.inference.engine import Engine
from limbert.inference.policy import Policy, named_policy, resolve_policy
from limbert.inference.runtimes import Runtime
from limbert.inference.segments import CompiledPolicy
from limbert.method.calibration import temperature_of
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel
from limbert.model.inference_mode import autocast, evaluation_mode
from limbert.model.outputs import logits_of
from limbert.model.shared_forward import plan_shared_forwards, run_shared_forward


def inference_batches(
    examples: TokenizedExamples, *, batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of examples of similar length: the examples' indices, and the network's inputs without labels."""
    for indices in evaluation_batches(examples.lengths, batch_size=batch_size):
        yield indices, inference_inputs(examples, indices, device=device)


def inference_inputs(
    examples: TokenizedExamples, indices: Sequence[int], *, device: torch.device | None = None
) -> dict[str, Tensor]:
    """One padded batch, ``(batch, tokens)`` each, without labels."""
    return {name: tensor.to(device) for name, tensor in examples.collate(indices).items() if name != "labels"}


def batch_counter(
    datasets: Iterable[TokenizedExamples], *, batch_size: int, progress: Callable[[int, int], None]
) -> Callable[[], None]:
    """A function to call after each batch; it calls ``progress`` with the batches done and in all."""
    total = sum(len(evaluation_batches(examples.lengths, batch_size=batch_size)) for examples in datasets)
    numbers = itertools.count(1)
    return lambda: progress(next(numbers), total)


class OutputCollector:
    """Collects the outputs of batches and puts them in the order of the examples."""

    def __init__(self, examples: TokenizedExamples) -> None:
        self._examples = examples
        self._values: Tensor | None = None

    def add(self, indices: Sequence[int], values: Tensor) -> None:
        """Store values of a batch's examples, ``(batch, ...)``."""
        if self._values is None:
            self._values = values.new_empty(len(self._examples), *values.shape[1:])
        self._values[list(indices)] = values

    def add_logits(self, indices: Sequence[int], logits: Tensor, attention_mask: Tensor) -> None:
        """Store logits ``(batch, outputs)``, or ``(batch, tokens, outputs)`` without padding, as float32."""
        if logits.ndim == 2:
            self.add(indices, logits.float())
            return
        values = logits[attention_mask.bool()].float()
        if self._values is None:
            self._values = values.new_empty(len(self._examples.tokens.ids), values.shape[-1])
        self._values[torch.from_numpy(self._examples.token_indices(indices))] = values

    @property
    def values(self) -> np.ndarray:
        """``(examples, ...)``, or ``(all tokens, outputs)`` for token-level logits; all batches must be added.

        CheckpointError for outputs that are NaN or infinite: a label would say nothing.
        """
        assert self._values is not None
        if not torch.isfinite(self._values).all():
            raise CheckpointError("the model's outputs are NaN or infinite; its weights are broken, train it again")
        return self._values.cpu().numpy()


def predict_subnet_logits(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    subnets: Mapping[str, Subnet],
    batch_size: int,
    precision: RuntimePrecision = "fp32",
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Logits by the sub-networks' names, without dropout: ``(examples, outputs)``, or ``(all tokens, outputs)``."""
    device = model.network.device
    collectors = {subnet: OutputCollector(examples) for subnet in subnets.values()}
    shared_forwards = plan_shared_forwards(subnets.values())
    with evaluation_mode(model.network), explain_out_of_memory(batch_size):
        for indices, inputs in inference_batches(examples, batch_size=batch_size, device=device):
            for shared in shared_forwards:
                with model.at(shared.merged_subnet), autocast(device, precision):
                    outputs = run_shared_forward(model, shared, inputs)
                for subnet, output in outputs.items():
                    collectors[subnet].add_logits(indices, output.logits, inputs["attention_mask"])
            after_batch()
    return {name: collectors[subnet].values for name, subnet in subnets.items()}


def runtime_logits(
    runtime: Runtime,
    examples: TokenizedExamples,
    *,
    batch_size: int,
    after_batch: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Logits of a loaded network: ``(examples, outputs)``, or ``(all tokens, outputs)``."""
    collector = OutputCollector(examples)
    for indices, inputs in inference_batches(examples, batch_size=batch_size, device=torch.device("cpu")):
        collector.add_logits(indices, logits_of(runtime.outputs(inputs)), inputs["attention_mask"])
        after_batch()
    return collector.values


@dataclass(frozen=True)
class PolicyOutputs:
    """A policy's outputs in the order of the examples."""

    logits: np.ndarray  # ``(examples, outputs)``
    widths: np.ndarray  # ``(examples, layers)``, 0 where a layer did not run
    layers_run: np.ndarray  # ``(examples,)``
    flops: np.ndarray  # ``(examples,)``
    temperatures: np.ndarray  # that the logits were divided by, ``(examples,)``
    seconds: float  # the engine's time for all examples


def run_policy(
    engine: Engine | CompiledPolicy,
    examples: TokenizedExamples,
    *,
    batch_size: int,
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
) -> PolicyOutputs:
    """Run the engine's policy over examples; labels are ignored."""
    names = ("logits", "widths", "layers_run", "flops", "temperatures")
    collectors = {name: OutputCollector(examples) for name in names}
    seconds = 0.0
    for indices, inputs in inference_batches(examples, batch_size=batch_size, device=device):
        start = time.perf_counter()
        with explain_out_of_memory(batch_size):
            output = engine.run(inputs)
            logits = output.logits.cpu()  # waits for the device
        seconds += time.perf_counter() - start
        trace = output.trace
        values = (logits, trace.widths, trace.layers_run, trace.flops, trace.temperatures)
        for name, tensor in zip(names, values, strict=True):
            collectors[name].add(indices, tensor)
        after_batch()
    return PolicyOutputs(**{name: collector.values for name, collector in collectors.items()}, seconds=seconds)


@dataclass(frozen=True)
class Prediction:
    """The prediction for one example.

    Its values are ``label`` and ``score`` of a classification, ``score`` of a regression, ``labels`` of a multi-label
    task, ``entities`` of token classification, ``answer``, ``score``, ``start`` and ``end`` of question answering; with
    ``top_k`` also ``scores``, the best labels with their scores.
    """

    values: Mapping[str, Any]
    layers_run: int
    flops: int

    @property
    def label(self) -> str | None:
        """The most probable class of a classification; None for other task types."""
        return self.values.get("label")

    @property
    def score(self) -> float | None:
        """The label's probability, the value of a regression, or an answer's confidence; None for other task types."""
        return self.values.get("score")

    def to_dict(self) -> dict[str, Any]:
        """The values."""
        return dict(self.values)

    def cost_to_dict(self) -> dict[str, Any]:
        """``layers`` and ``flops``."""
        return {"layers": self.layers_run, "flops": self.flops}


def predict(
    model: ElasticModel,
    examples: TokenizedExamples,
    *,
    task: Task,
    policy: Policy | str,
    batch_size: int = 64,
    precision: RuntimePrecision = "fp32",
    top_k: int | None = None,
    runtime: Runtime | CompiledPolicy | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Prediction]:
    """One prediction per text, in order, without dropout.

    The policy may be given by its name, such as that of an operating point. The batch size changes no prediction. With
    ``top_k``, each prediction of a task with classes has the ``scores`` of that many labels, the best first. A
    ``runtime`` that holds the policy runs it instead of the model.
    """
    if top_k is not None:
        check_top_k(task, top_k)
    after_batch = batch_counter([examples], batch_size=batch_size, progress=progress)
    if isinstance(policy, str):
        policy = named_policy(policy, model.record)
    if isinstance(runtime, Runtime) or TASK_TYPE_SPECS[task.task_type].token_level:
        resolve_policy(policy, model, task_type=task.task_type)
        assert policy.subnet is not None
        subnet = model.subnet(policy.subnet)
        if isinstance(runtime, Runtime):
            logits = runtime_logits(runtime, examples, batch_size=batch_size, after_batch=after_batch)
        else:
            logits = predict_subnet_logits(
                model,
                examples,
                subnets={"": subnet},
                batch_size=batch_size,
                precision=precision,
                after_batch=after_batch,
            )[""]
        logits = logits / temperature_of(model, subnet)
        layers_run, flops = _static_costs(model, examples, subnet)
    else:
        engine = runtime or Engine(model, policy, task_type=task.task_type, precision=precision)
        outputs = run_policy(
            engine, examples, batch_size=batch_size, device=model.network.device, after_batch=after_batch
        )
        first, _ = window_starts(examples)
        layers_run, flops = (
            function.reduceat(values, first)
            for function, values in ((np.maximum, outputs.layers_run), (np.add, outputs.flops))
        )
        logits = outputs.logits
    logits, examples = average_windows(task, logits, examples)
    values = decode_predictions(task, logits, examples)
    if top_k is not None:
        best = _best_labels(task, logits, top_k)
        values = [row | {"scores": scores} for row, scores in zip(values, best, strict=True)]
    predicted = zip(values, layers_run, flops, strict=True)
    return [Prediction(row, int(layers), int(operations)) for row, layers, operations in predicted]


def check_top_k(task: Task, top_k: int) -> None:
    """Raise ConfigError for a task without classes per text, or a number below 1."""
    require(top_k >= 1, "top k", top_k, "at least 1")
    has_classes = task.task_type in ("classification", "multi-label")
    require(has_classes, "top k", top_k, f"left out: a {task.task_type} model has no scores of several labels")


def _best_labels(task: Task, logits: np.ndarray, top_k: int) -> list[list[dict[str, Any]]]:
    """The best labels of each text with their scores, the best first; logits ``(texts, classes)``."""
    from scipy.special import expit, softmax

    scores = expit(logits) if task.task_type == "multi-label" else softmax(logits, axis=-1)
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    return [
        [{"label": task.labels[index], "score": float(row[index])} for index in indices]
        for row, indices in zip(scores, order, strict=True)
    ]


def abstain(prediction: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """A prediction's values with ``abstain``: whether its score is below the threshold; its label is None then.

    Raises:
        ConfigError: for a threshold outside 0 to 1, or a prediction that is not a label with its score.
    """
    require(0 <= threshold <= 1, "abstain below", threshold, "a probability, from 0 to 1")
    if "label" not in prediction:
        raise ConfigError("--abstain-below needs one label per text, as in classification; leave it out")
    abstains = prediction["score"] < threshold
    return {**prediction, "label": None if abstains else prediction["label"], "abstain": abstains}


def _static_costs(model: ElasticModel, examples: TokenizedExamples, subnet: Subnet) -> tuple[Any, Any]:
    """Layers and FLOPs of each text, all its windows together, ``(texts,)`` each."""
    cost = CostModel(model)
    flops = np.array([cost.flops(subnet, int(tokens)) for tokens in examples.lengths])
    if examples.alignment is not None:
        num_texts = len(examples.alignment.examples)
        flops = np.bincount(examples.alignment.example_index, weights=flops, minlength=num_texts)
    return np.full(len(flops), len(subnet.layers)), flops
