"""Small phases trained by one process or by two: `test_distributed.py` calls this, and runs it as each of the two."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tests.factories.networks import make_network
from tests.factories.phases import TASK, make_arguments, make_examples
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, TrainerCallback

from limbert import ElasticModel, Space, Subnet
from limbert.core.config import GatesConfig, PhaseConfig
from limbert.core.task_types import IGNORE_INDEX
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import TrainingInterrupted
from limbert.train.distributed import init_distributed, rank
from limbert.train.output_run import train_phases
from limbert.train.phases import PHASES

ROWS, BATCH = 13, 6  # an epoch is 6, 6 and 1 rows: two processes have 3 each, and in the last step one has none
STEPS = 6
SETTINGS: dict[str, Any] = {  # AdamW's epsilon: else gradients that are 0 but for rounding become whole steps
    "batch_size": BATCH, "epochs": 2.0, "learning_rate": 1e-3, "adam_epsilon": 1e-5, "weight_decay": 0.01
}  # fmt: skip
TOKENS = Task("tokens", "token-classification", ("O", "B-A", "B-B"), ("entity_f1",))
VALUE = Task("value", "regression", (), ("pearson",))
CASES: dict[str, tuple[str, dict[str, Any], Task, dict[str, Any]]] = {  # model, space, task, settings of the phase
    "final": ("roberta", {"layers": "spread"}, TASK, {"label_weight": 1.0, "sampled": 4}),
    "width": ("bert", {"layers": "spread"}, TASK, {"logit_weight": 1.0, "hidden_weight": 0.1, "grafts": 2}),
    "depth": ("deberta-v2", {"layers": "spread"}, TASK,
              {"logit_weight": 0.7, "hidden_weight": 1.0, "teacher_width": "matched", "full_weight": 2.0}),
    "tokens": ("distilbert", {"layers": "first"}, TOKENS,
               {"label_weight": 1.0, "logit_weight": 0.5, "hidden_weight": 0.1}),
    "finetune": ("distilbert", {}, VALUE, {"label_weight": 1.0}),
    "gates": ("bert", {"layers": "first"}, TASK, {"batch_size": 4, "epochs": 3.0, "count": 2}),
}  # fmt: skip


def with_labelled_tokens(examples: TokenizedExamples) -> TokenizedExamples:
    """A label at every second token, but none in some examples: a process may have none in a step."""
    labels = torch.from_numpy(examples.tokens.ids % 3).long()
    labels[::2] = IGNORE_INDEX
    for row in (3, 5, 8):
        labels[examples.tokens.offsets[row] : examples.tokens.offsets[row + 1]] = IGNORE_INDEX
    return replace(examples, labels=labels, has_token_labels=True)


def make_case(name: str) -> tuple[ElasticModel, dict[str, TokenizedExamples], str]:
    """Model, datasets and task type of a case; the examples are uneven in number and length."""
    case, space, task, _ = CASES[name]
    parts = [make_examples(rows, seed=seed) for rows, seed in ((ROWS, 1), (70, 2))]
    if task is VALUE:
        parts = [replace(part, labels=part.labels.float() + part.labels.flip(0) / 7) for part in parts]
    if task is TOKENS:
        parts = [with_labelled_tokens(part) for part in parts]
    auto_class = AutoModelForTokenClassification if task is TOKENS else AutoModelForSequenceClassification
    network = make_network(case, auto_class, num_labels=task.num_outputs)
    model = ElasticModel(network, space=Space(**space))
    return model, {"train_dataset": parts[0], "eval_dataset": parts[1]}, task.task_type


def latest_is_best(model: ElasticModel, subnets: dict[str, Subnet]) -> dict[str, dict[str, float]]:
    """Scores that only rise, so that a phase ends with its last weights."""
    return {name: {"m": time.monotonic()} for name in subnets}


class StopInRank(TrainerCallback):
    """Asks one process for a graceful stop."""

    def __init__(self, step: int, of_rank: int) -> None:
        self.step, self.of_rank = step, of_rank

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step - 1 and rank() == self.of_rank:
            os.kill(os.getpid(), signal.SIGTERM)


def train(name: str, folder: Path, *, callbacks: Any = (), double: bool = False) -> dict[str, torch.Tensor]:
    """The weights after a phase, gates included."""
    model, data, task_type = make_case(name)
    if double:
        model.network.double()
    settings = CASES[name][3]
    config = GatesConfig(**settings) if name == "gates" else PhaseConfig(**SETTINGS | settings)
    phase = PHASES["depth" if name == "tokens" else name]
    arguments = make_arguments(folder / name, task_type=task_type, save_seconds=1e9)
    model = train_phases(model, [(phase, config)], args=arguments, evaluate_subnets=latest_is_best, metric="m",
                         callbacks=[*callbacks], **data)  # fmt: skip
    gates = model.gates.state_dict() if model.gates is not None else {}
    weights = model.network.state_dict() | {f"gates.{key}": tensor for key, tensor in gates.items()}
    return {key: tensor.clone() for key, tensor in weights.items()}


def main(folder: Path) -> None:
    """Train every case together; note the exchanges of gradients, the weights and the seeds of this process."""
    init_distributed()
    exchanged: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *arguments: object, **options: object) -> object:
        exchanged.append(tensor.numel())
        return all_reduce(tensor, *arguments, **options)

    dist.all_reduce = counted
    notes: dict[str, Any] = {}
    for name in CASES:
        exchanged.clear()
        weights = train(name, folder / "two")
        notes[name] = {"exchanged": exchanged.copy(), "seed": torch.initial_seed()}
        save_file(weights, folder / f"{name}-{rank()}.safetensors")
    save_file(train("depth", folder / "one-then-two"), folder / f"resumed-{rank()}.safetensors")
    try:
        train("width", folder / "two-then-one", callbacks=[StopInRank(2, of_rank=1)])
    except TrainingInterrupted as stopped:
        notes["width"]["stopped"] = str(stopped)
    (folder / f"notes-{rank()}.json").write_text(json.dumps(notes))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
