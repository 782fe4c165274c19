"""Model card (``README.md``) of an elastic checkpoint: what it is, its sub-networks and their metrics, and its use."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from limbert.core.space import NamedSubnet
from limbert.core.subnet import Shape

_PIPELINE_TAGS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForMultipleChoice": "multiple-choice",
}


def model_card(
    name: str,
    *,
    network: PreTrainedModel,
    shape: Shape,
    subnets: Sequence[NamedSubnet],
    record: Mapping[str, Any],
    has_gates: bool,
) -> str:
    """The card as Markdown with YAML front matter, as the Hugging Face Hub reads it.

    Args:
        name: of the model.
        network: the full network.
        shape: of the full encoder.
        subnets: the trained sub-networks.
        record: content of ``limbert.json``.
        has_gates: whether the checkpoint has width gates.
    """
    class_name = type(network).__name__
    tag = next((tag for suffix, tag in _PIPELINE_TAGS.items() if class_name.endswith(suffix)), None)
    base_model = str(record.get("settings", {}).get("train", {}).get("model") or "")
    is_hub_name = bool(re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", base_model)) and not Path(base_model).exists()
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=tag,
        base_model=base_model if is_hub_name else None,
        tags=["limbert", "elastic"],
    )
    facts = [
        f"- Network: {class_name}, {shape.layers} layers, {shape.heads} heads and {shape.neurons} neurons per layer",
        f"- Sub-networks: {len(subnets)}, named WIDTHxDEPTH",
    ]
    if base_model:
        facts.append(f"- Base model: {base_model if is_hub_name else Path(base_model).name}")
    if (task := record.get("task")) and task.get("labels"):
        facts.append("- Labels: " + ", ".join(map(str, task["labels"])))
    source = record.get("settings", {}).get("data") or record.get("settings", {}).get("corpus") or {}
    if names := [Path(str(source[key])).name for key in ("task", "data", "train") if source.get(key)]:
        facts.append("- Data: " + ", ".join(names))
    if record.get("phases"):
        facts.append("- Phases: " + ", ".join(record["phases"]))
    if has_gates:
        facts.append("- Width gates: choose the width per input")
    return (
        "\n\n".join(
            [
                f"---\n{data.to_yaml()}\n---",
                f"# {name}",
                "An elastic model trained with Limbert: one set of weights that runs at several widths and depths. "
                "Transformers loads this folder as the full model.",
                "\n".join(facts),
                *_metrics_table(subnets, record.get("metrics", {}), record.get("costs", {})),
                "## Use",
                f'```python\nfrom limbert import ElasticModel\n\nmodel = ElasticModel.from_pretrained("{name}")\n'
                f'small = model.view(model.subnet("{subnets[-1].name}"))\n```',
            ]
        )
        + "\n"
    )


def _metrics_table(
    subnets: Sequence[NamedSubnet], metrics: Mapping[str, Mapping[str, float]], costs: Mapping[str, Mapping[str, int]]
) -> list[str]:
    measured = [item for item in subnets if metrics.get(item.name)]
    if not measured:
        return []
    names = list(metrics[measured[0].name])
    lines = [
        "| sub-network | layers | heads | neurons | parameters | FLOPs per example | " + " | ".join(names) + " |",
        "|---|---:|---:|---:|---:|---:|" + "---:|" * len(names),
    ]
    for item in measured:
        subnet, values = item.subnet, metrics[item.name]
        scores = " | ".join(f"{values[key]:.4f}" if key in values else "" for key in names)
        cost = [f"{costs[item.name][key] / 1e6:.1f} M" if item.name in costs else "" for key in ("params", "flops")]
        size = f"{len(subnet.layers)} | {subnet.heads[0]} | {subnet.neurons[0]} | {cost[0]} | {cost[1]}"
        lines.append(f"| {item.name} | {size} | {scores} |")
    return ["## Metrics on the development set", "\n".join(lines)]
