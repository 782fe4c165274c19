"""The search itself: NSGA-II over genes, begun from the grid; what the journal knows is not measured again.

Nothing of the optimiser is saved. It is seeded, so that it asks for the same sub-networks when it starts again, and the
journal answers them at once: a search that was killed and restarted ends where an uninterrupted one does.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from limbert.core.subnet import Subnet
from limbert.data.task_registry import compute_task_metrics
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import CheckpointError, ConfigError, StorageError
from limbert.evaluation.latency import median_latency
from limbert.evaluation.results import RESULTS_NAME, SubnetResult
from limbert.files import atomic_file
from limbert.inference.predict import predict_subnet_logits
from limbert.model.checkpoint import (
    SEARCHED_SUBNETS_KEY,
    library_versions,
    read_record,
    searched_subnet_name,
    update_record,
)
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

JOURNAL_NAME = "search.jsonl"


@dataclass(frozen=True)
class TrialResult:
    """A sub-network and what it reaches on the examples of a search.

    Attributes:
        subnet: the sub-network.
        value: of the task's primary metric.
        cost: of the objective, as a share of the full model's.
    """

    subnet: Subnet
    metric_value: float
    relative_cost: float


class Journal:
    """A file of measured sub-networks that only grows.

    Args:
        path: the file; need not exist.
        conditions: what a measurement depends on besides the sub-network. Lines with other conditions are kept and
            not used.

    Raises:
        CheckpointError: if a line but the last cannot be read; the last one may be cut short by a kill.
    """

    def __init__(self, path: Path, conditions: Mapping[str, Any]) -> None:
        self._path, self._conditions = path, dict(conditions)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):
            self._truncate(sum(len(line.encode()) for line in lines[:-1]))
            lines.pop()
        self._trials: dict[Subnet, TrialResult] = {}
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                judged = TrialResult(Subnet.from_dict(row), row["value"], row["cost"])
                mine = row["conditions"] == self._conditions
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"line {number} of {path} cannot be read; delete the file to start anew"
                ) from error
            if mine:
                self._trials[judged.subnet] = judged

    def get(self, subnet: Subnet) -> TrialResult | None:
        """What was measured of a sub-network under these conditions; None where nothing was."""
        return self._trials.get(subnet)

    def __len__(self) -> int:
        return len(self._trials)

    def add(self, trial: TrialResult) -> TrialResult:
        """Write one measurement down; returns it.

        Raises:
            StorageError: if the file cannot be written.
        """
        row = {"subnet": searched_subnet_name(trial.subnet)} | trial.subnet.to_dict()
        row |= {"value": trial.metric_value, "cost": trial.relative_cost, "conditions": self._conditions}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error
        self._trials[trial.subnet] = trial
        return trial

    def _truncate(self, size: int) -> None:
        """Drop a last line that was cut short."""
        try:
            os.truncate(self._path, size)
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error


class SubnetEncoding:
    """The sub-networks that a search may look at: any layers, each with heads and neurons of any trained width.

    A gene is a number from 0 to below its size: ``layer-2`` says whether layer 2 runs, ``heads-2`` and ``neurons-2``
    which of the trained widths its heads and its neurons have. What cannot vary has no gene: layer 0 where the family
    needs it, widths where only one was trained. No fewer layers than in the shallowest trained depth: below it answers
    are no better than guessing, and cheap enough to fill the front.

    Args:
        model: its space says which widths were trained.

    Attributes:
        sizes: how many values each gene has, by name.
        uniform: every trained width at every number of layers, the largest first: a finer grid than the trained one.
    """

    def __init__(self, model: ElasticModel) -> None:
        self._shape = model.shape
        wholes = [Subnet.uniform(model.shape, width=width) for width in model.space.widths]
        self._head_choices = sorted({subnet.heads[0] for subnet in wholes})
        self._neuron_choices = sorted({subnet.neurons[0] for subnet in wholes})
        self._min_layers = min(len(Subnet.uniform(model.shape, depth=depth).layers) for depth in model.space.depths)
        layers = model.shape.layers
        self.uniform_subnets = [
            Subnet.uniform(model.shape, width=width, depth=kept / layers, layers=model.space.layers)
            for kept in range(layers, self._min_layers - 1, -1)
            for width in reversed(model.space.widths)
        ]
        self.cardinalities: dict[str, int] = {}
        for layer in range(model.shape.layers):
            if layer > 0 or not model.family.requires_first_layer:
                self.cardinalities[f"layer-{layer}"] = 2
            for part, levels in (("heads", self._head_choices), ("neurons", self._neuron_choices)):
                if len(levels) > 1:
                    self.cardinalities[f"{part}-{layer}"] = len(levels)

    def decode(self, code: Mapping[str, int]) -> Subnet:
        """The sub-network that the genes describe; where they keep too few layers, the lowest dropped ones run too."""
        layers = [layer for layer in range(self._shape.layers) if code.get(f"layer-{layer}", 1)]
        dropped = [layer for layer in range(self._shape.layers) if layer not in layers]
        layers = sorted(layers + dropped[: max(0, self._min_layers - len(layers))])
        return Subnet(
            tuple(layers),
            tuple(self._head_choices[code.get(f"heads-{layer}", 0)] for layer in layers),
            tuple(self._neuron_choices[code.get(f"neurons-{layer}", 0)] for layer in layers),
        )

    def encode(self, subnet: Subnet) -> dict[str, int]:
        """The genes of a sub-network; those of layers that do not run are at their largest.

        Raises:
            ValueError: if one of its widths was not trained.
        """
        widths = subnet.layer_widths()
        genes = {}
        for name, size in self.cardinalities.items():
            part, layer = name.split("-")
            heads, neurons = widths.get(int(layer), (self._head_choices[-1], self._neuron_choices[-1]))
            if part == "layer":
                genes[name] = int(int(layer) in widths)
            else:
                genes[name] = (
                    self._head_choices.index(heads) if part == "heads" else self._neuron_choices.index(neurons)
                )
            assert genes[name] < size
        return genes

    def warm_start(self, grid: Sequence[Subnet], *, count: int, seed: int) -> list[dict[str, int]]:
        """What a search begins with: the grid, what is uniform between, and neighbours of both: 1 to 3 genes differ."""
        rng = np.random.default_rng(seed)
        found = [self.encode(subnet) for subnet in dict.fromkeys([*grid, *self.uniform_subnets])]
        uniform = len(found)
        while len(found) < count:
            genes = dict(found[rng.integers(uniform)])
            for name in rng.choice(
                list(self.cardinalities), size=min(len(self.cardinalities), int(rng.integers(1, 4))), replace=False
            ):
                genes[str(name)] = int(rng.integers(self.cardinalities[str(name)]))
            found.append(genes)
        return found


if TYPE_CHECKING:
    import optuna

_MIN_POPULATION = 24  # sub-networks a generation; twice those that are uniform if that is more
_CROSSOVER_PROBABILITY = 0.5  # the other half are one parent with changed genes
_PATIENCE_GENERATIONS = 50  # generations without anything new after which all that can be reached has been


def require_optuna() -> None:
    """Raise ConfigError where the optimiser is missing, before any long work."""
    if find_spec("optuna") is None:
        raise ConfigError("the search needs optuna; install it with: pip install 'limbert[search]'")


def search_subnets(
    encoding: SubnetEncoding,
    grid: Sequence[Subnet],
    *,
    evaluate: Callable[[Subnet], TrialResult],
    journal: Journal,
    trials: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TrialResult]:
    """Look at ``trials`` different sub-networks, the grid's first.

    Args:
        genes: what may vary.
        grid: where the search begins.
        measure: says what a sub-network reaches; asked once for each that the journal does not know.
        journal: receives what is measured.
        trials: different sub-networks to look at, the grid's among them; fewer where there are no more.
        seed: of the optimiser.
        progress: called with sub-networks done and in all.

    Returns:
        What was found, in the order it was looked at.

    Raises:
        ConfigError: if optuna is not installed.
        StorageError: if the journal cannot be written.
    """
    require_optuna()
    import optuna

    generation = max(_MIN_POPULATION, 2 * len({*grid, *encoding.uniform_subnets}))
    found: dict[Subnet, TrialResult] = {}
    repeated = 0
    with _silence_optuna():
        study = optuna.create_study(
            directions=["maximize", "minimize"],
            sampler=optuna.samplers.NSGAIISampler(
                population_size=generation, crossover_prob=_CROSSOVER_PROBABILITY, seed=seed
            ),
        )
        for first in encoding.warm_start(grid, count=generation, seed=seed):
            study.enqueue_trial(first)
        while len(found) < trials and repeated < _PATIENCE_GENERATIONS * generation:
            progress(len(found), trials)
            trial = study.ask()
            subnet = _suggest_subnet(trial, encoding)
            if subnet in found:  # counts for nothing, so that no generation is filled with copies
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                repeated += 1
                continue
            repeated = 0
            found[subnet] = journal.get(subnet) or journal.add(evaluate(subnet))
            study.tell(trial, [found[subnet].metric_value, found[subnet].relative_cost])
    progress(len(found), len(found))
    return list(found.values())


@contextmanager
def _silence_optuna() -> Iterator[None]:
    """Without optuna's line for every trial."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _suggest_subnet(trial: "optuna.trial.Trial", encoding: SubnetEncoding) -> Subnet:
    return encoding.decode(
        {name: trial.suggest_int(name, 0, size - 1) for name, size in encoding.cardinalities.items()}
    )


