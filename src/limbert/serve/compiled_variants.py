"""The variants of a server in another runtime than torch: which ones, what they cost in memory, how good they are.

A runtime copies the weights of each sub-network, so only those on the Pareto front of quality and FLOPs are loaded, as
many as fit into half of the free memory.
"""

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch

from limbert.errors import ConfigError
from limbert.inference.compiled import CompiledSubnet, SubnetCompiler, resolve_runtime
from limbert.inference.load import LoadedCheckpoint
from limbert.inference.runtimes import Runtime
from limbert.serve.settings import ServeSettings
from limbert.serve.variants import ModelVariants, Variant

_logger = logging.getLogger(__name__)


def compile_variants(
    checkpoint: LoadedCheckpoint, variants: ModelVariants, settings: ServeSettings, *, threads: int
) -> tuple[ModelVariants, dict[str, Runtime], str]:
    """The variants to serve, by name those that the configured runtime runs instead of the engine, and its name.

    With torch these are all variants and none. Operating points with gates, exits or a cascade stay on torch in fp32.
    The quality of a sub-network in bf16 or int8 is lower by what was measured when it was compiled; sub-networks that
    lose too much are left out.

    Raises:
        LimbertError: if the runtime cannot be used, or the sub-network of a fixed policy loses too much.
    """
    model, fixed = checkpoint.model, variants.find(settings.policy)
    first = fixed if fixed is not None and fixed.kind == "subnet" else variants.full
    name = resolve_runtime(checkpoint, model.subnet(first.name), settings, threads=threads)
    if name == "torch":
        weights = sum(parameter.nbytes for parameter in model.network.parameters())
        on_torch = (
            replace(one, precision=settings.precision, memory_bytes=weights if one is variants.full else 0)
            for one in variants.variants
        )
        return ModelVariants(tuple(on_torch)), {}, name
    if fixed is not None and fixed.policy.subnet is None and settings.runtime != "auto":
        raise ConfigError(f"policy {fixed.name} runs on torch only; use --runtime torch, or one sub-network")
    compiler = SubnetCompiler(checkpoint, runtime=name, precision=settings.precision, threads=threads)
    budget = psutil.virtual_memory().available / 2 / settings.workers
    runtimes: dict[str, Runtime] = {}
    compiled_as: dict[str, Any] = {"runtime": name, "precision": settings.precision}
    served: list[Variant] = []
    sizes: list[int] = []
    for variant in _by_importance(variants, first, count=settings.variants):
        if settings.variants is None and len(sizes) > 1 and sum(sizes) + max(sizes) > budget:
            _logger.warning(
                "loaded %d variants, which use half of the free memory; --variants N sets the number", len(sizes)
            )
            break
        try:
            compiled = compiler.compile(model.subnet(variant.name), max_drop=settings.max_drop)
        except ConfigError as error:
            if variant is fixed:
                raise
            _logger.warning("%s is left out: %s", variant.name, error)
            continue
        if not sizes:
            _opened(compiler, compiled)  # the memory of the library itself is no variant's
        before = psutil.Process().memory_info().rss
        runtimes[variant.name] = _opened(compiler, compiled)
        sizes.append(max(psutil.Process().memory_info().rss - before, compiled.file_bytes))
        quality = None if variant.quality is None else variant.quality - compiled.metric_loss
        served.append(replace(variant, quality=quality, memory_bytes=sizes[-1], **compiled_as))
        _logger.warning("%s on %s in %s: %.0f MB", variant.name, name, settings.precision, sizes[-1] / 1e6)
    if not runtimes:
        raise ConfigError(
            f"every sub-network loses more than {settings.max_drop:g} points in {settings.precision}; "
            "use --precision fp32 or a larger --max-drop"
        )
    for point in variants.variants:
        if point.kind == "policy":
            if point.policy.subnet in runtimes:  # one sub-network
                runtimes[point.name], point = runtimes[str(point.policy.subnet)], replace(point, **compiled_as)
            served.append(point)
    return ModelVariants(tuple(sorted(served, key=lambda variant: -variant.flops))), runtimes, name


def _opened(compiler: SubnetCompiler, compiled: CompiledSubnet) -> Runtime:
    """The compiled sub-network after its first batch, for which it takes memory."""
    runtime = compiler.open(compiled)
    runtime(dict.fromkeys(("input_ids", "attention_mask"), torch.ones(8, 16, dtype=torch.long)))
    return runtime


def _by_importance(variants: ModelVariants, first: Variant, *, count: int | None) -> list[Variant]:
    """``first``, the smallest, then the Pareto front's others from the middle of the largest gap; ``count`` at most."""
    front = variants.pareto_front({variant.name: float(variant.flops) for variant in variants.variants})
    others = [variant for variant in front if variant.kind == "subnet" and variant is not first]
    ordered, shares = [first], [float(first.flops)]
    while others and len(ordered) != count:
        # the one farthest from all chosen, in the logarithm of FLOPs
        distance = [min(abs(np.log(variant.flops / share)) for share in shares) for variant in others]
        chosen = others.pop(int(np.argmax(distance)))
        ordered.append(chosen)
        shares.append(float(chosen.flops))
    return ordered
