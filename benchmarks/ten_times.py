"""Texts a second of ``limbert serve``, compared with the stock model in eager PyTorch on the same cores.

The stock fine-tuned model runs in eager PyTorch and in ONNX Runtime, both in fp32 with all cores, on batches of 32 of
similar length, tokenisation included. Against it run real servers, each with one sub-network or operating point:
clients in this process send requests of 16 texts, and of one, in the order of the file, over HTTP on loopback, and ask
for the best label. All predict the same development set; contenders take turns, and the medians of the repetitions are
printed, with the processor time of model or server beside the texts a second (the clients' is not in it), because other
programs on the machine change it less. Labels of the stock model must be in the order of the run's.

Example: python benchmarks/ten_times.py runs/sst2 --stock runs/sst2-finetuned --serve 0.5x0.75:openvino:int8
         python benchmarks/ten_times.py runs/banking --stock runs/banking-finetuned --serve accurate:openvino:int8
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from limbert.data.load import load_evaluation_data
from limbert.errors import LimbertError
from limbert.evaluation.hardware import describe_this_machine
from limbert.inference.load import load_checkpoint, override_data_config
from limbert.inference.onnx_graph import write_onnx
from limbert.inference.runtimes import Runtime, load_runtime
from limbert.model.checkpoint import library_versions
from limbert.serve.service import default_threads

BATCH_SIZE = 32  # of the stock model
PER_REQUEST = (16, 1)
FLAGS = ("avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass
class Contender:
    """One way to predict labels, and what it took."""

    name: str
    predict: Callable[[Sequence[str]], list[int]]
    processes: Sequence[psutil.Process]  # whose processor time counts
    wall: list[float] = field(default_factory=list)  # seconds per text, by repetition
    cpu: list[float] = field(default_factory=list)
    accuracy: float = 0.0

    def run(self, texts: Sequence[str], labels: Sequence[int]) -> None:
        """Predict all texts once."""
        before, start = self._cpu_seconds(), time.perf_counter()
        predicted = self.predict(texts)
        self.wall.append((time.perf_counter() - start) / len(texts))
        self.cpu.append((self._cpu_seconds() - before) / len(texts))
        self.accuracy = sum(map(int.__eq__, predicted, labels)) / len(labels)

    def _cpu_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)


def main() -> None:
    arguments = _arguments()
    try:
        run = load_checkpoint(arguments.run)
        config = override_data_config(run.data_config, data=arguments.data)
        examples = next(iter(load_evaluation_data(config, run.trained_task).values()))
        examples = examples.select(range(min(arguments.texts or len(examples), len(examples))))
        texts, labels = list(examples.texts), [int(label) for label in examples.labels]
        with contextlib.ExitStack() as stack:
            contenders = _stock(arguments.stock, run.max_length)
            for setting in arguments.serve:
                address, processes = stack.enter_context(_server(arguments, setting))
                for count in PER_REQUEST:
                    ask = _asking(address, run.trained_task.labels, count, arguments.connections)
                    contenders.append(Contender(f"limbert serve {setting}, {count} a request", ask, processes))
            for contender in contenders:
                contender.predict(texts[:256])  # warm up
            for _ in range(arguments.repetitions):
                for contender in contenders:
                    contender.run(texts, labels)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    _print(contenders, len(texts), arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="elastic model that classifies single texts")
    parser.add_argument("--stock", required=True, help="folder of the stock fine-tuned model")
    parser.add_argument("--data", help="folder with the development set (default: the run's)")
    parser.add_argument("--serve", nargs="+", required=True, help="VARIANT:RUNTIME:PRECISION, one server each")
    parser.add_argument("--threads", type=int, default=default_threads(1), help="of each server's model")
    parser.add_argument("--workers", type=int, default=1, help="processes of each server")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--texts", type=int, help="first N of the development set (default: all)")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _stock(folder: str, max_length: int) -> list[Contender]:
    """The stock model in eager PyTorch and in ONNX Runtime."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.onnx"
        write_onnx(network, path)
        runtimes = {"PyTorch": load_runtime("torch", network), "ONNX Runtime": load_runtime("onnxruntime", path)}

    def predict_with(runtime: Runtime, texts: Sequence[str]) -> list[int]:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        predicted = np.zeros(len(texts), dtype=int)
        for indices in _batched(order):
            batch = [texts[index] for index in indices]
            inputs = tokenizer(batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
            predicted[list(indices)] = runtime(inputs).argmax(-1).numpy()
        return predicted.tolist()

    this = psutil.Process()
    return [
        Contender(f"stock model, {name} fp32", lambda texts, runtime=runtime: predict_with(runtime, texts), [this])
        for name, runtime in runtimes.items()
    ]


def _batched(order: Sequence[int]) -> Iterator[Sequence[int]]:
    return (order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE))


