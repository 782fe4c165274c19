"""Print runs side by side as a Markdown table: ``results_table.py METRIC NAME=RUN [NAME=RUN ...]``.

Reads only the runs' ``results.jsonl``. One row a sub-network, one column a run, and their means.
"""

import json
import sys
from pathlib import Path
from statistics import mean


def read(run: Path, metric: str) -> dict[str, float]:
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return {row["subnet"]: 100 * row["metrics"][metric] for row in rows}


def main(metric: str, runs: dict[str, Path]) -> None:
    columns = {name: read(run, metric) for name, run in runs.items()}
    print("| sub-network | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for subnet in next(iter(columns.values())):
        print(f"| {subnet} | " + " | ".join(f"{values[subnet]:.1f}" for values in columns.values()) + " |")
    print("| **mean** | " + " | ".join(f"**{mean(values.values()):.1f}**" for values in columns.values()) + " |")


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in argument for argument in sys.argv[2:]):
        sys.exit("usage: results_table.py METRIC NAME=RUN [NAME=RUN ...]")
    main(sys.argv[1], {name: Path(run) for name, run in (argument.split("=", 1) for argument in sys.argv[2:])})
