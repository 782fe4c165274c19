"""Training throughput of several processes compared with one process on the same cores and the same batches.

All contenders train the same sub-networks of one phase on the same batches of --batch-size examples over all processes:
one process with --threads threads, and each number of --processes with the threads divided among them. With CUDA,
process i uses GPU i. The contenders take turns; printed are medians over rounds: examples per second, the ratio to
one process, and the fraction of a step in the all-reduce of the gradients, including the wait for the slowest process.
Every turn starts new processes; start, loading and two warm-up steps are not timed.

Example: python benchmarks/distributed.py --model ENCODER --data mrpc=glue/MRPC --threads 2 --processes 2
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from itertools import pairwise

import torch
import torch.distributed as dist
from accelerate import PartialState
from trainer_step import optimizer_step, phase_trainer

from limbert import ElasticTrainer, LimbertError, Space
from limbert.core.config import DataConfig, PhaseConfig, TrainConfig
from limbert.data.load import load_task_data
from limbert.data.tokenize import tokenize_texts, training_batches
from limbert.evaluation.hardware import describe_this_machine
from limbert.inference.base_model import load_base_checkpoint
from limbert.model.checkpoint import library_versions
from limbert.train.data import shard_batch
from limbert.train.distributed import all_gather_object, init_distributed, rank, world_size
from limbert.train.phases import PHASES

WARM_UP = 2  # steps


def main() -> None:
    arguments = _parse_arguments()
    if arguments.worker:
        return _work(arguments)
    contenders = [1, *(count for count in arguments.processes if count > 1)]
    rounds: dict[int, list[dict[str, float]]] = {count: [] for count in contenders}
    for _ in range(arguments.rounds):
        for count in contenders:
            rounds[count].append(_turn(count, arguments))
    rows = []
    for count, turns in rounds.items():
        median = {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
        rows.append({"processes": count, "threads_each": max(1, arguments.threads // count), **median, "rounds": turns})
    for row in rows:
        row["over_one"] = row["rows_per_second"] / rows[0]["rows_per_second"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report = {
        "device": describe_this_machine(arguments.threads, device=device),
        "versions": library_versions(),
        **{key: getattr(arguments, key) for key in ("model", "data", "phase", "batch_size", "precision", "steps")},
        "rows": rows,
    }
    print(json.dumps(report)) if arguments.json else _print(report)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="pretrained encoder: folder or Hub name")
    parser.add_argument("--data", required=True, metavar="TASK=FOLDER")
    parser.add_argument("--phase", default="depth", choices=["finetune", "width", "depth", "final"])
    parser.add_argument("--processes", type=lambda text: [int(part) for part in text.split(",")], default=[2])
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="CPU threads of all processes together"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="examples per step over all processes")
    parser.add_argument("--steps", type=int, default=6, help="timed steps per turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _turn(count: int, arguments: argparse.Namespace) -> dict[str, float]:
    """One turn of a contender: start this program with --worker once per process."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    threads = str(max(1, arguments.threads // count))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    workers = [
        subprocess.Popen(
            [sys.executable, *sys.argv, "--worker"],
            env=os.environ | shared | {"OMP_NUM_THREADS": threads, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    if any(worker.returncode for worker in workers):
        sys.exit(f"benchmark: error: {count} processes ended with {[worker.returncode for worker in workers]}")
    result: dict[str, float] = json.loads(outputs[0].splitlines()[-1])
    return result


def _work(arguments: argparse.Namespace) -> None:
    """Train some steps as one process of a contender and print the times."""
    init_distributed()
    trainer, batches = _prepare(arguments)
    step = optimizer_step(trainer)
    exchanged = 0.0
    all_reduce = dist.all_reduce

    def timed(tensor: torch.Tensor) -> None:
        nonlocal exchanged
        _synchronize()
        start = time.perf_counter()
        all_reduce(tensor)
        _synchronize()
        exchanged += time.perf_counter() - start

    dist.all_reduce = timed  # type: ignore[assignment]
    moments, begin_exchange = [], 0.0
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            all_gather_object(None)
            begin_exchange = exchanged
            moments.append(time.perf_counter())
        part, loss_scale = shard_batch(batch, rank=rank(), world_size=world_size())
        step({name: tensor.to(trainer.args.device) for name, tensor in part.items()}, loss_scale=loss_scale)
        _synchronize()
        if number >= WARM_UP:
            moments.append(time.perf_counter())
    seconds = moments[-1] - moments[0]
    if rank() == 0:
        result = {
            "rows_per_second": arguments.batch_size * arguments.steps / seconds,
            "step_seconds": statistics.median(after - before for before, after in pairwise(moments)),
            "exchange_share": (exchanged - begin_exchange) / seconds,
        }
        print(json.dumps(result), flush=True)
    if world_size() > 1:
        dist.destroy_process_group()


def _prepare(arguments: argparse.Namespace) -> tuple[ElasticTrainer, list[dict[str, torch.Tensor]]]:
    """A trainer for the phase, and the batches of its steps over all processes."""
    task, _, folder = arguments.data.partition("=")
    try:
        with PartialState().local_main_process_first():
            data = load_task_data(DataConfig(task=task, data=folder), seed=0)
            start = load_base_checkpoint(TrainConfig(model=arguments.model, output="-"), data.task)
            longest = min(128, start.max_length)
            examples = tokenize_texts(start.map_labels(data.train, data.task), start.tokenizer, max_length=longest)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    model, teacher = (start.load_model(Space(layers="spread")) for _ in range(2))
    phase = PHASES[arguments.phase]
    trainer = phase_trainer(
        arguments.phase,
        model=model,
        teacher=teacher if phase.uses_teacher else None,
        subnets=phase.select_subnets(model),
        config=PhaseConfig(**(dict(phase.defaults) | {"batch_size": arguments.batch_size, "learning_rate": 1e-5})),
        task_type=data.task.task_type,
        device="cuda" if torch.cuda.is_available() else "cpu",
        precision=arguments.precision,
    )
    order = training_batches(examples.lengths, batch_size=arguments.batch_size, seed=0, epoch=0)
    return trainer, [examples.collate(indices) for indices in order[: WARM_UP + arguments.steps]]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _print(report: dict[str, object]) -> None:
    print(
        f"{report['device']}; {report['data']}, phase {report['phase']}, batches of {report['batch_size']} examples\n"
    )
    print("| processes | threads each | examples/s | vs. one process | all-reduce |")
    print("|---:|---:|---:|---:|---:|")
    for row in report["rows"]:  # type: ignore[attr-defined]
        ratio, exchange = f"{row['over_one']:.2f} x", f"{100 * row['exchange_share']:.1f} % of a step"
        print(f"| {row['processes']} | {row['threads_each']} | {row['rows_per_second']:.1f} | {ratio} | {exchange} |")


if __name__ == "__main__":
    main()
