"""Does a Ray worker answer as many rows a second as the plain engine, and is each row answered once if one is killed?

Writes 100,000 rows (the texts given, over and over) as Parquet, answers a part with the plain engine on as many threads
as a worker has, alone and in as many processes at the same time as there will be workers, then all of it twice with
``--engine ray``. Of the first run, rows a second and worker are printed, from a worker's first shard to its last, as
shares of the plain engine's. In the second a worker is killed when a third is done, and the rows are compared with the
plain engine's answers.

With --rates it measures instead what the plan in docs/scale.md is made of: CPU seconds a row for reading, tokenising,
answering at each policy, and writing, on one thread.

Example: python benchmarks/batch_inference.py runs/sst2 --texts glue/SST-2/train.tsv --policy static:0.25x0.5
Example: python benchmarks/batch_inference.py runs/sst2-gates --texts glue/SST-2/dev.tsv --rates --policy balanced
"""

import argparse
import collections
import itertools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.dataset
import pyarrow.parquet
import torch

from limbert.core.config import DataConfig
from limbert.data.load import load_texts
from limbert.data.readers import Examples
from limbert.data.tokenize import tokenize_texts
from limbert.errors import LimbertError
from limbert.evaluation.hardware import describe_this_machine
from limbert.inference.batch.batch import predict_files
from limbert.inference.batch.packed import pack_checkpoint
from limbert.inference.batch.request import BatchPredictionConfig
from limbert.inference.batch.shards import ShardedInput, shard_input
from limbert.inference.batch.store import StoragePath
from limbert.inference.batch.worker import ShardResult, ShardWorker, WorkerConfig, prediction_columns
from limbert.inference.load import LoadedCheckpoint, load_checkpoint
from limbert.inference.policy import Policy, named_policy
from limbert.inference.predict import predict
from limbert.model.checkpoint import library_versions

PARTS = ("reading", "tokenising", "computing", "writing")


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    try:
        opened = load_checkpoint(arguments.run)
        policies = {name: _policy(opened, name) for name in arguments.policy}
        texts, pairs = _texts(opened, arguments)
        with tempfile.TemporaryDirectory() as folder:
            found = _input(Path(folder) / "in", texts, pairs, opened, arguments)
            if arguments.rates:
                report = _rates(found, policies, Path(folder), arguments)
            else:
                report = _against_plain(found, opened, policies[arguments.policy[0]], texts, Path(folder), arguments)
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--texts", required=True, help="file of texts, read as limbert predict reads it")
    parser.add_argument("--policy", action="append", help="policy or operating point; several with --rates")
    parser.add_argument("--rows", type=int, help="(default: 100000; with --rates 2000)")
    parser.add_argument("--shard-rows", type=int, help="(default: 5000; with --rates 1000)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--rates", action="store_true", help="CPU seconds a row, by what they are spent on")
    parser.add_argument("--price", type=float, default=0.04, help="with --rates: $ a core-hour (default: 0.04)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.policy = arguments.policy or ["static:0.25x0.5"]
    arguments.rows = arguments.rows or (2_000 if arguments.rates else 100_000)
    arguments.shard_rows = arguments.shard_rows or (1_000 if arguments.rates else 5_000)
    return arguments


def _policy(opened: LoadedCheckpoint, name: str) -> Policy:
    return named_policy(name, opened.model.record)


def _texts(opened: LoadedCheckpoint, arguments: argparse.Namespace) -> tuple[list[str], list[str] | None]:
    examples = load_texts(arguments.texts, opened.data_config)
    chosen = np.random.default_rng(0).permutation(len(examples))  # a part is then like the whole
    order = [*itertools.islice(itertools.cycle(chosen.tolist()), arguments.rows)]
    pairs = examples.pairs
    return [examples.texts[row] for row in order], None if pairs is None else [pairs[row] for row in order]


def _input(
    folder: Path, texts: list[str], pairs: list[str] | None, opened: LoadedCheckpoint, arguments: argparse.Namespace
) -> ShardedInput:
    folder.mkdir()
    assert opened.task is not None
    for number, rows in enumerate(np.array_split(np.arange(len(texts)), 4)):
        columns: dict[str, Any] = {"id": rows, "text": [texts[row] for row in rows]}
        columns |= {} if pairs is None else {"pair": [pairs[row] for row in rows]}
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"texts-{number}.parquet", row_group_size=10_000)
    config = DataConfig(text_column="text", pair_column=None if pairs is None else "pair")
    added = prediction_columns(opened.task)
    return shard_input(str(folder), config, keep_columns=None, added_columns=added, max_shard_rows=arguments.shard_rows)