Objective = Literal["flops", "latency"]
OBJECTIVES: tuple[Objective, ...] = ("flops", "latency")


class SubnetEvaluator:
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
        self._cost_model = CostModel(model)
        self._full_flops = self._cost_model.mean_flops(model.full, examples.lengths)
        tokens = latency_tokens or round(float(sorted(examples.lengths)[len(examples) // 2]))
        if not 1 < tokens <= model.max_input_length:
            raise ConfigError(
                f"tokens is {tokens}; it must be from 2 to {model.max_input_length}, the model's longest input"
            )
        self._latency_batch, self._latency_tokens = latency_batch, tokens

    @property
    def conditions(self) -> dict[str, Any]:
        """What its numbers depend on besides the sub-network, as JSON values."""
        tokens = self._examples.tokens
        parts = (tokens.ids, tokens.offsets, self._labels)
        digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
        found: dict[str, Any] = {
            "objective": self._objective,
            "metric": self._task.primary_metric,
            "examples": digest[:12],
        }
        if self._objective == "latency":
            found |= {"batch": self._latency_batch, "tokens": self._latency_tokens, "threads": torch.get_num_threads()}
        return found

    def __call__(self, subnet: Subnet) -> TrialResult:
        """Judge one sub-network."""
        answers = predict_subnet_logits(self._model, self._examples, subnets={"": subnet}, batch_size=self._batch_size)
        value = compute_task_metrics(self._task, answers[""], self._examples)[self._task.primary_metric]
        if self._objective == "flops":
            return TrialResult(
                subnet, value, self._cost_model.mean_flops(subnet, self._examples.lengths) / self._full_flops
            )
        return TrialResult(subnet, value, self._relative_latency(subnet))

    def _relative_latency(self, subnet: Subnet) -> float:
        if subnet == self._model.full:
            return 1.0
        ids = torch.full(
            (self._latency_batch, self._latency_tokens), 1, dtype=torch.long, device=self._model.network.device
        )
        networks = {"full": self._model.view(self._model.full), "one": self._model.view(subnet)}
        seconds = median_latency(
            networks, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, rounds=self._rounds
        )
        return seconds["one"] / seconds["full"]


def save_found_subnets(
    run_dir: str | Path, trials: Sequence[TrialResult], *, metric: str, objective: Objective
) -> None:
    """Write sub-networks into the run's ``limbert.json``; those of an earlier search for this objective go.

    Raises:
        CheckpointError: if the run is no elastic checkpoint on this machine.
        StorageError: if the file cannot be written; the old one stays.
    """
    mine = {
        searched_subnet_name(one.subnet): one.subnet.to_dict()
        | {"validation": {metric: one.metric_value}, "objective": objective, "cost_share": one.relative_cost}
        for one in trials
    }

    def change(record: dict[str, Any]) -> None:
        kept = {
            name: one for name, one in record.get(SEARCHED_SUBNETS_KEY, {}).items() if one.get("objective") != objective
        }
        record[SEARCHED_SUBNETS_KEY] = mine | {name: one for name, one in kept.items() if name not in mine}

    update_record(run_dir, change)


def save_found_results(run_dir: str | Path, results: Sequence[SubnetResult]) -> None:
    """Put results of found sub-networks into the run's ``results.jsonl``; rows of other names that still exist stay.

    Raises:
        CheckpointError: if the file cannot be read.
        StorageError: if it cannot be written; the old one stays.
    """
    path = Path(run_dir) / RESULTS_NAME
    record = read_record(run_dir)
    fresh = {result.subnet for result in results}
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        stale = [
            row["subnet"].startswith("found-") and row["subnet"] not in record[SEARCHED_SUBNETS_KEY] for row in rows
        ]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the results in {path} cannot be read: {error}") from error
    kept = [row for row, gone in zip(rows, stale, strict=True) if not gone and row["subnet"] not in fresh]
    stamp = {
        "seed": record.get("settings", {}).get("train", {}).get("seed"),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }
    with atomic_file(path) as file:
        file.writelines(json.dumps(row) + "\n" for row in [*kept, *(result.to_dict() | stamp for result in results)])
