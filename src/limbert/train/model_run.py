"""Training from datasets in memory: the phases of a recipe on what `transformers.Trainer` takes."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbert.errors import ConfigError
from limbert.evaluation.results import LOG_NAME
from limbert.files import json_fingerprint
from limbert.model.elastic import ElasticModel
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.checkpoints import write_into
from limbert.train.distributed import init_distributed, run_on_main
from limbert.train.phases import FINAL, ConfiguredPhase, Phase, check_phases, train_phases
from limbert.train.recipes import Recipe, load_recipe, override_recipe
from limbert.train.run_folder import RunFolder
from limbert.train.subnet_evaluation import task_of, task_type_of

logger = logging.getLogger(__name__)


def train_model(
    model: ElasticModel,
    *,
    args: ElasticTrainingArguments,
    train_dataset: Any,
    eval_dataset: Any = None,
    recipe: str | Recipe = "limbert",
    phases: Sequence[str | Phase] | None = None,
    processing_class: Any = None,
    **options: Any,
) -> ElasticModel:
    """Run the phases of a recipe on datasets; the trained model is saved into ``args.output_dir``.

    Args:
        model: the base model; its space is the one that is trained.
        args: for all phases; what differs from its default is used instead of the recipe's settings.
        train_dataset: as `ElasticTrainer` takes it; a `DatasetDict` has ``train`` and ``validation``.
        eval_dataset: chooses checkpoints and scores importance; default: a tenth of a `datasets.Dataset`.
        recipe: a bundled one by name, a TOML file, or a `Recipe`.
        phases: names of phases instead of all of the recipe's, or phases of your own.
        processing_class: the tokenizer, saved along.
        options: of `ElasticTrainer` and `train_phases`: ``compute_metrics``, ``callbacks``, ``data_collator``, ...

    Raises:
        ConfigError: for another run's folder, or settings that this model or data cannot have.
        TrainingInterrupted: after a signal; the same call resumes.
    """
    given = load_recipe(recipe) if isinstance(recipe, str) else recipe
    configured = _configure(given, phases, world=init_distributed())
    if isinstance(train_dataset, dict):
        eval_dataset = train_dataset.get("validation") if eval_dataset is None else eval_dataset
        train_dataset = train_dataset["train"]
    parts = [part for part in (train_dataset, eval_dataset) if part is not None]
    fingerprint = json_fingerprint([getattr(part, "_fingerprint", len(part)) for part in parts])
    if eval_dataset is None:
        if not hasattr(train_dataset, "train_test_split"):
            raise ConfigError("no eval_dataset is given; it chooses checkpoints and scores importance")
        split = train_dataset.train_test_split(0.1, seed=args.seed)
        train_dataset, eval_dataset = split["train"], split["test"]
    settings = {
        "train": {"seed": args.seed, "model": model.network.config._name_or_path or None},
        "args": _changed_arguments(args),
        "recipe": {
            "space": model.space.to_dict(),
            "phases": {phase.name: vars(config) for phase, config in configured},
        },
        "content": {"data": fingerprint},
    }
    settings = json.loads(json.dumps(settings, default=str))
    folder, completed = RunFolder(args.path, settings), [*model.record.get("phases", ())]
    record = {"task": model.record.get("task") or _task_record(model, args), "settings": settings}
    check_phases(model, configured)
    with folder.opened():
        if (folder.path / "config.json").exists():
            logger.info("%s is finished already, with these settings", folder.path)
            return ElasticModel.from_pretrained(folder.path)
        model = train_phases(
            model,
            configured,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            is_rewired="width" in completed,
            processing_class=processing_class,
            make_record=lambda done: record | {"phases": completed + done},
            **options,
        )
        last = configured[-1][0].name
        run_on_main(lambda: _publish_model(model, folder.path / last, tokenizer=processing_class, args=args))
    return model


def _configure(recipe: Recipe, phases: Sequence[str | Phase] | None, *, world: int) -> list[ConfiguredPhase]:
    """Phases by name with the recipe's settings, own ones with their defaults; batch sizes of all processes."""
    chosen = [*(phases or recipe.phases)]
    named = override_recipe(recipe, phases=[phase for phase in chosen if isinstance(phase, str)])
    known = dict(zip(named.phases, named.with_world_size(world).configured_phases(), strict=True))
    return [
        known[phase] if isinstance(phase, str) else (phase, phase.config_class(**phase.defaults)) for phase in chosen
    ]


def _publish_model(model: ElasticModel, last: Path, *, tokenizer: Any, args: ElasticTrainingArguments) -> None:
    """Put the result of the last phase into the output folder, and on the Hub if that is wanted."""

    def save(folder: Path) -> None:
        def add_log(target: Path) -> None:
            shutil.copy(last / FINAL / LOG_NAME, target)

        model.save_pretrained(folder, tokenizer=tokenizer, add_files=add_log)

    write_into(last.parent, save)
    shutil.rmtree(last)
    if args.push_to_hub:
        from huggingface_hub import HfApi

        api = HfApi(token=args.hub_token)
        name = args.hub_model_id or last.parent.absolute().name
        repo = api.create_repo(name, private=args.hub_private_repo, exist_ok=True)
        ignored = ["settings.json", "tensorboard/*"]
        api.upload_folder(repo_id=repo.repo_id, folder_path=str(last.parent), ignore_patterns=ignored)


def _task_record(model: ElasticModel, args: ElasticTrainingArguments) -> dict[str, Any] | None:
    if type(model.network).__name__.endswith("ForMaskedLM"):
        return None
    return task_of(model.network, args.task_type or task_type_of(model.network)).to_dict()


def _changed_arguments(args: ElasticTrainingArguments) -> dict[str, Any]:
    """Arguments that differ from their defaults and decide the result."""
    ignored = ("output_dir", "report_to", "disable_tqdm", "run_name", "save_", "logging_", "local_rank", "hub_",
               "push_to_", "dataloader_", "log_")  # fmt: skip
    default = ElasticTrainingArguments("-").to_dict()
    changed = {name: value for name, value in args.to_dict().items() if value != default.get(name)}
    return {name: value for name, value in changed.items() if not name.startswith(ignored)}
