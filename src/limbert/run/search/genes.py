"""How a sub-network is written as whole numbers that an optimiser can vary, and how they become one again."""

from collections.abc import Mapping, Sequence

import numpy as np

from limbert.core.subnet import Subnet
from limbert.model.elastic import ElasticModel


class Genes:
    """The sub-networks that a search may look at: any layers, each with heads and neurons of any trained width.

    A gene is a number from 0 to below its size: ``layer-2`` says whether layer 2 runs, ``heads-2`` and ``neurons-2``
    which of the trained widths its heads and its neurons have. What cannot vary has no gene: layer 0 where the family
    needs it, widths where only one was trained. No fewer layers than in the shallowest trained depth: below it answers
    are no better than guessing, and cheap enough to fill the front.

    Args:
        model: its space says which widths were trained.

    Attributes:
        sizes: how many values each gene has, by name.
        uniform: every trained width at every number of layers, the largest first: a finer grid than the trained one.
    """

    def __init__(self, model: ElasticModel) -> None:
        self._shape = model.shape
        wholes = [Subnet.uniform(model.shape, width=width) for width in model.space.widths]
        self._heads = sorted({subnet.heads[0] for subnet in wholes})
        self._neurons = sorted({subnet.neurons[0] for subnet in wholes})
        self._least = min(len(Subnet.uniform(model.shape, depth=depth).layers) for depth in model.space.depths)
        layers = model.shape.layers
        self.uniform = [
            Subnet.uniform(model.shape, width=width, depth=kept / layers, layers=model.space.layers)
            for kept in range(layers, self._least - 1, -1)
            for width in reversed(model.space.widths)
        ]
        self.sizes: dict[str, int] = {}
        for layer in range(model.shape.layers):
            if layer > 0 or not model.family.keeps_first_layer:
                self.sizes[f"layer-{layer}"] = 2
            for part, levels in (("heads", self._heads), ("neurons", self._neurons)):
                if len(levels) > 1:
                    self.sizes[f"{part}-{layer}"] = len(levels)

    def subnet(self, genes: Mapping[str, int]) -> Subnet:
        """The sub-network that the genes describe; where they keep too few layers, the lowest dropped ones run too."""
        layers = [layer for layer in range(self._shape.layers) if genes.get(f"layer-{layer}", 1)]
        dropped = [layer for layer in range(self._shape.layers) if layer not in layers]
        layers = sorted(layers + dropped[: max(0, self._least - len(layers))])
        return Subnet(
            tuple(layers),
            tuple(self._heads[genes.get(f"heads-{layer}", 0)] for layer in layers),
            tuple(self._neurons[genes.get(f"neurons-{layer}", 0)] for layer in layers),
        )

    def of(self, subnet: Subnet) -> dict[str, int]:
        """The genes of a sub-network; those of layers that do not run are at their largest.

        Raises:
            ValueError: if one of its widths was not trained.
        """
        widths = subnet.widths()
        genes = {}
        for name, size in self.sizes.items():
            part, layer = name.split("-")
            heads, neurons = widths.get(int(layer), (self._heads[-1], self._neurons[-1]))
            if part == "layer":
                genes[name] = int(int(layer) in widths)
            else:
                genes[name] = self._heads.index(heads) if part == "heads" else self._neurons.index(neurons)
            assert genes[name] < size
        return genes

    def first_generation(self, grid: Sequence[Subnet], *, count: int, seed: int) -> list[dict[str, int]]:
        """What a search begins with: the grid, what is uniform between, and neighbours of both: 1 to 3 genes differ."""
        rng = np.random.default_rng(seed)
        found = [self.of(subnet) for subnet in dict.fromkeys([*grid, *self.uniform])]
        uniform = len(found)
        while len(found) < count:
            genes = dict(found[rng.integers(uniform)])
            for name in rng.choice(list(self.sizes), size=min(len(self.sizes), int(rng.integers(1, 4))), replace=False):
                genes[str(name)] = int(rng.integers(self.sizes[str(name)]))
            found.append(genes)
        return found
