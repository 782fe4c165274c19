"""Checks that every request gets one correct response, with tens of thousands of mixed requests.

Runs a server process and sends it requests over many connections: valid ones in all three protocols (variants, budgets,
batches, pairs, emoji, empty texts, lengths beyond the limit), invalid ones (nulls, wrong types, no JSON, too large),
slow clients and clients that disconnect. Every prediction is compared with the engine's for the variant that ran,
every error with the expected one. At the end SIGTERM, with requests in progress. `serve_mix` makes the requests.

Example: python benchmarks/serve_robustness.py runs/sst2 --requests 50000
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from serve_mix import Call, Mix, Pool

from limbert.errors import LimbertError
from limbert.inference.load import load_checkpoint
from limbert.serve.variants import ModelVariants


@dataclass
class Report:
    """Responses by type of request, and what was wrong."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    answered: int = 0  # with 200, in a protocol, and compared

    def note(self, call: Call, status: int, headers: dict[str, str], body: bytes) -> None:
        """Check one response."""
        self.statuses.setdefault(call.kind, Counter())[status] += 1
        if call.manner == "disconnect":
            return
        if status not in call.allowed:
            self.wrong.append(f"{call.kind}: {status}, not {call.allowed}: {body[:200]!r} to {call.data[:300]!r}")
        elif status == 200 and not call.check(headers, body):
            self.wrong.append(f"{call.kind}: other numbers than the engine's: {body[:200]!r} to {call.data[:300]!r}")
        elif status == 200 and "x-limbert-size" in headers:
            self.answered += 1


