"""Serving under load: real HTTP on loopback, requests of one text that arrive as a trace says (`arrivals.py`).

A server, a load generator (`open_loop.py`) and this program are three processes on the cores of this machine. Texts and
labels are a development set's. Steps, each counted after `--warm-up` seconds:

* alone: the engine without a server, one text at a time and in batches of the same tokens;
* overhead: round trip less inference at low load; saturation: throughput with 128 clients, of the largest and the
  smallest sub-network, with processor time per request and the server's memory;
* traces: the policy `adaptive` and its rivals: fixed sub-networks with the same admission control (a request that
  would be late is refused), and without;
* kills: two workers, one of which is killed every 12 seconds; after each the seconds until the attainment over a second
  is back at that of the five seconds before.

Per trace and rival: SLO attainment, the percentage of all requests answered by the deadline (refusals are misses), and
the accuracy of these. Capacity, of which traces are fractions, is 0.8 of the smallest sub-network's saturation.

Example: python benchmarks/serve.py runs/sst2 --data glue/SST-2 --plots docs
"""

import argparse
import json
import random
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from arrivals import TRACES, steady

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

GENERATOR = Path(__file__).with_name("open_loop.py")
FIELDS = ("text", "due", "seconds", "status", "variant", "label", "inference", "again")
KILL_INTERVAL = 12.0  # seconds
WINDOW = 0.5  # seconds of a point of the time line
Row = dict[str, Any]


