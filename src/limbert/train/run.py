"""Whole training runs: from data, base model and recipe to a finished folder; and the public function `train`."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase, TrainerCallback

from limbert.core.config import DataConfig, TrainConfig, configs_from_options, require
from limbert.core.subnet import Subnet
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.augmented import AugmentedExamples
from limbert.data.load import TaskData, load_task_data
from limbert.data.readers import Examples
from limbert.data.split import train_validation_split
from limbert.data.task_registry import baseline_metrics, compute_task_metrics, tokenize_for_task
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError
from limbert.evaluation.evaluate import evaluate_subnets
from limbert.evaluation.results import LOG_NAME, RESULTS_NAME, SubnetResult, mean_metric, read_results
from limbert.files import json_fingerprint
from limbert.inference.base_model import load_base_checkpoint, trained_space
from limbert.inference.load import resolve_device
from limbert.inference.predict import predict_subnet_logits
from limbert.method.losses import label_loss
from limbert.model.checkpoint import check_checkpoint_path, library_versions
from limbert.model.elastic import ElasticModel
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.checkpoints import write_into
from limbert.train.data import soft_labels
from limbert.train.distributed import (
    all_gather_object,
    init_distributed,
    is_main_process,
    local_main_process_first,
    run_on_main,
    world_size,
)
from limbert.train.gates import Progress
from limbert.train.phases import Phase, check_phases, check_supervision, train_phases, warn_about_phases
from limbert.train.recipes import Recipe, load_recipe, override_recipe
from limbert.train.run_folder import RunFolder, check_same_settings, is_run_finished, run_settings
from limbert.train.trainer import EvaluateSubnets, SubnetMetrics, result_record, subnets_of_rank, task_of, task_type_of

logger = logging.getLogger(__name__)


def _no_progress(description: str, done: int, total: int) -> None:
    pass


def train(model: str | Path | ElasticModel, **options: Any) -> "list[SubnetResult] | ElasticModel":
    """Train an elastic model: from files as the command does, or from datasets in memory.

    ``train("bert-base-uncased", data="tickets", output="runs/tickets", recipe="limbert")`` does what ``limbert train``
    does and returns the results of all sub-networks. ``data`` is a folder, a data set's name on the Hub or a `DataConfig`;
    further keywords are the fields of `TrainConfig` (``phases``, ``seed``, ``precision``, ...), ``callbacks`` and
    ``overwrite``.

    ``train(elastic_model, args=, train_dataset=, eval_dataset=, recipe=)`` takes what `transformers.Trainer` takes and
    returns the trained model, see `train_model`. Either call, repeated after an interruption, resumes.
    """
    return train_model(model, **options) if isinstance(model, ElasticModel) else _train_files(str(model), **options)


def train_model(
    model: ElasticModel,
    *,
    args: ElasticTrainingArguments,
    train_dataset: Any,
    eval_dataset: Any = None,
    recipe: str | Recipe = "limbert",
    phases: Sequence[str | Phase] | None = None,
    processing_class: Any = None,
    progress: Progress = _no_progress,
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
        progress: told of preparations.
        options: of `ElasticTrainer` and `train_phases`: ``compute_metrics``, ``callbacks``, ``data_collator``, ...

    Raises:
        ConfigError: for another run's folder, or settings that this model or data cannot have.
        TrainingInterrupted: after a signal; the same call resumes.
    """
    world = init_distributed()
    given = load_recipe(recipe) if isinstance(recipe, str) else recipe
    named = [phase for phase in phases or given.phases if isinstance(phase, str)]
    given = override_recipe(given, phases=named).with_world_size(world)
    known = {phase.name: (phase, config) for phase, config in given.configured_phases()}
    own = [phase for phase in phases or () if isinstance(phase, Phase)]
    for phase in own:
        known[phase.name] = (phase, phase.config_class(**phase.defaults))
    order = [phase.name if isinstance(phase, Phase) else phase for phase in phases or given.phases]
    if isinstance(train_dataset, dict):
        eval_dataset = train_dataset.get("validation") if eval_dataset is None else eval_dataset
        train_dataset = train_dataset["train"]
    fingerprint = json_fingerprint(
        [getattr(part, "_fingerprint", len(part)) for part in (train_dataset, eval_dataset or ())]
    )
    if eval_dataset is None:
        if not hasattr(train_dataset, "train_test_split"):
            raise ConfigError("no eval_dataset is given; it chooses checkpoints and scores importance")
        parts = train_dataset.train_test_split(0.1, seed=args.seed)
        train_dataset, eval_dataset = parts["train"], parts["test"]
    settings = {
        "train": {"seed": args.seed, "model": model.network.config._name_or_path or None},
        "args": _changed_arguments(args),
        "recipe": replace(given, space=model.space).to_dict() | {"order": order},
        "content": {"data": fingerprint},
    }
    settings = json.loads(json.dumps(settings, default=str))
    folder = RunFolder(str(args.output_dir), settings)
    tokenizer = processing_class
    completed, task = list(model.record.get("phases", ())), model.record.get("task") or _task_of(model, args)
    check_phases(model, [known[name] for name in order])
    with folder.locked():
        if (folder.path / "config.json").exists():
            logger.info("%s is finished already, with these settings", folder.path)
            return ElasticModel.from_pretrained(folder.path)
        folder.create()
        model = train_phases(
            model,
            [known[name] for name in order],
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            is_rewired="width" in completed,
            processing_class=tokenizer,
            make_record=lambda done: {"task": task, "phases": completed + done, "settings": settings},
            progress=progress,
            **options,
        )
        run_on_main(lambda: _publish_model(model, folder.path, last=order[-1], tokenizer=tokenizer, args=args))
    return model


