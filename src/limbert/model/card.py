"""Model card (``README.md``) of an elastic checkpoint: training, sub-networks with metrics and cost, usage."""

import re
from collections.abc import Iterator, Mapping, Sequence
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
        subnets: the trained sub-networks, the full one first.
        record: content of ``limbert.json``; ``license`` is a licence identifier of the Hub, ``metrics`` and ``costs``
            are values by sub-network, ``hardware`` is the machine that measured them.
        has_gates: whether the checkpoint has width gates.
    """
    class_name = type(network).__name__
    base_model = _base_model(record)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline_tag(class_name),
        base_model=base_model if _is_hub_name(base_model) else None,
        license=record.get("license"),
        tags=["limbert", "elastic"],
    )
    facts = [
        f"Network: {class_name}, {shape.layers} layers, {shape.heads} heads and {shape.neurons} neurons per layer",
        f"Sub-networks: {len(subnets)}, named WIDTHxDEPTH",
    ]
    if has_gates:
        facts.append("Width gates: choose the width per input")
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}",
        "An elastic model trained with Limbert: one set of weights that runs at several widths and depths. "
        "Transformers loads this folder as the full model.",
        "\n".join(f"- {fact}" for fact in [*facts, *training_facts(record)]),
        *_subnet_table(subnets, record),
        f"## Use\n\n{_usage(name, class_name, subnets)}",
    ]
    return "\n\n".join(parts) + "\n"


def pipeline_tag(class_name: str) -> str | None:
    """The Hub's name of what a stock class does; None for other heads."""
    return next((tag for suffix, tag in _PIPELINE_TAGS.items() if class_name.endswith(suffix)), None)


def _base_model(record: Mapping[str, Any]) -> str:
    return str(record.get("settings", {}).get("train", {}).get("model") or "")


def _is_hub_name(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", name)) and not Path(name).exists()


def training_facts(record: Mapping[str, Any]) -> Iterator[str]:
    """How the model was trained; of local files only the names are published."""
    if base_model := _base_model(record):
        yield f"Base model: {base_model if _is_hub_name(base_model) else Path(base_model).name}"
    task, settings = record.get("task") or {}, record.get("settings", {})
    train, source = settings.get("train", {}), settings.get("data") or settings.get("corpus") or {}
    if task:
        yield f"Task: {task.get('name') or 'own data'}, {task['kind']}"
    elif record.get("objective"):
        yield f"Objective: {record['objective']}"
    if task.get("labels"):
        yield "Labels: " + ", ".join(map(str, task["labels"]))
    paths = [source.get(key) or () for key in ("task", "data", "train", "corpus")]
    names = [Path(name).name for path in paths for name in ([path] if isinstance(path, str) else path)]
    if names:
        yield f"Data: {', '.join(names)}"
    if train.get("recipe"):
        yield f"Recipe: {Path(train['recipe']).name}, seed {train.get('seed')}"
    if record.get("phases"):
        yield f"Phases: {', '.join(record['phases'])}"


def _subnet_table(subnets: Sequence[NamedSubnet], record: Mapping[str, Any]) -> list[str]:
    """Layers, heads and neurons of the measured sub-networks, with their costs and metrics where known."""
    metrics, costs = record.get("metrics", {}), record.get("costs", {})
    measured = [item for item in subnets if metrics.get(item.name)]
    if not measured:
        return []
    names = list(metrics[measured[0].name])
    header = ["sub-network", "layers", "heads", "neurons", "parameters", "FLOPs per example", *names]
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    for item in measured:
        subnet, values, cost = item.subnet, metrics[item.name], costs.get(item.name, {})
        cells = [item.name, str(len(subnet.layers)), str(subnet.heads[0]), str(subnet.neurons[0])]
        cells.append(f"{cost['params'] / 1e6:.1f} M" if "params" in cost else "")
        cells.append(f"{cost['flops'] / 1e9:.3f} G" if "flops" in cost else "")
        cells += [f"{values[key]:.4f}" if key in values else "" for key in names]
        lines.append(f"| {' | '.join(cells)} |")
    hardware = [f"Measured on {record['hardware']}."] if record.get("hardware") else []
    return ["## Sub-networks", "\n".join(lines), *hardware]


def _usage(name: str, class_name: str, subnets: Sequence[NamedSubnet]) -> str:
    smallest, others = subnets[-1].name, ", ".join(item.name for item in subnets[:3])
    return f"""```python
from transformers import {class_name}
full = {class_name}.from_pretrained("{name}")

from limbert import ElasticModel
model = ElasticModel.from_pretrained("{name}")
small = model.view(model.subnet("{smallest}"))  # or {others}, ...
```

```
limbert predict {name} --subnet {smallest} --text "..."
limbert export {name} --subnet {smallest} --format onnx --output {name}-onnx
```"""
