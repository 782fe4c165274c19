"""Width gates: small networks that choose, per input, the width of the next layers."""

import json
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from limbert.core.subnet import Shape
from limbert.errors import CheckpointError, ConfigError, first_line

GATES_FILENAME = "gates.safetensors"


class WidthGate(nn.Module):
    """``Linear(hidden, hidden) - ReLU - Linear(hidden, num_choices)`` on the state of the first token.

    Shapes: ``(..., hidden) -> (..., num_choices)``. (Hu, Meinel, Yang: "A flexible BERT model enabling width- and
    depth-dynamic inference", 2024.)
    """

    def __init__(self, *, hidden_size: int, num_choices: int) -> None:
        super().__init__()
        self.dense_in = nn.Linear(hidden_size, hidden_size)
        self.dense_out = nn.Linear(hidden_size, num_choices)

    def forward(self, first_token: Tensor) -> Tensor:
        inner = F.linear(first_token, self.dense_in.weight, self.dense_in.bias).relu_()
        return F.linear(inner, self.dense_out.weight, self.dense_out.bias)


class WidthGates(nn.Module):
    """The gates of one encoder: gate j chooses the width of the j-th of ``num_gates`` equal groups of layers.

    The input of gate 0 is the embedding output, that of gate j the output of the last layer of group j - 1.

    Args:
        num_gates: a divisor of the number of layers.
        hidden_size: of the encoder.
        widths: the width of each choice, increasing.

    Raises:
        ConfigError: for fewer than two widths, or widths that do not increase.
    """

    def __init__(self, *, num_gates: int, hidden_size: int, widths: tuple[float, ...]) -> None:
        super().__init__()
        if len(widths) < 2 or any(low >= high for low, high in pairwise(widths)):
            raise ConfigError(f"widths of the gates are {widths}; they must be two or more, increasing")
        self.widths = widths
        self.gate = nn.ModuleList(WidthGate(hidden_size=hidden_size, num_choices=len(widths)) for _ in range(num_gates))

    def __len__(self) -> int:
        return len(self.gate)

    def forward(self, first_tokens: Tensor) -> Tensor:
        """All gates: ``(batch, gates, hidden) -> (batch, gates, num_choices)``."""
        return torch.stack([gate(first_tokens[:, index]) for index, gate in enumerate(self.gate)], dim=1)

    def gate_layer_indices(self, num_layers: int) -> list[int]:
        """For each gate, the first layer of its group: the number of layers that run before the gate.

        Raises:
            ConfigError: if the number of gates does not divide the number of layers.
        """
        return gate_layer_indices(len(self), num_layers)


def gate_layer_indices(num_gates: int, num_layers: int) -> list[int]:
    """The first layer of each of ``num_gates`` equal groups of ``num_layers`` layers.

    Raises:
        ConfigError: if ``num_gates`` does not divide ``num_layers``.
    """
    if num_layers % num_gates:
        divisors = [number for number in range(1, num_layers + 1) if num_layers % number == 0]
        allowed = ", ".join(map(str, divisors))
        raise ConfigError(f"number of gates is {num_gates}; it must be a divisor of the {num_layers} layers: {allowed}")
    return list(range(0, num_layers, num_layers // num_gates))


def save_gates(gates: WidthGates, folder: Path) -> None:
    """Write the gates into a checkpoint folder; tensor names as in the released program: ``gate.0.dense_in.weight``."""
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in gates.state_dict().items()}
    save_file(tensors, folder / GATES_FILENAME, metadata={"widths": json.dumps(gates.widths)})


def read_gates(path: Path, *, shape: Shape, widths: tuple[float, ...]) -> WidthGates:
    """Read the gates from a file.

    Args:
        path: a file written by `save_gates`, or by the released program.
        shape: of the encoder.
        widths: the width of each choice if the file does not say.

    Raises:
        CheckpointError: if the file cannot be read, or does not fit the encoder or the widths.
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
        raise CheckpointError(f"the gates in {path} cannot be read: {first_line(error)}") from error
    return gates.requires_grad_(False).eval()
