"""How much memory does a training phase take, against plain fine-tuning at the same batch size?

Each phase runs some steps in a process of its own, on the same batches, and tells its peak: on the CPU the most memory
that the process ever held (libraries, data, weights, optimizer and activations), on CUDA what torch allocated.

Example: python benchmarks/memory.py --model ENCODER --data MRPC=glue/MRPC
"""

import argparse
import json
import resource
import subprocess
import sys

import torch
from trainer_step import optimizer_step, phase_trainer

from limbert import LimbertError, Space
from limbert.core.config import DataConfig, PhaseConfig, TrainConfig
from limbert.data.load import load_task_data
from limbert.data.tokenize import tokenize_texts, training_batches
from limbert.inference.base_model import load_base_checkpoint
from limbert.train.phases import PHASES


def main() -> None:
    arguments = _arguments()
    if arguments.one is not None:
        print(_peak(arguments.one, arguments))
        return
    peaks = {phase: _in_own_process(phase) for phase in ("finetune", "width", "depth")}
    if arguments.json:
        print(json.dumps({"batch_size": arguments.batch_size, "steps": arguments.steps, "peak_bytes": peaks}))
        return
    print(f"batch {arguments.batch_size}, {arguments.steps} steps\n")
    print("| phase | peak memory | over fine-tuning |\n|---|---:|---:|")
    for phase, peak in peaks.items():
        print(f"| {phase} | {peak / 1e6:.0f} MB | {peak / peaks['finetune']:.2f} x |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="pretrained encoder: folder or hub name")
    parser.add_argument("--data", required=True, metavar="TASK=FOLDER")
    parser.add_argument("--layers", default="spread", choices=["spread", "first"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--one", choices=["finetune", "width", "depth"], help="run one phase here, print bytes")
    parser.add_argument("--quick", action="store_true", help="3 steps")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.steps = 3 if arguments.quick else arguments.steps
    return arguments


def _in_own_process(phase: str) -> int:
    done = subprocess.run([sys.executable, *sys.argv, "--one", phase], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return int(done.stdout.split()[-1])


def _peak(phase: str, arguments: argparse.Namespace) -> int:
    """Bytes, after some optimizer steps of the phase on batches that the trainer would draw."""
    task, _, folder = arguments.data.partition("=")
    try:
        data = load_task_data(DataConfig(task=task, data=folder), seed=0)
        start = load_base_checkpoint(TrainConfig(model=arguments.model, output="-"), data.task)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    examples = tokenize_texts(start.map_labels(data.train, data.task), start.tokenizer, max_length=128)
    space = Space(layers=arguments.layers)
    model, teacher = (start.load_model(space) for _ in range(2))
    for one in (model, teacher):
        one.network.to(arguments.device)
    teacher.network.eval().requires_grad_(False)
    trained = PHASES[phase]
    trainer = phase_trainer(
        phase,
        model=model,
        teacher=teacher if trained.uses_teacher else None,
        subnets=trained.select_subnets(model),
        config=PhaseConfig(**(dict(trained.defaults) | {"batch_size": arguments.batch_size, "learning_rate": 1e-5})),
        task_type=data.task.task_type,
        device=arguments.device,
    )
    step = optimizer_step(trainer)
    order = training_batches(examples.lengths, batch_size=arguments.batch_size, seed=0, epoch=0)
    for indices in order[: arguments.steps]:
        step({name: tensor.to(arguments.device) for name, tensor in examples.collate(indices).items()})
    if arguments.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
