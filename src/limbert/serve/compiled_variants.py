"""The variants of a server in another runtime than torch: which ones, what they cost in memory, how good they are.

A runtime copies the weights of each variant, so only as many as fit into half of the free memory are loaded: those on
the Pareto front of quality and FLOPs first, then the other operating points.
"""

import logging
from dataclasses import replace

import numpy as np
import psutil
import torch

from limbert.errors import ConfigError
from limbert.inference.compiled import CompiledSubnet, SubnetCompiler, resolve_runtime
from limbert.inference.load import LoadedCheckpoint
from limbert.inference.runtimes import Runtime
from limbert.inference.segments import CompiledPolicy
from limbert.serve.settings import ServeSettings
from limbert.serve.variants import ModelVariants, Variant

_logger = logging.getLogger(__name__)
Compiled = Runtime | CompiledPolicy


def compile_variants(
    checkpoint: LoadedCheckpoint, variants: ModelVariants, settings: ServeSettings, *, threads: int
) -> tuple[ModelVariants, dict[str, Compiled], str]:
    """The variants to serve, by name what runs them instead of the engine, and the configured runtime's name.

    With torch these are all variants and nothing. The quality of a variant in bf16 or int8 is lower by what was
    measured when it was compiled; variants that lose too much are left out.

    Raises:
        LimbertError: if the runtime cannot be used, or the variant of a fixed policy loses too much.
    """
    model, fixed = checkpoint.model, variants.find(settings.policy)
    first = fixed or variants.full
    largest = model.subnet(first.policy.subnet or variants.full.name)
    name = resolve_runtime(checkpoint, largest, settings, threads=threads)
    if name == "torch":
        weights = sum(parameter.nbytes for parameter in model.network.parameters())
        on_torch = (
            replace(one, precision=settings.precision, memory_bytes=weights if one is variants.full else 0)
            for one in variants.variants
        )
        return ModelVariants(tuple(on_torch)), {}, name
    compiler = SubnetCompiler(checkpoint, runtime=name, precision=settings.precision, threads=threads)
    budget = psutil.virtual_memory().available / 2 / settings.workers
    loaded: dict[str, tuple[Compiled, float]] = {}  # with the loss of metric, by sub-network or operating point
    runtimes: dict[str, Compiled] = {}
    served: list[Variant] = []
    sizes: list[int] = []
    left_out: list[str] = []
    for variant in _by_importance(variants, first):
        key, size = variant.policy.subnet or variant.name, 0
        if key not in loaded:
            is_full = len(sizes) > 1 and sum(sizes) + max(sizes) > budget
            if is_full if settings.variants is None else len(sizes) == settings.variants:
                left_out.append(variant.name)
                continue
            try:
                compiled = compiler.compile(variant.policy, max_drop=settings.max_drop)
            except ConfigError as error:
                if variant is fixed:
                    raise
                _logger.warning("%s is left out: %s", variant.name, error)
                continue
            if not sizes:
                _opened(compiler, compiled)  # the memory of the library itself is no variant's
            before = psutil.Process().memory_info().rss
            loaded[key] = _opened(compiler, compiled), compiled.metric_loss
            size = max(psutil.Process().memory_info().rss - before, compiled.file_bytes)
            sizes.append(size)
            _logger.warning("%s on %s in %s: %.0f MB", variant.name, name, settings.precision, size / 1e6)
        runtimes[variant.name], loss = loaded[key]
        quality = None if variant.quality is None else variant.quality - loss
        changed = replace(variant, quality=quality, runtime=name, precision=settings.precision, memory_bytes=size)
        served.append(changed)
    if left_out and settings.variants is None:
        names = ", ".join(left_out)
        _logger.warning("the others use half of the free memory; left out: %s; --variants N sets the number", names)
    if not served:
        raise ConfigError(
            f"every sub-network loses more than {settings.max_drop:g} points in {settings.precision}; "
            "use --precision fp32 or a larger --max-drop"
        )
    return ModelVariants(tuple(sorted(served, key=lambda variant: -variant.flops))), runtimes, name


def _opened(compiler: SubnetCompiler, compiled: CompiledSubnet) -> Compiled:
    """The compiled variant after its first batch, for which it takes memory."""
    network = compiler.open(compiled)
    run = network if isinstance(network, Runtime) else network.run
    run(dict.fromkeys(("input_ids", "attention_mask"), torch.ones(8, 16, dtype=torch.long)))
    return network


def _by_importance(variants: ModelVariants, first: Variant) -> list[Variant]:
    """``first``, the Pareto front's others (those far from all before in FLOPs first), the other operating points."""
    distinct = ModelVariants(tuple(one for one in variants.variants if one.name == (one.policy.subnet or one.name)))
    front = distinct.pareto_front({variant.name: float(variant.flops) for variant in distinct.variants})
    others, ordered = [variant for variant in front if variant is not first], [first]
    while others:  # the one farthest from all chosen, in the logarithm of FLOPs
        distance = [min(abs(np.log(variant.flops / one.flops)) for one in ordered) for variant in others]
        ordered.append(others.pop(int(np.argmax(distance))))
    return ordered + [variant for variant in variants.variants if variant.kind == "policy" and variant not in ordered]