def _publish_model(
    model: ElasticModel, root: Path, *, last: str, tokenizer: Any, args: ElasticTrainingArguments
) -> None:
    """Put the result of the last phase into the output folder, and on the Hub if that is wanted."""

    def save(folder: Path) -> None:
        def add_files(target: Path) -> None:
            shutil.copy(root / last / "final" / LOG_NAME, target / LOG_NAME)

        model.save_pretrained(folder, tokenizer=tokenizer, add_files=add_files)

    write_into(root, save)
    shutil.rmtree(root / last)
    if args.push_to_hub:
        from huggingface_hub import HfApi

        api = HfApi(token=args.hub_token)
        name = args.hub_model_id or root.absolute().name
        repo = api.create_repo(name, private=args.hub_private_repo, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id, folder_path=str(root), ignore_patterns=["settings.json", "tensorboard/*"]
        )


def _task_of(model: ElasticModel, args: ElasticTrainingArguments) -> dict[str, Any] | None:
    """The task of a network with labels in its config, as ``limbert.json`` says it."""
    network = model.network
    task_type = args.task_type or task_type_of(network)
    if not type(network).__name__.endswith(TASK_TYPE_SPECS[task_type].class_suffix):
        return None
    return task_of(network, task_type).to_dict()


def _changed_arguments(args: ElasticTrainingArguments) -> dict[str, Any]:
    """Arguments that differ from their defaults and decide the result."""
    ignored = {"output_dir", "report_to", "disable_tqdm", "run_name", "save_seconds", "logging_steps", "local_rank"}
    ignored |= {name for name in vars(args) if name.startswith(("hub_", "push_to_", "dataloader_", "log_"))}
    default = ElasticTrainingArguments("-").to_dict()
    return {name: value for name, value in args.to_dict().items() if name not in ignored and value != default.get(name)}


# -- runs of a task's files


