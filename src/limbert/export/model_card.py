"""The model card of an export: what it is, what it reaches, what was measured, and code that loads it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import try_to_load_from_cache

from limbert.data.tasks import Task
from limbert.export.verify import ParityResult, RuntimeBenchmark

_PIPELINE_TAGS = {
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
    "MaskedLM": "fill-mask",
    "MultipleChoice": "multiple-choice",
}
_EXAMPLE_TEXTS = {True: '["It rained."], ["Rain fell."]', False: '["It rained all day.", "What a day!"]'}


@dataclass(frozen=True)
class ExportCard:
    """What the card says.

    Attributes:
        name: of the folder.
        format: ``hf``, ``onnx`` or ``openvino``.
        runtime: for people.
        network: class name of the network.
        auto_class: what loads it in Transformers; None where nothing does.
        needs_code: whether the folder holds a modelling file.
        source: name of the elastic model.
        base: name of the encoder that it was trained from; None if unknown.
        licence: an identifier of the Hugging Face hub.
        task: None for a model without one.
        pair: whether the inputs are pairs of texts.
        subnet: its name, and what it keeps in words.
        params: parameters.
        metrics: of the sub-network on the development set, as the training measured it; empty if unknown.
        profile: lines of the run's ``profile.jsonl`` for this sub-network.
        comparison: with the source.
        compared_on: what the examples were.
        quality: before and after int8; empty otherwise.
        hardware: what quality was measured on.
    """

    name: str
    format: str
    runtime_title: str
    network: str
    auto_class: str | None
    needs_remote_code: bool
    source: str
    base_model: str | None
    licence: str
    task: Task | None
    takes_pairs: bool
    subnet: tuple[str, str]
    params: int
    dev_metrics: Mapping[str, float]
    profile: Sequence[Mapping[str, Any]]
    parity: ParityResult
    parity_data: str
    benchmarks: Mapping[str, RuntimeBenchmark]
    hardware: str

    def to_markdown(self) -> str:
        """The whole card."""
        parts = [
            self._front_matter(),
            self._summary(),
            self._metrics_section(),
            self._profile_section(),
            self._int8_section(),
            self._parity_section(),
        ]
        return "\n\n".join(part for part in (*parts, f"## Use\n\n{self._usage_code()}") if part) + "\n"

    def _front_matter(self) -> str:
        library = {"hf": "transformers"}.get(self.format, self.format)
        lines = ["---", f"license: {self.licence}", f"library_name: {library}"]
        pipeline = next((tag for ending, tag in _PIPELINE_TAGS.items() if self.network.endswith(ending)), None)
        lines += [f"pipeline_tag: {pipeline}"] if pipeline else []
        lines += [f"base_model: {json.dumps(self.base_model)}"] if self.base_model else []
        lines += ["tags:", "- limbert", f"- {self.format}", *(["- int8"] if self.benchmarks else [])]
        if self.task is not None:
            lines += ["metrics:", *(f"- {_HUB_METRICS.get(name, name)}" for name in self.task.metrics)]
        return "\n".join([*lines, "---"])

    def _summary(self) -> str:
        task = ""
        if self.task is not None:
            kind = self.task.task_type if self.task.name is None else f"{self.task.name} ({self.task.task_type})"
            labels = f", labels {_format_labels(self.task.labels)}" if self.task.labels else ""
            task = f" Task: {kind}{labels}; input: {'pairs of texts' if self.takes_pairs else 'texts'}."
        name, words = self.subnet
        return (
            f"# {self.name}\n\nSub-network `{name}` of the elastic model `{self.source}`, exported for {self.runtime_title}"
            f"{' in int8' if self.benchmarks else ''}: {words}; {self.params / 1e6:.2f} million parameters.{task}"
        )

    def _metrics_section(self) -> str:
        if not self.dev_metrics:
            return ""
        rows = "\n".join(f"| {name} | {100 * value:.2f} |" for name, value in self.dev_metrics.items())
        precision = " (fp32, before int8)" if self.benchmarks else ""
        return f"## Quality\n\nOn the development set{precision}:\n\n| metric | value |\n|---|---:|\n{rows}"

    def _profile_section(self) -> str:
        if not self.profile:
            return ""
        rows = [
            f"| {row.get('backend')} | {row.get('device')} | {row.get('threads')} | {row.get('batch')} "
            f"| {row.get('tokens')} | {row['latency_p50_ms']:.2f} | {row['latency_p95_ms']:.2f} "
            f"| {row['throughput']:.0f} |"
            for row in self.profile
        ]
        return (
            "## Measured (fp32)\n\n| runtime | device | threads | batch | tokens | p50 ms | p95 ms | examples/s |\n"
            "|---|---|---:|---:|---:|---:|---:|---:|\n" + "\n".join(rows)
        )

    def _int8_section(self) -> str:
        if not self.benchmarks:
            return ""
        before, after = self.benchmarks["fp32"], self.benchmarks["int8"]
        values = {name: (100 * before.metrics[name], 100 * after.metrics[name]) for name in after.metrics}
        rows = [f"| {name} | {fp32:.2f} | {int8:.2f} |" for name, (fp32, int8) in values.items()]
        rows += [
            f"| ms a text, one at a time | {before.latency_ms:.2f} | {after.latency_ms:.2f} |",
            f"| texts a second, batches of 16 | {before.throughput:.0f} | {after.throughput:.0f} |",
            f"| MB | {before.file_bytes / 1e6:.1f} | {after.file_bytes / 1e6:.1f} |",
        ]
        head = f"## int8\n\nIn {self.runtime_title} on {self.hardware}:\n\n| | fp32 | int8 |\n|---|---:|---:|\n"
        return head + "\n".join(rows)

    def _parity_section(self) -> str:
        compared = self.parity
        of = "before int8, " if self.benchmarks else ""
        return (
            f"Checked at export: {of}on {compared.examples} {self.parity_data} the outputs differ from the source's by "
            f"at most {compared.max_relative_difference:.1g} of the largest."
        )

    def _usage_code(self) -> str:
        template = (Path(__file__).parent / "usage" / f"{self.format}.md").read_text(encoding="utf-8").strip()
        return Template(template).substitute(
            folder=self.name,
            auto_class=self.auto_class or "AutoModel",
            trust=", trust_remote_code=True" if self.needs_remote_code else "",
            texts=_EXAMPLE_TEXTS[self.takes_pairs],
            answer=_output_code(self.format, self.network, self.task),
        )


_HUB_METRICS = {"pearson": "pearsonr", "spearman": "spearmanr", "matthews": "matthews_correlation"}


def _output_code(format: str, network_class: str, task: Task | None) -> str:
    """Code that shows the outputs in the terms of the task."""
    if not network_class.endswith("SequenceClassification"):
        found = "outputs.items()" if format == "hf" else "enumerate(outputs.values())" if format == "openvino" else ""
        return f"print([value.shape for _, value in {found}])" if found else "print([value.shape for value in outputs])"
    logits = "outputs.logits" if format == "hf" else "outputs[0]"
    if task is not None and task.task_type == "regression":
        return f"print({logits}[:, 0].tolist())"
    if task is not None and task.task_type == "multi-label":
        return f"print([[place for place, logit in enumerate(row) if logit > 0] for row in {logits}.tolist()])"
    if format == "hf":
        return f"print([model.config.id2label[answer] for answer in {logits}.argmax(-1).tolist()])"
    names = 'json.load(open(f"{folder}/config.json"))["id2label"]'
    return f"names = {names}\nprint([names[str(answer)] for answer in {logits}.argmax(-1).tolist()])"


def _format_labels(labels: Sequence[str]) -> str:
    shown = ", ".join(f"`{label}`" for label in labels[:6])
    return shown if len(labels) <= 6 else f"{shown} and {len(labels) - 6} more"


def dev_metrics(run_dir: str, metadata: Mapping[str, Any], subnet: str) -> dict[str, float]:
    """Metrics of a sub-network on the development set, from ``results.jsonl`` or the record; empty if unknown."""
    rows = [
        row for row in _read_json_lines(run_dir, "results.jsonl") if row.get("subnet") == subnet and "metrics" in row
    ]
    return dict(rows[-1]["metrics"] if rows else metadata.get("metrics", {}).get(subnet, {}))


def profile_rows(run_dir: str, subnet: str) -> list[dict[str, Any]]:
    """Lines of ``profile.jsonl`` for a sub-network; none where nothing was measured."""
    return [
        row
        for row in _read_json_lines(run_dir, "profile.jsonl")
        if row.get("subnet") == subnet and "latency_p50_ms" in row
    ]


def licence(run_dir: str) -> str:
    """The licence in the head of the run's own card; ``unknown`` where it has none."""
    card = Path(run_dir) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    found = re.match(r"---\n(?:.*\n)*?license: *(\S+)\n(?:.*\n)*?---\n", text)
    return found.group(1) if found else "unknown"


def base_model(metadata: Mapping[str, Any]) -> str | None:
    """The encoder that the run started from, if that is a model of the Hugging Face hub that this machine has cached.

    A folder is None: its name says nothing elsewhere, and ``runs/mrpc`` could be either.
    """
    name = metadata.get("settings", {}).get("train", {}).get("model") or ""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists():
        return None
    return name if isinstance(try_to_load_from_cache(name, "config.json"), str) else None


def _read_json_lines(run_dir: str, name: str) -> list[dict[str, Any]]:
    path = Path(run_dir) / name
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
