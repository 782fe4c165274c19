"""Throughput of a Ray worker compared with the plain engine, and a check that each row is predicted once after a kill.

Writes 100,000 rows (the given texts, repeated) as Parquet and predicts a part of them with the plain engine: in one
process, and in as many processes side by side as there are workers, each with a worker's threads. Then predicts all
rows twice with ``--engine ray``. Of the first run it prints rows per second and worker, from the time when each had
written a shard to the end. In the second run it kills a worker after a third of the rows, and compares the output with
the plain engine's.

With --rates it measures what the plan in docs/scale.md is based on: CPU seconds per row for reading, tokenizing,
predicting at each policy, and writing, on one thread.

Example: python benchmarks/batch_inference.py runs/sst2 --texts glue/SST-2/train.tsv --policy static:0.25x0.5
Example: python benchmarks/batch_inference.py runs/sst2-gates --texts glue/SST-2/dev.tsv --rates --policy balanced
"""

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import torch

from limbert.data.load import load_texts
from limbert.data.readers import Examples
from limbert.errors import LimbertError
from limbert.evaluation.hardware import describe_this_machine
from limbert.inference.pipeline import Pipeline, pipeline
from limbert.inference.predict import predict
from limbert.inference.ray import pack_checkpoint, predict_files, prediction_schema, to_parquet
from limbert.inference.shards import ShardReader, shard_input
from limbert.model.checkpoint import library_versions

STAGES = ("reading", "tokenizing", "predicting", "writing")


def main() -> None:
    arguments = _parse_arguments()
    torch.set_num_threads(arguments.threads)
    try:
        pipes = {name: _open(name, arguments) for name in arguments.policy}
        pipe = pipes[arguments.policy[0]]
        texts, pairs = _load_texts(pipe, arguments)
        columns = {"text_column": "text", "pair_column": None if pairs is None else "pair"}
        pipes = {
            name: replace(one, checkpoint=one.checkpoint.with_data_config(**columns)) for name, one in pipes.items()
        }
        with tempfile.TemporaryDirectory() as folder:
            _write_input(Path(folder) / "in", texts, pairs)
            if arguments.rates:
                report = _measure_rates(Path(folder) / "in", pipes, arguments)
            else:
                report = _compare_with_plain(pipes[arguments.policy[0]], texts, Path(folder), arguments)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    report |= {
        "device": describe_this_machine(arguments.threads),
        "versions": library_versions(),
        "load": os.getloadavg()[0],
    }
    if arguments.json:
        print(json.dumps(report))
    elif arguments.rates:
        _print_rates(report)
    else:
        _print(report)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--texts", required=True, help="file of texts, read as limbert predict reads it")
    parser.add_argument("--policy", action="append", help="policy or operating point; several with --rates")
    parser.add_argument("--rows", type=int, help="(default: 100000; with --rates 2000)")
    parser.add_argument("--shard-rows", type=int, help="(default: 5000; with --rates 1000)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--rates", action="store_true", help="measure CPU seconds per row and stage")
    parser.add_argument("--runtime", default="torch", help="with --rates")
    parser.add_argument("--precision", default="fp32", help="with --rates")
    parser.add_argument("--price", type=float, default=0.04, help="with --rates: $ per core-hour (default: 0.04)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.policy = arguments.policy or ["static:0.25x0.5"]
    arguments.rows = arguments.rows or (2_000 if arguments.rates else 100_000)
    arguments.shard_rows = arguments.shard_rows or (1_000 if arguments.rates else 5_000)
    return arguments


def _open(policy: str, arguments: argparse.Namespace) -> Pipeline:
    options = {"runtime": arguments.runtime, "precision": arguments.precision, "threads": arguments.threads}
    return pipeline(arguments.run, policy=policy, device="cpu", **options)


def _load_texts(pipe: Pipeline, arguments: argparse.Namespace) -> tuple[list[str], list[str] | None]:
    examples = load_texts(arguments.texts, pipe.checkpoint.data_config)
    shuffled = np.random.default_rng(0).permutation(len(examples))  # so that a part is like the whole
    order = [*itertools.islice(itertools.cycle(shuffled.tolist()), arguments.rows)]
    pairs = examples.pairs
    return [examples.texts[row] for row in order], None if pairs is None else [pairs[row] for row in order]


def _write_input(folder: Path, texts: list[str], pairs: list[str] | None) -> None:
    folder.mkdir()
    for number, rows in enumerate(np.array_split(np.arange(len(texts)), 4)):
        columns: dict[str, Any] = {"id": rows, "text": [texts[row] for row in rows]}
        columns |= {} if pairs is None else {"pair": [pairs[row] for row in rows]}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"texts-{number}.parquet", row_group_size=10_000)


