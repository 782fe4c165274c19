"""What pre-training begins from: a masked-language model, an encoder without its head, or a config alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from limbert.core.config import TrainConfig
from limbert.core.space import Space
from limbert.model import checkpoint
from limbert.model.elastic import ElasticModel
from limbert.model.families import longest_input
from limbert.model.sparse_prediction import accept_positions

_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


@dataclass(frozen=True)
class MaskedStart:
    """A start that is loaded.

    Attributes:
        network: the masked-language model; what the checkpoint lacks is random, by the run's seed.
        tokenizer: the model's.
        lacking: what is random: ``"weights"`` (all of them), ``"head"`` or ``"nothing"``.
        phases: phases of earlier runs that it has behind it.
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    lacking: str
    phases: tuple[str, ...]

    @property
    def longest(self) -> int:
        """Tokens that it has positions for."""
        return longest_input(self.network.config)

    def model(self, space: Space) -> ElasticModel:
        """The start as an elastic model that takes ``positions``."""
        return _elastic(self.network, space)


def load_masked_start(config: TrainConfig) -> MaskedStart:
    """Load the model that pre-training begins from.

    A folder with a config and a tokenizer but no weights is a start from random weights.

    Raises:
        CheckpointError: if the config, the tokenizer or the weights cannot be read.
        UnsupportedModelError: for a family that is not supported.
    """
    model_config, tokenizer = checkpoint.load_config_and_tokenizer(config.model)
    torch.manual_seed(config.seed)
    folder = Path(config.model)
    if folder.is_dir() and not any(path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)):
        network = AutoModelForMaskedLM.from_config(model_config, dtype=torch.float32)
        return MaskedStart(network, tokenizer, "weights", ())
    loaded: Any
    loaded, record = checkpoint.load(config.model, head="masked-lm", output_loading_info=True)
    network, info = loaded
    lacking = "head" if info["missing_keys"] else "nothing"
    return MaskedStart(network, tokenizer, lacking, tuple(record.get("phases", ())))


def load_masked_model(folder: Path, space: Space) -> ElasticModel:
    """The result of a finished phase, as an elastic model that takes ``positions``."""
    network, _ = checkpoint.load(folder, head="masked-lm")
    return _elastic(network, space)


def _elastic(network: PreTrainedModel, space: Space) -> ElasticModel:
    model = ElasticModel(network, space=space)
    accept_positions(network)
    return model
