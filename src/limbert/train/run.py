"""The public function `train`, and training on a task's files: one run, one per seed, or one sub-network of a run."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from limbert.core.config import DataConfig, TrainConfig, configs_from_options, require
from limbert.data.load import TaskData, load_task_data
from limbert.evaluation.choose import resolve_measured_names
from limbert.evaluation.results import LOG_NAME, RESULTS_NAME, SubnetResult
from limbert.export.export import check_export, export_model
from limbert.files import json_fingerprint, write_json_lines
from limbert.inference.load import override_data_config, saved_data_config
from limbert.model.checkpoint import read_record
from limbert.model.elastic import ElasticModel
from limbert.train.distributed import run_on_main
from limbert.train.model_run import train_model
from limbert.train.output_run import arguments_of_run, run_phases, start_processes
from limbert.train.phases import check_supervision
from limbert.train.recipes import Recipe, load_recipe, override_recipe, with_trained_space
from limbert.train.run_folder import run_settings
from limbert.train.task_examples import load_run_data

logger = logging.getLogger(__name__)

SEEDS_NAME = "seeds.jsonl"  # mean and spread of the metrics over several seeds


def train(model: str | Path | ElasticModel, **options: Any) -> Any:
    """Train an elastic model: from files as the command does, or from datasets in memory.

    ``train("bert-base-uncased", data="tickets", output="runs/tickets", recipe="limbert")`` does what ``limbert train``
    does and returns the results of all sub-networks. ``data`` is a folder, a data set's name on the Hub or a
    `DataConfig`; further keywords are the fields of `TrainConfig` and `DataConfig`, and those of `train_task`. With
    ``seeds=(1, 2, 3)`` see `train_seeds`, with ``subnet="0.5x0.75"`` see `specialise`.

    ``train(elastic_model, args=, train_dataset=, eval_dataset=, recipe=)`` takes what `transformers.Trainer` takes and
    returns the trained model, see `train_model`. Either call, repeated after an interruption, resumes.
    """
    return train_model(model, **options) if isinstance(model, ElasticModel) else _train_files(str(model), **options)


def _train_files(
    model: str,
    *,
    output: str | Path,
    data: str | Path | DataConfig | None = None,
    recipe: str | Recipe | None = None,
    seeds: Sequence[int] = (),
    subnet: str | None = None,
    **options: Any,
) -> Any:
    extra = {name: options.pop(name) for name in ("callbacks", "progress", "overwrite", "format") if name in options}
    options |= {"model": model, "output": str(output)} | ({"recipe": recipe} if isinstance(recipe, str) else {})
    options |= {"data": str(data)} if isinstance(data, str | Path) else {}
    classes = (TrainConfig,) if isinstance(data, DataConfig) else (TrainConfig, DataConfig)
    config, *data_configs = configs_from_options(options, *classes)
    data_config = data if isinstance(data, DataConfig) else data_configs[0]
    if subnet is not None:
        if not isinstance(recipe, Recipe):
            recipe = override_recipe(load_recipe(config.recipe), phases=["specialise"])
        return specialise(config, subnet, data_config, recipe=recipe, **extra)
    require("format" not in extra, "format", extra.get("format"), "left out without subnet; see export_model")
    if not isinstance(recipe, Recipe):
        recipe = with_trained_space(override_recipe(load_recipe(config.recipe), phases=config.phases), model)
    if seeds:
        return train_seeds(config, recipe, data_config, seeds, **extra)
    return train_task(config, recipe, data_config, **extra)


def train_seeds(
    config: TrainConfig, recipe: Recipe, data_config: DataConfig, seeds: Sequence[int], **options: Any
) -> dict[int, list[SubnetResult]]:
    """One run per seed, each in ``OUTPUT/seed-N``; mean and spread of their metrics in ``OUTPUT/seeds.jsonl``.

    Args as of `train_task`; the seed of ``config`` does not count.

    Returns:
        The results of each seed.
    """
    require(len({*seeds}) == len(seeds) > 1, "seeds", [*seeds], "at least two different numbers")
    found = {}
    for seed in seeds:
        run = replace(config, seed=seed, output=f"{config.output}/seed-{seed}")
        found[seed] = train_task(run, recipe, data_config, **options)
    rows = [result.to_dict() | {"spread": spread, "seeds": [*seeds]} for result, spread in over_seeds(found)]
    run_on_main(lambda: write_json_lines(Path(config.output) / SEEDS_NAME, rows))
    return found


def over_seeds(found: Mapping[int, Sequence[SubnetResult]]) -> list[tuple[SubnetResult, dict[str, float]]]:
    """For each sub-network the mean of its metrics over the seeds, and their standard deviations."""
    rows = []
    for results in zip(*found.values(), strict=True):
        values = {metric: [result.metrics[metric] for result in results] for metric in results[0].metrics}
        spread = {metric: float(np.std(numbers, ddof=1)) for metric, numbers in values.items()}
        means = {metric: float(np.mean(numbers)) for metric, numbers in values.items()}
        rows.append((replace(results[0], metrics=means, calibration=None), spread))
    return rows


def specialise(
    config: TrainConfig,
    subnet: str,
    data_config: DataConfig,
    *,
    recipe: Recipe | None = None,
    format: str = "hf",
    overwrite: bool = False,
    **options: Any,
) -> list[SubnetResult]:
    """Fine-tune one sub-network of an elastic run, taught by the run's full size, and export it.

    Args:
        config: the run is its ``model``; ``output`` becomes the exported folder, with the results in ``results.jsonl``.
        subnet: ``WIDTHxDEPTH``, or a name found by a search or a measurement.
        data_config: settings that replace the run's own.
        recipe: with the one phase ``specialise``.
        format: of the export.
        overwrite: replace an earlier export.
        options: of `train_task`.

    Raises:
        ConfigError: if the output exists, or the model is not an elastic run on this data.
    """
    output, work = Path(config.output), f"{config.output}.elastic"
    (name,) = resolve_measured_names(config.model, [subnet])
    check_export(work, output, subnet=name, format=format, overwrite=overwrite)  # before the training
    given = {key: value for key, value in vars(data_config).items() if value != getattr(DataConfig(), key)}
    data = override_data_config(saved_data_config(read_record(config.model)), **given)
    recipe = with_trained_space(recipe or override_recipe(load_recipe("limbert"), phases=["specialise"]), config.model)
    results = train_task(replace(config, output=work), recipe, data, subnet=name, overwrite=overwrite, **options)

    def export() -> None:
        files = [Path(work) / name for name in (RESULTS_NAME, LOG_NAME)]
        export_model(work, output, subnet=name, format=format, overwrite=overwrite, extra_files=files)
        shutil.rmtree(work)

    run_on_main(export)
    return results


def train_task(
    config: TrainConfig,
    recipe: Recipe,
    data_config: DataConfig,
    *,
    data: TaskData | None = None,
    subnet: str | None = None,
    **options: Any,
) -> list[SubnetResult]:
    """Train on a task's files, as ``limbert train`` does; the results of all sub-networks on the development data.

    Args:
        config: base model, output, seed, precision.
        recipe: with the batch sizes of one process.
        data_config: where the data is.
        data: the examples that it names, if they are read already.
        subnet: name of the only sub-network that is trained and evaluated.
        options: ``callbacks``, ``progress`` and ``overwrite`` of `run_phases`.

    Raises:
        LimbertError: see `run_phases`.
    """
    check_supervision([name for name in recipe.phases if subnet is None or name != "specialise"], "labels")
    recipe = recipe.with_world_size(start_processes(config))
    data = data or load_task_data(data_config, seed=config.seed)
    settings = run_settings(config, recipe.to_dict(), data.config, fingerprint=task_fingerprint(data))
    return run_phases(
        config.output,
        settings | ({"subnet": subnet} if subnet else {}),
        lambda: load_run_data(config, recipe, data, subnet=subnet),
        partial(arguments_of_run, config, task_type=data.task.task_type),
        **options,
    )


def task_fingerprint(data: TaskData) -> str:
    """Fingerprint of the task and its examples; file paths and column names do not change it."""
    augmented, content = data.augmented, None
    if augmented is not None:
        logits = None if augmented.logits is None else augmented.logits.tolist()
        content = [augmented.examples.texts, augmented.examples.pairs, augmented.source_ids, logits]
    return json_fingerprint([data.config.fingerprints, content])
