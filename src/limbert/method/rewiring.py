"""Sort heads and neurons by importance, so that the narrow sub-networks keep the ones that matter."""

from limbert.method.importance import ImportanceScores
from limbert.model.elastic import ElasticModel
from limbert.model.permute import permute_layer


def rewire(model: ElasticModel, scores: ImportanceScores) -> None:
    """Put the most important head and neuron of each layer first, in place.

    The full network's function stays the same. Equal scores keep their order. (DynaBERT, arXiv 2004.04037,
    section 2.1.)
    """
    for layer, heads, neurons in zip(model.layers(), scores.heads, scores.neurons, strict=True):
        permute_layer(
            layer,
            model.family,
            heads=heads.argsort(descending=True, stable=True),
            neurons=neurons.argsort(descending=True, stable=True),
        )
