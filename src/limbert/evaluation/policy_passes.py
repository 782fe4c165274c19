"""Forward passes of operating points for a profile: over real texts, because their cost depends on the texts."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
from torch.nn.functional import pad

from limbert.evaluation.results import ProfileSetup
from limbert.inference.engine import Engine
from limbert.inference.load import LoadedCheckpoint
from limbert.inference.parity import parity_examples
from limbert.inference.policy import OperatingPoint, operating_points
from limbert.inference.predict import inference_inputs

TEXTS_PER_ROUND = 8  # at least; a round's time is the mean over its passes, since texts that exit early are faster


def dynamic_points(record: Mapping[str, object]) -> dict[str, OperatingPoint]:
    """The operating points in ``limbert.json`` that are more than one sub-network."""
    return {name: point for name, point in operating_points(record).items() if point.policy.subnet is None}


def passes_per_round(setup: ProfileSetup) -> int:
    """Forward passes of an operating point that are measured together."""
    return -(-TEXTS_PER_ROUND // setup.batch)


def policy_passes(checkpoint: LoadedCheckpoint, point: OperatingPoint, setup: ProfileSetup) -> Callable[[], None]:
    """A function that runs a round of passes on torch, each over the next texts of the development set.

    Texts have exactly the setup's number of tokens: they are padded or cut. Padding changes no exit and no width.
    """
    model = checkpoint.model
    engine = Engine(model, point.policy, task_type=checkpoint.trained_task.task_type)
    examples = parity_examples(checkpoint, checkpoint.data_config, required=False).examples
    rows = np.resize(np.arange(len(examples)), (-(-len(examples) // setup.batch), setup.batch))
    fill = {"input_ids": examples.pad_token_id, "token_type_ids": examples.pad_token_type_id}
    batches = [
        {
            name: pad(tensor, (0, setup.tokens - tensor.shape[1]), value=fill.get(name, 0))
            for name, tensor in inference_inputs(examples, row, device=model.network.device).items()
        }
        for row in rows.tolist()
    ]
    texts = itertools.cycle(batches)

    def run() -> None:
        for _ in range(passes_per_round(setup)):
            engine.run(next(texts)).logits.cpu()  # waits for the device

    return run