class Benchmark:
    """The texts with their labels, the options, and how one step is measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        opened = load_checkpoint(options.run)
        if opened.task is None or opened.task.task_type != "classification":
            raise LimbertError(f"{options.run} does not classify")
        data = load_evaluation_data(DataConfig(task=opened.task.name, data=options.data), opened.task)
        examples = next(iter(data.values()))
        if examples.pairs is not None:
            raise LimbertError("this benchmark sends single texts; the task has pairs")
        self.options, self.slo = options, options.slo / 1000
        self.texts = list(examples.texts)
        self.labels = [opened.task.labels[int(label)] for label in examples.labels or ()]
        self._opened, self._examples = opened, examples

    def engine_alone(self, subnet: str) -> Row:
        """Median milliseconds of one text, and texts per second in batches, without a server."""
        torch.set_num_threads(self.options.threads)
        opened = self._opened
        tokens = tokenize_texts(self._examples, opened.tokenizer, max_length=opened.max_length, use_cache=False)
        engine = Engine(opened.model, Policy(subnet=subnet), task_type="classification")
        max_tokens = ServeSettings().max_batch_tokens
        batches = evaluation_batches(tokens.lengths, batch_size=len(tokens), max_tokens=max_tokens)

        def seconds(rows: Sequence[int]) -> float:
            inputs = {name: tensor for name, tensor in tokens.collate(rows).items() if name != "labels"}
            start = time.perf_counter()
            engine.run(inputs).logits.tolist()
            return time.perf_counter() - start

        single = statistics.median(seconds([index]) for index in range(min(200, len(tokens))))
        together = min(sum(map(seconds, batches)) for _ in range(2))
        return {"step": f"engine alone, {subnet}", "p50_ms": 1000 * single, "per_second": len(tokens) / together}

    def send(self, url: str, *, parameters: Row | None = None, **load: Any) -> list[Row]:
        """Send requests at ``times``, or with ``concurrency`` for ``seconds``; those after the warm-up are returned."""
        bodies = [json.dumps({"inputs": text, "parameters": parameters or {}}) for text in self.texts]
        task = {"url": url, "bodies": bodies, "seed": self.options.seed, **load}
        done = subprocess.run(
            [sys.executable, str(GENERATOR)], input=json.dumps(task), capture_output=True, text=True, check=True
        )
        result = json.loads(done.stdout)
        rows = [dict(zip(FIELDS, row, strict=True)) for row in result["rows"]]
        for row in rows:
            row["at"] = result["begin"] + row["due"]  # on the monotonic clock of this machine
            row["met"] = row["status"] == 200 and row["seconds"] <= self.slo
            row["right"] = row["label"] == self.labels[row["text"]]
        closed_loop = "concurrency" in load  # counts what ends after the warm-up, otherwise what is due after it
        return [row for row in rows if row["due"] + closed_loop * row["seconds"] >= self.options.warm_up]

    def summary(self, step: str, rows: Sequence[Row]) -> Row:
        """Attainment, accuracy, latencies and variants of a step."""
        answered = [row for row in rows if row["status"] == 200]
        met = [row for row in rows if row["met"]]
        times = sorted(row["seconds"] for row in answered) or [float("nan")]
        variants = Counter(row["variant"] for row in answered)
        return {
            "step": step,
            "requests": len(rows),
            "attainment": len(met) / max(1, len(rows)),
            "accuracy": statistics.fmean(row["right"] for row in met) if met else None,
            "refused": sum(row["status"] == 429 for row in rows) / max(1, len(rows)),
            "lost": sum(row["status"] not in (200, 429) for row in rows),
            "sent_again": sum(row["again"] for row in rows),
            "p50_ms": 1000 * times[len(times) // 2],
            "p99_ms": 1000 * times[int(0.99 * len(times))],
            "variants": {name: count / len(answered) for name, count in variants.most_common()},
        }

    @contextmanager
    def server(self, *arguments: str) -> Iterator[tuple[str, psutil.Process]]:
        """A server in a process of its own: its address and the process."""
        options = self.options
        command = [
            sys.executable, "-m", "limbert", "serve", options.run, "--port", "0", "--json", "--slo",
            f"{options.slo:g}ms", "--threads", str(options.threads), *shlex.split(options.serve), *arguments,
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line:
                    raise LimbertError("the server did not start")
                yield json.loads(line)["url"], psutil.Process(process.pid)
            finally:
                process.terminate()

    def overhead(self, url: str, rate: float) -> Row:
        """Round trip less inference, at a low rate."""
        times = steady(1.0)(rate, self.options.warm_up + self.options.seconds, self.options.seed)
        rows = [row for row in self.send(url, times=times) if row["status"] == 200]
        extra = statistics.median(row["seconds"] - row["inference"] for row in rows)
        return {"step": "overhead", "rate": rate, "overhead_p50_ms": 1000 * extra}

    def saturation(self, url: str, process: psutil.Process, subnet: str, alone: float) -> Row:
        """Throughput of a sub-network with 128 clients, and what a request costs."""
        seconds, before, begin = self.options.seconds, sum(process.cpu_times()[:2]), time.perf_counter()
        duration = self.options.warm_up + seconds
        rows = self.send(url, parameters={"subnet": subnet}, concurrency=128, seconds=duration)
        answered = sum(row["status"] == 200 and row["due"] + row["seconds"] <= duration for row in rows) / seconds
        spent = (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - begin)
        return {
            "step": f"saturation, {subnet}",
            "per_second": answered,
            "fraction_of_engine": answered / alone,
            "core_ms_per_request": 1000 * spent / max(answered, 1e-9),
            "memory_mb": process.memory_info().rss / 1e6,
        }

    def kills(self, capacity: float) -> Row:
        """Two workers under load, one of which is killed every 12 s: what is lost, and how long the SLO is missed."""
        duration = self.options.warm_up + 2.5 * KILL_INTERVAL
        times = steady(0.3)(capacity, duration, self.options.seed)
        with self.server("--workers", "2") as (url, process):
            kills: list[float] = []
            killer = threading.Thread(target=_kill_workers, args=(process, self.options.warm_up, kills))
            killer.start()
            rows = self.send(url, times=times, grace=60.0)  # a worker takes seconds to load
            killer.join()
        return self.summary("kills of a worker", rows) | {"recovery_s": [recovery(rows, kill) for kill in kills]}


def recovery(rows: Sequence[Row], kill: float) -> float:
    """Seconds from a kill to the end of the last second whose attainment is lower than before, by over a point."""
    before = statistics.fmean(row["met"] for row in rows if kill - 5 <= row["at"] < kill)
    windows: dict[int, list[bool]] = {}
    for row in rows:
        if kill <= row["at"] < kill + KILL_INTERVAL:
            windows.setdefault(int(row["at"] - kill), []).append(row["met"])
    return max((index + 1.0 for index, met in windows.items() if statistics.fmean(met) < before - 0.01), default=0.0)


def _kill_workers(parent: psutil.Process, warm_up: float, kills: list[float], count: int = 2) -> None:
    """Kill a worker process every 12 seconds and note when."""
    time.sleep(warm_up)
    for _ in range(count):
        time.sleep(KILL_INTERVAL)
        workers = []
        for child in parent.children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # ended meanwhile
                workers += [child] if "spawn_main" in " ".join(child.cmdline()) else []
        kills.append(time.perf_counter())
        random.choice(workers).kill()


def timeline(rows: Sequence[Row], duration: float) -> list[Row]:
    """Rate, longest latency, attainment and variants by window of half a second."""
    windows: dict[int, list[Row]] = {}
    for row in rows:
        windows.setdefault(int(row["due"] / WINDOW), []).append(row)
    return [
        {
            "time": index * WINDOW,
            "rate": len(window) / WINDOW,
            "longest_ms": 1000 * max((row["seconds"] for row in window if row["status"] == 200), default=float("nan")),
            "attainment": statistics.fmean(row["met"] for row in window),
            "variants": Counter(row["variant"] for row in window if row["status"] == 200),
        }
        for index, window in sorted(windows.items())
    ]


def draw(results: Sequence[Row], lines: Sequence[Row], slo: float, folder: Path) -> None:
    """``serving.png`` (attainment against accuracy) and ``serving-time.png`` (rate, variants and latency over time)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    by_rule: dict[str, list[Row]] = {}
    for row in results:
        by_rule.setdefault(row["rule"], []).append(row)
    for rule, rows in by_rule.items():
        points = [(100 * row["attainment"], 100 * row["accuracy"]) for row in rows if row["accuracy"] is not None]
        axes.scatter(*zip(*points, strict=True), label=rule, marker="o" if rule == "adaptive" else "x")
    axes.set(xlabel="SLO attainment, %", ylabel="accuracy of the answers in time, %")
    axes.legend()
    figure.savefig(folder / "serving.png", dpi=140)
    figure, (rate, mix, longest) = pyplot.subplots(3, figsize=(8, 6), sharex=True, layout="constrained")
    time = [line["time"] for line in lines]
    names = sorted({name for line in lines for name in line["variants"]}, reverse=True)
    rate.plot(time, [line["rate"] for line in lines])
    totals = [max(1, sum(line["variants"].values())) for line in lines]
    shares = [[line["variants"][name] / total for line, total in zip(lines, totals, strict=True)] for name in names]
    mix.stackplot(time, shares, labels=names)
    mix.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    longest.plot(time, [line["longest_ms"] for line in lines])
    longest.axhline(1000 * slo, linestyle="--", color="grey")
    rate.set(ylabel="requests/s")
    mix.set(ylabel="sub-networks")
    longest.set(ylabel="longest latency, ms", xlabel="seconds", ylim=(0, None))
    figure.savefig(folder / "serving-time.png", dpi=140)


