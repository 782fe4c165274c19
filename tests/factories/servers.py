"""A trained model with random weights, a server over it, and the engine's own outputs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import sleep

import torch
import uvicorn
from tests.factories.runs import ENCODER, SMALL
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from limbert.core.config import TaskType
from limbert.core.space import Space
from limbert.data.tasks import Task, custom_task
from limbert.inference.engine import Engine
from limbert.inference.load import load_checkpoint
from limbert.inference.policy import OperatingPoint, Policy, save_operating_points
from limbert.method.early_exit import ExitRule
from limbert.model.elastic import ElasticModel
from limbert.serve.app import create_app
from limbert.serve.service import Service
from limbert.serve.settings import ServeSettings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LABELS = ("bad", "gut", "größer")  # one of them is not ASCII
RESULT = {"params": 1, "flops": 1, "metrics": {"accuracy": 0.8, "pearson": 0.8}}  # of every sub-network
QUALITY = {"1x1": 0.9, "0.5x1": 0.8, "1x0.5": 0.85, "0.5x0.5": 0.7}
PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}


def random_bert(num_layers: int, task: Task) -> torch.nn.Module:
    """A BERT with weights large enough that outputs differ."""
    torch.manual_seed(0)
    names = dict(enumerate(task.labels)) or {0: "score"}
    config = AutoConfig.for_model(
        "bert",
        **SMALL,
        num_hidden_layers=num_layers,
        problem_type=PROBLEM_TYPES[task.task_type],
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    network = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
    return network


def make_run(folder: Path, *, task_type: TaskType = "classification") -> Path:
    """A random BERT of two layers, saved as training does."""
    task = custom_task(task_type, () if task_type == "regression" else LABELS)
    network = random_bert(2, task)
    record = {"task": task.to_dict(), "settings": {"data": {"max_length": 32}}}
    model = ElasticModel(network, space=Space((0.5, 1.0), (0.5, 1.0), "first"), record=record)
    lines = [{"subnet": name} | RESULT for name in model.subnets()]
    model.save_pretrained(folder, tokenizer=AutoTokenizer.from_pretrained(ENCODER))
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def make_measured_run(folder: Path) -> Path:
    """`make_run` with a quality for every sub-network, and the operating point ``early``, which has exits."""
    make_run(folder)
    lines = [{"subnet": name, "params": 1, "flops": 1, "metrics": {"accuracy": QUALITY[name]}} for name in QUALITY]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    early = Policy(widths=(0.5,), exits=ExitRule("confidence", 0.3512))  # about half of the texts of tests exit
    save_operating_points(folder, {"early": OperatingPoint(early, "accuracy", 0.99, 0.4)})
    return folder


def settings(**changes: object) -> ServeSettings:
    """Settings with a latency target that loaded machines meet."""
    return ServeSettings(**({"threads": 1, "slo": 60.0, "policy": "static:1x1"} | changes))  # type: ignore[arg-type]


@contextmanager
def opened(run: Path, **changes: object) -> Iterator[Service]:
    """A started service."""
    service = Service(run, settings(**changes))
    service.start()
    try:
        yield service
    finally:
        service.close()


@contextmanager
def served(service: Service) -> Iterator[str]:
    """The address of a server in a thread."""
    server = uvicorn.Server(uvicorn.Config(create_app(service), host="127.0.0.1", port=0, log_level="critical"))
    thread = Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Reference:
    """The engine's outputs for one text alone."""

    def __init__(self, run: Path) -> None:
        self._run = load_checkpoint(run)
        self._engines: dict[str, Engine] = {}

    def logits(self, text: str, pair: str | None = None, *, subnet: str = "1x1") -> torch.Tensor:
        """Logits ``(outputs,)`` of a sub-network."""
        assert self._run.task is not None
        if subnet not in self._engines:
            self._engines[subnet] = Engine(self._run.model, Policy(subnet=subnet), task_type=self._run.task.task_type)
        truncation = {"truncation": True, "max_length": self._run.max_length, "return_tensors": "pt"}
        tokens = self._run.tokenizer([text], None if pair is None else [pair], **truncation)
        return self._engines[subnet].run(tokens).logits[0]

    def scores(self, text: str, pair: str | None = None, *, subnet: str = "1x1") -> dict[str, float]:
        """Probabilities by label."""
        return dict(zip(LABELS, self.logits(text, pair, subnet=subnet).softmax(-1).tolist(), strict=True))