class Connection:
    """One keep-alive connection, opened again where the server or a call has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, call: Call) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; status 0 where the server has closed the connection instead."""
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self._address)
        try:
            await self._send(call, self._writer)
            if call.manner == "disconnect":
                self.close()
                return 0, {}, b""
            answer = await asyncio.wait_for(self._answer(self._reader), 120)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            return 0, {}, b""
        if answer[1].get("connection") == "close":
            self.close()
        return answer

    async def announce(self, call: Call) -> None:
        """Send the head alone and wait until the server asks for the body: the request is certainly in progress."""
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        line, rest = _head(call).split(b"\r\n", 1)
        self._writer.write(line + b"\r\nexpect: 100-continue\r\n" + rest)
        said = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 120)
        assert said.startswith(b"HTTP/1.1 100 "), said

    def send_body(self, call: Call) -> None:
        """What `announce` has held back."""
        assert self._writer is not None
        self._writer.write(call.data[len(_head(call)) :])

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to `send_body`; status 0 where the connection was closed instead."""
        assert self._reader is not None
        try:
            return await asyncio.wait_for(self._answer(self._reader), 120)
        except (ConnectionError, asyncio.IncompleteReadError):
            return 0, {}, b""

    def close(self) -> None:
        """Hang up."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    @staticmethod
    async def _send(call: Call, writer: asyncio.StreamWriter) -> None:
        pieces = 8 if call.manner == "trickle" else 1
        step = max(1, -(-len(call.data) // pieces))
        for start in range(0, len(call.data), step):
            writer.write(call.data[start : start + step])
            await writer.drain()
            if pieces > 1:
                await asyncio.sleep(0.02)

    @staticmethod
    async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        return int(head[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", "0")))


async def drive(
    host: str, port: int, calls: Iterator[Call], *, connections: int, each: Callable[[int], None] = lambda done: None
) -> Report:
    """Ask all calls over so many connections at once.

    Args:
        host: the server's.
        port: the server's.
        calls: what to ask.
        connections: each asks one call after the other.
        each: called with the number of calls done.
    """
    report, done = Report(), 0

    async def work() -> None:
        nonlocal done
        connection = Connection(host, port)
        for call in calls:  # shared: each takes the next
            report.note(call, *await connection.ask(call))
            done += 1
            each(done)
        connection.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    return report


async def wait_until_ready(host: str, port: int, *, seconds: float = 60) -> None:
    """Ask until requests are taken: a server says its address shortly before it listens there."""
    ask = Call("", b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n", (200,))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if (await Connection(host, port).ask(ask))[0] == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.05)
    sys.exit(f"benchmark: error: the server is not ready after {seconds:g} s")


async def end_under_way(process: "subprocess.Popen[str]", host: str, port: int, mix: Mix, pool: Pool) -> Report:
    """SIGTERM while requests are in progress, half of them without their bodies yet: all must get correct responses."""
    options = {"subnet": mix.subnets[0], "latency_budget_ms": 60_000}
    calls = [mix.good(options, [text for text in pool.short if text[0]][-24:]) for _ in range(24)]
    connections = [Connection(host, port) for _ in calls]
    for connection, call in zip(connections, calls, strict=True):
        await connection.announce(call)
    for connection, call in zip(connections[:12], calls[:12], strict=True):
        connection.send_body(call)
    process.send_signal(signal.SIGTERM)
    await wait_until_closed(host, port)
    for connection, call in zip(connections[12:], calls[12:], strict=True):
        connection.send_body(call)
    report = Report()
    for connection, call in zip(connections, calls, strict=True):
        report.note(call, *await connection.answer())
        connection.close()
    return report


async def wait_until_closed(host: str, port: int, *, seconds: float = 60) -> None:
    """Connect until that is refused: the server has begun to end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
        except OSError:
            return
        await asyncio.sleep(0.01)
    sys.exit(f"benchmark: error: the server takes connections {seconds:g} s after SIGTERM")


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    rng = random.Random(arguments.seed)
    try:
        opened = load_checkpoint(arguments.run)
        assert opened.task is not None
        variants = ModelVariants.from_run(arguments.run, opened.model, task=opened.task)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    pool = Pool(opened, variants, count=arguments.texts, rng=rng)
    options = [
        "--port",
        "0",
        "--json",
        "--slo",
        arguments.slo,
        "--max-texts",
        "32",
        "--name",
        "model",
        "--threads",
        "1",
    ]
    command = [sys.executable, "-m", "limbert", "serve", arguments.run, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        host, _, port = json.loads(_json_text(process.stdout))["url"].removeprefix("http://").partition(":")
        mix = Mix(pool, variants, "model", batch=32, rng=rng)
        memory = psutil.Process(process.pid)
        kept: list[float] = []

        def each(done: int) -> None:
            if done % max(1, arguments.requests // 20) == 0:
                kept.append(memory.memory_info().rss / 1e6)
                print(f"{done:6d} requests, server {kept[-1]:.0f} MB", file=sys.stderr)

        asyncio.run(wait_until_ready(host, int(port)))
        start = time.perf_counter()
        report = asyncio.run(
            drive(host, int(port), mix.calls(arguments.requests), connections=arguments.connections, each=each)
        )
        seconds = time.perf_counter() - start
        ending = asyncio.run(end_under_way(process, host, int(port), mix, pool))
        code = process.wait(60)
    finally:
        process.kill()
    _print(report, ending, kept, seconds=seconds, code=code)
    sys.exit(bool(report.wrong or ending.wrong or code not in (0, -signal.SIGTERM)))


def _head(call: Call) -> bytes:
    return call.data[: call.data.index(b"\r\n\r\n") + 4]


def _json_text(lines: Iterator[str]) -> str:
    """One JSON value, which may stand on several lines."""
    text = ""
    for line in lines:
        text += line
        if text.count("{") == text.count("}") > 0:
            return text
    sys.exit("benchmark: error: the server did not start")


def _print(report: Report, ending: Report, kept: list[float], *, seconds: float, code: int) -> None:
    for kind, statuses in sorted(report.statuses.items()):
        print(f"{kind:24s}", "  ".join(f"{status}: {count}" for status, count in sorted(statuses.items())))
    total = sum(sum(statuses.values()) for statuses in report.statuses.values())
    print(f"{total} requests in {seconds:.0f} s; {report.answered} predictions compared; wrong: {len(report.wrong)}")
    print(f"server's memory at 5 %: {kept[0]:.0f} MB, half-way: {kept[len(kept) // 2]:.0f} MB, end: {kept[-1]:.0f} MB")
    print(f"SIGTERM: {ending.answered} of 24 in progress completed and compared; exit code {code}")
    for line in [*report.wrong, *ending.wrong][:20]:
        print("WRONG", line)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="elastic model that classifies or scores texts")
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--texts", type=int, default=240, help="different texts; each is sent many times")
    parser.add_argument("--slo", default="10s", help="of the server, long enough that few requests are refused")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not Path(arguments.run).is_dir():
        parser.error(f"{arguments.run} is not a folder")
    return arguments


if __name__ == "__main__":
    main()
