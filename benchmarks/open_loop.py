"""A load generator for HTTP/1.1 on one core: requests leave at drawn times, whether or not others came back.

Latency counts from the time a request was due to leave, so that a slow server, or this program itself being late,
cannot hide. Instructions come as one JSON object on standard input, results leave as one on standard output.
`benchmarks/serve.py` runs it in a process of its own.
"""

import asyncio
import json
import random
import resource
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Sent:
    """One request and what became of it: status 0 where nothing came."""

    text: int
    due: float
    seconds: float = 0.0
    status: int = 0
    size: str = ""
    label: str = ""
    inference: float = 0.0


@dataclass
class Load:
    """Everything that connections share."""

    host: str
    port: int
    requests: list[bytes]
    free: deque["Connection"] = field(default_factory=deque)
    waiting: deque[Sent] = field(default_factory=deque)
    opened: int = 0
    most: int = 512
    open_now: int = 0
    again: Any = None  # closed loop: called when one has come back

    def send(self, sent: Sent) -> None:
        """On a free connection, or a new one, or when one gets free."""
        if self.free:
            self.free.pop().send(sent)
            return
        self.waiting.append(sent)
        if self.opened < self.most:
            self.opened += 1
            loop = asyncio.get_running_loop()
            task = loop.create_task(loop.create_connection(lambda: Connection(self), self.host, self.port))
            task.add_done_callback(lambda done: done.exception())


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request in progress."""

    def __init__(self, load: Load) -> None:
        self.load, self.buffer, self.sent = load, b"", None

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
        sent.seconds, sent.status = time.perf_counter() - sent.due, int(head[9:12])
        if sent.status == 200:
            sent.size = headers[b"x-limbert-size"].decode()
            sent.inference = float(headers[b"x-limbert-inference-ms"]) / 1000
            sent.label = body.partition(b'"label":"')[2].partition(b'"')[0].decode()  # the first is the most probable
        self._next()
        if self.load.again is not None:
            self.load.again()

    def connection_lost(self, error: Exception | None) -> None:
        self.load.opened -= 1
        if self in self.load.free:
            self.load.free.remove(self)

    def _next(self) -> None:
        if self.load.waiting:
            self.send(self.load.waiting.popleft())
        else:
            self.load.free.append(self)


async def run(task: dict[str, Any]) -> dict[str, Any]:
    """Send, and wait some seconds at most for requests in progress."""
    url = urlsplit(task["url"])
    load = Load(url.hostname, url.port, [request_bytes(url.netloc, text) for text in task["texts"]])
    all_sent: list[Sent] = []
    loop, draw = asyncio.get_running_loop(), random.Random(task["seed"])
    used, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    end = begin + task["seconds"]
    if task.get("concurrency"):

        def once() -> None:
            if time.perf_counter() < end:
                sent = Sent(draw.randrange(len(load.requests)), time.perf_counter())
                all_sent.append(sent)
                load.send(sent)

        load.again = once
        for _ in range(task["concurrency"]):
            once()
        await asyncio.sleep(task["seconds"])
    else:
        due = begin + draw.expovariate(task["rate"])
        while due < end:
            while due <= time.perf_counter():
                sent = Sent(draw.randrange(len(load.requests)), due)
                all_sent.append(sent)
                load.send(sent)
                due += draw.expovariate(task["rate"])
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
    spent = resource.getrusage(resource.RUSAGE_SELF)
    cpu = (spent.ru_utime + spent.ru_stime - used.ru_utime - used.ru_stime) / (time.perf_counter() - begin)
    late = loop.time() + task.get("grace", 5.0)
    while any(sent.status == 0 for sent in all_sent[-2000:]) and loop.time() < late:
        await asyncio.sleep(0.05)
    rows = [
        [sent.text, sent.due - begin, sent.seconds, sent.status, sent.size, sent.label, sent.inference]
        for sent in all_sent
    ]
    return {"cpu": cpu, "rows": rows}


def request_bytes(host: str, text: str) -> bytes:
    """A whole request in the TEI protocol."""
    body = json.dumps({"inputs": text}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


if __name__ == "__main__":
    task = json.load(sys.stdin)
    try:
        import uvloop

        result = uvloop.run(run(task))
    except ImportError:
        result = asyncio.run(run(task))
    json.dump(result, sys.stdout)
