"""What a sub-network reaches on the validation slice, and what it costs: the two numbers that a search weighs."""

import hashlib
from typing import Any, Literal

import torch

from limbert.core.subnet import Subnet
from limbert.data.tokenize import TokenizedExamples
from limbert.data.task_registry import score
from limbert.data.tasks import Task
from limbert.errors import ConfigError
from limbert.model.flops import CostModel
from limbert.model.elastic import ElasticModel
from limbert.evaluation.subnets import subnet_logits
from limbert.evaluation.latency import median_latency
from limbert.run.search.journal import Judged

Objective = Literal["flops", "latency"]
OBJECTIVES: tuple[Objective, ...] = ("flops", "latency")


class Measure:
    """Judges sub-networks of one model on one set of examples.

    Costs are shares of the full model's: FLOPs at the examples' own lengths, or the median time of one pass beside the
    full model's, the two taking turns, so that a machine that is slow for a while is slow for both.

    Args:
        model: trained.
        examples: labelled, not used for training.
        task: its primary metric is what counts.
        objective: ``"flops"`` or ``"latency"``.
        batch_size: examples a batch of the evaluation; only its time depends on it.
        latency_batch: texts in the pass that is timed.
        latency_tokens: tokens of each of them; None takes the examples' median length.
        rounds: timed passes of each sub-network.

    Raises:
        ConfigError: for an unknown objective, or examples without labels.
    """

    def __init__(
        self,
        model: ElasticModel,
        examples: TokenizedExamples,
        *,
        task: Task,
        objective: Objective,
        batch_size: int = 64,
        latency_batch: int = 1,
        latency_tokens: int | None = None,
        rounds: int = 30,
    ) -> None:
        if objective not in OBJECTIVES:
            raise ConfigError(f"objective is {objective!r}; it must be one of {', '.join(OBJECTIVES)}")
        if examples.labels is None:
            raise ConfigError("a search needs labelled examples")
        self._model, self._examples, self._labels, self._task = model, examples, examples.labels.numpy(), task
        self._objective, self._batch_size, self._rounds = objective, batch_size, rounds
        self._cost = CostModel(model)
        self._full = self._cost.mean_flops(model.full, examples.lengths)
        tokens = latency_tokens or round(float(sorted(examples.lengths)[len(examples) // 2]))
        if not 1 < tokens <= model.longest_input:
            raise ConfigError(
                f"tokens is {tokens}; it must be from 2 to {model.longest_input}, the model's longest input"
            )
        self._batch, self._tokens = latency_batch, tokens

    @property
    def conditions(self) -> dict[str, Any]:
        """What its numbers depend on besides the sub-network, as JSON values."""
        tokens = self._examples.tokens
        parts = (tokens.ids, tokens.offsets, self._labels)
        digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
        found: dict[str, Any] = {"objective": self._objective, "metric": self._task.primary, "examples": digest[:12]}
        if self._objective == "latency":
            found |= {"batch": self._batch, "tokens": self._tokens, "threads": torch.get_num_threads()}
        return found

    def __call__(self, subnet: Subnet) -> Judged:
        """Judge one sub-network."""
        answers = subnet_logits(self._model, self._examples, subnets={"": subnet}, batch_size=self._batch_size)
        value = score(self._task, answers[""], self._examples)[self._task.primary]
        if self._objective == "flops":
            return Judged(subnet, value, self._cost.mean_flops(subnet, self._examples.lengths) / self._full)
        return Judged(subnet, value, self._share_of_time(subnet))

    def _share_of_time(self, subnet: Subnet) -> float:
        if subnet == self._model.full:
            return 1.0
        ids = torch.full((self._batch, self._tokens), 1, dtype=torch.long, device=self._model.network.device)
        networks = {"full": self._model.view(self._model.full), "one": self._model.view(subnet)}
        seconds = median_latency(
            networks, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, rounds=self._rounds
        )
        return seconds["one"] / seconds["full"]
