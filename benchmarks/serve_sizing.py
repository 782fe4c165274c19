"""How many cores and how much memory does a server need? Processor time of a request, for a sizing table.

Starts ``limbert serve`` with one thread for each policy, sends it single texts of a file over several connections, and
reads the server's processor time and memory from the operating system. Processor time is what a core must give,
whatever else the machine does meanwhile; the client's is not in it.

Example: python benchmarks/serve_sizing.py runs/sst2 --texts SST-2/dev.tsv
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import psutil

from limbert.data.load import load_texts
from limbert.errors import LimbertError
from limbert.evaluation.hardware import describe_this_machine
from limbert.inference.load import load_checkpoint

POLICIES = ["static:1x1", "static:0.5x0.75", "static:0.25x0.5"]


def main() -> None:
    arguments = _arguments()
    try:
        opened = load_checkpoint(arguments.run)
        texts = load_texts(arguments.texts, opened.data_config).texts
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    tokens = opened.tokenizer([*texts[: arguments.requests]], truncation=True, max_length=opened.max_length)[
        "input_ids"
    ]
    print(
        f"{describe_this_machine(1)}, load {os.getloadavg()[0]:.1f}; {arguments.requests} requests of one text, ",
        end="",
    )
    print(f"{sum(map(len, tokens)) / len(tokens):.1f} tokens on average, over {arguments.connections} connections\n")
    print("| policy | core-ms a request | requests/s a core | memory after start | memory then |")
    print("|---|---:|---:|---:|---:|")
    for policy in arguments.policy or POLICIES:
        row = _measure(arguments, policy, texts)
        print(
            f"| {policy} | {1000 * row['cpu']:.2f} | {1 / row['cpu']:.0f} | {row['before'] / 1e6:.0f} MB | "
            f"{row['after'] / 1e6:.0f} MB |",
            flush=True,
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--texts", required=True)
    parser.add_argument("--policy", action="append", help=f"(default: {', '.join(POLICIES)})")
    parser.add_argument("--requests", type=int, default=800)
    parser.add_argument("--connections", type=int, default=8)
    return parser.parse_args()


def _measure(arguments: argparse.Namespace, policy: str, texts: tuple[str, ...]) -> dict[str, float]:
    command = [sys.executable, "-m", "limbert", "serve", arguments.run, "--policy", policy, "--threads", "1"]
    server = subprocess.Popen([*command, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = urlsplit(json.loads(server.stdout.readline())["url"]).netloc
        process = psutil.Process(server.pid)
        _wait(address)
        _ask(address, texts, count=64, connections=arguments.connections)
        before, memory = sum(process.cpu_times()[:2]), process.memory_info().rss
        _ask(address, texts, count=arguments.requests, connections=arguments.connections)
        spent = sum(process.cpu_times()[:2]) - before
        return {"cpu": spent / arguments.requests, "before": memory, "after": process.memory_info().rss}
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def _wait(address: str) -> None:
    """Wait until the port accepts connections."""
    for _ in range(100):
        with contextlib.suppress(ConnectionRefusedError):
            connection = http.client.HTTPConnection(address, timeout=60)
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        time.sleep(0.1)


def _ask(address: str, texts: tuple[str, ...], *, count: int, connections: int) -> None:
    """Send requests of one text each; any error ends the program."""
    waiting = iter([*itertools.islice(itertools.cycle(texts), count)])
    lock = threading.Lock()

    def ask_on(_: Any) -> None:
        connection = http.client.HTTPConnection(address, timeout=60)
        while True:
            with lock:
                text = next(waiting, None)
            if text is None:
                return
            body = json.dumps({"inputs": text})
            connection.request("POST", "/predict", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                sys.exit(f"benchmark: error: {answer.status} {content.decode()}")

    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(ask_on, range(connections)))


if __name__ == "__main__":
    main()
