"""One trial a line: recipes compared on validation data cut from training files; dev and test sets are never read.

Example: python benchmarks/recipe.py --data glue --work /tmp/trials --output benchmarks/recipe_trials.jsonl jobs.jsonl

A job is a JSON object: ``name``, ``task`` (a key of ``TASKS``), ``seed``, ``set`` (settings of phases, as ``--set``
takes them) and optional ``phases``, ``layers``. The teacher of a task and seed is fine-tuned once. The list may grow
while the script runs; a job whose line stands in the output is not run again, and an interrupted one goes on.
"""

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

TASKS = {
    "sst2": {"file": "SST-2/train.tsv", "columns": (0, 1), "train": 4000, "held_out": 1000},
    "banking": {"file": "Banking77/train.csv", "columns": (0, 1), "train": 4000, "held_out": 1000},
    "mrpc": {"file": "MRPC/train.tsv", "columns": (3, 4, 0), "train": 2600, "held_out": 1000},
    "rte": {"file": "RTE/train.tsv", "columns": (1, 2, 3), "train": 1600, "held_out": 800},
    "sst2-800": {"file": "SST-2/train.tsv", "columns": (0, 1), "train": 800, "held_out": 1000},
}
FINETUNE = {"epochs": 2, "learning_rate": 1e-4, "warmup": 0.1}


def cut_task(name: str, data: Path, folder: Path) -> Path:
    """``train.jsonl`` and ``dev.jsonl``, both from the training file, the same rows whenever it is called."""
    spec = TASKS[name]
    if not folder.exists():
        path = data / spec["file"]
        with path.open(encoding="utf-8", newline="") as file:
            tabs = (line.rstrip("\r\n").split("\t") for line in file)
            rows = list(csv.reader(file) if path.suffix == ".csv" else tabs)
        chosen = random.Random(0).sample(rows[1:], spec["train"] + spec["held_out"])
        fresh = folder.with_suffix(".new")
        fresh.mkdir(parents=True, exist_ok=True)
        for part, some in (("dev", chosen[: spec["held_out"]]), ("train", chosen[spec["held_out"] :])):
            with (fresh / f"{part}.jsonl").open("w", encoding="utf-8") as file:
                for row in some:
                    *texts, label = (row[column] for column in spec["columns"])
                    names = ("text",) if len(texts) == 1 else ("sentence1", "sentence2")
                    file.write(json.dumps(dict(zip(names, texts, strict=True)) | {"label": f"c{label}"}) + "\n")
        fresh.rename(folder)
    return folder


def train(model: str, data: Path, output: Path, seed: int, *options: str) -> float:
    start = time.time()
    words = [
        "--model",
        model,
        "--data",
        str(data),
        "--output",
        str(output),
        "--seed",
        str(seed),
        "--threads",
        "1",
        "--precision",
        "bf16",
    ]
    words += ["--max-length", "64", "--label-column", "label", "--precision", "bf16", *options]
    subprocess.run([sys.executable, "-m", "limbert", "train", *words], check=True, stdout=subprocess.DEVNULL)
    return time.time() - start


def settings(phase: str, values: dict[str, object]) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{phase}.{key}={value}")]


def run_job(job: dict, arguments: argparse.Namespace) -> dict:
    work, seed = arguments.work, job["seed"]
    data = cut_task(job["task"], arguments.data, work / "data" / job["task"])
    teacher = work / f"teacher-{job['task']}-{seed}"
    if not (teacher / "results.jsonl").exists():
        options = ["--phases", "finetune", *settings("finetune", FINETUNE | job.get("finetune", {}))]
        train(arguments.model, data, teacher, seed, *options)
    output = work / f"{job['name']}-{job['task']}-{seed}"
    options = ["--phases", job.get("phases", "width,depth")]
    options += [word for setting in job["set"] for word in ("--set", setting)]
    options += ["--layers", job["layers"]] if "layers" in job else []
    seconds = train(str(teacher), data, output, seed, *options)
    read = lambda folder: [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]  # noqa: E731
    metric = {row["subnet"]: round(100 * next(iter(row["metrics"].values())), 2) for row in read(output)}
    full = round(100 * next(iter(read(teacher)[0]["metrics"].values())), 2)
    for path in output.glob("*"):  # the weights are large, the figures are kept
        if path.suffix == ".safetensors":
            path.unlink()
    shutil.rmtree(output.with_name(output.name + ".training"), ignore_errors=True)
    mean = round(sum(metric.values()) / len(metric), 2)
    return job | {"teacher": full, "mean": mean, "metric": metric, "seconds": round(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--model", required=True, help="pretrained encoder")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    while True:
        done = set()
        if arguments.output.exists():
            rows = map(json.loads, arguments.output.read_text().splitlines())
            done = {(row["name"], row["task"], row["seed"]) for row in rows}
        jobs = [json.loads(line) for line in arguments.jobs.read_text().splitlines() if line.strip()]
        left = [job for job in jobs if (job["name"], job["task"], job["seed"]) not in done]
        if not left:
            break
        row = run_job(left[0], arguments)
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        smallest = row["metric"].get("0.25x0.5")
        print(row["name"], row["task"], row["seed"], "teacher", row["teacher"], "mean", row["mean"],
              "full", row["metric"]["1x1"], "0.5x0.75", row["metric"].get("0.5x0.75"), "smallest", smallest,
              f"{row['seconds']} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
