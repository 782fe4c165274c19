"""The public function `train`: runs on a task's files, one, one per seed, or one sub-network, and on datasets."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from limbert.core.config import DataConfig, TrainConfig, configs_from_options, require
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.load import TaskData, load_task_data
from limbert.data.metrics import baseline_logits
from limbert.data.metrics import compute_metrics as compute_task_metrics
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.errors import ConfigError
from limbert.evaluation.results import LOG_NAME, RESULTS_NAME, Calibration, SubnetResult
from limbert.export.export import check_export, export_model
from limbert.files import json_fingerprint, write_json_lines
from limbert.inference.load import override_data_config, saved_data_config
from limbert.method.calibration import CALIBRATED_TASK_TYPES, TEMPERATURES_KEY, calibration_error, fit_temperature
from limbert.model.checkpoint import read_record
from limbert.model.elastic import ElasticModel
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.data import index_dataset
from limbert.train.distributed import init_distributed, run_on_main
from limbert.train.output_run import RunData, arguments_of_run, run_phases, start_processes
from limbert.train.phases import PHASES, ConfiguredPhase, Phase, check_supervision
from limbert.train.recipes import Recipe, load_recipe, override_recipe, recipe_for, with_trained_space
from limbert.train.run_folder import run_settings
from limbert.train.subnet_trainer import task_of, task_type_of
from limbert.train.task_examples import load_run_data
from limbert.train.trainer import ElasticTrainer, default_collator

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
        defaults = vars(DataConfig())
        given = {key: value for key, value in vars(data_config).items() if key in options or value != defaults[key]}
        return specialise(config, subnet, given, recipe=recipe if isinstance(recipe, Recipe) else None, **extra)
    require("format" not in extra, "format", extra.get("format"), "left out without subnet; see export_model")
    recipe = recipe if isinstance(recipe, Recipe) else recipe_for(config)
    if seeds:
        return train_seeds(config, recipe, data_config, seeds, **extra)
    return train_task(config, recipe, data_config, **extra)


def train_seeds(
    config: TrainConfig, recipe: Recipe, data_config: DataConfig, seeds: Sequence[int], **options: Any
) -> dict[int, list[SubnetResult]]:
    """One run per seed, each in ``OUTPUT/seed-N``; mean and spread of their metrics in ``OUTPUT/seeds.jsonl``.

    Args as of `train_task`; the seed of ``config`` does not count. Returns the results of each seed.
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
    data: Mapping[str, Any],
    *,
    recipe: Recipe | None = None,
    format: str = "hf",
    overwrite: bool = False,
    **options: Any,
) -> list[SubnetResult]:
    """Fine-tune one sub-network of an elastic run, taught by the run's full size, and export it.

    Args:
        config: the run is its ``model``; ``output`` becomes the exported folder, with the results in ``results.jsonl``.
        subnet: ``WIDTHxDEPTH``, or a name found by a search.
        data: settings of `DataConfig` that replace the run's own.
        recipe: with the one phase ``specialise``.
        format: of the export.
        overwrite: replace an earlier export.
        options: of `train_task`.

    Raises:
        ConfigError: if the output exists, or the model is not an elastic run on this data.
    """
    output, work = Path(config.output), f"{config.output}.elastic"
    check_export(work, output, subnet=subnet, format=format, overwrite=overwrite)  # before the training
    data_config = override_data_config(saved_data_config(read_record(config.model)), **data)
    recipe = with_trained_space(recipe or recipe_for(config, phases=["specialise"]), config.model)
    results = train_task(
        replace(config, output=work), recipe, data_config, subnet=subnet, overwrite=overwrite, **options
    )

    def export() -> None:
        files = [Path(work) / name for name in (RESULTS_NAME, LOG_NAME)]
        export_model(work, output, subnet=subnet, format=format, overwrite=overwrite, extra_files=files)
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


# -- datasets in memory


