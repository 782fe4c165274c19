"""Encoding of sub-networks as integer parameters for an optimiser."""

from collections.abc import Mapping, Sequence

import numpy as np

from limbert.core.subnet import Subnet
from limbert.model.elastic import ElasticModel


class SubnetEncoding:
    """Encodes sub-networks as integers for the optimiser: any layers, each with heads and neurons of any trained width.

    A parameter is an integer from 0 to below its cardinality: ``layer-2`` says whether layer 2 runs, ``heads-2`` and
    ``neurons-2`` which of the trained widths its heads and neurons have. What cannot vary has no parameter: layer 0
    where the family needs it, widths where only one was trained. A sub-network has at least as many layers as the
    shallowest trained depth: with fewer, predictions are no better than chance, and cheap enough to fill the front.

    Attributes:
        cardinalities: the number of values of each parameter, by name.
        uniform_subnets: every trained width at every number of layers, the largest first: a finer grid.
    """

    def __init__(self, model: ElasticModel) -> None:
        self._shape = model.shape
        full_depth = [Subnet.uniform(model.shape, width=width) for width in model.space.widths]
        self._head_choices = sorted({subnet.heads[0] for subnet in full_depth})
        self._neuron_choices = sorted({subnet.neurons[0] for subnet in full_depth})
        self._min_layers = min(len(Subnet.uniform(model.shape, depth=depth).layers) for depth in model.space.depths)
        layers = model.shape.layers
        self.uniform_subnets = [
            Subnet.uniform(model.shape, width=width, depth=count / layers, layers=model.space.layers)
            for count in range(layers, self._min_layers - 1, -1)
            for width in reversed(model.space.widths)
        ]
        self.cardinalities: dict[str, int] = {}
        for layer in range(model.shape.layers):
            if layer > 0 or not model.family.requires_first_layer:
                self.cardinalities[f"layer-{layer}"] = 2
            for part, choices in (("heads", self._head_choices), ("neurons", self._neuron_choices)):
                if len(choices) > 1:
                    self.cardinalities[f"{part}-{layer}"] = len(choices)

    def decode(self, code: Mapping[str, int]) -> Subnet:
        """The sub-network of these parameters; if they keep too few layers, the lowest dropped ones run too."""
        layers = [layer for layer in range(self._shape.layers) if code.get(f"layer-{layer}", 1)]
        dropped = [layer for layer in range(self._shape.layers) if layer not in layers]
        layers = sorted(layers + dropped[: max(0, self._min_layers - len(layers))])
        return Subnet(
            tuple(layers),
            tuple(self._head_choices[code.get(f"heads-{layer}", 0)] for layer in layers),
            tuple(self._neuron_choices[code.get(f"neurons-{layer}", 0)] for layer in layers),
        )

    def encode(self, subnet: Subnet) -> dict[str, int]:
        """The parameters of a sub-network; those of layers that do not run are at their largest.

        Raises:
            ValueError: if one of its widths was not trained.
        """
        widths = subnet.layer_widths()
        code = {}
        for name in self.cardinalities:
            part, _, layer = name.partition("-")
            heads, neurons = widths.get(int(layer), (self._head_choices[-1], self._neuron_choices[-1]))
            if part == "layer":
                code[name] = int(int(layer) in widths)
            elif part == "heads":
                code[name] = self._head_choices.index(heads)
            else:
                code[name] = self._neuron_choices.index(neurons)
        return code

    def warm_start(self, grid: Sequence[Subnet], *, count: int, seed: int) -> list[dict[str, int]]:
        """The first codes of a search: grid, uniform sub-networks, and neighbours of both with 1 to 3 changes."""
        rng = np.random.default_rng(seed)
        names = list(self.cardinalities)
        codes = [self.encode(subnet) for subnet in dict.fromkeys([*grid, *self.uniform_subnets])]
        num_uniform = len(codes)
        while len(codes) < count:
            code = dict(codes[rng.integers(num_uniform)])
            for name in rng.choice(names, size=min(len(names), int(rng.integers(1, 4))), replace=False):
                code[str(name)] = int(rng.integers(self.cardinalities[str(name)]))
            codes.append(code)
        return codes
