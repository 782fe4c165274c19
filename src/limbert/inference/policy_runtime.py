"""Runs a policy (exits, a cascade, width gates) on exported segments, with numpy and one runtime.

This file stands alone: it needs numpy, tokenizers and onnxruntime or openvino, neither torch nor Limbert. An export has
a copy of it beside the segments::

    python policy_runtime.py "Where is my card?"

    from policy_runtime import predict
    predict(["Where is my card?", "I was charged twice."])  # [(label, score), (label, score)]

A segment is what runs between two decisions. After it, examples with a final prediction leave the batch, and a gate
chooses the width at which each of the others runs the next segment. ``policy.json`` says all of this.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Model = Callable[[Arrays], Arrays]
POLICY_NAME = "policy.json"
_OPENVINO_TOKEN_MULTIPLE = 8  # it compiles kernels for each new shape of a batch


class PolicyRuntime:
    """A policy on its segments; must not be called from two threads at once.

    Args:
        folder: with ``policy.json`` and the segments.
        threads: of the runtime; None: its default.
        precision: ``fp32``, or with OpenVINO ``bf16``.

    Attributes:
        policy: the content of ``policy.json``; without ``exits`` every example runs to the end.
        models: by path in the folder, a function from a segment's inputs to its outputs.
        token_multiple: batches are padded to a multiple of so many tokens.
    """

    def __init__(self, folder: str | Path, *, threads: int | None = None, precision: str = "fp32") -> None:
        self._folder = Path(folder)
        self.policy: dict[str, Any] = json.loads((self._folder / POLICY_NAME).read_text(encoding="utf-8"))
        is_openvino = self.policy["runtime"] == "openvino"
        load = _load_openvino if is_openvino else _load_onnxruntime
        self.token_multiple = _OPENVINO_TOKEN_MULTIPLE if is_openvino else 1
        files = [file for segment in self.policy["segments"] for file in segment["files"] if file is not None]
        self.models = {file: load(self._folder / file, threads, precision) for file in files}

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32) -> list[Any]:
        """``(label, score)`` for each text, or pair of texts; the score is the label's probability.

        Of a multi-label task: a list of these for each text, the most probable first. Of a regression: the value.
        """
        if isinstance(texts, str) or isinstance(pairs, str):
            raise TypeError("texts must be a list of strings, not one string")
        encodings = self._tokenizer.encode_batch(list(texts if pairs is None else zip(texts, pairs, strict=True)))
        order = np.argsort([-len(encoding.ids) for encoding in encodings], kind="stable")
        predictions: dict[int, Any] = {}
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            logits, _ = self.run(self._collate([encodings[row] for row in rows]))
            predictions |= zip(rows, map(self._decode, logits), strict=True)
        return [predictions[row] for row in range(len(encodings))]

    def run(self, inputs: Arrays) -> tuple[np.ndarray, np.ndarray]:
        """Run a batch of tokens, ``(batch, tokens)`` each, padded on the right.

        Returns:
            Calibrated logits ``(batch, outputs)``, and ``(batch, segments)`` the option (width) that each segment ran
            at; -1 where it did not run.
        """
        batch, segments = len(inputs["attention_mask"]), self.policy["segments"]
        values, path = dict(inputs), np.full((batch, len(segments)), -1)
        rows, options = np.arange(batch), np.zeros(batch, dtype=np.int64)  # of the examples that still run
        exit_logits: list[np.ndarray] = []  # theirs, at the exits so far
        finished: list[tuple[np.ndarray, np.ndarray]] = []  # rows, and their logits
        for number, segment in enumerate(segments):
            path[rows, number] = options
            outputs = self._run_segment(segment, options, values)
            if "next_state" in outputs:
                values["state"] = outputs["next_state"]
            if "gate" in outputs:
                options = np.array(segment["gate_options"])[outputs["gate"].argmax(axis=-1)]
            if "logits" not in outputs:
                continue
            exit_logits.append(outputs["logits"] / np.float32(segment["temperature"]))
            stays = np.full(len(rows), number + 1 < len(segments))
            if number + 1 < len(segments) and self.policy["exits"] is not None:
                stays = ~is_final(exit_logits, task_type=self.policy["task_type"], **self.policy["exits"])
            if stays.all():
                continue
            finished.append((rows[~stays], exit_logits[-1][~stays]))
            rows, options = rows[stays], options[stays]
            if not len(rows):
                break
            exit_logits = [logits[stays] for logits in exit_logits]
            tokens = int(values["attention_mask"][stays].sum(axis=1).max())
            values = {name: value[stays, :tokens] for name, value in values.items()}
        order = np.concatenate([part for part, _ in finished]).argsort()
        return np.concatenate([logits for _, logits in finished])[order], path

    def _run_segment(self, segment: dict[str, Any], options: np.ndarray, values: Arrays) -> Arrays:
        """The outputs in the order of the examples; those with one option run together."""
        merged: Arrays = {}
        for option in np.unique(options):
            members = options == option
            model = self.models[segment["files"][option]]
            if members.all():
                return self._call(model, {name: values[name] for name in segment["inputs"]})
            part = self._call(model, {name: values[name][members] for name in segment["inputs"]})
            for name, output in part.items():
                merged.setdefault(name, np.empty((len(options), *output.shape[1:]), output.dtype))[members] = output
        return merged

    def _call(self, model: Model, values: Arrays) -> Arrays:
        """The model's outputs, for OpenVINO with padding that leaves few shapes: 1, 2, 3, 4, 6, 8, 12, 16 ... rows."""
        if self.token_multiple == 1:
            return model(values)
        rows, tokens = values["attention_mask"].shape
        step = 1 << max(0, rows.bit_length() - 2)
        missing_tokens = min(-tokens % self.token_multiple, max(0, self.policy["max_positions"] - tokens))
        if -rows % step or missing_tokens:
            pad = self.policy["pad_token_id"]
            padding = [(0, 0), (0, missing_tokens), (0, 0)]
            copied = np.minimum(np.arange(rows + -rows % step), rows - 1)  # the last row again
            values = {
                name: np.pad(value[copied], padding[: value.ndim], constant_values=pad if name == "input_ids" else 0)
                for name, value in values.items()
            }
        outputs = {name: value[:rows] for name, value in model(values).items()}
        return {name: value[:, :tokens] if name == "next_state" else value for name, value in outputs.items()}

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.policy["max_length"])
        return tokenizer

    def _collate(self, encodings: Sequence[Any]) -> Arrays:
        """A batch, padded on the right to its longest text."""
        pad, tokens = self.policy["pad_token_id"], max(len(encoding.ids) for encoding in encodings)
        arrays = {
            name: np.full((len(encodings), tokens), fill, dtype=np.int64)
            for name, fill in (("input_ids", pad), ("attention_mask", 0), ("token_type_ids", 0))
        }
        for row, encoding in enumerate(encodings):
            for array, values in zip(arrays.values(), (encoding.ids, 1, encoding.type_ids), strict=True):
                array[row, : len(encoding.ids)] = values
        return arrays

    def _decode(self, logits: np.ndarray) -> Any:
        """One example's logits ``(outputs,)`` in the terms of the task."""
        labels, task_type = self.policy["labels"], self.policy["task_type"]
        if task_type == "regression":
            return float(logits[0])
        scores = _probabilities(logits, task_type=task_type)
        order = np.argsort(-scores, kind="stable")
        best = [(labels[index], float(scores[index])) for index in order]
        return [(label, score) for label, score in best if score > 0.5] if task_type == "multi-label" else best[0]