def train_model(
    model: ElasticModel,
    *,
    args: ElasticTrainingArguments,
    train_dataset: Any,
    eval_dataset: Any = None,
    recipe: str | Recipe = "limbert",
    phases: Sequence[str | Phase] | None = None,
    processing_class: Any = None,
    data_collator: Any = None,
    compute_metrics: Any = None,
    **options: Any,
) -> ElasticModel:
    """Run the phases of a recipe on datasets; ``args.output_dir`` then holds the trained model and its results.

    Args:
        model: the base model; its space is the one that is trained.
        args: for all phases; those that were given, even if with their default, are used instead of the recipe's.
        train_dataset: as `ElasticTrainer` takes it; a `DatasetDict` has ``train`` and ``validation``.
        eval_dataset: chooses checkpoints and scores importance; default: a tenth of a `datasets.Dataset`.
        recipe: a bundled one by name, a TOML file, or a `Recipe`.
        phases: names of phases instead of all of the recipe's, or phases of your own.
        processing_class: the tokenizer, saved along.
        data_collator, compute_metrics: of `ElasticTrainer`.
        options: ``callbacks``, ``progress`` and ``overwrite`` of `run_phases`, and others of `ElasticTrainer`.

    Raises:
        ConfigError: for another run's folder, or settings that this model or data cannot have.
        TrainingInterrupted: after a signal; the same call resumes.
    """
    run_options = {name: options.pop(name) for name in ("callbacks", "progress", "overwrite") if name in options}
    configured = _configure(recipe, phases, world_size=init_distributed())
    if isinstance(train_dataset, dict):
        eval_dataset = train_dataset.get("validation") if eval_dataset is None else eval_dataset
        train_dataset = train_dataset["train"]
    parts = [part for part in (train_dataset, eval_dataset) if part is not None]
    fingerprint = json_fingerprint([getattr(part, "_fingerprint", len(part)) for part in parts])
    if eval_dataset is None:
        if not hasattr(train_dataset, "train_test_split"):
            raise ConfigError(
                "no eval_dataset is given; pass eval_dataset=, or a datasets.Dataset as train_dataset "
                "(a tenth of it is then held out)"
            )
        train_dataset, eval_dataset = train_dataset.train_test_split(0.1, seed=args.seed).values()
    values, given = args.to_dict(), args.given
    settings = {
        "train": {"seed": args.seed, "model": model.network.config._name_or_path or None},
        "args": {name: values[name] for name in sorted(given) if not name.startswith(_NO_EFFECT)},
        "recipe": {
            "space": model.space.to_dict(), "phases": {phase.name: vars(config) for phase, config in configured}
        },
        "content": {"data": fingerprint},
    }  # fmt: skip
    network, task_type = model.network, args.task_type or task_type_of(model.network)
    task = None if "MaskedLM" in type(network).__name__ else task_of(network, task_type)
    collator = data_collator or default_collator(processing_class)
    options |= {
        "processing_class": processing_class, "data_collator": collator, "compute_metrics": compute_metrics
    }  # fmt: skip

    def load_data() -> RunData:
        prepare = partial(index_dataset, network=network, tokenizer=processing_class, collator=collator, args=args)
        train, validation = prepare(train_dataset), prepare(eval_dataset)

        def evaluate(trained: ElasticModel, _: object) -> list[SubnetResult]:
            quiet = replace(args, report_to=[], push_to_hub=False)
            trainer = ElasticTrainer(trained, quiet, eval_dataset=validation, **options)
            return _evaluate(trainer, validation, calibrates=task is not None and task_type in CALIBRATED_TASK_TYPES)

        own_metrics = compute_metrics is not None or TASK_TYPE_SPECS[task_type].token_level
        default = task.primary_metric if task is not None and not own_metrics else "loss"
        metric = (args.metric_for_best_model or default).removeprefix("eval_")
        baseline = None if own_metrics or task is None else _baseline(task, train, validation)
        data = {"train_dataset": train, "eval_dataset": validation, "metric": metric, "given": given}
        return RunData(
            model=model,
            phases=configured,
            training=options | data | {"baseline": (baseline or {}).get(metric)},
            evaluate=evaluate,
            record={"task": model.record.get("task") or (task and task.to_dict())},
            num_examples=len(validation),
            baseline=baseline if metric in (baseline or {}) else None,
        )

    plain = json.loads(json.dumps(settings, default=str))
    run_phases(args.path, plain, load_data, lambda path: replace(args, output_dir=str(path)), **run_options)
    trained = ElasticModel.from_pretrained(args.path, head="as-saved")
    if args.push_to_hub:
        name = args.hub_model_id or args.path.absolute().name
        upload = {"tokenizer": processing_class, "private": args.hub_private_repo, "token": args.hub_token}
        run_on_main(lambda: trained.push_to_hub(name, **upload))
    return trained


_NO_EFFECT = ("output_dir", "report_to", "disable_tqdm", "run_name", "save_", "logging_", "local_rank", "hub_",
              "push_to_", "dataloader_", "log_")  # fmt: skip  # beginnings of arguments that do not decide the result


def _configure(recipe: str | Recipe, phases: Sequence[str | Phase] | None, *, world_size: int) -> list[ConfiguredPhase]:
    """Phases by name with the recipe's settings, own ones with their defaults; batch sizes of all processes."""
    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = [*(phases or recipe.phases)]
    named = override_recipe(recipe, phases=[phase for phase in chosen if isinstance(phase, str)])
    configs = named.with_world_size(world_size).phases
    return [
        (PHASES[phase], configs[phase]) if isinstance(phase, str) else (phase, phase.config_class(**phase.defaults))
        for phase in chosen
    ]


def _evaluate(trainer: ElasticTrainer, dataset: Any, *, calibrates: bool) -> list[SubnetResult]:
    """Results on the validation data, on which the temperatures are fitted, too; empty without metrics."""
    calibrations: list[Calibration | None] = [None] * len(trainer.subnets)
    if calibrates:
        output: Any = trainer.predict(dataset)
        for index, logits in enumerate(output.predictions if output.label_ids is not None else ()):
            temperature = fit_temperature(logits, output.label_ids, task_type=trainer.task_type)
            error, raw_error = (
                calibration_error(values, output.label_ids, task_type=trainer.task_type)
                for values in (logits / temperature, logits)
            )
            calibrations[index] = Calibration(error, raw_error, temperature)
    else:
        trainer.evaluate()
    fitted = zip(trainer.subnets, calibrations, strict=True)
    trainer.elastic.record[TEMPERATURES_KEY] = {name: part.temperature for name, part in fitted if part is not None}
    results = zip(trainer.subnet_results(), calibrations, strict=True)
    return [replace(result, calibration=part) for result, part in results if result.metrics]


def _baseline(task: Task, train: Any, validation: Any) -> dict[str, float] | None:
    """Metrics of the best constant prediction on the validation data; None where labels are no classes or values."""
    labels = getattr(validation, "labels", None)
    if labels is None or train.labels is None or task.task_type not in ("classification", "regression"):
        return None
    constant = baseline_logits(task, Examples((), None, tuple(train.labels.tolist())))
    return compute_task_metrics(task, np.tile(constant, (len(labels), 1)), labels.numpy())