@dataclass(frozen=True)
class RunData:
    """What the phases of one run train on, and how their result is measured and recorded.

    Attributes:
        tokenizer: saved with the model.
        load_base: loads the base model.
        load_phase: loads the result of a finished phase.
        train_dataset, distill_dataset, eval_dataset: as `train_phases` takes them.
        evaluate_subnets: on the validation split.
        evaluate_dev: results on data that neither trained nor chose anything.
        metric: that chooses checkpoints.
        num_dev_examples: that ``evaluate_dev`` runs.
        baseline: metrics of the best constant prediction on them; None where there is none.
        record: what ``limbert.json`` says beside phases and settings.
        completed_phases: of earlier runs that trained the base model.
        skipped_phase: of the recipe, that the base model makes unnecessary.
        fingerprints: of the tokens, by name.
        trainer_options: of `ElasticTrainer`.
    """

    tokenizer: PreTrainedTokenizerBase
    load_base: Callable[[], ElasticModel]
    load_phase: Callable[[Path], ElasticModel]
    train_dataset: Any
    distill_dataset: Any
    eval_dataset: Any
    evaluate_subnets: EvaluateSubnets
    evaluate_dev: Callable[[ElasticModel, Mapping[str, Subnet]], list[SubnetResult]]
    metric: str
    num_dev_examples: int
    baseline: dict[str, float] | None
    record: dict[str, Any]
    completed_phases: tuple[str, ...]
    skipped_phase: str | None
    fingerprints: dict[str, str]
    task_type: str


def run_phases(
    config: TrainConfig,
    recipe: Recipe,
    *,
    settings: dict[str, Any],
    load_data: Callable[[], RunData],
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = _no_progress,
    overwrite: bool = False,
) -> list[SubnetResult]:
    """Train what is left to train, write the output folder, and return the results on held-out data.

    Args:
        config: base model, output, seed, precision.
        recipe: with the batch sizes of all processes together.
        settings: see `run_settings`; an unfinished run with others is refused.
        load_data: reads and tokenises; called in one process of each machine first.
        callbacks: of the Trainer, in the main process.
        progress: told of preparations.
        overwrite: replace a model or an unfinished run with other settings.

    Raises:
        TrainingInterrupted: after a signal; the same call resumes.
        ConfigError, StorageError, CheckpointError, SubnetError, ProcessError, DivergedError: in one line each.
    """
    resolve_device(config.device)
    require(world_size() == 1 or config.device == "auto", "device", config.device, "auto with several processes")
    if is_run_finished(config.output, settings, overwrite=overwrite):
        logger.info("%s is finished already, with these settings (--overwrite trains it again)", config.output)
        return read_results(config.output)
    output = Path(config.output)
    folder = RunFolder(output.with_name(output.name + ".training"), settings, overwrite=overwrite)
    with local_main_process_first():
        data = load_data()
    check_same_settings(settings, data.fingerprints)
    names = [name for name in recipe.phases if name != data.skipped_phase]
    model = data.load_base()
    model.space = recipe.space
    phases = [(phase, settled) for phase, settled in recipe.configured_phases() if phase.name in names]
    check_phases(model, phases)
    with folder.locked():
        args = _run_arguments(config, folder.path, data)  # resets accelerate's state: not while another run trains
        folder.create()
        model = train_phases(
            model,
            phases,
            args=args,
            train_dataset=data.train_dataset,
            eval_dataset=data.eval_dataset,
            distill_dataset=data.distill_dataset,
            is_rewired="width" in data.completed_phases,
            evaluate_subnets=data.evaluate_subnets,
            metric=data.metric,
            processing_class=data.tokenizer,
            callbacks=callbacks if is_main_process() else (),
            load=data.load_phase,
            make_record=lambda done: data.record | {"phases": [*data.completed_phases, *done], "settings": settings},
            progress=progress,
        )
        results = _evaluate_dev(model, data, args)
        run_on_main(lambda: _save_output(model, output, folder.path / names[-1], data, results, args))
    if data.baseline is not None and is_main_process():
        _warn_if_not_above_baseline(results, data.baseline, metric=data.metric)
    return results