def _against_plain(
    found: ShardedInput,
    opened: LoadedCheckpoint,
    policy: Policy,
    texts: list[str],
    folder: Path,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    part = max(len(texts) // 8, arguments.shard_rows)
    alone = _plain(arguments, policy, texts[:part], 1)[0]
    beside = _plain(arguments, policy, texts[:part], arguments.workers)
    killed: list[int] = []

    def kill(done: ShardResult | None, rows: int, total: int) -> None:
        if done is not None and not killed and 3 * rows >= total:
            killed.append(done.pid)
            os.kill(done.pid, signal.SIGKILL)

    def answer(output: str, progress: Callable[[ShardResult | None, int, int], None]) -> tuple[ShardResult, ...]:
        return predict_files(
            arguments.run,
            opened,
            found,
            str(folder / output),
            config=BatchPredictionConfig(policy),
            workers=arguments.workers,
            threads=arguments.threads,
            progress=progress,
        ).shard_results

    begin = time.perf_counter()
    whole = answer("unharmed", lambda done, rows, total: None)
    seconds = time.perf_counter() - begin
    harmed = answer("out", kill)
    table = pyarrow.dataset.dataset(folder / "out").to_table()
    plain = alone["labels"] + [None] * (len(texts) - part)
    different = sum(a != b for a, b in zip(plain, table["label"].to_pylist(), strict=True) if a is not None)
    spent = {name: sum(getattr(done, name) for done in whole) for name in PARTS}
    return {
        "policy": str(policy),
        "rows": len(texts),
        "each_row_once_and_in_order": table["id"].to_pylist() == [*range(len(texts))],
        "labels_unlike_plain": [different, part],
        "workers_killed": len(killed),
        "workers_seen": len({done.pid for done in harmed}),
        "seconds": seconds,
        "plain_alone": alone["rate"],
        "plain_side_by_side": float(np.mean([one["rate"] for one in beside])),
        "worker": float(np.mean([rate for rate, _ in _worker_rates(whole)])),
        "worker_busy": float(np.mean([busy for _, busy in _worker_rates(whole)])),
        "plain_cpu": float(np.mean([one["cpu"] for one in beside])),
        "worker_cpu": sum(done.cpu for done in whole) / len(texts),
        "shares": {name: value / sum(spent.values()) for name, value in spent.items()},
    }


def _plain(arguments: argparse.Namespace, policy: Policy, texts: list[str], processes: int) -> list[dict[str, Any]]:
    """The plain engine in so many processes at the same time: tokenising and answering, no files."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, initializer=_remember, initargs=(barrier,)) as pool:
        order = (arguments.run, arguments.threads, policy, texts)
        waiting = [pool.apply_async(_run_plain, order) for _ in range(processes)]
        return [one.get() for one in waiting]


def _remember(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _run_plain(run: str, threads: int, policy: Policy, texts: list[str]) -> dict[str, Any]:
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    opened = load_checkpoint(run)
    assert opened.task is not None
    _answer_plain(opened, policy, texts[:256])
    _barrier.wait()
    begin, cpu = time.perf_counter(), time.process_time()
    labels = _answer_plain(opened, policy, texts)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return {"labels": labels, "rate": len(texts) / seconds, "cpu": cpu / len(texts)}


def _answer_plain(opened: LoadedCheckpoint, policy: Policy, texts: list[str]) -> list[str | None]:
    assert opened.task is not None
    tokens = tokenize_texts(
        Examples(tuple(texts), None, None), opened.tokenizer, max_length=opened.max_length, use_cache=False
    )
    return [one.label for one in predict(opened.model, tokens, task=opened.task, policy=policy)]


def _worker_rates(done: tuple[ShardResult, ...]) -> list[tuple[float, float]]:
    """Of each worker that wrote three shards or more, from the first's begin to the last's end: rows a second, and the
    share of the time in which it had a shard to work on."""
    shards: dict[int, list[ShardResult]] = collections.defaultdict(list)
    for one in done:
        shards[one.pid].append(one)
    rates = []
    for mine in shards.values():
        span = max(one.ended for one in mine) - min(one.started for one in mine)
        if len(mine) > 2:
            rates.append((sum(one.rows for one in mine) / span, sum(one.ended - one.started for one in mine) / span))
    return rates


def _rates(
    found: ShardedInput, policies: dict[str, Policy], folder: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """CPU seconds a row; a worker's clock is replaced by that of the process, so that other load matters little."""
    time.perf_counter = time.process_time
    packed, rows = pack_checkpoint(arguments.run), []
    for name, policy in policies.items():
        output = StoragePath.from_uri(str(folder / f"out-{len(rows)}"))
        output.mkdir()
        orders = WorkerConfig(
            BatchPredictionConfig(policy), found.storage, found.columns, found.kept_columns, output, arguments.threads
        )
        worker = ShardWorker(lambda: packed, orders, count_attempt=lambda shard: 1)
        worker.predict(found.shards[0])
        done = [worker.predict(shard) for shard in found.shards]
        count = sum(one.rows for one in done)
        rows.append({"policy": name} | {part: sum(getattr(one, part) for one in done) / count for part in PARTS})
    table = pyarrow.dataset.dataset([source.path for source in found.files]).to_table()
    tokens = tokenize_texts(
        Examples(
            tuple(table["text"].to_pylist()), tuple(table["pair"].to_pylist()) if found.columns.pair else None, None
        ),
        load_checkpoint(arguments.run).tokenizer,
        max_length=128,
        use_cache=False,
    )
    return {
        "rows": rows,
        "texts": found.rows,
        "price": arguments.price,
        "tokens": float(tokens.lengths.mean()),
        "bytes_in_file": sum(source.bytes for source in found.files) / found.rows,
        "bytes_of_text": table.nbytes / found.rows,
        "bytes_of_output": sum(file.bytes for file in output.list_files((".parquet",))) / found.rows,
        "model_bytes": sum(content.nbytes for content in packed.files.values()),
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{report['rows']} rows, {report['policy']}, {report['device']}, load {report['load']:.1f}\n")
    print("| | rows/s a worker | of plain alone | of plain side by side |\n|---|---:|---:|---:|")
    for name in ("plain_alone", "plain_side_by_side", "worker"):
        rate = report[name]
        shares = " | ".join(f"{rate / report[unit]:.2f}" for unit in ("plain_alone", "plain_side_by_side"))
        print(f"| {name.replace('_', ' ')} | {rate:.0f} | {shares} |")
    print(
        f"\nProcessor time a row: plain side by side {1e6 * report['plain_cpu']:.0f} us, worker "
        f"{1e6 * report['worker_cpu']:.0f} us ({report['plain_cpu'] / report['worker_cpu']:.2f} of the plain rate); a "
        f"worker has a shard {100 * report['worker_busy']:.1f} % of the time"
    )
    print("A worker's time: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in report["shares"].items()))
    different, compared = report["labels_unlike_plain"]
    print(
        f"All of it took {report['seconds']:.0f} s. Again, workers killed: {report['workers_killed']}, "
        f"seen: {report['workers_seen']}; "
        f"each row once and in order: {report['each_row_once_and_in_order']}; "
        f"labels unlike the plain engine's: {different} of {compared}"
    )


def _print_rates(report: dict[str, Any]) -> None:
    print(
        f"{report['texts']} rows of {report['tokens']:.1f} tokens, {report['bytes_of_text']:.0f} bytes in memory and "
        f"{report['bytes_in_file']:.0f} in the file, {report['bytes_of_output']:.0f} in the output; model "
        f"{report['model_bytes'] / 1e6:.0f} MB; {report['device']}, load {report['load']:.1f}\n"
    )
    print("CPU microseconds a row\n")
    print(f"| | {' | '.join(PARTS)} | all | rows a core-second |\n|---|{'---:|' * (len(PARTS) + 2)}")
    for row in report["rows"]:
        every = sum(row[part] for part in PARTS)
        cells = " | ".join(f"{1e6 * row[part]:.1f}" for part in PARTS)
        print(f"| {row['policy']} | {cells} | {1e6 * every:.0f} | {1 / every:.0f} |")
    print(f"\nA billion rows, at {report['price']:g} $ a core-hour\n")
    print("| | core-hours | $ | on 10 workers | on 1,000 workers |\n|---|---:|---:|---:|---:|")
    for row in report["rows"]:
        hours = 1e9 * sum(row[part] for part in PARTS) / 3600
        cost = f"{report['price'] * hours:.0f}"
        print(f"| {row['policy']} | {hours:,.0f} | {cost} | {hours / 240:.1f} days | {60 * hours / 1000:.0f} min |")


if __name__ == "__main__":
    main()
