"""Training from datasets in memory: the phases of a recipe on what `transformers.Trainer` takes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from transformers import TrainerCallback

from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.metrics import baseline_logits
from limbert.data.metrics import compute_metrics as compute_task_metrics
from limbert.data.readers import Examples
from limbert.data.tasks import Task
from limbert.errors import ConfigError
from limbert.evaluation.evaluate import Progress, no_progress
from limbert.evaluation.results import SubnetResult
from limbert.files import json_fingerprint
from limbert.model.elastic import ElasticModel
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.data import index_dataset
from limbert.train.distributed import init_distributed, run_on_main
from limbert.train.output_run import RunData, run_phases
from limbert.train.phases import PHASES, ConfiguredPhase, Phase
from limbert.train.recipes import Recipe, load_recipe, override_recipe
from limbert.train.subnet_trainer import task_of, task_type_of
from limbert.train.trainer import ElasticTrainer, default_collator


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
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = no_progress,
    overwrite: bool = False,
    **options: Any,
) -> ElasticModel:
    """Run the phases of a recipe on datasets; ``args.output_dir`` then holds the trained model and its results.

    Args:
        model: the base model; its space is the one that is trained.
        args: for all phases; what differs from its default is used instead of the recipe's settings.
        train_dataset: as `ElasticTrainer` takes it; a `DatasetDict` has ``train`` and ``validation``.
        eval_dataset: chooses checkpoints and scores importance; default: a tenth of a `datasets.Dataset`.
        recipe: a bundled one by name, a TOML file, or a `Recipe`.
        phases: names of phases instead of all of the recipe's, or phases of your own.
        processing_class: the tokenizer, saved along.
        data_collator, compute_metrics, options: of `ElasticTrainer`.
        callbacks, progress, overwrite: see `run_phases`.

    Raises:
        ConfigError: for another run's folder, or settings that this model or data cannot have.
        TrainingInterrupted: after a signal; the same call resumes.
    """
    given = load_recipe(recipe) if isinstance(recipe, str) else recipe
    configured = _configure(given, phases, world_size=init_distributed())
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
        split = train_dataset.train_test_split(0.1, seed=args.seed)
        train_dataset, eval_dataset = split["train"], split["test"]
    steps = {phase.name: vars(config) for phase, config in configured}
    settings = {
        "train": {"seed": args.seed, "model": model.network.config._name_or_path or None},
        "args": _changed_arguments(args),
        "recipe": {"space": model.space.to_dict(), "phases": steps},
        "content": {"data": fingerprint},
    }
    network, task_type = model.network, args.task_type or task_type_of(model.network)
    collator = data_collator or default_collator(processing_class)
    trainer_options = options | {
        "processing_class": processing_class, "data_collator": collator, "compute_metrics": compute_metrics
    }  # fmt: skip

    def load_data() -> RunData:
        prepare = partial(index_dataset, network=network, tokenizer=processing_class, collator=collator, args=args)
        train, validation = prepare(train_dataset), prepare(eval_dataset)

        def evaluate(trained: ElasticModel) -> list[SubnetResult]:
            quiet = replace(args, report_to=[], push_to_hub=False)
            trainer = ElasticTrainer(trained, quiet, eval_dataset=validation, **trainer_options)
            trainer.evaluate()
            results = trainer.subnet_results()
            return results if results[0].metrics else []

        has_metrics = compute_metrics is not None or TASK_TYPE_SPECS[task_type].token_level
        default = "loss" if has_metrics else task_of(network, task_type).primary_metric
        task = None if "MaskedLM" in type(network).__name__ else task_of(network, task_type)
        metric = (args.metric_for_best_model or default).removeprefix("eval_")
        baseline = None if has_metrics or task is None else _baseline(task, train, validation)
        data = {"train_dataset": train, "eval_dataset": validation, "metric": metric}
        return RunData(
            phases=configured,
            load_base=lambda: model,
            training=trainer_options | data | {"baseline": (baseline or {}).get(metric)},
            evaluate=evaluate,
            record={"task": model.record.get("task") or (task and task.to_dict())},
            num_examples=len(validation),
            baseline=baseline if metric in (baseline or {}) else None,
        )

    plain = json.loads(json.dumps(settings, default=str))
    run_phases(
        args.path,
        plain,
        load_data,
        lambda path: replace(args, output_dir=str(path), push_to_hub=False),
        callbacks=callbacks,
        progress=progress,
        overwrite=overwrite,
    )
    trained = ElasticModel.from_pretrained(args.path, head="as-saved")
    if args.push_to_hub:
        name = args.hub_model_id or args.path.absolute().name
        upload = {"tokenizer": processing_class, "private": args.hub_private_repo, "token": args.hub_token}
        run_on_main(lambda: trained.push_to_hub(name, **upload))
    return trained


def _baseline(task: Task, train: Any, validation: Any) -> dict[str, float] | None:
    """Metrics of the best constant prediction on the validation data; None where labels are no classes or values."""
    labels = getattr(validation, "labels", None)
    if labels is None or train.labels is None or task.task_type not in ("classification", "regression"):
        return None
    constant = baseline_logits(task, Examples((), None, tuple(train.labels.tolist())))
    return compute_task_metrics(task, np.tile(constant, (len(labels), 1)), labels.numpy())


def _configure(recipe: Recipe, phases: Sequence[str | Phase] | None, *, world_size: int) -> list[ConfiguredPhase]:
    """Phases by name with the recipe's settings, own ones with their defaults; batch sizes of all processes."""
    chosen = [*(phases or recipe.phases)]
    named = override_recipe(recipe, phases=[phase for phase in chosen if isinstance(phase, str)])
    configs = named.with_world_size(world_size).phases
    return [
        (PHASES[phase], configs[phase]) if isinstance(phase, str) else (phase, phase.config_class(**phase.defaults))
        for phase in chosen
    ]


def _changed_arguments(args: ElasticTrainingArguments) -> dict[str, Any]:
    """Arguments that differ from their defaults and decide the result."""
    ignored = ("output_dir", "report_to", "disable_tqdm", "run_name", "save_", "logging_", "local_rank", "hub_",
               "push_to_", "dataloader_", "log_")  # fmt: skip
    default = ElasticTrainingArguments("-").to_dict()
    changed = {name: value for name, value in args.to_dict().items() if value != default.get(name)}
    return {name: value for name, value in changed.items() if not name.startswith(ignored)}