def is_final(logits: Sequence[np.ndarray], *, task_type: str, rule: str, threshold: float) -> np.ndarray:
    """Whether the logits of each example, ``(examples, outputs)`` at all exits so far, satisfy an exit rule."""
    current = logits[-1]
    if rule == "patience":
        if task_type == "regression":
            if len(logits) < 2:
                return np.zeros(len(current), dtype=bool)
            return np.abs(current - logits[-2])[:, 0] < threshold
        labels = [at_exit > 0 if task_type == "multi-label" else at_exit.argmax(-1)[:, None] for at_exit in logits]
        same = np.array([np.ones(len(current)), *((earlier == labels[-1]).all(-1) for earlier in labels[-2::-1])])
        return same.cumprod(axis=0).sum(axis=0) - 1 >= threshold
    scores = _probabilities(current, task_type=task_type)
    if task_type == "multi-label":  # the least certain label decides
        scores = np.stack([scores, 1 - scores], axis=-1)
    if rule == "confidence":
        return (scores.max(axis=-1) if scores.ndim == 2 else scores.max(axis=-1).min(axis=-1)) >= threshold
    entropy = -(scores * np.log(scores, where=scores > 0, out=np.zeros_like(scores))).sum(axis=-1)
    return (entropy if entropy.ndim == 1 else entropy.max(axis=-1)) < threshold


def _probabilities(logits: np.ndarray, *, task_type: str) -> np.ndarray:
    logits = logits.astype(np.float64)
    if task_type == "multi-label":
        return 1 / (1 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _load_onnxruntime(file: Path, threads: int | None, precision: str) -> Model:
    """A session whose threads do not spin between calls: those of the next segment need the cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda values: dict(zip(names, session.run(None, values), strict=True))


def _load_openvino(file: Path, threads: int | None, precision: str) -> Model:
    import openvino

    settings: dict[str, Any] = {"NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    model = core.compile_model(core.read_model(str(file)), "CPU", settings)
    names = [output.get_any_name() for output in model.outputs]
    return lambda values: dict(zip(names, model(values).to_tuple(), strict=True))


@cache
def _own_policy() -> PolicyRuntime:
    return PolicyRuntime(Path(__file__).parent)


def predict(texts: Sequence[str], pairs: Sequence[str] | None = None, *, batch_size: int = 32) -> list[Any]:
    """`PolicyRuntime.predict` of the policy beside this file."""
    return _own_policy().predict(texts, pairs, batch_size=batch_size)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python policy_runtime.py TEXT ... (a pair of texts is one argument with a tab between them)")
    columns = zip(*(argument.split("\t", 1) for argument in sys.argv[1:]), strict=True)
    for prediction in predict(*map(list, columns)):
        sys.stdout.write(f"{json.dumps(prediction, ensure_ascii=False)}\n")
