"""How long does the command take, from a cold start, until the first answer is printed and until it ends?

Processes are started one after the other; printed are the medians. The files are in the system's cache after the first.

Example: python benchmarks/startup.py runs/sst2 --policy static:0.5x1
"""

import argparse
import json
import statistics
import subprocess
import sys
import time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="model trained by Limbert")
    parser.add_argument("--policy", default="static:1x1")
    parser.add_argument("--pair", help="a second text, for tasks with pairs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    words = ["predict", arguments.run, "--policy", arguments.policy, "--text", "Where is my card?"]
    words += ["--pair", arguments.pair] if arguments.pair else []
    taken = [_seconds(words) for _ in range(3 if arguments.quick else arguments.rounds)]
    first, end = (statistics.median(times) for times in zip(*taken, strict=True))
    if arguments.json:
        print(json.dumps({"first_answer_s": first, "end_s": end}))
    else:
        print(f"first answer after {first:.2f} s, end after {end:.2f} s")


def _seconds(words: list[str]) -> tuple[float, float]:
    """Until the first line of output, and until the process ends."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "limbert", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    first = time.perf_counter() - begin
    _, error = process.communicate()
    if process.returncode:
        sys.exit(error.strip().splitlines()[-1])
    return first, time.perf_counter() - begin


if __name__ == "__main__":
    main()
