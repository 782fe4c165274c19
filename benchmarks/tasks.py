"""What sub-networks reach on tasks that are no classification: entities, answers out of a context, several labels.

Trains three elastic models on real data (killed or stopped, the same command goes on) and prints what three of their
sub-networks reach on data that training did not see. The data sets are folders in one place: ``WNUT17`` with
train.conll, dev.conll and test.conll; ``SQuAD`` with one SQuAD 1.1 file, of which whole articles are held out. The task
with several labels is made of WNUT17: which types of entities a sentence holds, none among them. It has width gates and
exits too, so that its operating points are tuned and measured as well.

Example: python benchmarks/tasks.py --data data --model models/minilm --output runs
"""

import argparse
import itertools
import json
import subprocess
import sys
from pathlib import Path

SUBNETS = ("1x1", "0.5x0.75", "0.25x0.5")
EPOCHS = {"wnut17": ["--epochs", "4"], "squad": ["--max-steps", "150", "--set", "finetune.max_steps=500"]}
EPOCHS["several"] = [*EPOCHS["wnut17"], "--layers", "first", "--phases", "finetune,width,depth,gates"]
POINTS = ("accurate", "balanced", "fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--model", required=True, help="pretrained encoder")
    parser.add_argument("--output", type=Path, required=True, help="folder for the trained models")
    parser.add_argument("--task", choices=("wnut17", "squad", "several"), help="only this one (default: all)")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="a few steps of each phase: whether it runs")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in [arguments.task] if arguments.task else [*EPOCHS]:
        train, test = _options(name, arguments.data, arguments.output)
        length = [*EPOCHS[name], "--max-steps", "5"] if arguments.quick else EPOCHS[name]
        threads = ["--threads", str(arguments.threads)] if arguments.threads else []
        run = str(arguments.output / (name + ("-quick" if arguments.quick else "")))
        fixed = ["--model", arguments.model, "--batch-size", "16", "--precision", arguments.precision]
        _limbert("train", *train, *fixed, *length, *threads, "--output", run)
        chosen = [part for subnet in SUBNETS for part in ("--subnet", subnet)]
        rows = json.loads(_limbert("evaluate", run, *test, *chosen, *threads, "--json"))
        _print(name, rows)
        if name == "several":
            _limbert("tune", run, *threads)
            _print_points([json.loads(_limbert("evaluate", run, *test, "--policy", name, "--json")) for name in POINTS])


def _options(name: str, data: Path, output: Path) -> tuple[list[str], list[str]]:
    """What to train on, and what to evaluate on."""
    if name == "wnut17":
        return ["--task", "ner", "--data", str(data / "WNUT17")], ["--dev", str(data / "WNUT17" / "test.conll")]
    if name == "squad":
        (path,) = sorted((data / "SQuAD").glob("*.json"))
        cut = ["--held-out", "0.15", "--max-length", "192", "--validation", "0.03"]
        return ["--task", "squad", "--train", str(path), *cut], []
    folder = output / "wnut17-types"
    folder.mkdir(exist_ok=True)
    for part in ("train", "dev", "test"):
        _write_types(data / "WNUT17" / f"{part}.conll", folder / f"{part}.jsonl")
    return ["--task-type", "multi-label", "--data", str(folder)], ["--dev", str(folder / "test.jsonl")]


def _write_types(source: Path, target: Path) -> None:
    """Sentences with the types of their entities as labels."""
    lines = []
    for filled, sentence in itertools.groupby(
        source.read_text(encoding="utf-8").splitlines(), lambda line: bool(line.strip())
    ):
        if filled:
            words = [line.split("\t") for line in sentence]
            types = sorted({tag[2:] for _, tag in words if tag != "O"})
            lines.append(json.dumps({"text": " ".join(word for word, _ in words), "labels": types}))
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _limbert(*words: str) -> str:
    """What the command prints; its progress goes to the terminal."""
    return subprocess.run(
        [sys.executable, "-m", "limbert", *words], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _print(name: str, rows: list[dict[str, object]]) -> None:
    metrics = [*rows[0]["metrics"]]  # type: ignore[misc]
    print(f"\n| {name} | parameters | {' | '.join(metrics)} |\n|---|---:|{'---:|' * len(metrics)}")
    for row in rows:
        values = " | ".join(f"{100 * row['metrics'][metric]:.1f}" for metric in metrics)  # type: ignore[index]
        print(f"| {row['subnet']} | {int(row['params']) / 1e6:.1f} M | {values} |")  # type: ignore[call-overload]
    print(flush=True)


def _print_points(rows: list[dict[str, object]]) -> None:
    metrics = [*rows[0]["metrics"]]  # type: ignore[misc]
    print(f"\n| operating point | FLOPs | {' | '.join(metrics)} |\n|---|---:|{'---:|' * len(metrics)}")
    for name, row in zip(POINTS, rows, strict=True):
        values = " | ".join(f"{100 * row['metrics'][metric]:.1f}" for metric in metrics)  # type: ignore[index]
        print(f"| {name} | {100 * row['flops_mean'] / row['flops_full']:.0f} % | {values} |")  # type: ignore[operator]
    print(flush=True)


if __name__ == "__main__":
    main()