def _run_arguments(config: TrainConfig, folder: Path, data: RunData) -> ElasticTrainingArguments:
    return ElasticTrainingArguments(
        str(folder),
        task_type=data.task_type,  # type: ignore[arg-type]
        seed=config.seed,
        bf16=config.precision == "bf16",
        save_seconds=config.checkpoint_every,
        report_to=["tensorboard"] if config.tensorboard else [],
        disable_tqdm=True,
        use_cpu=config.device == "cpu" or not torch.accelerator.is_available(),
    )


def _evaluate_dev(model: ElasticModel, data: RunData, args: ElasticTrainingArguments) -> list[SubnetResult]:
    """The results of all sub-networks, each process measuring some of them."""
    model.network.to(args.device)  # type: ignore[arg-type]  # transformers' own `to` hides the types
    subnets = model.subnets()
    measured = data.evaluate_dev(model, subnets_of_rank(subnets, args))
    found = {result.subnet: result for part in all_gather_object(measured) for result in part}
    return [found[name] for name in subnets]


def _save_output(
    model: ElasticModel,
    output: Path,
    final: Path,
    data: RunData,
    results: Sequence[SubnetResult],
    args: ElasticTrainingArguments,
) -> None:
    """Write the finished folder in one renaming, then delete the work folder."""
    stamp = {
        "seed": args.seed,
        "device": args.device.type,
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "versions": library_versions(),
        "examples": data.num_dev_examples,
    }
    if data.baseline is not None:
        stamp["baseline"] = data.baseline
    model.record |= result_record(results, device=args.device.type)

    def add_files(folder: Path) -> None:
        rows = [json.dumps(result.to_dict() | stamp) + "\n" for result in results]
        (folder / RESULTS_NAME).write_text("".join(rows), encoding="utf-8")
        shutil.copy(final / "final" / LOG_NAME, folder / LOG_NAME)
        if (final.parent / "tensorboard").is_dir():
            shutil.copytree(final.parent / "tensorboard", folder / "tensorboard")

    model.save_pretrained(output, tokenizer=data.tokenizer, add_files=add_files)
    shutil.rmtree(final.parent, ignore_errors=True)


def train_task(
    config: TrainConfig,
    recipe: Recipe,
    data_config: DataConfig,
    *,
    data: TaskData | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = _no_progress,
    overwrite: bool = False,
) -> list[SubnetResult]:
    """Train on a task's files, as ``limbert train`` does.

    Args:
        config: base model, output, seed, precision.
        recipe: with the batch sizes of one process.
        data_config: where the data is.
        data: the examples that it names, if they are read already.
        callbacks: of the Trainer.
        progress: told of preparations.
        overwrite: replace a run with other settings.

    Returns:
        The results of all sub-networks on the development data.

    Raises:
        LimbertError: see `run_phases`.
    """
    check_supervision(recipe.phases, "labels")
    recipe = recipe.with_world_size(init_distributed())
    loaded = data or load_task_data(data_config, seed=config.seed)
    return run_phases(
        config,
        recipe,
        settings=run_settings(config, recipe.to_dict(), data_config, fingerprint=task_fingerprint(loaded)),
        load_data=lambda: load_run_data(config, recipe, data_config, loaded),
        callbacks=callbacks,
        progress=progress,
        overwrite=overwrite,
    )


def _train_files(
    model: str,
    *,
    data: str | Path | DataConfig,
    output: str | Path,
    recipe: str | Recipe = "limbert",
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = _no_progress,
    overwrite: bool = False,
    **settings: Any,
) -> list[SubnetResult]:
    """`train_task` with a recipe by name and the fields of `TrainConfig` as keywords."""
    settings |= {"model": model, "output": str(output)} | ({"recipe": recipe} if isinstance(recipe, str) else {})
    (config,) = configs_from_options(settings, TrainConfig)
    if isinstance(recipe, str):
        recipe = with_trained_space(override_recipe(load_recipe(recipe), phases=config.phases), model)
    data_config = data if isinstance(data, DataConfig) else DataConfig(data=str(data))
    return train_task(config, recipe, data_config, callbacks=callbacks, progress=progress, overwrite=overwrite)


