"""Search for sub-networks off the grid: any layers, each with its own heads and neurons, by NSGA-II (optuna).

Trials are kept in optuna's journal storage in the run, so that an interrupted search resumes from its finished trials.
"""

import hashlib
import logging
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch

from limbert.core.config import DataConfig, require, shows_options, take_config
from limbert.core.pareto import pareto_front
from limbert.core.space import is_width_depth_name
from limbert.core.subnet import Subnet
from limbert.core.verb_config import Objective, SearchConfig
from limbert.data.load import load_evaluation_data
from limbert.data.task_registry import compute_task_metrics
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import CheckpointError, ConfigError, StorageError, import_optional
from limbert.evaluation.benchmark import time_interleaved
from limbert.evaluation.encoding import SubnetEncoding
from limbert.evaluation.evaluate import Progress, evaluate_subnets, fit_temperatures, no_progress
from limbert.evaluation.results import RESULTS_NAME, SubnetResult, replace_json_lines, require_writable_run
from limbert.files import locked
from limbert.inference.load import LoadedCheckpoint, load_checkpoint, load_validation_split, override_data_config
from limbert.inference.onnx_graph import quiet_loggers
from limbert.inference.predict import predict_subnet_logits
from limbert.inference.runtimes import Runtime, check_runtime, load_runtime
from limbert.method.calibration import TEMPERATURES_KEY
from limbert.model.checkpoint import (
    SEARCHED_SUBNETS_KEY,
    library_versions,
    read_record,
    searched_subnet_name,
    update_record,
)
from limbert.model.elastic import ElasticModel
from limbert.model.flops import CostModel

if TYPE_CHECKING:
    import optuna