@contextlib.contextmanager
def _server(arguments: argparse.Namespace, setting: str) -> Iterator[tuple[str, list[psutil.Process]]]:
    """Address and processes of a server with one sub-network or operating point."""
    variant, runtime, precision = setting.split(":")
    options = ["--policy", variant, "--runtime", runtime, "--precision", precision, "--variants", "1"]
    options += ["--threads", str(arguments.threads), "--workers", str(arguments.workers), "--max-queue", "4096"]
    options += ["--port", "0", "--json"]
    command = [sys.executable, "-m", "limbert", "serve", arguments.run, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                sys.exit(f"benchmark: error: the server for {setting} did not start")
            process = psutil.Process(server.pid)
            yield urlsplit(json.loads(line)["url"]).netloc, [process, *process.children(recursive=True)]
        finally:
            server.send_signal(signal.SIGTERM)


def _asking(address: str, names: Sequence[str], count: int, connections: int) -> Callable[[Sequence[str]], list[int]]:
    """A function that predicts texts by requests of ``count`` texts each, over several connections at once."""
    label_ids = {name: index for index, name in enumerate(names)}

    def ask(texts: Sequence[str]) -> list[int]:
        starts, best = range(0, len(texts), count), {"top_k": 1}
        bodies = [json.dumps({"inputs": texts[start : start + count], "parameters": best}) for start in starts]
        answers: list[list[int]] = [[] for _ in bodies]
        waiting = iter(range(len(bodies)))  # `next` is one operation of the interpreter

        def ask_on(_: int) -> None:
            connection = http.client.HTTPConnection(address, timeout=600)
            for index in waiting:
                connection.request("POST", "/", bodies[index], {"content-type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise SystemExit(f"benchmark: error: {answer.status} {content.decode()}")
                answers[index] = [label_ids[row[0]["label"]] for row in json.loads(content)]
            connection.close()

        with ThreadPoolExecutor(connections) as pool:
            list(pool.map(ask_on, range(connections)))
        return [label for answer in answers for label in answer]

    return ask


def _print(contenders: Sequence[Contender], num_texts: int, arguments: argparse.Namespace) -> None:
    eager = contenders[0]
    rows = [
        {
            "contender": contender.name,
            "texts_per_second": 1 / statistics.median(contender.wall),
            "times_eager": statistics.median(a / b for a, b in zip(eager.wall, contender.wall, strict=True)),
            "core_ms_per_text": 1000 * statistics.median(contender.cpu),
            "times_eager_cpu": statistics.median(eager.cpu) / statistics.median(contender.cpu),
            "accuracy": 100 * contender.accuracy,
        }
        for contender in contenders
    ]
    flags = _cpu_flags()
    if arguments.json:
        print(json.dumps({"flags": flags, "versions": library_versions(), "texts": num_texts, "rows": rows}))
        return
    print(f"{describe_this_machine()}, {' '.join(flags)}, load {os.getloadavg()[0]:.1f}; {num_texts} texts,")
    print(
        f"{arguments.repetitions} repetitions, {arguments.connections} connections, {arguments.workers} workers, "
        f"{arguments.threads} model threads\n"
    )
    print("| | texts/s | x eager | core-ms a text | x eager | accuracy |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['contender']} | {row['texts_per_second']:.0f} | {row['times_eager']:.1f} | "
            f"{row['core_ms_per_text']:.2f} | {row['times_eager_cpu']:.1f} | {row['accuracy']:.1f} |"
        )


def _cpu_flags() -> list[str]:
    """Instruction sets for bf16 and int8 that this CPU has."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return [flag for flag in FLAGS if flag in text]
    return []


if __name__ == "__main__":
    main()