def with_trained_space(recipe: Recipe, model: str) -> Recipe:
    """The recipe with the space that a base model was trained for, if any.

    Raises:
        CheckpointError: if the model's folder is missing.
    """
    check_checkpoint_path(model)
    space = trained_space(model)
    return recipe if space in (None, recipe.space) else replace(recipe, space=space)


def task_fingerprint(data: TaskData) -> str:
    """Of the task and its examples; files and columns do not count."""

    def columns(examples: Examples) -> list[object]:
        return [examples.texts, examples.pairs, examples.labels, examples.word_spans, examples.groups]

    augmented = data.augmented
    copies = None
    if augmented is not None:
        logits = None if augmented.logits is None else augmented.logits.tolist()
        copies = [columns(augmented.examples), augmented.source_ids, logits]
    dev = [[name, columns(part)] for name, part in data.dev.items()]
    return json_fingerprint([data.task.task_type, data.task.labels, columns(data.train), dev, copies])


def load_run_data(config: TrainConfig, recipe: Recipe, data_config: DataConfig, data: TaskData) -> RunData:
    """Split and tokenise a task's examples for a base model."""
    base = load_base_checkpoint(config, data.task)
    task, max_length = base.task, min(data_config.max_length, base.max_length)

    def tokenize(part: Examples) -> TokenizedExamples:
        return tokenize_for_task(part, task, base.tokenizer, max_length=max_length, stride=data_config.stride)

    examples = base.map_labels(data.train, data.task)
    train_part, validation_part = train_validation_split(examples, task, config)
    train_dataset, eval_dataset, distill_dataset = tokenize(train_part), tokenize(validation_part), None
    if data.augmented is not None:
        augmented = base.map_augmented_labels(data.augmented, data.task)
        distill_dataset = with_augmented(
            train_dataset,
            augmented,
            tokenize(augmented.examples),
            train_examples=train_part,
            validation_examples=validation_part,
        )
    dev = {name: tokenize(base.map_labels(part, data.task)) for name, part in data.dev.items()}
    skipped = "finetune" if base.is_finetuned and config.phases is None and "finetune" in recipe.phases else None
    if skipped:
        logger.info("%s is fine-tuned for these labels; phase finetune is skipped", config.model)
    phases = [name for name in recipe.phases if name != skipped]
    warn_about_phases(phases, completed=base.completed_phases, is_finetuned=base.is_finetuned)
    parts = {"training tokens": train_dataset, "validation tokens": eval_dataset, "augmented tokens": distill_dataset}
    parts |= {f"development tokens of {name}": part for name, part in dev.items()}
    return RunData(
        tokenizer=base.tokenizer,
        load_base=lambda: base.load_model(recipe.space),
        load_phase=lambda folder: ElasticModel.from_pretrained(folder, space=recipe.space),
        train_dataset=train_dataset,
        distill_dataset=distill_dataset,
        eval_dataset=eval_dataset,
        evaluate_subnets=lambda model, subnets: validation_metrics(
            model, subnets, eval_dataset, task=task, precision=config.precision
        ),
        evaluate_dev=lambda model, subnets: evaluate_subnets(
            model, dev, task=task, subnets=subnets, precision=config.precision
        ),
        metric=task.primary_metric,
        num_dev_examples=sum(map(len, data.dev.values())),
        baseline=_baseline(task, examples, dev),
        record={"task": task.to_dict()},
        completed_phases=base.completed_phases,
        skipped_phase=skipped,
        fingerprints={name: _tokens_fingerprint(part) for name, part in parts.items() if part is not None}
        if world_size() > 1
        else {},
        task_type=task.task_type,
    )


def _baseline(task: Task, train: Examples, dev: Mapping[str, TokenizedExamples]) -> dict[str, float] | None:
    """Metrics of the best constant prediction, with several development sets by ``SET/METRIC``."""
    if task.task_type == "question-answering":
        return None
    measured = {name: baseline_metrics(task, train, part) for name, part in dev.items()}
    return {
        metric if len(dev) == 1 else f"{name}/{metric}": value
        for name, metrics in measured.items()
        for metric, value in metrics.items()
    }


