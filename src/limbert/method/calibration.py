"""Calibrated confidence: each sub-network's logits are divided by a temperature of its own (Guo et al., 1706.04599)."""

from collections.abc import Mapping

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from limbert.core.config import TaskType
from limbert.core.space import is_width_depth_name
from limbert.core.subnet import Subnet
from limbert.core.task_types import IGNORE_INDEX
from limbert.model.elastic import ElasticModel

TEMPERATURES_KEY = "temperatures"  # in limbert.json: the temperature of each sub-network, by name
CALIBRATED_TASK_TYPES: tuple[TaskType, ...] = ("classification", "multi-label", "token-classification")
_BINS = 15
_MIN_SCALE, _MAX_SCALE = 0.05, 20.0  # of the logits: one over the temperature


def fit_temperature(logits: np.ndarray, labels: np.ndarray, *, task_type: TaskType) -> float:
    """The temperature of least cross-entropy; 1.0 for tasks whose outputs are no probabilities.

    Labels are smoothed by 1 / (decisions + 2) (Platt 1999), so that a few correct predictions do not end in certainty.

    Args:
        logits: ``(examples, outputs)``, or ``(all tokens, outputs)``.
        labels: ``(examples,)`` or ``(all tokens,)``, class ids; multi-label ``(examples, outputs)``, 0 or 1.
        task_type: meaning of the outputs.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    if task_type not in CALIBRATED_TASK_TYPES:
        return 1.0
    logits, labels = _decisions(logits, labels, task_type)
    smoothing = 1 / (len(labels) + 2)
    target = (1 - smoothing) * logits[np.arange(len(labels)), labels] + smoothing * logits.mean(axis=1)

    def cross_entropy(scale: float) -> float:  # convex
        return float((logsumexp(scale * logits, axis=1) - scale * target).mean())

    best = minimize_scalar(cross_entropy, bounds=(_MIN_SCALE, _MAX_SCALE), method="bounded")
    return round(1 / float(best.x), 4)


def calibration_error(logits: np.ndarray, labels: np.ndarray, *, task_type: TaskType) -> float:
    """The expected calibration error, from 0 to 1: mean distance of confidence and accuracy in 15 bins of confidence.

    Arguments as `fit_temperature`. With several labels each class of each example is a decision.
    """
    from scipy.special import softmax

    logits, labels = _decisions(logits, labels, task_type)
    probabilities = softmax(logits, axis=1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    return float(np.abs(np.bincount(bins, weights=correct - confidence)).sum() / len(labels))


def temperature_of(model: ElasticModel, subnet: Subnet) -> float:
    """The temperature of a sub-network; 1.0 if none was fitted."""
    saved: Mapping[str, float] = model.record.get(TEMPERATURES_KEY, {})
    known = {
        name: value for name, value in saved.items() if is_width_depth_name(name) or name in model.searched_subnets()
    }
    return next((value for name, value in known.items() if model.subnet(name) == subnet), 1.0)


def calibrated_network(model: ElasticModel, subnet: Subnet) -> PreTrainedModel:
    """The sub-network as a standalone model in evaluation mode whose head divides the logits by the temperature."""
    network, temperature = model.extract(subnet).eval(), temperature_of(model, subnet)
    if temperature != 1.0:
        in_encoder = {*network.base_model.modules()}
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear) and layer not in in_encoder]
        last = [layer for layer in layers if layer.out_features == network.config.num_labels][-1]
        last.weight.data /= temperature
        if last.bias is not None:
            last.bias.data /= temperature
    return network


def _decisions(logits: np.ndarray, labels: np.ndarray, task_type: TaskType) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``(decisions, classes)`` and class ids ``(decisions,)``; a sigmoid is a softmax over two classes."""
    logits = logits.astype(np.float64)
    if task_type == "multi-label":
        logits, labels = np.stack([np.zeros_like(logits), logits], axis=-1).reshape(-1, 2), labels.reshape(-1)
    labels = labels.astype(np.int64)
    counted = labels != IGNORE_INDEX
    return logits[counted], labels[counted]
