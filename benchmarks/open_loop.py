"""A load generator for HTTP/1.1 on one core: requests leave at given times, whether or not others came back.

Latency counts from the time a request was due to leave, so that a slow server, or this program itself being late,
cannot hide. A request whose connection breaks is sent again. Instructions come as one JSON object on standard input,
results leave as one on standard output. `benchmarks/serve.py` runs it in a process of its own.
"""

import asyncio
import json
import random
import resource
import sys
import time
from collections import deque
from dataclasses import astuple, dataclass, field
from typing import Any
from urllib.parse import urlsplit

MAX_CONNECTIONS = 512


@dataclass
class Sent:
    """One request and what became of it: status 0 where nothing came."""

    text: int
    due: float
    seconds: float = 0.0
    status: int = 0
    variant: str = ""
    label: str = ""
    inference: float = 0.0  # seconds
    again: int = 0  # times it was sent again


@dataclass
class Load:
    """Everything that connections share."""

    host: str
    port: int
    requests: list[bytes]
    free: deque["Connection"] = field(default_factory=deque)
    waiting: deque[Sent] = field(default_factory=deque)
    opened: int = 0
    next_one: Any = None  # closed loop: called when one has come back

    def send(self, sent: Sent) -> None:
        """On a free connection, or a new one, or when one gets free."""
        if self.free:
            self.free.pop().send(sent)
            return
        self.waiting.append(sent)
        if self.opened < MAX_CONNECTIONS:
            self.opened += 1
            asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.create_connection(lambda: Connection(self), self.host, self.port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                return


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request in progress."""

    def __init__(self, load: Load) -> None:
        self.load, self.buffer = load, b""
        self.sent: Sent | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._next()

    def send(self, sent: Sent) -> None:
        self.sent = sent
        self.transport.write(self.load.requests[sent.text])

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers.get(b"content-length", b"0")):
            return
        sent, self.sent, self.buffer = self.sent, None, b""
        assert sent is not None
        sent.seconds, sent.status = time.perf_counter() - sent.due, int(head[9:12])
        if sent.status == 200:
            sent.variant = headers[b"x-limbert-size"].decode()
            sent.inference = float(headers[b"x-limbert-inference-ms"]) / 1000
            sent.label = body.partition(b'"label":"')[2].partition(b'"')[0].decode()  # the first is the most probable
        self._next()
        if self.load.next_one is not None:
            self.load.next_one()

    def connection_lost(self, error: Exception | None) -> None:
        self.load.opened -= 1
        if self in self.load.free:
            self.load.free.remove(self)
        if self.sent is not None:
            self.sent.again += 1
            self.load.send(self.sent)

    def _next(self) -> None:
        if self.load.waiting:
            self.send(self.load.waiting.popleft())
        else:
            self.load.free.append(self)


async def run(task: dict[str, Any]) -> dict[str, Any]:
    """Send, and wait some seconds at most for requests in progress."""
    url, rng = urlsplit(task["url"]), random.Random(task["seed"])
    load = Load(url.hostname, url.port, [_request_bytes(url.netloc, body) for body in task["bodies"]])
    all_sent: list[Sent] = []
    used, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()

    def send(due: float) -> None:
        all_sent.append(Sent(rng.randrange(len(load.requests)), due))
        load.send(all_sent[-1])

    if task.get("concurrency"):
        end = begin + task["seconds"]
        load.next_one = lambda: send(time.perf_counter()) if time.perf_counter() < end else None
        for _ in range(task["concurrency"]):
            send(time.perf_counter())
        await asyncio.sleep(task["seconds"])
    for at in task.get("times", ()):
        while (wait := begin + at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        send(begin + at)
    spent = resource.getrusage(resource.RUSAGE_SELF)
    cpu = (spent.ru_utime + spent.ru_stime - used.ru_utime - used.ru_stime) / (time.perf_counter() - begin)
    late = time.perf_counter() + task.get("grace", 5.0)
    while any(sent.status == 0 for sent in all_sent[-2000:]) and time.perf_counter() < late:
        await asyncio.sleep(0.05)
    for sent in all_sent:
        sent.due -= begin
    return {"cpu": cpu, "begin": begin, "rows": [astuple(sent) for sent in all_sent]}


def _request_bytes(host: str, body: str) -> bytes:
    content = body.encode()
    head = f"POST /predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


if __name__ == "__main__":
    task = json.load(sys.stdin)
    try:
        import uvloop

        result = uvloop.run(run(task))
    except ImportError:
        result = asyncio.run(run(task))
    json.dump(result, sys.stdout)