JOURNAL_NAME = "search-journal.jsonl"  # optuna's journal storage
_DIRECTIONS: tuple[Literal["maximize"], Literal["minimize"]] = ("maximize", "minimize")  # metric, cost
_MIN_POPULATION = 24  # sub-networks per generation; twice the number of uniform ones if that is more
_CROSSOVER_PROBABILITY = 0.5  # otherwise one parent, mutated
_PATIENCE_GENERATIONS = 50  # generations without a new sub-network after which the search ends

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialResult:
    """A sub-network with its metric and cost on the validation split."""

    subnet: Subnet
    metric_value: float  # the task's primary metric
    relative_cost: float  # the objective, as a fraction of the full model's


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    The rows of ``front`` are JSON objects with ``subnet, layers, heads, neurons``, ``grid`` (whether it is one of width
    and depth), ``cost_share``, ``validation`` and ``dev`` (the metric), and ``grid_dev``: the best metric of the grid
    on the development set at no more cost, None if there is none.
    """

    trials: int  # different sub-networks that were evaluated, by this search and earlier ones that it continues
    objective: Objective
    metric: str  # the task's primary metric
    front: list[dict[str, Any]]  # the Pareto front, cheapest first


@shows_options(SearchConfig)
def search(
    run: str | Path,
    *,
    batch_size: int = 64,
    progress: Progress = no_progress,
    **options: Any,
) -> SearchResult:
    """Search sub-networks off the grid of widths and depths, weighing the metric against a cost.

    The metric is that on the validation split of the training data. The Pareto front is saved in the run by name
    (``limbert.json``) and evaluated on the development set (``results.jsonl``), which selects nothing. An interrupted
    search goes on from its finished trials; with more ``trials`` a finished one goes on.

    Args:
        run: elastic model.
        batch_size: examples per batch; the results do not depend on it.
        progress: called with what runs, steps done and steps in all.
        options: those below; settings of `DataConfig` (``data=``, ``train=``, ``dev=``) instead of the training's.

    Raises:
        LimbertError: for a setting out of range, a run that cannot be searched or written, or without optuna.
    """
    config, data = take_config(SearchConfig, options)
    run = os.path.expanduser(run)
    require_writable_run(run)
    import_optional("optuna", extra="search")
    checkpoint = load_checkpoint(run)
    task, model = checkpoint.trained_task, checkpoint.model
    data_config = override_data_config(checkpoint.data_config, **data)
    load_evaluation_data(data_config, task)  # refuses data without a development set before the work
    validation = checkpoint.tokenize(load_validation_split(checkpoint, data_config))
    evaluator = SubnetEvaluator(model, validation, task, config, batch_size)
    results = search_subnets(
        SubnetEncoding(model),
        list(model.subnets().values()),
        evaluate=evaluator,
        journal=Path(run) / JOURNAL_NAME,
        study_name=evaluator.study_name,
        trials=config.trials,
        seed=config.seed,
        progress=partial(progress, "searching"),
    )
    return _save_front(
        run,
        checkpoint,
        results,
        config=data_config,
        objective=config.objective,
        validation=validation,
        progress=progress,
    )


def _save_front(
    run: str,
    checkpoint: LoadedCheckpoint,
    trials: Sequence[TrialResult],
    *,
    config: DataConfig,
    objective: Objective,
    validation: TokenizedExamples,
    progress: Progress,
) -> SearchResult:
    """Save the Pareto front in the run and evaluate it on the development set beside the grid."""
    task, model = checkpoint.trained_task, checkpoint.model
    grid = {subnet: name for name, subnet in model.subnets().items()}
    names = {trial.subnet: grid.get(trial.subnet) or searched_subnet_name(trial.subnet) for trial in trials}
    front = pareto_front(trials, cost=lambda trial: trial.relative_cost, value=lambda trial: trial.metric_value)
    new = [trial for trial in front if trial.subnet not in grid]
    subnets = {names[trial.subnet]: trial.subnet for trial in new}
    if subnets:
        fit_temperatures(model, validation, task=task, subnets=subnets)
    temperatures = model.record.get(TEMPERATURES_KEY, {})
    save_searched_subnets(run, new, metric=task.primary_metric, objective=objective, temperatures=temperatures)
    model.record |= read_record(run)
    eval_datasets = {name: checkpoint.tokenize(part) for name, part in load_evaluation_data(config, task).items()}
    progress_on_dev = partial(progress, "evaluating on dev")
    subnets |= model.subnets()
    results = evaluate_subnets(model, eval_datasets, task=task, subnets=subnets, progress=progress_on_dev)
    by_name = {result.subnet: result for result in results}
    save_searched_results(run, [by_name[names[trial.subnet]] for trial in new])
    dev = {name: result.mean_metric(task.primary_metric) for name, result in by_name.items()}
    grid_costs = [(trial.relative_cost, dev[names[trial.subnet]]) for trial in trials if trial.subnet in grid]
    rows = [
        {"subnet": names[trial.subnet]}
        | trial.subnet.to_dict()
        | {
            "grid": trial.subnet in grid,
            "cost_share": trial.relative_cost,
            "validation": trial.metric_value,
            "dev": dev[names[trial.subnet]],
            "grid_dev": max((value for cost, value in grid_costs if cost <= trial.relative_cost + 1e-9), default=None),
        }
        for trial in front
    ]
    return SearchResult(len(trials), objective, task.primary_metric, rows)


def search_subnets(
    encoding: SubnetEncoding,
    grid: Sequence[Subnet],
    *,
    evaluate: Callable[[Subnet], TrialResult],
    journal: Path,
    study_name: str,
    trials: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TrialResult]:
    """Evaluate ``trials`` different sub-networks, those of the grid first, and return all of the study in their order.

    Finished trials in the journal count and are not evaluated again. ``study_name`` names what a result depends on;
    other studies in the journal are ignored. There are fewer trials if there are no more sub-networks.
    """
    optuna = import_optional("optuna", extra="search")
    generation = max(_MIN_POPULATION, 2 * len({*grid, *encoding.uniform_subnets}))
    lock = journal.with_name(f".{journal.name}.running")  # the system releases it when a process is killed
    try:
        with quiet_loggers("optuna"), locked(lock):
            saved = _open_study(journal, study_name)
            finished: dict[Subnet, TrialResult] = {}
            for old in saved.get_trials():
                subnet = encoding.decode(old.params)
                finished[subnet] = TrialResult(subnet, *old.values)
            if finished:
                _logger.warning("%d sub-networks were evaluated before (%s)", len(finished), journal)
            # The sampler works in memory; only finished trials are written, each with one line.
            study = optuna.create_study(directions=_DIRECTIONS)
            study.sampler = optuna.samplers.NSGAIISampler(
                population_size=generation,
                crossover_prob=_CROSSOVER_PROBABILITY,
                seed=(seed + len(finished)) % 2**32,  # a resumed search draws other numbers
            )
            study.add_trials(saved.get_trials())
            for parameters in encoding.warm_start(grid, count=generation, seed=seed):
                study.enqueue_trial(parameters, skip_if_exists=True)
            repeated = 0
            while len(finished) < trials and repeated < _PATIENCE_GENERATIONS * generation:
                progress(len(finished), trials)
                trial = study.ask()
                sizes = encoding.cardinalities.items()
                subnet = encoding.decode({name: trial.suggest_int(name, 0, size - 1) for name, size in sizes})
                if subnet in finished:  # no result, so that no generation fills up with copies
                    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    repeated += 1
                    continue
                repeated = 0
                finished[subnet] = evaluate(subnet)
                saved.add_trial(study.tell(trial, [finished[subnet].metric_value, finished[subnet].relative_cost]))
    except TimeoutError as error:
        raise ConfigError(f"another search is running in {journal.parent}; wait until it has ended") from error
    except OSError as error:
        raise StorageError(f"cannot write {journal}: {error.strerror or error}") from error
    progress(len(finished), len(finished))
    return list(finished.values())


def _open_study(journal: Path, name: str) -> "optuna.Study":
    """The study in optuna's journal file, or a new one."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)  # optuna's, left by a killed search
    logged = journal.read_bytes() if journal.exists() else b""
    if logged and not logged.endswith(b"\n"):  # the last line was cut short
        os.truncate(journal, logged.rfind(b"\n") + 1)
    try:
        storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(storage=storage, study_name=name, load_if_exists=True, directions=_DIRECTIONS)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{journal} cannot be read; delete it to start the search anew") from error


