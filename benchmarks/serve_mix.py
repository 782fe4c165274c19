"""Requests of all kinds for `serve_robustness.py`, good ones and bad ones, each with what may come back.

What is right was worked out by the engine beforehand, without any server, for every text and every size.
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
    """Texts and pairs of all kinds, and what each size answers to each, worked out without any server."""

    def __init__(self, opened: LoadedCheckpoint, menu: ModelVariants, *, count: int, chance: random.Random) -> None:
        words = [word for word in opened.tokenizer.get_vocab() if word.isalpha() and len(word) > 2]
        special = ["", " ", "🥊🦊", "naïve Größe", "日本語のテキスト", "\x00\t\n", "a" * 3000, "e\u0301\u200d"]
        singles = [*special, *(_sentence(words, chance, opened.max_length) for _ in range(count - len(special)))]
        assert opened.task is not None
        self.texts: list[Text] = [] if opened.task.has_pairs else [(text, None) for text in singles]
        if opened.task.has_pairs is not False:
            self.texts += [(text, chance.choice(singles)) for text in singles[: count // 3]]
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
            for size in menu.variants:
                engine = Engine(opened.model, size.policy, task_type=opened.task.task_type)
                answers = run_policy(engine, tokens, batch_size=16, device=torch.device("cpu")).logits
                table = self._logits.setdefault(size.name, np.zeros((len(self.texts), answers.shape[1])))
                table[places] = answers
        self.short = [text for text, length in zip(self.texts, lengths, strict=True) if length <= self.limit]
        self.long = [text for text, length in zip(self.texts, lengths, strict=True) if length > self.limit]

    def logits(self, text: Text, size: str) -> np.ndarray:
        """What a size answers to a text: ``(outputs,)``."""
        return self._logits[size][self._place[text]]

    def right(self, text: Text, logits: list[float], sizes: str) -> bool:
        """Whether one of the sizes that answered says this."""
        return any(np.abs(self.logits(text, size) - np.array(logits)).max() < TOLERANCE for size in sizes.split(","))


def _sentence(words: list[str], chance: random.Random, limit: int) -> str:
    longest = chance.choices((8, 40, 2 * limit), (6, 3, 1))[0]
    return " ".join(chance.choices(words, k=chance.randint(1, longest)))


@dataclass(frozen=True)
class Call:
    """One request: its bytes, how they are sent, and what may come back.

    Attributes:
        kind: for the table at the end.
        data: head and body.
        allowed: statuses.
        check: whether a 200's headers and body are right.
        manner: ``at once``, ``trickle``, ``stop`` (and wait) or ``hang up``.
    """

    kind: str
    data: bytes
    allowed: tuple[int, ...]
    check: Callable[[dict[str, str], bytes], bool] = lambda headers, body: True
    manner: str = "at once"


class Mix:
    """Makes requests, by chance but the same from the same seed."""

    def __init__(self, pool: Pool, menu: ModelVariants, name: str, *, batch: int, chance: random.Random) -> None:
        self._pool, self._name, self._batch, self._chance = pool, name, batch, chance
        self.subnets = [size.name for size in menu.variants if size.kind == "subnet"]
        self._points = [size.name for size in menu.variants if size.kind == "policy"]
        self._known = [size.quality for size in menu.variants if size.quality is not None]

    def calls(self, count: int) -> Iterator[Call]:
        """So many requests."""
        makers = (self.good, self.wrong, self.broken, self.too_long, self.too_large, self.other, self.slow, self.gone)
        for maker in self._chance.choices(makers, (70, 8, 6, 3, 0.4, 3, 1, 4), k=count):
            yield maker()

    def good(self, wish: dict[str, Any] | None = None, texts: list[Text] | None = None) -> Call:
        """A request that can be answered."""
        chance = self._chance
        texts = texts or chance.choices(self._pool.texts, k=chance.choice((1, 1, 1, 2, min(8, self._batch))))
        wish = self._wish() if wish is None else wish
        return chance.choice((self._hugging_face, self._tei, self._json_tensors, self._binary_tensors))(texts, wish)

    def _wish(self) -> dict[str, Any]:
        chance = self._chance
        wishes: list[dict[str, Any]] = [{}, {}, {"subnet": chance.choice(self.subnets)}]
        wishes.append({"policy": chance.choice([*self._points, f"static:{chance.choice(self.subnets)}"])})
        wishes.append({"latency_budget_ms": chance.choice((0.01, 5, 50, 5000))})
        if self._known:
            wishes.append({"min_quality": chance.choice(self._known)})
        return chance.choice(wishes)

    def _hugging_face(self, texts: list[Text], wish: dict[str, Any]) -> Call:
        inputs = [one if pair is None else {"text": one, "text_pair": pair} for one, pair in texts]
        content = {"inputs": inputs, "parameters": wish | {"function_to_apply": "none"}}
        return self._call("huggingface", "/", content, lambda body: [self._in_order(row) for row in body], texts)

    def _tei(self, texts: list[Text], wish: dict[str, Any]) -> Call:
        texts = [text for text in texts if any(text)] or [self._pool.long[0]]  # TEI refuses empty ones
        inputs = [[part for part in text if part is not None] for text in texts]
        content = {"inputs": inputs, "parameters": wish, "raw_scores": True, "truncate": True}
        return self._call("tei", "/predict", content, lambda body: [self._in_order(row) for row in body], texts)

    def _in_order(self, row: list[dict[str, Any]]) -> list[float]:
        scores = {one["label"]: one["score"] for one in row}
        return [scores[label] for label in self._pool.labels] if self._pool.labels else [*scores.values()]

    def _json_tensors(self, texts: list[Text], wish: dict[str, Any]) -> Call:
        columns = self._columns(texts)
        shape = [len(texts)]
        tensors = [{"name": key, "datatype": "BYTES", "shape": shape, "data": data} for key, data in columns.items()]
        content = {"inputs": tensors, "outputs": [{"name": "LOGITS"}], "parameters": wish}
        return self._call("open inference", f"/v2/models/{self._name}/infer", content, _logits, texts)

    def _binary_tensors(self, texts: list[Text], wish: dict[str, Any]) -> Call:
        tensors, binary = [], b""
        for key, data in self._columns(texts).items():
            part = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in data)
            size = {"binary_data_size": len(part)}
            tensors.append({"name": key, "datatype": "BYTES", "shape": [len(texts)], "parameters": size})
            binary += part
        output = {"name": "LOGITS", "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": tensors, "outputs": [output], "parameters": wish}).encode()
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
        """JSON that is no request."""
        chance = self._chance
        values = (None, 3, True, {}, [], [None], [[]], [["a", 1]], {"text": None}, ["a", {"b": "c"}], "\ud800")
        value = chance.choice(values)
        parameters = chance.choice(
            ({"subnet": "7x7"}, {"subnet": 1}, {"latency_budget_ms": "x"}, {"top_j": 1}, [], "a")
        )
        content = chance.choice(
            ({"inputs": value}, {"inputs": "a", "parameters": parameters}, {"input": "a"}, [], None)
        )
        path = chance.choice(("/", "/predict", f"/v2/models/{self._name}/infer", f"/models/{self._name}"))
        return Call("wrong", _post(path, json.dumps(content).encode()), (400, 422))

    def broken(self) -> Call:
        """What is no JSON at all, or of another kind."""
        chance = self._chance
        digits = b'{"inputs": ' + b"9" * 5000 + b"}"
        bodies = (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"NaN", digits, chance.randbytes(300))
        header = chance.choice(("", "content-type: text/plain\r\n", "content-encoding: gzip\r\n"))
        header += chance.choice(("", "inference-header-content-length: 7\r\n"))
        path = chance.choice(("/", "/predict", f"/v2/models/{self._name}/infer"))
        return Call("broken", _post(path, chance.choice(bodies), header), (400, 415, 422))

    def too_long(self) -> Call:
        """A text beyond the limit that must not be cut, or a batch beyond its limit."""
        if not self._pool.long or self._chance.random() < 0.5:
            content: Any = {"inputs": [["a"]] * (self._batch + 1)}
        else:
            content = {"inputs": [[part for part in self._chance.choice(self._pool.long) if part is not None]]}
        return Call("too long", _post("/predict", json.dumps(content).encode()), (413,))

    def too_large(self) -> Call:
        """10 MB, with their length said before or in chunks without it; then the server may hang up early."""
        body = b'{"inputs": "' + b"a" * 10_000_000
        if self._chance.random() < 0.5:
            return Call("too large", _post("/", body), (413,))
        head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        return Call("too large, chunked", head + b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n", (413, 0))

    def other(self) -> Call:
        """What monitors ask, and what is nowhere."""
        paths = {"/health": 200, "/v2/health/ready": 200, "/metrics": 200, "/info": 200, "/none": 404, "/predict": 405}
        path = self._chance.choice([*paths])
        return Call("other", f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode(), (paths[path],))

    def slow(self) -> Call:
        """A client that takes its time, or never ends."""
        call = self.good()
        if self._chance.random() < 0.1:
            return Call("slow, never whole", call.data[:-1], (408,), manner="stop")
        return Call("slow", call.data, call.allowed, call.check, "trickle")

    def gone(self) -> Call:
        """A client that hangs up, before or after its request is whole."""
        call = self.good()
        end = len(call.data) if self._chance.random() < 0.7 else self._chance.randrange(len(call.data))
        return Call("hangs up", call.data[:end], (), manner="hang up")


def _logits(body: dict[str, Any]) -> list[list[float]]:
    tensor = body["outputs"][0]
    return np.array(tensor["data"]).reshape(tensor["shape"]).tolist()  # type: ignore[no-any-return]


def _post(path: str, body: bytes, headers: str = "") -> bytes:
    if "content-type" not in headers:
        headers += "content-type: application/json\r\n"
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body
