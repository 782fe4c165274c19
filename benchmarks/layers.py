"""What does a layer take on one short text, as the stock module and with its operations called directly?

Medians of repeated calls, the two taking turns, in microseconds; also preparing a batch (embeddings and mask).

Example: python benchmarks/layers.py runs/mrpc --tokens 52
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from limbert import ElasticModel, Subnet
from limbert.model.families import set_stack
from limbert.model.states import LayerCatcher


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="elastic or stock model with a sequence classification head")
    parser.add_argument("--tokens", type=int, default=52)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args()
    model = ElasticModel.from_pretrained(arguments.run)
    ids = torch.randint(1000, 2000, (1, arguments.tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    frame, network = model.frame(), model.extract(model.full).eval()
    catcher = LayerCatcher(model.layers(), model.family)
    set_stack(network, model.family, catcher.stands)
    state, calls = frame.prepare(inputs)
    print(f"one text of {arguments.tokens} tokens, {torch.get_num_threads()} threads, microseconds\n")
    print("| | stock modules | called directly |\n|---|---:|---:|")
    for width in model.space.widths:
        subnet = Subnet.uniform(model.shape, width=width)
        layer = model.layer_view(0, heads=subnet.heads[0], neurons=subnet.neurons[0])
        direct = frame.runner(layer)
        pair = lambda layer=layer: calls.run(layer, state), lambda direct=direct: direct(state, calls)
        _row(f"a layer at width {width:g}", *pair, repeats=arguments.repeats)
    _row(
        "embeddings and mask",
        lambda: catcher.catch(network, inputs),
        lambda: frame.prepare(inputs),
        repeats=arguments.repeats,
    )


def _row(title: str, stock: Callable[[], object], direct: Callable[[], object], *, repeats: int) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(-20, repeats):
        for run, taken in zip((stock, direct), times, strict=True):
            start = time.perf_counter()
            run()
            if turn >= 0:
                taken.append(time.perf_counter() - start)
    cells = " | ".join(f"{1e6 * statistics.median(taken):.0f}" for taken in times)
    print(f"| {title} | {cells} |")


if __name__ == "__main__":
    main()
