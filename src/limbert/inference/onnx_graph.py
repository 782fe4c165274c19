"""Export of a sub-network to one ONNX file of standard operators, with dynamic batch size and length.

Attention and its mask are replaced by the two functions below: a mask of one row per example, two matrix products and a
softmax, which runtimes fuse. torch's own export of the stock attention expands the mask over all queries and tests
every row for NaN.
"""

import copy
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, bidirectional_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from limbert.errors import StorageError, UnsupportedModelError, import_optional
from limbert.model.families import FAMILIES, unsupported_family_error

OPSET = 20  # the first with Gelu as one operator; newer ones add nothing that runtimes execute faster
_MAX_BYTES = 2**31 - 2**20  # a protobuf file is limited to 2 GiB, and the graph needs some of it
_ATTENTION_NAME = "limbert_plain"
_NOISY_LOGGERS = ("torch.onnx._internal.exporter._registration", "onnxscript.optimizer._constant_folding")


def write_onnx(network: PreTrainedModel, path: Path, *, inputs: Sequence[str] | None = None) -> None:
    """Write a network with its weights, in place, as one ONNX file that computes in fp32; the network is not changed.

    The file's inputs, by default `input_names`, are int64 ``(batch, tokens)`` with dynamic sizes, and for a segment of
    a policy also ``state`` ``(batch, tokens, hidden)``; its outputs are the tensors that the network returns, by their
    names: ``logits`` ``(batch, outputs)``, or those of other heads (``start_logits``, ``end_logits`` ...).
    """
    if network.config.model_type not in FAMILIES:
        raise unsupported_family_error(network.config.model_type)
    size = 4 * sum(parameter.numel() for parameter in network.parameters())
    if size > _MAX_BYTES:
        raise UnsupportedModelError(f"this network has {size / 2**30:.2f} GiB; one ONNX file holds less than 2 GiB")
    onnx = import_optional("onnx", extra="export")
    import_optional("onnxscript", extra="export")  # torch's exporter is built on it
    names = tuple(inputs or input_names(network))
    wrapped = _PositionalInputs(_prepare_for_export(network), names)
    example = _example_inputs(network, names)
    with torch.inference_mode():
        outputs = wrapped.network(**dict(zip(names, example, strict=True)))
    with quiet_loggers(*_NOISY_LOGGERS), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            wrapped,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=[name for name, value in outputs.items() if isinstance(value, Tensor)],
            dynamic_shapes=(({0: "batch", 1: "tokens"},) * len(names),),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip_metadata(proto)
    try:
        onnx.save(proto, path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def input_names(network: PreTrainedModel) -> tuple[str, ...]:
    """The inputs of this network's graph, named as by tokenizers; token types only if the model distinguishes them."""
    names = ("input_ids", "attention_mask")
    takes_types = "token_type_ids" in inspect.signature(network.forward).parameters
    return (*names, "token_type_ids") if takes_types and getattr(network.config, "type_vocab_size", 0) > 1 else names


class _PositionalInputs(nn.Module):
    """The network with positional inputs and a tuple of tensors as output, as the exporter needs it."""

    def __init__(self, network: PreTrainedModel, input_names: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self._input_names = tuple(input_names)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = self.network(**dict(zip(self._input_names, tensors, strict=True)))
        return tuple(value.float() for value in output.values() if isinstance(value, Tensor))


def _prepare_for_export(network: PreTrainedModel) -> PreTrainedModel:
    """A copy in fp32, on the CPU, without dropout, with the plain attention."""
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION_NAME, _plain_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION_NAME, _plain_mask)
    prepared = copy.deepcopy(network).cpu().float().eval()
    for module in prepared.modules():  # the layers of a sub-network may hold copies of its config
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig) and config._attn_implementation in ("sdpa", "flash_attention_2"):
            config._attn_implementation = _ATTENTION_NAME
            config.use_cache = False
    return prepared


def _example_inputs(network: PreTrainedModel, names: Sequence[str]) -> tuple[Tensor, ...]:
    """A padded batch to trace, with sizes that no other dimension of a model has."""
    ids = torch.full((2, 7), 5, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    ids[mask == 0] = network.config.pad_token_id or 0
    given: dict[str, Tensor] = {"input_ids": ids, "attention_mask": mask}
    if "state" in names:
        given["state"] = torch.zeros(*ids.shape, network.config.hidden_size)
    return tuple(given.get(name, torch.zeros_like(ids)) for name in names)


def _plain_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any] = bidirectional_mask_function,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **_: Any,
) -> Tensor:
    """The additive mask: ``(batch, 1, 1, tokens)``, or ``(batch, 1, tokens, tokens)`` for a sliding window."""
    assert attention_mask is not None
    visible = attention_mask[:, None, None, :]
    if mask_function != bidirectional_mask_function:
        queries = torch.arange(q_length)[:, None]  # (tokens, 1)
        keys = torch.arange(kv_length)[None, :]  # (1, tokens)
        visible = visible & mask_function(0, 0, queries, keys)
    return torch.where(visible, 0.0, torch.finfo(dtype).min)


def _plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax attention over ``(batch, heads, tokens, head size)``; returns ``(batch, tokens, heads, head size)``."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(2, 3)) * scale + attention_mask
    return torch.matmul(scores.softmax(dim=-1), value).transpose(1, 2).contiguous(), None


def _strip_metadata(proto: Any) -> None:
    """Remove stack traces with paths of this machine, and the shapes of intermediate values.

    With those shapes ONNX Runtime 1.31 fuses each residual sum with its norm into a kernel that is slower on CPUs than
    the two separate ones: MiniLM took 18 % longer.
    """
    del proto.graph.value_info[:]
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    for part in (*proto.graph.node, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Inside, these loggers of other libraries (``""``: the root logger) report errors only and get no handler."""
    loggers = [logging.getLogger(name) for name in names]
    levels, handlers = [logger.level for logger in loggers], [[*logger.handlers] for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level, kept in zip(loggers, levels, handlers, strict=True):
            logger.setLevel(level)
            logger.handlers[:] = kept
