"""Does an adaptive server keep its promise under load? Real HTTP on loopback, with requests that arrive at random.

A server, a load generator (`open_loop.py`) and this program are three processes on the cores of this machine.
Measured, on the texts of a development set with their labels:

* the engine alone, without any server, as what could be had at best;
* what HTTP, tokenising and scheduling add to it at low load: round trip less the time of the engine, per request;
* throughput with many clients at once, against the engine alone with batches of the same tokens;
* at rising rates, the fixed full model and the adaptive policy: latencies, refusals, what answered and how well. A rate
  is held where p99 is within the SLO and at most 1 % are refused;
* after the highest rate, a low one: whether the quality comes back.

Arrivals are a Poisson process. Latency counts from the time a request was due to leave. Each step is 2 s of warm-up
that are not counted, and the seconds that are.

Example: python benchmarks/serve.py runs/sst2 --data glue/SST-2
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limbert import LimbertError
from limbert.core.config import DataConfig
from limbert.data.load import load_evaluation_data
from limbert.data.tokenize import evaluation_batches, tokenize_texts
from limbert.evaluation.hardware import describe_this_machine
from limbert.inference.engine import Engine
from limbert.inference.load import load_checkpoint
from limbert.inference.policy import Policy
from limbert.model.checkpoint import library_versions
from limbert.serve.service import default_threads
from limbert.serve.settings import ServeSettings

WARM_UP = 2.0  # seconds of each step that are not counted
REFUSED = 0.01  # share of refusals with which a rate is still held
GENERATOR = Path(__file__).with_name("open_loop.py")


@dataclass(frozen=True)
class Material:
    """Texts, the labels that they should get, and what the engine alone makes of them."""

    texts: list[str]
    labels: list[str]
    alone_seconds: list[float]  # a text by itself
    throughput: float  # texts a second in batches
    all_cores: float  # the same with all cores


def main() -> None:
    arguments = _arguments()
    try:
        material = _material(arguments)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    report: dict[str, Any] = {
        "benchmark": "serve",
        "run": Path(arguments.run).name,
        "device": describe_this_machine(arguments.threads),
        "versions": library_versions(),
        "slo_ms": arguments.slo,
        "engine_alone": {
            "p50_ms": 1000 * statistics.median(material.alone_seconds),
            "texts_per_second": material.throughput,
            "texts_per_second_all_cores": material.all_cores,
        },
    }
    _say(report, arguments)
    fixed = f"static:{arguments.full}"
    with _server(arguments, fixed) as url:
        _say(_overhead(url, material, arguments), arguments)
        _say(_saturation(url, material, arguments), arguments)
        left = _ladder(url, "fixed", [share * material.throughput for share in arguments.shares], material, arguments)
    leaves = next((row["rate"] for row in left if not row["held"]), None)
    base = leaves or left[-1]["rate"]
    with _server(arguments, "adaptive") as url:
        rates = [multiple * base for multiple in arguments.multiples]
        held = _ladder(url, "adaptive", rates, material, arguments, stop_after=2)
        calm = _step(url, "adaptive, after the load", 0.3 * base, material, arguments)
        _say(calm, arguments)
    best = max((row["rate"] for row in held if row["held"]), default=0.0)
    _say({"fixed_leaves_at": leaves, "adaptive_holds": best, "ratio": best / leaves if leaves else None}, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="elastic model that classifies")
    parser.add_argument("--data", required=True, help="folder with the development set of its task")
    parser.add_argument("--slo", type=float, default=50.0, help="milliseconds")
    parser.add_argument("--full", default="1x1", help="the fixed sub-network that adaptive is compared with")
    parser.add_argument("--threads", type=int, default=default_threads(1), help="of the model, in server and alone")
    parser.add_argument("--seconds", type=float, default=10.0, help="counted of each step")
    shares = "rates of the fixed sub-network, as fractions of the engine's throughput; stops where p99 leaves the SLO"
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0], help=shares
    )
    multiples = "rates of adaptive, as multiples of the last one that the fixed sub-network sustains"
    parser.add_argument(
        "--multiples", type=float, nargs="+", default=[0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6], help=multiples
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter steps, about two minutes")
    parser.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.shares, arguments.multiples = 4.0, [0.4, 0.6, 0.8, 1.0], [1, 2, 3, 4]
    return arguments


def _material(arguments: argparse.Namespace) -> Material:
    """The development set, and the engine alone on it, before any server runs."""
    opened = load_checkpoint(arguments.run)
    if opened.task is None or opened.task.task_type != "classification":
        raise LimbertError(f"{arguments.run} does not classify")
    data = load_evaluation_data(DataConfig(task=opened.task.name, data=arguments.data), opened.task)
    examples = next(iter(data.values()))
    if examples.pairs is not None:
        raise LimbertError("this benchmark sends single texts; the task has pairs")
    torch.set_num_threads(arguments.threads)
    tokens = tokenize_texts(examples, opened.tokenizer, max_length=opened.max_length, use_cache=False)
    engine = Engine(opened.model, Policy(subnet=arguments.full), task_type="classification")
    singly = []
    for index in range(len(examples)):
        inputs = {name: tensor for name, tensor in tokens.collate([index]).items() if name != "labels"}
        start = time.perf_counter()
        engine.run(inputs).logits.tolist()
        singly.append(time.perf_counter() - start)
    most = ServeSettings().max_batch_tokens
    throughput = _throughput(engine, tokens, most)
    torch.set_num_threads(max(arguments.threads, len(os.sched_getaffinity(0))))
    all_cores = _throughput(engine, tokens, most)
    labels = [opened.task.labels[int(label)] for label in examples.labels or ()]
    return Material(list(examples.texts), labels, singly, throughput, all_cores)


def _throughput(engine: Engine, tokens: Any, most: int) -> float:
    """Texts a second in batches of so many tokens, the best of three rounds."""
    batches = evaluation_batches(tokens.lengths, batch_size=len(tokens), max_tokens=most)
    inputs = [{k: v for k, v in tokens.collate(batch).items() if k != "labels"} for batch in batches]
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for batch in inputs:
            engine.run(batch).logits.tolist()
        rounds.append(time.perf_counter() - start)
    return len(tokens) / min(rounds)


@contextmanager
def _server(arguments: argparse.Namespace, policy: str) -> Iterator[str]:
    """A server in a process of its own; yields its address."""
    command = [
        sys.executable, "-m", "limbert", "serve", arguments.run, "--port", "0", "--policy", policy, "--json",
        "--slo", f"{arguments.slo:g}ms", "--threads", str(arguments.threads),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                sys.exit("benchmark: error: the server did not start")
            yield json.loads(line)["url"]
        finally:
            server.terminate()


def _generate(url: str, material: Material, arguments: argparse.Namespace, **how: Any) -> dict[str, Any]:
    task = {"url": url, "texts": material.texts, "seed": arguments.seed, **how}
    done = subprocess.run(
        [sys.executable, str(GENERATOR)], input=json.dumps(task), capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    names = ("text", "due", "seconds", "status", "size", "label", "inference")
    found["rows"] = [dict(zip(names, row, strict=True)) for row in found["rows"]]
    found["rows"] = [row for row in found["rows"] if row["due"] >= WARM_UP]
    return found


def _overhead(url: str, material: Material, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the way through the server adds to the engine's time, at a tenth of what it could do."""
    rate = 0.1 * material.throughput
    rows = _generate(url, material, arguments, rate=rate, seconds=WARM_UP + arguments.seconds)["rows"]
    answered = [row for row in rows if row["status"] == 200]
    return {
        "step": "overhead",
        "rate": rate,
        "p50_ms": 1000 * statistics.median(row["seconds"] for row in answered),
        "overhead_p50_ms": 1000
        * statistics.median(row["seconds"] - material.alone_seconds[row["text"]] for row in answered),
        "overhead_to_own_engine_p50_ms": 1000
        * statistics.median(row["seconds"] - row["inference"] for row in answered),
    }