def _warn_if_not_above_baseline(results: Sequence[SubnetResult], baseline: Mapping[str, float], *, metric: str) -> None:
    best, constant = max(result.mean_metric(metric) for result in results), mean_metric(baseline, metric)
    if best <= constant:
        logger.warning(
            "no sub-network is better than always predicting the same: %s %.3f, baseline %.3f; "
            "train for more steps (--epochs, --max-steps) or with a higher --learning-rate",
            metric,
            best,
            constant,
        )


def validation_metrics(
    model: ElasticModel, subnets: Mapping[str, Subnet], dataset: TokenizedExamples, *, task: Task, precision: Any
) -> SubnetMetrics:
    """The primary metric and the loss of sub-networks on labelled examples, by name."""
    outputs = predict_subnet_logits(model, dataset, subnets=subnets, batch_size=64, precision=precision)
    primary = task.primary_metric
    return {
        name: {
            primary: compute_task_metrics(task, logits, dataset)[primary],
            "loss": _validation_loss(torch.from_numpy(logits), dataset, task),
        }
        for name, logits in outputs.items()
    }


def _validation_loss(logits: Tensor, dataset: TokenizedExamples, task: Task) -> float:
    """The mean label loss; logits ``(examples, outputs)``, or ``(all tokens, outputs)`` of tasks at tokens."""
    labels, mask = dataset.labels, None
    assert labels is not None
    if task.task_type == "token-classification":
        logits, labels = logits[None], labels[None]
    elif task.task_type == "question-answering":
        logits = pad_sequence(list(logits.split(dataset.lengths.tolist())), batch_first=True)
        mask = (torch.arange(logits.shape[1]) < torch.from_numpy(dataset.lengths)[:, None]).long()
    return float(label_loss(logits, labels, task_type=task.task_type, mask=mask))


def _tokens_fingerprint(dataset: TokenizedExamples) -> str:
    arrays = dataset.tokens.to_arrays().items()
    labels = None if dataset.labels is None else dataset.labels.tolist()
    return json_fingerprint([[(name, array.tolist()) for name, array in arrays], labels])


def with_augmented(
    train_dataset: TokenizedExamples,
    augmented: AugmentedExamples,
    augmented_dataset: TokenizedExamples,
    *,
    train_examples: Examples,
    validation_examples: Examples,
) -> TokenizedExamples:
    """The training examples, then their augmented ones; those made of validation examples are left out.

    A teacher's logits that come with them take the place of their labels: the label loss of a phase, if it has a weight,
    is then taken to the softmax (with several labels the sigmoid, in a regression the value).

    Args:
        train_dataset: the training examples.
        augmented: all augmented examples, with the class ids of the model.
        augmented_dataset: the same, tokenised.
        train_examples, validation_examples: the two parts of the training data.

    Raises:
        DataError: if no augmented example is left.
    """
    indices = augmented.trainable_indices(train=train_examples, validation=validation_examples)
    left_out = len(augmented) - len(indices)
    note = f"; {left_out} left out: made of validation examples or unknown ones" if left_out else ""
    logger.info("%d augmented examples in the phases with a teacher%s", len(indices), note)
    chosen = augmented_dataset.select(indices)
    if augmented.logits is None:
        return train_dataset.concatenate(chosen)
    assert train_dataset.labels is not None
    logits = torch.from_numpy(augmented.logits[indices])  # (examples, outputs)
    if train_dataset.labels.ndim > 1:  # several labels
        return train_dataset.concatenate(chosen.with_labels(logits.sigmoid()))
    if train_dataset.labels.is_floating_point():
        return train_dataset.concatenate(chosen.with_labels(logits[:, 0]))
    certain = train_dataset.with_labels(soft_labels(train_dataset.labels, logits.shape[-1]))
    return certain.concatenate(chosen.with_labels(logits.softmax(dim=-1)))
