"""The model card of an export: description, metrics, measurements, and code that loads it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache
from transformers import PreTrainedModel

from limbert.core.subnet import Shape, Subnet
from limbert.data.tasks import Task
from limbert.evaluation.hardware import describe_hardware, describe_this_machine
from limbert.evaluation.results import PROFILE_NAME, RESULTS_NAME, read_profile, read_results
from limbert.export.export_result import ExportResult
from limbert.export.formats import EXPORTERS
from limbert.inference.load import LoadedCheckpoint
from limbert.model.card import pipeline_tag, training_facts
from limbert.model.standalone import auto_class_of, is_stock

_HUB_METRICS = {"pearson": "pearsonr", "spearman": "spearmanr", "matthews": "matthews_correlation"}
_EXAMPLE_TEXTS = {True: '["It rained."], ["Rain fell."]', False: '["It rained all day.", "What a day!"]'}
_EXAMPLE_ARGUMENTS = {True: "$'It rained.\\tRain fell.'", False: '"It rained all day." "What a day!"'}
_MAX_LABELS = 6  # labels listed in the card


def export_card(
    result: ExportResult, checkpoint: LoadedCheckpoint, network: PreTrainedModel, *, takes_pairs: bool
) -> str:
    """The card, in Markdown, of a network that was exported from a checkpoint."""
    parts = [
        f"---\n{_metadata(result, checkpoint, network).to_yaml()}\n---",
        _summary(result, checkpoint, takes_pairs=takes_pairs),
        "\n".join(f"- {fact}" for fact in training_facts(checkpoint.model.record)),
        str(result.vocabulary) if result.vocabulary else "",
        _int8_section(result) if result.benchmarks else "",
        _metrics_section(result),
        _profile_section(result),
        _parity_section(result),
        f"## Use\n\n{_usage_code(result, network, checkpoint.task, takes_pairs=takes_pairs)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(result: ExportResult, checkpoint: LoadedCheckpoint, network: PreTrainedModel) -> ModelCardData:
    config, task = result.config, checkpoint.task
    return ModelCardData(
        license=config.licence or licence_of(config.run),
        library_name="transformers" if config.format == "hf" else config.format,
        pipeline_tag=pipeline_tag(type(network).__name__),
        base_model=base_model(checkpoint.model.record),
        tags=["limbert", config.format, *(["int8"] if result.benchmarks else [])],
        metrics=[_HUB_METRICS.get(name, name) for name in task.metrics] if task else None,
    )


def _summary(result: ExportResult, checkpoint: LoadedCheckpoint, *, takes_pairs: bool) -> str:
    config, task, text = result.config, checkpoint.task, ""
    if task is not None:
        name = task.task_type if task.name is None else f"{task.name} ({task.task_type})"
        labels = f", labels {_format_labels(task.labels)}" if task.labels else ""
        text = f" Task: {name}{labels}; input: {'pairs of texts' if takes_pairs else 'texts'}."
    if result.params is not None:
        subnet = checkpoint.model.subnet(config.subnet)
        what, details = "Sub-network", _describe_subnet(subnet, checkpoint.model.shape)
        details += f"; {result.params / 1e6:.2f} million parameters"
    else:
        what, details = "Policy", "as segments: each input leaves as soon as its prediction is final"
    return (
        f"# {config.output.absolute().name}\n\n{what} `{result.title}` of the elastic model "
        f"`{Path(config.run).name}`, exported for {EXPORTERS[config.format].library.title}"
        f"{' in int8' if result.benchmarks else ''}: {details}.{text}"
    )


def _describe_subnet(subnet: Subnet, shape: Shape) -> str:
    """``4 of 6 layers (0, 1, 2, 3), 6 of 12 heads and 768 of 1536 neurons in each``."""
    layers = f"{len(subnet.layers)} of {shape.layers} layers ({', '.join(map(str, subnet.layers))})"

    def describe(counts: tuple[int, ...], full: int, unit: str) -> str:
        shown = counts[:1] if len({*counts}) == 1 else counts
        return f"{', '.join(map(str, shown))} of {full} {unit}"

    heads, neurons = describe(subnet.heads, shape.heads, "heads"), describe(subnet.neurons, shape.neurons, "neurons")
    return f"{layers}, {heads} and {neurons} in each"


def _metrics_section(result: ExportResult) -> str:
    if not result.dev_metrics:
        return ""
    rows = "\n".join(f"| {name} | {100 * value:.2f} |" for name, value in result.dev_metrics.items())
    precision = " (fp32, before int8)" if result.benchmarks else ""
    return f"## Metrics\n\nOn the development set{precision}:\n\n| metric | value |\n|---|---:|\n{rows}"


def _profile_section(result: ExportResult) -> str:
    """The rows of the run's ``profile.jsonl`` for this sub-network."""
    path, rows = Path(result.config.run) / PROFILE_NAME, list[str]()
    for row in read_profile(path) if path.is_file() else ():
        setup = row.setup
        cells = [describe_hardware(row.hardware, device=setup.device), setup.backend, setup.precision, setup.device]
        cells += [str(setup.threads), str(setup.batch), str(setup.tokens)]
        cells += [f"{row.latency_p50_ms:.2f}", f"{row.latency_p95_ms:.2f}", f"{row.throughput:.0f}"]
        if row.subnet == result.config.subnet:
            rows.append(f"| {' | '.join(cells)} |")
    head = (
        "## Measured\n\n"
        "| machine | runtime | precision | device | threads | batch | tokens | p50 ms | p95 ms | examples/s |\n"
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|\n"
    )
    return head + "\n".join(rows) if rows else ""


