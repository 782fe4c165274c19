"""Width gates: small networks beside the encoder that choose, input by input, how wide the next layers run."""

import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from limbert.core.subnet import Shape
from limbert.errors import CheckpointError, ConfigError

GATES_FILENAME = "gates.safetensors"


class WidthGate(nn.Module):
    """``Linear(hidden, hidden) - ReLU - Linear(hidden, choices)`` on the state of the first token.

    (Hu, Meinel, Yang: "A flexible BERT model enabling width- and depth-dynamic inference", 2024.)

    Shapes: ``(..., hidden) -> (..., choices)``.
    """

    def __init__(self, *, hidden_size: int, num_choices: int) -> None:
        super().__init__()
        self.dense_in = nn.Linear(hidden_size, hidden_size)
        self.dense_out = nn.Linear(hidden_size, num_choices)

    def forward(self, first_token: Tensor) -> Tensor:
        inner = F.linear(first_token, self.dense_in.weight, self.dense_in.bias).relu_()
        return F.linear(inner, self.dense_out.weight, self.dense_out.bias)


class WidthGates(nn.Module):
    """The gates of one encoder: gate j chooses the width of the j-th of equally long groups of layers.

    Gate 0 reads the embedding output, gate j the output of the last layer of group j - 1.

    Args:
        count: gates; a divisor of the number of layers.
        hidden: the encoder's hidden size.
        widths: the width that each choice stands for, rising.
    """

    def __init__(self, *, num_gates: int, hidden_size: int, widths: tuple[float, ...]) -> None:
        super().__init__()
        if len(widths) < 2 or any(low >= high for low, high in pairwise(widths)):
            raise ConfigError(f"gates choose among widths {widths}; they must be two or more, rising")
        self.widths = widths
        self.gate = nn.ModuleList(WidthGate(hidden_size=hidden_size, num_choices=len(widths)) for _ in range(num_gates))

    def __len__(self) -> int:
        return len(self.gate)

    def forward(self, first_tokens: Tensor) -> Tensor:
        """All gates at once: ``(batch, gates, hidden) -> (batch, gates, choices)``."""
        return torch.stack([gate(first_tokens[:, index]) for index, gate in enumerate(self.gate)], dim=1)

    def gate_layer_indices(self, num_layers: int) -> list[int]:
        """For each gate the first layer that it decides for, which is the number of layers run when it reads.

        Raises:
            ConfigError: if the number of gates does not divide that of layers.
        """
        return gate_layer_indices(len(self), num_layers)


def gate_layer_indices(num_gates: int, num_layers: int) -> list[int]:
    """The first layer of each of ``count`` equal groups of ``layers`` layers.

    Raises:
        ConfigError: if ``count`` does not divide ``layers``.
    """
    if num_layers % num_gates:
        divisors = [number for number in range(1, num_layers + 1) if num_layers % number == 0]
        allowed = ", ".join(map(str, divisors))
        raise ConfigError(f"number of gates is {num_gates}; it must be a divisor of the {num_layers} layers: {allowed}")
    return list(range(0, num_layers, num_layers // num_gates))


def save_gates(gates: WidthGates, folder: Path) -> None:
    """Write the gates into a checkpoint folder, names as in the released program: ``gate.0.dense_in.weight``."""
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in gates.state_dict().items()}
    save_file(tensors, folder / GATES_FILENAME, metadata={"widths": json.dumps(gates.widths)})


def read_gates(path: Path, *, shape: Shape, widths: tuple[float, ...]) -> WidthGates:
    """The gates in a file.

    Args:
        path: a file as `save_gates` writes it.
        shape: of the encoder that they belong to.
        widths: what the choices stand for where the file does not say.

    Raises:
        CheckpointError: if it cannot be read, or fits neither the encoder nor the widths.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            saved = (file.metadata() or {}).get("widths")
        count = len({name.split(".")[1] for name in tensors})
        hidden = tensors["gate.0.dense_in.weight"].shape[1]
        gates = WidthGates(num_gates=count, hidden_size=hidden, widths=tuple(json.loads(saved)) if saved else widths)
        gates.load_state_dict(tensors)
        gates.gate_layer_indices(shape.layers)
    except (OSError, SafetensorError, KeyError, IndexError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"the gates in {path} cannot be read: {reason}") from error
    return gates.requires_grad_(False).eval()