def _saturation(url: str, material: Material, arguments: argparse.Namespace) -> dict[str, Any]:
    """Throughput with 128 clients in a closed loop."""
    found = _generate(url, material, arguments, concurrency=128, seconds=WARM_UP + arguments.seconds)
    answered = sum(row["status"] == 200 for row in found["rows"]) / arguments.seconds
    return {
        "step": "saturation",
        "texts_per_second": answered,
        "share_of_engine": answered / material.throughput,
        "share_of_engine_all_cores": answered / material.all_cores,
        "generator_cpu": found["cpu"],
    }


def _ladder(
    url: str, name: str, rates: list[float], material: Material, arguments: argparse.Namespace, stop_after: int = 1
) -> list[dict[str, Any]]:
    """Steps at rising rates, until several in a row miss the SLO."""
    rows: list[dict[str, Any]] = []
    for rate in rates:
        rows.append(_step(url, name, rate, material, arguments))
        _say(rows[-1], arguments)
        if len(rows) >= stop_after and not any(row["held"] for row in rows[-stop_after:]):
            break
    return rows


def _step(url: str, name: str, rate: float, material: Material, arguments: argparse.Namespace) -> dict[str, Any]:
    found = _generate(url, material, arguments, rate=rate, seconds=WARM_UP + arguments.seconds)
    rows = found["rows"]
    answered = [row for row in rows if row["status"] == 200]
    refused = sum(row["status"] == 429 for row in rows) / len(rows)
    times = sorted(row["seconds"] for row in answered) or [float("inf")]
    p99 = times[int(0.99 * len(times))]
    right = [row["label"] == material.labels[row["text"]] for row in answered]
    sizes = Counter(row["size"] for row in answered)
    return {
        "step": name,
        "rate": rate,
        "requests": len(rows),
        "p50_ms": 1000 * times[len(times) // 2],
        "p99_ms": 1000 * p99,
        "refused": refused,
        "failed": sum(row["status"] not in (200, 429) for row in rows) / len(rows),
        "accuracy": sum(right) / len(right) if right else None,
        "sizes": {size: count / len(answered) for size, count in sizes.most_common()},
        "generator_cpu": found["cpu"],
        "held": 1000 * p99 <= arguments.slo and refused <= REFUSED and len(answered) > 0.9 * len(rows),
    }


def _say(row: dict[str, Any], arguments: argparse.Namespace) -> None:
    """One result, at once."""
    if arguments.json:
        print(json.dumps(row), flush=True)
        return
    if "sizes" not in row:
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        print("  ".join(f"{key} {value}" for key, value in shown.items() if key != "versions"), flush=True)
        return
    sizes = ", ".join(f"{size} {100 * share:.0f} %" for size, share in row["sizes"].items())
    print(
        f"{row['step']:25} {row['rate']:7.0f}/s  p50 {row['p50_ms']:7.1f} ms  p99 {row['p99_ms']:8.1f} ms  "
        f"refused {100 * row['refused']:5.2f} %  accuracy {100 * (row['accuracy'] or 0):5.1f}  "
        f"{'held' if row['held'] else 'NOT HELD':8}  generator {100 * row['generator_cpu']:3.0f} % of a core  {sizes}",
        flush=True,
    )


if __name__ == "__main__":
    main()
