"""Start a server for a run, send it requests at a steady rate, and print what they met: latency, sub-network, label.

python examples/serve_and_load_test.py runs/tickets texts.txt --rate 20 --seconds 10
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from limbert import Client, LimbertError
from limbert.client import ServerPrediction

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("run")
parser.add_argument("texts", type=Path, help="a file with one text a line")
parser.add_argument("--rate", type=float, default=20.0, help="requests per second")
parser.add_argument("--seconds", type=float, default=10.0)
parser.add_argument("--slo", default="100ms", help="target for the latency of a request")
parser.add_argument("--port", default="8090")
options = parser.parse_args()


def timed_request(client: Client, text: str) -> tuple[float, ServerPrediction]:
    start = time.perf_counter()
    (prediction,) = client.predict([text])
    return time.perf_counter() - start, prediction


def wait_until_ready(client: Client, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            client.predict(["ready?"])
            return
        except LimbertError:  # not listening yet, or loading
            time.sleep(0.5)
    raise SystemExit("the server ended; see its output above")


texts = options.texts.read_text(encoding="utf-8").splitlines()
words = [sys.executable, "-m", "limbert", "serve", options.run, "--policy", "adaptive"]
with subprocess.Popen([*words, "--slo", options.slo, "--port", options.port]) as server:
    try:
        with Client(f"http://127.0.0.1:{options.port}") as client, ThreadPoolExecutor(64) as pool:
            wait_until_ready(client, server)
            start, pending = time.perf_counter(), []
            for number in range(int(options.rate * options.seconds)):
                time.sleep(max(0.0, start + number / options.rate - time.perf_counter()))
                pending.append(pool.submit(timed_request, client, texts[number % len(texts)]))
            finished = [future.result() for future in pending if future.exception() is None]
    finally:
        server.terminate()

latencies = sorted(seconds for seconds, _ in finished)
print(f"{len(finished)} of {len(pending)} requests predicted at {options.rate:g} per second")
if finished:
    p99 = latencies[int(0.99 * (len(latencies) - 1))]
    print(f"latency p50 {1000 * statistics.median(latencies):.1f} ms, p99 {1000 * p99:.1f} ms")
    print("sub-networks:", dict(Counter(prediction.subnet for _, prediction in finished)))
    print("labels:", dict(Counter(prediction.label for _, prediction in finished).most_common(3)))
