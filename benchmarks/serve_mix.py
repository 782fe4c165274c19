"""Requests of all kinds for `serve_robustness.py`, good ones and bad ones, each with what may come back.

The expected logits of every text at every variant are computed by the engine beforehand, without a server.
"""

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from limbert.data.readers import Examples
from limbert.data.tokenize import tokenize_texts
from limbert.inference.engine import Engine
from limbert.inference.load import LoadedCheckpoint
from limbert.inference.predict import run_policy
from limbert.serve.variants import ModelVariants

TOLERANCE = 2e-4  # of a logit: batches are padded, and sums take another order
BUSY = (200, 429)
Text = tuple[str, str | None]


class Pool:
    """Texts and pairs of all kinds with the logits of each variant, computed without a server."""

    def __init__(self, opened: LoadedCheckpoint, variants: ModelVariants, *, count: int, rng: random.Random) -> None:
        words = [word for word in opened.tokenizer.get_vocab() if word.isalpha() and len(word) > 2]
        special = ["", " ", "🥊🦊", "naïve Größe", "日本語のテキスト", "\x00\t\n", "a" * 3000, "e\u0301\u200d"]
        singles = [*special, *(_sentence(words, rng, opened.max_length) for _ in range(count - len(special)))]
        assert opened.task is not None
        self.texts: list[Text] = [] if opened.task.has_pairs else [(text, None) for text in singles]
        if opened.task.has_pairs is not False:
            self.texts += [(text, rng.choice(singles)) for text in singles[: count // 3]]
        self.limit = opened.max_length
        self.labels = opened.task.labels
        self._place = {text: place for place, text in enumerate(self.texts)}
        lengths, self._logits = [0] * len(self.texts), {}
        for paired in (False, True):
            places = [place for place, (_, pair) in enumerate(self.texts) if (pair is not None) == paired]
            if not places:
                continue
            pairs = tuple(str(self.texts[place][1]) for place in places) if paired else None
            examples = Examples(tuple(self.texts[place][0] for place in places), pairs, None)
            longest = opened.model.max_input_length
            whole = tokenize_texts(examples, opened.tokenizer, max_length=longest, use_cache=False)
            for place, length in zip(places, whole.lengths, strict=True):
                lengths[place] = int(length)
            tokens = tokenize_texts(examples, opened.tokenizer, max_length=opened.max_length, use_cache=False)
            for variant in variants.variants:
                engine = Engine(opened.model, variant.policy, task_type=opened.task.task_type)
                answers = run_policy(engine, tokens, batch_size=16, device=torch.device("cpu")).logits
                table = self._logits.setdefault(variant.name, np.zeros((len(self.texts), answers.shape[1])))
                table[places] = answers
        self.short = [text for text, length in zip(self.texts, lengths, strict=True) if length <= self.limit]
        self.long = [text for text, length in zip(self.texts, lengths, strict=True) if length > self.limit]

    def logits(self, text: Text, variant: str) -> np.ndarray:
        """The logits ``(outputs,)`` of a variant for a text."""
        return self._logits[variant][self._place[text]]

    def right(self, text: Text, logits: list[float], names: str) -> bool:
        """Whether one of the variants that ran has these logits."""
        return any(np.abs(self.logits(text, name) - np.array(logits)).max() < TOLERANCE for name in names.split(","))


def _sentence(words: list[str], rng: random.Random, limit: int) -> str:
    longest = rng.choices((8, 40, 2 * limit), (6, 3, 1))[0]
    return " ".join(rng.choices(words, k=rng.randint(1, longest)))


@dataclass(frozen=True)
class Call:
    """One request: its bytes, how they are sent, and what may come back.

    Attributes:
        kind: for the table at the end.
        data: head and body.
        allowed: statuses.
        check: whether a 200's headers and body are right.
        manner: ``at once``, ``trickle``, ``stop`` (and wait) or ``disconnect``.
    """

    kind: str
    data: bytes
    allowed: tuple[int, ...]
    check: Callable[[dict[str, str], bytes], bool] = lambda headers, body: True
    manner: str = "at once"


class Mix:
    """Random requests, reproducible by seed."""

    def __init__(self, pool: Pool, variants: ModelVariants, name: str, *, batch: int, rng: random.Random) -> None:
        self._pool, self._name, self._batch, self._rng = pool, name, batch, rng
        self.subnets = [variant.name for variant in variants.variants if variant.kind == "subnet"]
        self._points = [variant.name for variant in variants.variants if variant.kind == "policy"]
        self._known = [variant.quality for variant in variants.variants if variant.quality is not None]

    def calls(self, count: int) -> Iterator[Call]:
        """So many requests."""
        makers = (self.good, self.wrong, self.broken, self.too_long, self.too_large, self.other, self.slow, self.gone)
        for maker in self._rng.choices(makers, (70, 8, 6, 3, 0.4, 3, 1, 4), k=count):
            yield maker()

    def good(self, options: dict[str, Any] | None = None, texts: list[Text] | None = None) -> Call:
        """A valid request."""
        rng = self._rng
        texts = texts or rng.choices(self._pool.texts, k=rng.choice((1, 1, 1, 2, min(8, self._batch))))
        options = self._options() if options is None else options
        return rng.choice((self._hugging_face, self._tei, self._json_tensors, self._binary_tensors))(texts, options)

    def _options(self) -> dict[str, Any]:
        rng = self._rng
        choices: list[dict[str, Any]] = [{}, {}, {"subnet": rng.choice(self.subnets)}]
        choices.append({"policy": rng.choice([*self._points, f"static:{rng.choice(self.subnets)}"])})
        choices.append({"latency_budget_ms": rng.choice((0.01, 5, 50, 5000))})
        if self._known:
            choices.append({"min_quality": rng.choice(self._known)})
        return rng.choice(choices)

    def _hugging_face(self, texts: list[Text], options: dict[str, Any]) -> Call:
        inputs = [one if pair is None else {"text": one, "text_pair": pair} for one, pair in texts]
        content = {"inputs": inputs, "parameters": options | {"function_to_apply": "none"}}
        return self._call("huggingface", "/", content, lambda body: [self._in_order(row) for row in body], texts)

    def _tei(self, texts: list[Text], options: dict[str, Any]) -> Call:
        texts = [text for text in texts if any(text)] or [self._pool.long[0]]  # TEI refuses empty ones
        inputs = [[part for part in text if part is not None] for text in texts]
        content = {"inputs": inputs, "parameters": options, "raw_scores": True, "truncate": True}
        return self._call("tei", "/predict", content, lambda body: [self._in_order(row) for row in body], texts)

    def _in_order(self, row: list[dict[str, Any]]) -> list[float]:
        scores = {one["label"]: one["score"] for one in row}
        return [scores[label] for label in self._pool.labels] if self._pool.labels else [*scores.values()]

    def _json_tensors(self, texts: list[Text], options: dict[str, Any]) -> Call:
        columns = self._columns(texts)
        shape = [len(texts)]
        tensors = [{"name": key, "datatype": "BYTES", "shape": shape, "data": data} for key, data in columns.items()]
        content = {"inputs": tensors, "outputs": [{"name": "LOGITS"}], "parameters": options}
        return self._call("open inference", f"/v2/models/{self._name}/infer", content, _logits, texts)

    def _binary_tensors(self, texts: list[Text], options: dict[str, Any]) -> Call:
        tensors, binary = [], b""
        for key, data in self._columns(texts).items():
            part = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in data)
            size = {"binary_data_size": len(part)}
            tensors.append({"name": key, "datatype": "BYTES", "shape": [len(texts)], "parameters": size})
            binary += part
        output = {"name": "LOGITS", "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": tensors, "outputs": [output], "parameters": options}).encode()
        lengths = f"inference-header-content-length: {len(head)}\r\n"
        data = _post(f"/v2/models/{self._name}/infer", head + binary, lengths)
        return Call("open inference, binary", data, BUSY, partial(self._right, texts, None))

    def _columns(self, texts: list[Text]) -> dict[str, list[str]]:
        paired = any(pair is not None for _, pair in texts)
        if not paired:
            return {"TEXT": [text for text, _ in texts]}
        texts[:] = [text for text in texts if text[1] is not None]  # tensors hold pairs or none
        return {"TEXT": [text for text, _ in texts], "TEXT_PAIR": [str(pair) for _, pair in texts]}

    def _call(
        self, kind: str, path: str, content: Any, read: Callable[[Any], list[list[float]]], texts: list[Text]
    ) -> Call:
        return Call(kind, _post(path, json.dumps(content).encode()), BUSY, partial(self._right, texts, read))

    def _right(
        self, texts: list[Text], read: Callable[[Any], list[list[float]]] | None, headers: dict[str, str], body: bytes
    ) -> bool:
        if read is None:
            binary = body[int(headers["inference-header-content-length"]) :]
            rows = np.frombuffer(binary, dtype="<f4").reshape(len(texts), -1).tolist()
        else:
            rows = read(json.loads(body))
        sizes = headers["x-limbert-size"]
        return len(rows) == len(texts) and all(
            self._pool.right(text, row, sizes) for text, row in zip(texts, rows, strict=True)
        )

    def wrong(self) -> Call:
        """JSON that is not a valid request."""
        rng = self._rng
        values = (None, 3, True, {}, [], [None], [[]], [["a", 1]], {"text": None}, ["a", {"b": "c"}], "\ud800")
        value = rng.choice(values)
        parameters = rng.choice(({"subnet": "7x7"}, {"subnet": 1}, {"latency_budget_ms": "x"}, {"top_j": 1}, [], "a"))
        content = rng.choice(({"inputs": value}, {"inputs": "a", "parameters": parameters}, {"input": "a"}, [], None))
        path = rng.choice(("/", "/predict", f"/v2/models/{self._name}/infer", f"/models/{self._name}"))
        return Call("wrong", _post(path, json.dumps(content).encode()), (400, 422))

    def broken(self) -> Call:
        """A body that is not JSON, or of another content type."""
        rng = self._rng
        digits = b'{"inputs": ' + b"9" * 5000 + b"}"
        bodies = (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"NaN", digits, rng.randbytes(300))
        header = rng.choice(("", "content-type: text/plain\r\n", "content-encoding: gzip\r\n"))
        header += rng.choice(("", "inference-header-content-length: 7\r\n"))
        path = rng.choice(("/", "/predict", f"/v2/models/{self._name}/infer"))
        return Call("broken", _post(path, rng.choice(bodies), header), (400, 415, 422))

    def too_long(self) -> Call:
        """A text over the limit without truncation, or a batch over the limit."""
        if not self._pool.long or self._rng.random() < 0.5:
            content: Any = {"inputs": [["a"]] * (self._batch + 1)}
        else:
            content = {"inputs": [[part for part in self._rng.choice(self._pool.long) if part is not None]]}
        return Call("too long", _post("/predict", json.dumps(content).encode()), (413,))

    def too_large(self) -> Call:
        """10 MB, with a content length or chunked; the server may close the connection early."""
        body = b'{"inputs": "' + b"a" * 10_000_000
        if self._rng.random() < 0.5:
            return Call("too large", _post("/", body), (413,))
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        return Call("too large, chunked", head + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n", (413, 0))

    def other(self) -> Call:
        """What monitors ask, and what is nowhere."""
        paths = {"/health": 200, "/v2/health/ready": 200, "/metrics": 200, "/info": 200, "/none": 404, "/predict": 405}
        path = self._rng.choice([*paths])
        return Call("other", f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode(), (paths[path],))

    def slow(self) -> Call:
        """A client that takes its time, or never ends."""
        call = self.good()
        if self._rng.random() < 0.1:
            return Call("slow, never whole", call.data[:-1], (408,), manner="stop")
        return Call("slow", call.data, call.allowed, call.check, "trickle")

    def gone(self) -> Call:
        """A client that disconnects, before or after its request is complete."""
        call = self.good()
        end = len(call.data) if self._rng.random() < 0.7 else self._rng.randrange(len(call.data))
        return Call("disconnects", call.data[:end], (), manner="disconnect")


def _logits(body: dict[str, Any]) -> list[list[float]]:
    tensor = body["outputs"][0]
    return np.array(tensor["data"]).reshape(tensor["shape"]).tolist()  # type: ignore[no-any-return]


def _post(path: str, body: bytes, headers: str = "") -> bytes:
    if "content-type" not in headers:
        headers += "content-type: application/json\r\n"
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body
