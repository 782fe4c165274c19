"""A model without its layers: embeddings and task head, for engines that run the layers themselves."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbert.errors import UnsupportedModelError
from limbert.inference.fast_layers import RunLayer, fast_layer_runner, fast_preparation
from limbert.model.families import Family, set_stack, stack_of
from limbert.model.layerwise import ArgumentPath, LayerCallRecorder, LayerCalls, PreparedBatch

HeadStep = Callable[[Tensor, Tensor], Tensor]  # (hidden or pooled state, attention mask) -> the next state


class EncoderShell:
    """Embeds batches and applies the task head to any layer's output; takes ``network``'s layers out. Thread-safe."""

    def __init__(self, network: PreTrainedModel, family: Family) -> None:
        if not type(network).__name__.endswith("ForSequenceClassification"):
            raise UnsupportedModelError(
                f"dynamic inference needs a head for sequence classification, got {type(network).__name__}"
            )
        self._network, self._family = network, family
        self._call_recorder = LayerCallRecorder(stack_of(network, family), family)
        set_stack(network, family, self._call_recorder.placeholders)
        self._fast_prepare = fast_preparation(network, family)
        self._head_steps = [_head_step(network, name) for name in family.sequence_head]
        pooling = getattr(network.config, "classifier_pooling", "cls")
        self._head_reads_all_tokens = "@pool" in family.sequence_head and pooling != "cls"
        self._batched_arguments = self._find_batched_arguments()

    def prepare(self, inputs: dict[str, Tensor]) -> PreparedBatch:
        """The embedding output ``(batch, tokens, hidden)`` of a batch, and the arguments that its layers take."""
        prepared = self._fast_prepare(inputs) if self._fast_prepare is not None else None
        return prepared or self._call_recorder.record(self._network, inputs)

    def select_examples(self, calls: LayerCalls, indices: Tensor, *, batch_size: int) -> LayerCalls:
        """The layers' calls for some examples of a batch of ``batch_size``."""

        def select(path: ArgumentPath, tensor: Tensor) -> Tensor:
            is_batched = path in self._batched_arguments and len(tensor) == batch_size
            return tensor.index_select(0, indices) if is_batched else tensor

        return calls.map_tensors(select)

    def layer_runner(self, layer: nn.Module) -> RunLayer:
        """A function that runs one of the model's layer views."""
        return fast_layer_runner(layer, self._network, self._family)

    def apply_head(self, states: Sequence[Tensor], attention_mask: Tensor, indices: Sequence[int]) -> Tensor:
        """Logits ``(examples, outputs)`` from any layer's output, as if that layer were the last.

        The states ``(examples, tokens, hidden)`` are for consecutive parts of ``indices`` in the batch; the attention
        mask ``(batch, tokens)`` is that of the whole batch.
        """
        if self._head_reads_all_tokens:
            attention_mask = attention_mask[list(indices)]
        else:
            states = [state[:, :1] for state in states]
        value = states[0] if len(states) == 1 else torch.cat(list(states))
        for step in self._head_steps:
            value = step(value, attention_mask)
        return value

    def _find_batched_arguments(self) -> frozenset[ArgumentPath]:
        """Paths of the layers' tensor arguments whose first dimension is the batch: their length follows its size."""
        paths_by_size: list[set[ArgumentPath]] = []
        for batch_size in (2, 3):
            ids = torch.ones(batch_size, 4, dtype=torch.long, device=self._network.device)
            mask = torch.ones_like(ids)
            mask[0, 2:] = 0  # without padding some models pass no mask at all
            paths: set[ArgumentPath] = set()

            def note(
                path: ArgumentPath, tensor: Tensor, size: int = batch_size, paths: set[ArgumentPath] = paths
            ) -> Tensor:
                if tensor.ndim and len(tensor) == size:
                    paths.add(path)
                return tensor

            with torch.no_grad():
                _, calls = self.prepare({"input_ids": ids, "attention_mask": mask})
            calls.map_tensors(note)
            paths_by_size.append(paths)
        return frozenset(paths_by_size[0] & paths_by_size[1])


def _head_step(network: PreTrainedModel, name: str) -> HeadStep:
    """One step of the family's sequence head."""
    if name == "@first":
        return lambda state, mask: state[:, 0]
    if name == "@relu":
        return lambda state, mask: state.relu()
    if name == "@pool":
        return _mean_pooled if network.config.classifier_pooling == "mean" else lambda state, mask: state[:, 0]
    module: nn.Module = (
        network.base_model.get_submodule(name.removeprefix("base:"))
        if name.startswith("base:")
        else network.get_submodule(name)
    )
    return lambda state, mask: module(state)


def _mean_pooled(state: Tensor, mask: Tensor) -> Tensor:
    """Mean over tokens, without padding: ``(batch, tokens, hidden) -> (batch, hidden)``."""
    weights = mask.unsqueeze(-1).to(state.dtype)
    return (state * weights).sum(dim=1) / weights.sum(dim=1)
