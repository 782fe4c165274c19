"""The model card (``README.md``) of an elastic checkpoint: task, sub-networks with metrics and cost, how to load them."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from limbert.evaluation.results import SubnetResult
from limbert.model.elastic import ElasticModel

_PIPELINE_TAGS = {
    "classification": "text-classification",
    "regression": "text-classification",
    "multi-label": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
}


def elastic_model_card(
    model: ElasticModel, results: Sequence[SubnetResult], *, name: str, license: str | None = None
) -> ModelCard:
    """The card of a model.

    Args:
        model: with the record of its training.
        results: of its sub-networks, the full one first.
        name: of the model.
        license: an identifier of the Hugging Face Hub; None leaves the entry out.
    """
    record = model.record
    task, settings = record.get("task") or {}, record.get("settings") or {}
    base = (settings.get("train") or {}).get("model")
    kind = task.get("kind", "fill-mask" if record.get("objective") == "masked-lm" else None)
    data = ModelCardData(
        library_name="limbert",
        pipeline_tag=_PIPELINE_TAGS.get(str(kind), kind),
        tags=["limbert", "elastic", "dynabert", model.network.config.model_type],
        base_model=base,
        license=license,
    )
    parts = [
        f"# {name}",
        f"One {model.network.config.model_type} encoder that runs at {len(results)} sizes (width x depth), trained with "
        "Limbert. The full size loads with plain Transformers.",
        "## Training\n\n" + "\n".join(f"- {label}: {value}" for label, value in _facts(record, base)),
        "## Sub-networks\n\n" + _table(results),
        "## How to use\n\n" + _usage(model, results, name),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _facts(record: dict[str, Any], base: Any) -> list[tuple[str, str]]:
    task, settings = record.get("task") or {}, record.get("settings") or {}
    source = settings.get("data") or settings.get("corpus") or {}
    train = settings.get("train") or {}
    names = [str(source[key]) for key in ("task", "data", "train", "corpus") if source.get(key)]
    found = {
        "task": f"{task['name'] or 'own data'}, {task['kind']}" if task else record.get("objective"),
        "labels": ", ".join(map(str, task.get("labels") or ())),
        "base model": base,
        "data": ", ".join(names),
        "recipe": train.get("recipe"),
        "phases": ", ".join(record.get("phases", ())),
        "seed": train.get("seed"),
    }
    return [(label, str(value)) for label, value in found.items() if value not in (None, "")]


def _table(results: Sequence[SubnetResult]) -> str:
    metrics = [*results[0].metrics]
    lines = ["| sub-network | parameters | FLOPs an example | " + "".join(f"{metric} | " for metric in metrics)]
    lines.append("|---|---:|---:|" + "---:|" * len(metrics))
    for result in results:
        values = "".join(f" {result.metrics[metric]:.4f} |" for metric in metrics)
        lines.append(f"| {result.subnet} | {result.params / 1e6:.1f} M | {result.flops / 1e9:.3f} G |{values}")
    return "\n".join(line.rstrip() for line in lines)


def _usage(model: ElasticModel, results: Sequence[SubnetResult], name: str) -> str:
    smaller = results[len(results) // 2].subnet
    return f"""```python
from transformers import {type(model.network).__name__}
full = {type(model.network).__name__}.from_pretrained("{name}")

from limbert import ElasticModel
model = ElasticModel.from_pretrained("{name}")
network = model.view(model.subnet("{smaller}"))  # or {", ".join(result.subnet for result in results[:3])}, ...
```

```
limbert predict {name} --subnet {smaller} --text "..."
limbert export {name} --subnet {smaller} --format onnx --output {name}-onnx
```"""
