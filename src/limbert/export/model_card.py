"""The model card of an export: description, metrics, measurements, and code that loads it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from limbert.data.tasks import Task
from limbert.evaluation.results import PROFILE_NAME, RESULTS_NAME
from limbert.export.verify import ParityResult, RuntimeBenchmark
from limbert.files import read_json_lines

_PIPELINE_TAGS = {
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
    "MaskedLM": "fill-mask",
    "MultipleChoice": "multiple-choice",
}
_HUB_METRICS = {"pearson": "pearsonr", "spearman": "spearmanr", "matthews": "matthews_correlation"}
_EXAMPLE_TEXTS = {True: '["It rained."], ["Rain fell."]', False: '["It rained all day.", "What a day!"]'}
_MAX_LABELS = 6  # labels listed in the card


@dataclass(frozen=True)
class ExportCard:
    """The contents of the card.

    Attributes:
        name: of the folder.
        format: ``hf``, ``onnx`` or ``openvino``.
        runtime_title: name of the runtime for readers.
        network: class name of the network.
        auto_class: the Auto class that loads it in Transformers; None if there is none.
        needs_remote_code: whether the folder has a modelling file.
        source: name of the elastic model.
        base_model: Hub id of the encoder that it was trained from; None if unknown.
        licence: a licence identifier of the Hugging Face Hub.
        task: None for a model without one.
        takes_pairs: whether the inputs are pairs of texts.
        subnet: its name, and a description of its layers, heads and neurons.
        params: parameters.
        dev_metrics: of the sub-network on the development set; empty if unknown.
        profile: rows of the run's ``profile.jsonl`` for this sub-network.
        parity: the outputs compared with the source's.
        parity_data: what the compared examples were.
        benchmarks: before and after int8; else empty.
        hardware: of the benchmarks.
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
            f"---\n{self._metadata().to_yaml()}\n---",
            self._summary(),
            self._metrics_section(),
            self._profile_section(),
            self._int8_section(),
            self._parity_section(),
            f"## Use\n\n{self._usage_code()}",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _metadata(self) -> ModelCardData:
        return ModelCardData(
            license=self.licence,
            library_name={"hf": "transformers"}.get(self.format, self.format),
            pipeline_tag=next((tag for head, tag in _PIPELINE_TAGS.items() if self.network.endswith(head)), None),
            base_model=self.base_model,
            tags=["limbert", self.format, *(["int8"] if self.benchmarks else [])],
            metrics=[_HUB_METRICS.get(name, name) for name in self.task.metrics] if self.task else None,
        )

    def _summary(self) -> str:
        task = ""
        if self.task is not None:
            name = self.task.task_type if self.task.name is None else f"{self.task.name} ({self.task.task_type})"
            labels = f", labels {_format_labels(self.task.labels)}" if self.task.labels else ""
            task = f" Task: {name}{labels}; input: {'pairs of texts' if self.takes_pairs else 'texts'}."
        subnet_name, description = self.subnet
        return (
            f"# {self.name}\n\nSub-network `{subnet_name}` of the elastic model `{self.source}`, exported for "
            f"{self.runtime_title}{' in int8' if self.benchmarks else ''}: {description}; "
            f"{self.params / 1e6:.2f} million parameters.{task}"
        )

    def _metrics_section(self) -> str:
        if not self.dev_metrics:
            return ""
        rows = "\n".join(f"| {name} | {100 * value:.2f} |" for name, value in self.dev_metrics.items())
        precision = " (fp32, before int8)" if self.benchmarks else ""
        return f"## Metrics\n\nOn the development set{precision}:\n\n| metric | value |\n|---|---:|\n{rows}"

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
        rows = [
            f"| {name} | {100 * before.metrics[name]:.2f} | {100 * after.metrics[name]:.2f} |" for name in after.metrics
        ]
        rows += [
            f"| ms per text, one at a time | {before.latency_ms:.2f} | {after.latency_ms:.2f} |",
            f"| texts per second, batches of 16 | {before.throughput:.0f} | {after.throughput:.0f} |",
            f"| MB | {before.file_bytes / 1e6:.1f} | {after.file_bytes / 1e6:.1f} |",
        ]
        head = f"## int8\n\nIn {self.runtime_title} on {self.hardware}:\n\n| | fp32 | int8 |\n|---|---:|---:|\n"
        return head + "\n".join(rows)

    def _parity_section(self) -> str:
        when = "before int8, " if self.benchmarks else ""
        return (
            f"Verified at export: {when}on {self.parity.examples} {self.parity_data} the outputs differ from the "
            f"source's by at most {self.parity.max_relative_difference:.1g} of the largest output."
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


def _output_code(format: str, network_class: str, task: Task | None) -> str:
    """Code that prints the outputs in the terms of the task."""
    if not network_class.endswith("SequenceClassification"):
        if format == "onnx":
            return "print([value.shape for value in outputs])"
        values = "outputs.items()" if format == "hf" else "enumerate(outputs.values())"
        return f"print([value.shape for _, value in {values}])"
    logits = "outputs.logits" if format == "hf" else "outputs[0]"
    if task is not None and task.task_type == "regression":
        return f"print({logits}[:, 0].tolist())"
    if task is not None and task.task_type == "multi-label":
        return f"print([[index for index, logit in enumerate(row) if logit > 0] for row in {logits}.tolist()])"
    if format == "hf":
        return f"print([model.config.id2label[index] for index in {logits}.argmax(-1).tolist()])"
    labels = 'json.load(open(f"{folder}/config.json"))["id2label"]'
    return f"labels = {labels}\nprint([labels[str(index)] for index in {logits}.argmax(-1).tolist()])"


def _format_labels(labels: Sequence[str]) -> str:
    shown = ", ".join(f"`{label}`" for label in labels[:_MAX_LABELS])
    return shown if len(labels) <= _MAX_LABELS else f"{shown} and {len(labels) - _MAX_LABELS} more"


def dev_metrics(run: str, record: Mapping[str, Any], subnet: str) -> dict[str, float]:
    """Metrics of a sub-network on the development set, from ``results.jsonl`` or the record; empty if unknown."""
    rows = [row for row in _subnet_rows(run, RESULTS_NAME, subnet) if "metrics" in row]
    return dict(rows[-1]["metrics"] if rows else record.get("metrics", {}).get(subnet, {}))


def profile_rows(run: str, subnet: str) -> list[dict[str, Any]]:
    """Rows of ``profile.jsonl`` for a sub-network; none if it was not measured."""
    return [row for row in _subnet_rows(run, PROFILE_NAME, subnet) if "latency_p50_ms" in row]


def _subnet_rows(run: str, name: str, subnet: str) -> list[dict[str, Any]]:
    path = Path(run) / name
    rows = read_json_lines(path, required_keys={}) if path.is_file() else []
    return [row for row in rows if row.get("subnet") == subnet]


def licence_of(run: str) -> str:
    """The licence in the metadata of the run's own model card; ``unknown`` if there is none."""
    path = Path(run) / "README.md"
    if not path.is_file() or not path.read_text(encoding="utf-8").startswith("---"):
        return "unknown"
    try:
        return ModelCard.load(path).data.license or "unknown"
    except ValueError:  # metadata that is not valid YAML
        return "unknown"


def base_model(record: Mapping[str, Any]) -> str | None:
    """Hub id of the run's base model, if it is in this machine's cache of the Hub.

    None for a folder: its name means nothing elsewhere, and ``runs/mrpc`` could be either.
    """
    name = record.get("settings", {}).get("train", {}).get("model") or ""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists():
        return None
    return name if isinstance(try_to_load_from_cache(name, "config.json"), str) else None
