"""Small phases trained by one process or by two: `test_processes.py` calls this, and runs it as each of the two."""

import json
import sys
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from tests.factories.networks import make_network
from tests.factories.phases import TASK, make_examples
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from limbert import ElasticModel, Space, Subnet
from limbert.core.config import GatesConfig, PhaseConfig
from limbert.core.task_types import IGNORE_INDEX
from limbert.data.tasks import Task
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import TrainingInterrupted
from limbert.train.context import TaskPhaseSetup
from limbert.train.distributed import DistributedContext, init_distributed
from limbert.train.phases import PHASES
from limbert.train.progress import TrainingCallback
from limbert.train.run_folder import RunDirectory

ROWS, BATCH = 11, 5  # an epoch is 5, 5 and 1 rows: two processes have 3 and 2, and in the last step one has none
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


class Unscored(TaskPhaseSetup):
    """Work whose last weights are its best: examples without words cannot be scored by entities."""

    def validation_scores(self, subnets: Mapping[str, Subnet]) -> dict[str, float]:
        return dict.fromkeys(subnets, time.monotonic())


def with_labelled_tokens(examples: TokenizedExamples) -> TokenizedExamples:
    """A label at every second token, but for some examples: one process has none in a step, in another no one has."""
    labels = torch.from_numpy(examples.tokens.ids % 3).long()
    labels[::2] = IGNORE_INDEX
    for row in (3, 5, 8):
        labels[examples.tokens.offsets[row] : examples.tokens.offsets[row + 1]] = IGNORE_INDEX
    return replace(examples, labels=labels, has_token_labels=True)


def make_work(name: str, folder: Path, *, should_stop: Callable[[], bool] = lambda: False) -> TaskPhaseSetup:
    """One phase of `CASES` on random examples, uneven in number and length."""
    model, space, task, _ = CASES[name]
    accelerator = Accelerator()
    workspace = RunDirectory(
        folder / name, {}, can_write=DistributedContext.from_accelerator(accelerator).is_main_process
    )
    workspace.create()
    parts = [make_examples(rows, seed=seed) for rows, seed in ((ROWS, 1), (70, 2))]
    if task is VALUE:
        parts = [replace(part, labels=part.labels.float() + part.labels.flip(0) / 7) for part in parts]
    if task is TOKENS:
        parts = [with_labelled_tokens(part) for part in parts]
    auto_class = AutoModelForTokenClassification if task is TOKENS else AutoModelForSequenceClassification
    network = make_network(model, auto_class, num_labels=task.num_outputs)
    work_class = Unscored if task is TOKENS else TaskPhaseSetup
    return work_class(
        name,
        model=ElasticModel(network, space=Space(**space)),
        task=task,
        train_dataset=parts[0],
        eval_dataset=parts[1],
        precision="fp32",
        context=types.SimpleNamespace(
            accelerator=accelerator,
            seed=5,
            run_dir=workspace,
            callback=TrainingCallback(),
            should_stop=should_stop,
            checkpoint_every=1e9,
        ),
    )


def train(name: str, folder: Path, *, should_stop: Callable[[], bool] = lambda: False) -> dict[str, torch.Tensor]:
    """The weights after a phase, gates included."""
    work = make_work(name, folder, should_stop=should_stop)
    settings = CASES[name][3]
    phase_config = GatesConfig(**settings) if name == "gates" else PhaseConfig(**SETTINGS | settings)
    PHASES["depth" if name == "tokens" else name].train(work, phase_config)
    gates = work.model.gates.state_dict() if work.model.gates is not None else {}
    weights = work.model.network.state_dict() | {f"gates.{name}": tensor for name, tensor in gates.items()}
    return {name: tensor.clone() for name, tensor in weights.items()}


def asked_after(calls: int) -> Callable[[], bool]:
    """Somebody who wants to stop from so many questions on."""
    asked = 0

    def ask() -> bool:
        nonlocal asked
        asked += 1
        return asked >= calls

    return ask


def main(folder: Path) -> None:
    """Train every case together; note the exchanges of gradients, the weights and the seeds of this process."""
    processes = init_distributed()
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
        save_file(weights, folder / f"{name}-{processes.rank}.safetensors")
    save_file(train("depth", folder / "one-then-two"), folder / f"resumed-{processes.rank}.safetensors")
    stop = asked_after(3) if processes.rank == 1 else lambda: False  # in one process only
    for name in ("width", "gates"):
        try:
            train(name, folder / "two-then-one", should_stop=stop)
        except TrainingInterrupted as stopped:
            notes[name]["stopped"] = str(stopped)
    (folder / f"notes-{processes.rank}.json").write_text(json.dumps(notes))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