def _int8_section(result: ExportResult) -> str:
    before, after = result.benchmarks["fp32"], result.benchmarks["int8"]
    rows = [
        f"| {name} | {100 * before.metrics[name]:.2f} | {100 * after.metrics[name]:.2f} |" for name in after.metrics
    ]
    rows += [
        f"| ms per text, one at a time | {before.latency_ms:.2f} | {after.latency_ms:.2f} |",
        f"| texts per second, batches of 16 | {before.throughput:.0f} | {after.throughput:.0f} |",
        f"| MB | {before.file_bytes / 1e6:.1f} | {after.file_bytes / 1e6:.1f} |",
    ]
    title = f"In {EXPORTERS[result.config.format].library.title} on {describe_this_machine(result.config.threads)}"
    return f"## int8\n\n{title}:\n\n| | fp32 | int8 |\n|---|---:|---:|\n" + "\n".join(rows)


def _parity_section(result: ExportResult) -> str:
    when = "before int8, " if result.benchmarks else ""
    return (
        f"Verified at export on {describe_this_machine(result.config.threads)}: {when}on {result.parity.examples} "
        f"{result.parity_data} the outputs differ from the source's by at most "
        f"{result.parity.max_relative_difference:.1g} of the largest output."
    )


def _usage_code(result: ExportResult, network: PreTrainedModel, task: Task | None, *, takes_pairs: bool) -> str:
    config = result.config
    name = config.format if result.policy is None else "policy"
    template = (Path(__file__).parent / "usage" / f"{name}.md").read_text(encoding="utf-8").strip()
    needs_remote_code = config.format == "hf" and not is_stock(network)
    return Template(template).substitute(
        folder=config.output.absolute().name,
        auto_class=auto_class_of(network) or "AutoModel",
        trust=", trust_remote_code=True" if needs_remote_code else "",
        texts=_EXAMPLE_TEXTS[takes_pairs],
        arguments=_EXAMPLE_ARGUMENTS[takes_pairs],
        answer=_output_code(config.format, type(network).__name__, task),
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
    measured = {row.subnet: row.metrics for row in read_results(run)} if (Path(run) / RESULTS_NAME).is_file() else {}
    return dict(measured.get(subnet) or record.get("metrics", {}).get(subnet, {}))


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