def main() -> None:
    options = _arguments()
    random.seed(options.seed)
    try:
        _run(Benchmark(options), options)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")


def _run(bench: Benchmark, options: argparse.Namespace) -> None:
    full, *_, smallest = options.subnets
    device = describe_this_machine(options.threads)
    _say({"benchmark": "serve", "device": device, "versions": library_versions(), "options": vars(options)})
    alone = {subnet: bench.engine_alone(subnet) for subnet in (full, smallest)}
    for row in alone.values():
        _say(row)
    results, lines = [], []
    with bench.server("--policy", f"static:{full}") as (url, process):
        _say(bench.overhead(url, 0.1 * alone[full]["per_second"]))
        for subnet in (full, smallest):
            row = bench.saturation(url, process, subnet, alone[subnet]["per_second"])
            _say(row)
        if not row["per_second"]:
            raise LimbertError(f"no response within {options.seconds:g} s: give more --seconds, or an idle machine")
        capacity = 0.8 * row["per_second"]
        duration = options.warm_up + options.seconds
        traces = {name: TRACES[name](capacity, duration, options.seed) for name in options.traces or TRACES}
        for name, times in traces.items():
            for subnet in (full, smallest):
                rows = bench.send(url, parameters={"subnet": subnet}, times=times)
                results.append(bench.summary(name, rows) | {"rule": f"{subnet}, no admission control"})
                _say(results[-1])
    with bench.server("--policy", "adaptive") as (url, _):
        rivals = {"adaptive": {}} | {subnet: {"subnet": subnet} for subnet in options.subnets}
        for name, times in traces.items():
            for rule, parameters in rivals.items():
                rows = bench.send(url, parameters=parameters, times=times)
                results.append(bench.summary(name, rows) | {"rule": rule})
                _say(results[-1])
                if rule == "adaptive":
                    lines = timeline(rows, duration)  # of the last trace
    if not options.no_kills:
        _say(bench.kills(capacity))
    if options.plots:
        draw(results, lines, bench.slo, Path(options.plots))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="elastic model that classifies")
    parser.add_argument("--data", required=True, help="folder with the development set of its task")
    parser.add_argument("--slo", type=float, default=50.0, help="milliseconds")
    parser.add_argument(
        "--subnets", nargs="+", default=["1x1", "0.5x0.75", "0.25x0.5"], help="fixed rivals, best first"
    )
    parser.add_argument("--traces", nargs="+", choices=TRACES, help="(default: all)")
    parser.add_argument("--threads", type=int, default=default_threads(1), help="of the model, in server and alone")
    parser.add_argument("--serve", default="", help="more options of limbert serve, such as '--precision bf16'")
    parser.add_argument("--seconds", type=float, default=6.0, help="counted of each step")
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--plots", help="folder for serving.png and serving-time.png")
    parser.add_argument("--no-kills", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _say(row: Row) -> None:
    print(json.dumps(row, default=str, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
