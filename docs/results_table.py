"""Print the metric of all sub-networks of several runs as a Markdown table.

Usage: ``results_table.py METRIC NAME=RUN [NAME=RUN ...]``: one row per sub-network, one column per run, and the means.
"""

import sys
from statistics import mean

from limbert.evaluation.results import read_results


def main(metric: str, runs: dict[str, str]) -> None:
    columns = {
        name: {result.subnet: 100 * result.metrics[metric] for result in read_results(run)}
        for name, run in runs.items()
    }
    print("| sub-network | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for subnet in next(iter(columns.values())):
        print(f"| {subnet} | " + " | ".join(f"{values[subnet]:.1f}" for values in columns.values()) + " |")
    print("| **mean** | " + " | ".join(f"**{mean(values.values()):.1f}**" for values in columns.values()) + " |")


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in argument for argument in sys.argv[2:]):
        sys.exit("usage: results_table.py METRIC NAME=RUN [NAME=RUN ...]")
    main(sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:]))