@dataclass
class SubnetEvaluator:
    """Evaluates sub-networks of one model on a labelled validation split.

    Costs are fractions of the full model's: FLOPs at the examples' own lengths, or the median time of ``rounds``
    forward passes beside the full model's, the two taking turns, so that a slow phase of the machine affects both. A
    pass has ``latency_batch`` examples of ``latency_tokens`` tokens, in fp32.
    """

    model: ElasticModel
    examples: TokenizedExamples
    task: Task
    config: SearchConfig
    batch_size: int = 64
    rounds: int = 30

    def __post_init__(self) -> None:
        check_runtime(self.config.latency_runtime)
        longest = self.model.max_input_length
        self._tokens = self.config.latency_tokens or int(sorted(self.examples.lengths)[len(self.examples) // 2])
        require(2 <= self._tokens <= longest, "tokens", self._tokens, f"from 2 to {longest}, the model's longest input")
        self._cost_model = CostModel(self.model)

    @property
    def study_name(self) -> str:
        """A name made of all that a result depends on besides the sub-network."""
        tokens, labels = self.examples.tokens, self.examples.labels
        parts = [tokens.ids, tokens.offsets] + ([] if labels is None else [labels.numpy()])
        examples = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:12]
        name = f"{self.config.objective}, {self.task.primary_metric}, examples {examples}"
        if self.config.objective == "flops":
            return name
        name += f", {self.config.latency_batch}x{self._tokens} tokens, {torch.get_num_threads()} threads"
        return name + f", {self.config.latency_runtime}" * (self.config.latency_runtime != "torch")

    def __call__(self, subnet: Subnet) -> TrialResult:
        """Evaluate one sub-network."""
        logits = predict_subnet_logits(self.model, self.examples, subnets={"": subnet}, batch_size=self.batch_size)
        value = compute_task_metrics(self.task, logits[""], self.examples)[self.task.primary_metric]
        cost = self._relative_flops(subnet) if self.config.objective == "flops" else self._relative_latency(subnet)
        return TrialResult(subnet, value, cost)

    def _relative_flops(self, subnet: Subnet) -> float:
        flops, full = (self._cost_model.mean_flops(one, self.examples.lengths) for one in (subnet, self.model.full))
        return flops / full

    def _relative_latency(self, subnet: Subnet) -> float:
        if subnet == self.model.full:
            return 1.0
        ids = torch.ones(self.config.latency_batch, self._tokens, dtype=torch.long, device=self.model.network.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        runtimes = {"full": self._full_runtime, "subnet": self._load(subnet)}
        functions = {name: partial(runtime, inputs) for name, runtime in runtimes.items()}
        seconds = time_interleaved(functions, rounds=self.rounds)
        return statistics.median(seconds["subnet"]) / statistics.median(seconds["full"])

    @cached_property
    def _full_runtime(self) -> Runtime:
        return self._load(self.model.full)

    def _load(self, subnet: Subnet) -> Runtime:
        return load_runtime(self.config.latency_runtime, self.model.view(subnet), threads=torch.get_num_threads())


def save_searched_subnets(
    run: str | Path,
    trials: Sequence[TrialResult],
    *,
    metric: str,
    objective: Objective,
    temperatures: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Write sub-networks into the run's ``limbert.json`` in place of those of an earlier search for this objective.

    So are ``temperatures`` by name, while those of sub-networks that are gone are deleted.
    """
    new = {
        searched_subnet_name(trial.subnet): trial.subnet.to_dict()
        | {"validation": {metric: trial.metric_value}, "objective": objective, "cost_share": trial.relative_cost}
        for trial in trials
    }

    def update(record: dict[str, Any]) -> None:
        saved = record.get(SEARCHED_SUBNETS_KEY, {})
        others = [name for name in saved if saved[name].get("objective") != objective and name not in new]
        record[SEARCHED_SUBNETS_KEY] = searched = new | {name: saved[name] for name in others}
        known = (record.get(TEMPERATURES_KEY, {}) | dict(temperatures)).items()
        kept = {name: value for name, value in known if is_width_depth_name(name) or name in searched}
        record[TEMPERATURES_KEY] = kept

    update_record(run, update)


def save_searched_results(run: str | Path, results: Sequence[SubnetResult]) -> None:
    """Put results into the run's ``results.jsonl``; rows of searched sub-networks not saved now are dropped."""
    record = read_record(run)
    saved = record.get(SEARCHED_SUBNETS_KEY, {})
    context = {
        "seed": record.get("settings", {}).get("train", {}).get("seed"),
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }

    def is_current(row: Mapping[str, Any]) -> bool:
        return not row["subnet"].startswith("found-") or row["subnet"] in saved

    rows = [result.to_dict() | context for result in results]
    replace_json_lines(Path(run) / RESULTS_NAME, rows, key=lambda row: row["subnet"], keep=is_current)
