"""The base model of a training run: a pretrained encoder, a model fine-tuned on the task, or an elastic model."""

import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from limbert.core.config import TrainConfig
from limbert.core.space import Space
from limbert.core.task_types import TASK_TYPE_SPECS
from limbert.data.augmented import AugmentedExamples
from limbert.data.readers import Examples
from limbert.data.split import reorder_labels
from limbert.data.tasks import Task
from limbert.model.checkpoint import load_config_and_tokenizer, read_record
from limbert.model.elastic import ElasticModel
from limbert.model.families import max_input_length


@dataclass(frozen=True)
class TaskBaseCheckpoint:
    """A base model for a task; its weights are not loaded yet."""

    path: str  # folder or Hub id
    task: Task  # with the labels in the model's order
    tokenizer: PreTrainedTokenizerBase
    max_length: int  # longest input in tokens that the model has positions for
    is_finetuned: bool  # whether the model has a head trained for these labels
    completed_phases: tuple[str, ...]  # phases of earlier runs that it has been trained in
    seed: int  # for the weights of a new head

    def load_model(self, space: Space) -> ElasticModel:
        """Load the weights, with a head for the task."""
        spec = TASK_TYPE_SPECS[self.task.task_type]
        names = self.task.labels or (("score",) if self.task.num_outputs == 1 else ("start", "end"))
        problem = {} if spec.problem_type is None else {"problem_type": spec.problem_type}
        torch.manual_seed(self.seed)
        return ElasticModel.from_pretrained(
            self.path,
            space=space,
            head=spec.head,
            num_labels=self.task.num_outputs,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            new_head=not self.is_finetuned,
            **problem,
        )

    def map_labels(self, examples: Examples, task: Task) -> Examples:
        """Examples of ``task`` with the model's label ids."""
        return reorder_labels(examples, task, self.task)

    def map_augmented_labels(self, augmented: AugmentedExamples, task: Task) -> AugmentedExamples:
        """Augmented examples of ``task`` with the model's label ids."""
        return augmented.with_label_order(self.map_labels(augmented.examples, task), task, self.task)


def load_base_checkpoint(config: TrainConfig, task: Task) -> TaskBaseCheckpoint:
    """Read the config and tokenizer of a run's base model.

    It counts as fine-tuned on the task if its config names a head for this task type with the same label names; their
    order is then the model's. Names such as LABEL_0 say nothing: such a head is used only if the run's phases are given
    and do not begin with the training of a new one.
    """
    model_config, tokenizer = load_config_and_tokenizer(config.model)
    phases_say_so = config.phases is not None and "finetune" not in config.phases
    labels = _label_order(model_config, task, trust_numbered=phases_say_so)
    return TaskBaseCheckpoint(
        path=config.model,
        task=task if labels is None else replace(task, labels=labels),
        tokenizer=tokenizer,
        max_length=max_input_length(model_config),
        is_finetuned=labels is not None,
        completed_phases=tuple(read_record(config.model).get("phases", ())),
        seed=config.seed,
    )


def trained_space(path_or_hub_id: str) -> Space | None:
    """The space that a model was trained for; None if no phase trained widths or depths."""
    record = read_record(path_or_hub_id)
    trained = {*record.get("phases", ())} - {"finetune", "mlm"}  # those train the full model only
    return Space.from_dict(record["space"]) if trained and "space" in record else None


def _label_order(config: Any, task: Task, *, trust_numbered: bool) -> tuple[str, ...] | None:
    """The task's labels in the order of the model's outputs; None if its head is for something else."""
    architectures = getattr(config, "architectures", None) or [""]
    spec = TASK_TYPE_SPECS[task.task_type]
    if not architectures[0].endswith(spec.class_suffix) or config.num_labels != task.num_outputs:
        return None
    multi_label = "multi_label_classification"  # the same head and names as single-label classification
    if (getattr(config, "problem_type", None) == multi_label) != (spec.problem_type == multi_label):
        return None
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if task.task_type != "question-answering" and all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return task.labels if trust_numbered else None
    if not task.labels:
        return task.labels
    if {*names} == {*task.labels}:
        return tuple(names)
    by_name = {label.lower(): label for label in task.labels}  # models spell GLUE's labels in either case
    folded = [name.lower() for name in names]
    if len({*folded}) < len(folded) or {*folded} != by_name.keys():
        return None
    return tuple(by_name[name] for name in folded)