def _compare_with_plain(
    pipe: Pipeline, texts: list[str], folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    part = max(len(texts) // 8, arguments.shard_rows)
    alone = _run_plain_processes(arguments, texts[:part], 1)[0]
    side_by_side = _run_plain_processes(arguments, texts[:part], arguments.workers)
    killed: list[int] = []

    def kill_after_a_third(step: str, rows: int, total: int) -> None:
        if step == "predicting rows" and not killed and 3 * rows >= total:
            workers = [
                one for one in psutil.Process().children(recursive=True) if "ShardWorker" in "".join(one.cmdline())
            ]
            killed.append(workers[0].pid)
            workers[0].kill()

    def run(output: str, progress: Callable[[str, int, int], None]) -> None:
        predict_files(
            pipe,
            str(folder / "in"),
            str(folder / output),
            shard_rows=arguments.shard_rows,
            workers=arguments.workers,
            threads=arguments.threads,
            progress=progress,
        )

    start = time.perf_counter()
    run("out", lambda step, rows, total: None)
    seconds = time.perf_counter() - start
    run("out-after-kill", kill_after_a_third)
    table = pyarrow.dataset.dataset(folder / "out-after-kill").to_table()
    labels = table["label"].to_pylist()[:part]
    return {
        "policy": str(pipe.policy),
        "rows": len(texts),
        "each_row_once_and_in_order": table["id"].to_pylist() == [*range(len(texts))],
        "different_labels": [sum(a != b for a, b in zip(alone["labels"], labels, strict=True)), part],
        "workers_killed": len(killed),
        "seconds": seconds,
        "plain_alone": alone["rate"],
        "plain_side_by_side": float(np.mean([process["rate"] for process in side_by_side])),
        "worker": _worker_rate(folder / "out", arguments.workers),
    }


def _run_plain_processes(arguments: argparse.Namespace, texts: list[str], processes: int) -> list[dict[str, Any]]:
    """The plain engine in several processes at the same time: tokenizing and predicting, no files."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, initializer=_set_barrier, initargs=(barrier,)) as pool:
        task = (arguments.run, arguments.threads, arguments.policy[0], texts)
        pending = [pool.apply_async(_run_plain, task) for _ in range(processes)]
        return [result.get() for result in pending]


def _set_barrier(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _run_plain(run: str, threads: int, policy: str, texts: list[str]) -> dict[str, Any]:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    pipe = pipeline(run, policy=policy, device="cpu")
    pipe.predict(Examples(tuple(texts[:256]), None, None))
    _barrier.wait()
    start = time.perf_counter()
    labels = [prediction.label for prediction in pipe.predict(Examples(tuple(texts), None, None))]
    return {"labels": labels, "rate": len(texts) / (time.perf_counter() - start)}


def _worker_rate(output: Path, workers: int) -> float:
    """Rows per second and worker, from the time when there were as many shards as workers to the last shard."""
    shards = sorted(output.glob("part-*"), key=lambda path: path.stat().st_mtime_ns)
    rows = sum(pyarrow.parquet.read_metadata(path).num_rows for path in shards[workers:])
    return rows / (shards[-1].stat().st_mtime - shards[workers - 1].stat().st_mtime) / workers


def _measure_rates(folder: Path, pipes: dict[str, Pipeline], arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds per row of each stage, so that other load on the machine matters little."""
    rows, output_bytes, tokens_seen = [], 0, 0
    for name, pipe in pipes.items():
        checkpoint, schema = pipe.checkpoint, prediction_schema(pipe.task)
        inputs = shard_input(
            str(folder),
            checkpoint.data_config,
            keep_columns=None,
            prediction_columns=schema.names,
            max_shard_rows=arguments.shard_rows,
        )
        seconds, reader = np.zeros(len(STAGES)), ShardReader(inputs, skip_bad_rows=False)
        output_bytes = tokens_seen = 0
        for number, shard in enumerate((inputs.shards[0], *inputs.shards)):
            times = [time.process_time()]
            kept, indices, examples = reader.read(shard)
            times.append(time.process_time())
            tokens = checkpoint.tokenize(examples)
            times.append(time.process_time())
            predictions = predict(checkpoint.model, tokens, task=pipe.task, policy=pipe.policy, runtime=pipe.network)
            times.append(time.process_time())
            values = [prediction.to_dict() | prediction.cost_to_dict() for prediction in predictions]
            content = to_parquet(kept, indices, values, schema)
            times.append(time.process_time())
            if number:  # the first pass warms up
                seconds += np.diff(times)
                output_bytes += len(content)
                tokens_seen += int(tokens.lengths.sum())
        rows.append({"policy": name} | dict(zip(STAGES, (seconds / inputs.rows).tolist(), strict=True)))
    table = pyarrow.dataset.dataset([*inputs.files]).to_table()
    return {
        "rows": rows,
        "texts": inputs.rows,
        "price": arguments.price,
        "tokens": tokens_seen / inputs.rows,
        "bytes_in_file": sum(size for size, _ in inputs.files.values()) / inputs.rows,
        "bytes_of_text": table.nbytes / inputs.rows,
        "bytes_of_output": output_bytes / inputs.rows,
        "model_bytes": sum(map(len, pack_checkpoint(arguments.run).values())),
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{report['rows']} rows, {report['policy']}, {report['device']}, load {report['load']:.1f}\n")
    print("| | rows/s per process | vs. plain alone | vs. plain side by side |\n|---|---:|---:|---:|")
    for name in ("plain_alone", "plain_side_by_side", "worker"):
        rate = report[name]
        ratios = " | ".join(f"{rate / report[unit]:.2f}" for unit in ("plain_alone", "plain_side_by_side"))
        print(f"| {name.replace('_', ' ')} | {rate:.0f} | {ratios} |")
    different, compared = report["different_labels"]
    print(
        f"\nThe run took {report['seconds']:.0f} s.\nSecond run: {report['workers_killed']} worker killed; "
        f"each row once and in order: {report['each_row_once_and_in_order']}; "
        f"labels that differ from the plain engine's: {different} of {compared}"
    )


def _print_rates(report: dict[str, Any]) -> None:
    print(
        f"{report['texts']} rows of {report['tokens']:.1f} tokens, {report['bytes_of_text']:.0f} bytes in memory and "
        f"{report['bytes_in_file']:.0f} in the file, {report['bytes_of_output']:.0f} in the output; model "
        f"{report['model_bytes'] / 1e6:.0f} MB; {report['device']}, load {report['load']:.1f}\n"
    )
    print("CPU microseconds per row\n")
    print(f"| | {' | '.join(STAGES)} | all | rows per core-second |\n|---|{'---:|' * (len(STAGES) + 2)}")
    for row in report["rows"]:
        every = sum(row[stage] for stage in STAGES)
        cells = " | ".join(f"{1e6 * row[stage]:.1f}" for stage in STAGES)
        print(f"| {row['policy']} | {cells} | {1e6 * every:.0f} | {1 / every:.0f} |")
    print(f"\nA billion rows, at {report['price']:g} $ per core-hour\n")
    print("| | core-hours | $ | on 10 workers | on 1,000 workers |\n|---|---:|---:|---:|---:|")
    for row in report["rows"]:
        hours = 1e9 * sum(row[stage] for stage in STAGES) / 3600
        cost = f"{report['price'] * hours:.0f}"
        print(f"| {row['policy']} | {hours:,.0f} | {cost} | {hours / 240:.1f} days | {60 * hours / 1000:.0f} min |")


if __name__ == "__main__":
    main()
