"""A sub-network as a model of its own, saved for Transformers: with a modelling file if some layer has fewer heads.

The number of layers and the feed-forward width are options of every stock config, so a sub-network with all heads and
equally many neurons in each layer needs nothing else. Fewer heads have no option: head size is hidden size / heads.
"""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from limbert.errors import UnsupportedModelError
from limbert.model import modeling_limbert
from limbert.model.checkpoint import TASK_HEADS
from limbert.model.families import FAMILIES, Family, layer_parts, stack_of

_MODELING_MODULE = "modeling_limbert"
_TEMPLATE_CLASS = "BertForSequenceClassification"  # the class in that file, renamed in the copies after the stock class


def is_stock(network: PreTrainedModel) -> bool:
    """Whether stock Transformers can build this sub-network from a config alone."""
    heads, neurons = _layer_sizes(network)
    return {*heads} == {network.config.num_attention_heads} and len({*neurons}) == 1


def stock_config(network: PreTrainedModel) -> PretrainedConfig:
    """The sub-network's config: a stock one if possible, else with the widths of each layer under ``limbert``."""
    family, config = FAMILIES[network.config.model_type], copy.deepcopy(network.config)
    heads, neurons = _layer_sizes(network)
    config.architectures = [type(network).__name__]
    config.dtype = "float32"
    if is_stock(network):
        setattr(config, family.neurons_config_key, neurons[0])
        return config
    config.limbert = {"heads": heads, "neurons": neurons, "paths": _submodule_paths(network, family)}
    return config


class _Standalone:
    """What `make_standalone` adds to a stock class."""

    def save_pretrained(self: Any, save_directory: str | Path, **options: Any) -> None:
        """Write weights and config, and the modelling file where stock Transformers cannot build the sub-network.

        Raises:
            UnsupportedModelError: if no Auto class of Transformers loads a network with this task head.
        """
        auto_class = auto_class_of(self)
        if auto_class is None:
            raise UnsupportedModelError(
                f"{type(self).__name__} has no Auto class that could load it; heads with one: {', '.join(TASK_HEADS)}"
            )
        super().save_pretrained(save_directory, **options)  # type: ignore[misc]  # the stock class's
        if not options.get("is_main_process", True):
            return
        config = stock_config(self)
        if not is_stock(self):
            config.auto_map = {auto_class: f"{_MODELING_MODULE}.{type(self).__name__}"}
            code = Path(modeling_limbert.__file__).read_text(encoding="utf-8")
            code = code.replace(_TEMPLATE_CLASS, type(self).__name__)
            (Path(save_directory) / f"{_MODELING_MODULE}.py").write_text(code, encoding="utf-8")
        config.save_pretrained(save_directory)


def make_standalone(network: PreTrainedModel) -> PreTrainedModel:
    """The network, changed in place so that its ``save_pretrained`` writes a folder that Transformers loads."""
    stock = type(network)
    network.__class__ = type(stock.__name__, (_Standalone, stock), {"__module__": stock.__module__})
    return network


def load_standalone(folder: Path) -> PreTrainedModel:
    """Load a saved folder as Transformers would, without copying its code into Transformers' cache."""
    config = transformers.AutoConfig.from_pretrained(folder)
    source: Any = transformers
    code = folder / f"{_MODELING_MODULE}.py"
    if code.exists():
        spec: Any = importlib.util.spec_from_file_location(f"{_MODELING_MODULE}_of_an_export", code)
        source = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(source)
    network_class = getattr(source, config.architectures[0])
    network: PreTrainedModel = network_class.from_pretrained(folder, dtype=torch.float32)
    return network.eval()


def auto_class_of(network: PreTrainedModel) -> str | None:
    """The Auto class of Transformers that loads such a network; None if there is none."""
    for auto_class in TASK_HEADS.values():
        mapping = getattr(transformers, auto_class)._model_mapping
        if type(network.config) in mapping and mapping[type(network.config)].__name__ == type(network).__name__:
            return auto_class
    return None


def _layer_sizes(network: PreTrainedModel) -> tuple[list[int], list[int]]:
    """Heads and neurons of each layer, from the sizes of its Linears."""
    family = FAMILIES[network.config.model_type]
    head_size = network.config.hidden_size // network.config.num_attention_heads
    parts = [layer_parts(layer, family) for layer in stack_of(network, family)]
    heads = [layer.attention_out.in_features // head_size for layer in parts]
    return heads, [layer.mlp_out.in_features for layer in parts]


def _submodule_paths(network: PreTrainedModel, family: Family) -> dict[str, Any]:
    present = {name for name, _ in stack_of(network, family)[0].named_modules()}
    return {
        "layers": family.stack,
        "attention_in": [path for path in family.attention_in if path in present],
        "attention_out": family.attention_out,
        "mlp_in": family.mlp_in,
        "mlp_out": family.mlp_out,
        "head_count": list(family.head_count) if family.head_count else None,
    }
