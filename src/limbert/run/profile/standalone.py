"""A sub-network saved and loaded alone, as who serves only this one would: no other weights are read or held."""

import json
from pathlib import Path

import torch
import transformers
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from limbert.core.subnet import Subnet
from limbert.model.checkpoint import write_json
from limbert.model.elastic import ElasticModel
from limbert.model.families import family_of, stack_of
from limbert.model.views import ViewFactory
from limbert.inference.onnx_graph import write_onnx

WEIGHTS_NAME = "model.safetensors"
GRAPH_NAME = "model.onnx"
_SUBNET_NAME = "subnet.json"


def save_alone(model: ElasticModel, subnet: Subnet, folder: Path, *, graph: bool) -> None:
    """Write a sub-network's weights and what is needed to load them into a new folder; with ``graph`` as ONNX too."""
    folder.mkdir(parents=True, exist_ok=True)
    model.network.config.save_pretrained(folder)
    write_json(folder / _SUBNET_NAME, subnet.to_dict() | {"class": type(model.network).__name__})
    weights = {name: tensor.contiguous().clone() for name, tensor in model.view(subnet).state_dict().items()}
    save_file(weights, folder / WEIGHTS_NAME)
    if graph:
        write_onnx(model.view(subnet), folder / GRAPH_NAME)


def file_of(folder: Path, backend: str) -> Path:
    """What a runtime loads of a saved sub-network."""
    return folder / (WEIGHTS_NAME if backend == "torch" else GRAPH_NAME)


def load_alone(folder: Path) -> PreTrainedModel:
    """The network that `save_alone` wrote, in evaluation mode; of the full model there is only an empty outline."""
    values = json.loads((folder / _SUBNET_NAME).read_text(encoding="utf-8"))
    network_class = getattr(transformers, values["class"])
    with init_empty_weights(include_buffers=False):
        outline = network_class(AutoConfig.from_pretrained(folder))
    family = family_of(outline)
    network = ViewFactory(outline, list(stack_of(outline, family)), family).build(Subnet.from_dict(values))
    network.load_state_dict(load_file(folder / WEIGHTS_NAME), assign=True)
    return network.requires_grad_(False).eval()


def example_batch(network_config: PretrainedConfig, *, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """Token ids and a mask ``(batch, tokens)`` without padding; the same for every sub-network."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, network_config.vocab_size, (batch, tokens), generator=generator)
    pad = network_config.pad_token_id
    if pad is not None:
        ids[ids == pad] = 3 if pad != 3 else 4
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
