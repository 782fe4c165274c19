"""Latency of each sub-network relative to the full model, compared with its fraction of the FLOPs.

The reference is the stock full model in Transformers. For every sub-network:

* its layers alone, as a view runs them (stock modules) and as the engine does (direct operations), relative to the
  layers of the stock model: the time fraction divided by the FLOPs fraction is 1 if all saved FLOPs save time
  (embeddings and task head are the same for all sub-networks and left out);
* the whole sub-network, from token ids to logits, relative to the stock model: as a view, as an extracted copy, in
  Limbert's engine, and in ONNX Runtime and OpenVINO if they are installed.

Inputs are full batches of one length. All variants are measured in turns; times are medians over rounds.

Example: python benchmarks/static.py runs/sst2
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from limbert import ElasticModel, LimbertError, Subnet
from limbert.evaluation.hardware import describe_this_machine
from limbert.inference.encoder_shell import EncoderShell
from limbert.inference.engine import Engine
from limbert.inference.fast_layers import RunLayer
from limbert.inference.policy import Policy
from limbert.inference.runtimes import load_runtime
from limbert.model.checkpoint import library_versions
from limbert.model.families import stack_of
from limbert.model.flops import CostModel
from limbert.model.layerwise import LayerCalls

Inputs = dict[str, Tensor]
Run = Callable[[Inputs], object]
STOCK, STOCK_LAYERS = "stock full model", "stock full model, layers"
MIN_SECONDS = 0.03  # shortest measurement of one variant in a round


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    try:
        model = ElasticModel.from_pretrained(arguments.run)
        model.network.to(arguments.device, _dtype(arguments))
        subnets = {name: model.subnet(name) for name in arguments.subnet or model.subnets()}
        variants = _build_variants(model, subnets, arguments)
    except LimbertError as error:
        sys.exit(f"benchmark: error: {error}")
    model.network.eval()
    cells = [
        _measure(model, subnets, variants, batch=batch, tokens=tokens, rounds=arguments.rounds)
        for batch, tokens in arguments.cell
    ]
    report = {
        "run": Path(arguments.run).name,
        "device": describe_this_machine(arguments.threads, device=arguments.device),
        "versions": library_versions(),
        "rounds": arguments.rounds,
        "cells": cells,
    }
    print(json.dumps(report)) if arguments.json else _print(report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="elastic model with a sequence classification head")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--subnet", action="append", help="WIDTHxDEPTH, may be repeated (default: all)")
    parser.add_argument(
        "--backend", nargs="*", default=["onnxruntime", "openvino", "openvino:bf16"], help="beside torch"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="cuda: torch alone")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of the weights in torch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="four sub-networks, 1 x 128 and 32 x 32 tokens, 3 rounds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.cell = [(batch, tokens) for batch in arguments.batch for tokens in arguments.tokens]
    if arguments.quick:
        arguments.cell, arguments.rounds = [(1, 128), (32, 32)], 3
        arguments.subnet = ["1x1", "0.5x1", "0.25x1", "0.25x0.5"]
    return arguments


def _build_variants(
    model: ElasticModel, subnets: dict[str, Subnet], arguments: argparse.Namespace
) -> dict[tuple[str, str], Run]:
    """Functions that run a whole sub-network, by its name and runtime."""
    on_cpu = arguments.device == "cpu" and arguments.precision == "fp32"
    installed = [name for name in arguments.backend if on_cpu and importlib.util.find_spec(name.partition(":")[0])]
    task_type = "classification" if model.network.config.num_labels > 1 else "regression"
    stock = AutoModelForSequenceClassification.from_pretrained(arguments.run).eval()
    stock.to(arguments.device, _dtype(arguments))
    variants: dict[tuple[str, str], Run] = {("1x1", STOCK): _torch(stock)}
    for name, subnet in subnets.items():
        extracted = model.extract(subnet).eval()
        variants[name, "view"] = _torch(model.view(subnet))
        variants[name, "extracted"] = _torch(extracted)
        variants[name, "engine"] = Engine(model, Policy(subnet=name), task_type=task_type).run
        for backend in installed:
            runtime, _, precision = backend.partition(":")
            variants[name, backend] = load_runtime(
                runtime, extracted, threads=arguments.threads, precision=precision or "fp32"
            )
    return variants


def _dtype(arguments: argparse.Namespace) -> torch.dtype:
    return torch.bfloat16 if arguments.precision == "bf16" else torch.float32


def _torch(network: nn.Module) -> Run:
    return lambda inputs: network(**inputs)


@torch.inference_mode()
def _measure(
    model: ElasticModel,
    subnets: dict[str, Subnet],
    variants: dict[tuple[str, str], Run],
    *,
    batch: int,
    tokens: int,
    rounds: int,
) -> dict[str, object]:
    """All variants on one shape of batch."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, model.network.config.vocab_size, (batch, tokens), generator=generator)
    ids = ids.to(model.network.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    state, calls = model.layer_calls(**inputs)
    runs: dict[tuple[str, str], Callable[[], object]] = {
        key: lambda run=run: run(inputs) for key, run in variants.items()
    }
    for name, subnet in subnets.items():
        for how, steps in (("view, layers", _view_layers(model, subnet)), ("engine, layers", _direct(model, subnet))):
            runs[name, how] = lambda steps=steps: _run_layers(steps, state, calls)
    stock_layers = [_stock_step(layer) for layer in model.layers()]
    runs["1x1", STOCK_LAYERS] = lambda: _run_layers(stock_layers, state, calls)
    seconds = _medians(runs, rounds, wait=torch.cuda.synchronize if ids.is_cuda else lambda: None)
    cost = CostModel(model)
    full_flops = _layer_flops(cost, model.full, tokens)
    rows = []
    for name, subnet in subnets.items():
        times = {
            how: value
            for (subnet_name, how), value in seconds.items()
            if subnet_name == name and how not in (STOCK, STOCK_LAYERS)
        }
        layers = {how: value / seconds["1x1", STOCK_LAYERS] for how, value in times.items() if how.endswith("layers")}
        whole = {how: value / seconds["1x1", STOCK] for how, value in times.items() if how not in layers}
        share = _layer_flops(cost, subnet, tokens) / full_flops
        ratios = {how: value / share for how, value in layers.items()}
        rows.append({"subnet": name, "flops_share": share, "time_over_flops": ratios, "whole_time_share": whole})
    return {
        "batch": batch,
        "tokens": tokens,
        "stock_ms": 1000 * seconds["1x1", STOCK],
        "stock_layers_ms": 1000 * seconds["1x1", STOCK_LAYERS],
        "rows": rows,
    }


def _stock_step(layer: nn.Module) -> RunLayer:
    return lambda state, calls: calls.run(layer, state)


def _view_layers(model: ElasticModel, subnet: Subnet) -> list[RunLayer]:
    return [_stock_step(layer) for layer in stack_of(model.view(subnet), model.family)]


def _direct(model: ElasticModel, subnet: Subnet) -> list[RunLayer]:
    """The layers as the engine runs them."""
    shell = EncoderShell(model.new_view(model.full), model.family)
    widths = subnet.layer_widths().items()
    return [
        shell.layer_runner(model.layer_view(layer, heads=heads, neurons=neurons)) for layer, (heads, neurons) in widths
    ]


def _run_layers(steps: list[RunLayer], state: Tensor, calls: LayerCalls) -> Tensor:
    for step in steps:
        state = step(state, calls)
    return state


def _layer_flops(cost: CostModel, subnet: Subnet, tokens: int) -> int:
    return cost.flops(subnet, tokens) - cost.head_flops - cost.embedding_flops(tokens)


def _medians(
    runs: dict[tuple[str, str], Callable[[], object]], rounds: int, *, wait: Callable[[], None]
) -> dict[tuple[str, str], float]:
    """Seconds per call. In each round a variant is called several times in a row, as if it served alone."""

    def seconds(run: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        wait()  # for the GPU
        return (time.perf_counter() - start) / calls

    calls = {}
    for key, run in runs.items():
        seconds(run, 2)  # warm-up
        calls[key] = max(1, round(MIN_SECONDS / seconds(run, 1)))
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            taken[key].append(seconds(run, calls[key]))
    return {key: statistics.median(values) for key, values in taken.items()}


def _print(report: dict[str, object]) -> None:
    """Tables in Markdown."""
    print(f"{report['run']}: {report['device']}, medians of {report['rounds']} rounds")
    for cell in report["cells"]:  # type: ignore[attr-defined]
        stock = f"stock full model {cell['stock_ms']:.2f} ms, its layers {cell['stock_layers_ms']:.2f} ms"
        print(f"\nBatch {cell['batch']} x {cell['tokens']} tokens: {stock}\n")
        ratios, ways = cell["rows"][0]["time_over_flops"], cell["rows"][0]["whole_time_share"]
        print(f"| | FLOPs share | time / FLOPs: {' | '.join(ratios)} | time share of the whole: {' | '.join(ways)} |")
        print("|---|" + "---:|" * (1 + len(ratios) + len(ways)))
        for row in cell["rows"]:
            shares = [row["flops_share"], *row["time_over_flops"].values(), *row["whole_time_share"].values()]
            print(f"| {row['subnet']} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


if __name__ == "__main__":
    main()
