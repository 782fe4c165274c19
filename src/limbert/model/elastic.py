"""A stock Transformers model that runs at any of its sub-networks: scoped for training, as views for serving."""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbert.core.space import Space, is_width_depth_name
from limbert.core.subnet import Shape, Subnet
from limbert.errors import SubnetError
from limbert.model import checkpoint
from limbert.model.checkpoint import searched_subnets
from limbert.model.families import (
    Family,
    LayerParts,
    family_of,
    layer_parts,
    max_input_length,
    set_stack,
    shape_of,
    stack_of,
)
from limbert.model.layerwise import PreparedBatch, layers_bypassed, record_layer_calls, recorded_states
from limbert.model.sliced_linear import SlicedLinear, make_sliced
from limbert.model.views import ViewFactory
from limbert.model.width_gates import GATES_FILENAME, WidthGates, read_gates, save_gates


class ElasticModel:
    """One pretrained encoder with its task head, and all its sub-networks.

    Attributes:
        network: the stock model. Outside `at` it computes what it always did, bit for bit, and its parameter names
            and weights are the stock ones.
        space: the sub-networks it is trained for (or will be).
        shape: layers, heads and neurons of the full encoder.
        family: where this architecture keeps its parts.
        record: what else ``limbert.json`` says: task, phases done, settings, metrics, versions.
        gates: choose widths input by input; None where they are not trained.

    Raises:
        UnsupportedModelError: for a family without a passed zeroed-copy test.
    """

    def __init__(self, network: PreTrainedModel, *, space: Space | None = None, record: dict[str, Any] | None = None):
        self.network = network
        self.family: Family = family_of(network)
        self.shape: Shape = shape_of(network, self.family)
        self.space = space or Space()
        self.record: dict[str, Any] = record or {}
        self.gates: WidthGates | None = None
        self._layers = list(stack_of(network, self.family))
        self._lock = threading.RLock()  # held by `at`, so that a second thread waits instead of racing
        self._views: dict[Subnet, PreTrainedModel] = {}
        self._view_factory_cache: ViewFactory | None = None
        self._view_factory_key: frozenset[tuple[int, int]] = frozenset()
        self._layer_parts = [layer_parts(layer, self.family) for layer in self._layers]
        self._head_size = self._layer_parts[0].attention_out.in_features // self.shape.heads
        for parts in self._layer_parts:
            for linear in parts.attention_in:
                make_sliced(linear, blocks=self.family.attention_blocks)
            make_sliced(parts.mlp_in, blocks=self.family.mlp_blocks)
            make_sliced(parts.attention_out)
            make_sliced(parts.mlp_out)
        _install_state_hooks(network)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        space: Space | None = None,
        head: str | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """Load a stock checkpoint or an elastic one.

        Args:
            path_or_hub_id: a local folder, or a model's name on the Hugging Face hub.
            space: the sub-networks to train for; default: what the checkpoint says, else the widths and depths of
                the DynaBERT paper.
            head: the task head, one of ``limbert.model.checkpoint.HEADS``; ``"as-saved"`` takes the class that the
                checkpoint's config names; default: what its task in ``limbert.json`` needs, else sequence
                classification.
            network_arguments: passed on to Transformers, for example ``num_labels=3`` or ``dtype=torch.bfloat16``.

        Raises:
            CheckpointError: if there is no such checkpoint or it cannot be read.
            UnsupportedModelError: for a family that is not in the table.
        """
        network, saved = checkpoint.load_network(path_or_hub_id, head=head, **model_kwargs)
        saved_space = Space.from_dict(saved.pop("space")) if "space" in saved else None
        model = cls(network, space=space or saved_space, record=saved)
        gates_file = checkpoint.find_file(path_or_hub_id, GATES_FILENAME)
        if gates_file is not None:
            widths = (saved_space or model.space).widths
            model.gates = read_gates(gates_file, shape=model.shape, widths=widths).to(network.device, network.dtype)
        return model

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        tokenizer: Any = None,
        add_files: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """Write an elastic checkpoint: a stock folder plus ``limbert.json``, and ``gates.safetensors`` if it has gates.

        Plain ``AutoModelForSequenceClassification.from_pretrained(directory)`` loads it as the full-size model. The
        folder is written beside its place and renamed, so a crash leaves the old one or the new one.

        Args:
            directory: must not exist, or hold a checkpoint, which is replaced.
            tokenizer: saved along, so that the folder answers text on its own.
            add_files: called with the folder before it takes its place, to put more files into it.

        Raises:
            StorageError: if the disk is full or the folder cannot be written; what was there stays.
        """
        with self.at(self.full):
            record = {"space": self.space.to_dict()} | self.record
            with checkpoint.save_checkpoint(
                directory, network=self.network, tokenizer=tokenizer, record=record
            ) as folder:
                if self.gates is not None:
                    save_gates(self.gates, folder)
                add_files(folder)

    @property
    def max_input_length(self) -> int:
        """Tokens that the model has positions for."""
        return max_input_length(self.network.config)

    @property
    def full(self) -> Subnet:
        """The whole encoder as a sub-network."""
        return Subnet.full(self.shape)

    def subnet(self, name: str) -> Subnet:
        """The uniform sub-network called ``name``, for example ``"0.5x0.75"`` (width x depth), or a found one.

        Raises:
            SubnetError: if the name cannot be read, or keeps no head or no layer.
        """
        found = self.searched_subnets()
        if found and name not in found and not is_width_depth_name(name):
            raise SubnetError(f"no sub-network {name!r}; write WIDTHxDEPTH, or one that was found: {', '.join(found)}")
        return found[name] if name in found else self.space.subnet(self.shape, name)

    def subnets(self) -> dict[str, Subnet]:
        """The sub-networks of the model's space by name, full size first."""
        return {item.name: item.subnet for item in self.space.named_subnets(self.shape)}

    def searched_subnets(self) -> dict[str, Subnet]:
        """The sub-networks off the grid that ``limbert search`` saved with the model, by name."""
        return searched_subnets(self.record)

    @contextmanager
    def at(self, subnet: Subnet) -> Iterator[PreTrainedModel]:
        """Run the supernet as one sub-network inside a ``with`` block, for training and evaluation.

        Call ``backward()`` inside the block: gradient checkpointing runs the forward pass again. Scopes nest, and
        whatever happens inside, the state before is restored. One thread at a time: others wait at the ``with``.

        Raises:
            SubnetError: if the model has fewer layers, heads or neurons, or its family needs layer 0.
        """
        self.check(subnet)
        with self._lock:
            stack = stack_of(self.network, self.family)
            before = [_widths(parts) for parts in self._layer_parts]
            try:
                for index, (heads, neurons) in subnet.layer_widths().items():
                    _set_widths(self._layer_parts[index], (heads, heads * self._head_size, neurons))
                set_stack(self.network, self.family, nn.ModuleList(self._layers[index] for index in subnet.layers))
                yield self.network
            finally:
                set_stack(self.network, self.family, stack)
                for parts, widths in zip(self._layer_parts, before, strict=True):
                    _set_widths(parts, widths)

    def view(self, subnet: Subnet) -> PreTrainedModel:
        """The sub-network as a module of its own that shares the supernet's storage: for serving and measuring.

        Safe to call and to run from many threads. In evaluation mode and without gradients. It follows later training
        of the supernet, which must not run at the same time; after the supernet moved to another device or type,
        ask for the view again. Cached: the same sub-network is the same object.

        Raises:
            SubnetError: as `at`.
        """
        self.check(subnet)
        with self._lock:
            factory = self._view_factory()
            if subnet not in self._views:
                self._views[subnet] = factory.build(subnet)
            return self._views[subnet]

    def new_view(self, subnet: Subnet) -> PreTrainedModel:
        """As `view`, but a new module each time, whose layer stack the caller may replace."""
        self.check(subnet)
        with self._lock:
            return self._view_factory().build(subnet)

    def layer_view(self, index: int, *, heads: int, neurons: int) -> nn.Module:
        """One layer at one width, the same module that views of this model run.

        Raises:
            SubnetError: if the model has fewer layers, heads or neurons.
        """
        Subnet((index,), (heads,), (neurons,)).check(self.shape)
        with self._lock:
            return self._view_factory().layer(index, heads, neurons)

    def extract(self, subnet: Subnet) -> PreTrainedModel:
        """The sub-network as a standalone model that owns its weights and can be trained.

        Its state loads into a stock class only where every layer keeps all heads and neurons.

        Raises:
            SubnetError: as `at`.
        """
        with self._lock:
            return copy.deepcopy(self.new_view(subnet)).requires_grad_(True)

    @contextmanager
    def recorded_states(self) -> Iterator[list[Tensor]]:
        """Inside, a list that receives the embedding output and every layer's output ``(batch, tokens, hidden)``."""
        with recorded_states(self.network, self.family) as states:
            yield states

    def apply_head(self, state: Tensor, **inputs: Tensor) -> Any:
        """The task's answer read off a layer's output, as if that layer were the last.

        Args:
            state: ``(batch, tokens, hidden)``, from `recorded_states`.
            inputs: the same inputs that the forward pass had.

        Returns:
            What the stock model returns; the same as running the network cut after that layer.
        """
        with self._lock, layers_bypassed(self.network, self.family, state):
            return self.network(**inputs)

    def layer_calls(self, **inputs: Tensor) -> PreparedBatch:
        """Prepare a batch as the stock forward would, to run its layers one by one in any order.

        Args:
            inputs: what the network takes, without labels.

        Returns:
            The embedding output ``(batch, tokens, hidden)``, and the layers' calls.
        """
        with self._lock:
            return record_layer_calls(self.network, self.family, inputs)

    def layers(self) -> list[nn.Module]:
        """All layers of the full encoder, lowest first."""
        return list(self._layers)

    def check(self, subnet: Subnet) -> None:
        """Raise SubnetError where this model cannot run the sub-network: it is too large, or lacks a needed layer 0."""
        subnet.check(self.shape)
        if self.family.requires_first_layer and subnet.layers[0] != 0:
            raise SubnetError(
                f"{self.network.config.model_type} needs its layer 0, got layers {', '.join(map(str, subnet.layers))}"
            )

    def _view_factory(self) -> ViewFactory:
        """The views' maker; a new one, and no cached views, once the supernet's tensors moved."""
        storage = self._storage_key()
        if self._view_factory_cache is None or storage != self._view_factory_key:
            self._views, self._view_factory_key = {}, storage
            self._view_factory_cache = ViewFactory(self.network, self._layers, self.family)
        return self._view_factory_cache

    def _storage_key(self) -> frozenset[tuple[int, int]]:
        """What views are built on. Tensors that moved make them stale, and where slices are copies changed ones too."""
        copied = self.family.attention_blocks > 1 or self.family.mlp_blocks > 1
        tensors = [*self.network.parameters()] + [p for layer in self._layers for p in layer.parameters()]
        return frozenset((tensor.data_ptr(), tensor._version if copied else 0) for tensor in tensors)


LayerWidths = tuple[int | None, int | None, int | None]  # heads, attention channels, neurons; None: all of them


def _widths(parts: LayerParts) -> LayerWidths:
    first, mlp_in = parts.attention_in[0], parts.mlp_in
    assert isinstance(first, SlicedLinear)
    assert isinstance(mlp_in, SlicedLinear)
    heads = getattr(*parts.head_count) if parts.head_count is not None else None
    return heads, first.width, mlp_in.width


def _set_widths(parts: LayerParts, widths: LayerWidths) -> None:
    """The only writer of width: on the Linears that lead into the heads and neurons; those behind follow."""
    heads, channels, neurons = widths
    for linear in (*parts.attention_in, parts.mlp_in):
        assert isinstance(linear, SlicedLinear)
        linear.width = neurons if linear is parts.mlp_in else channels
    if parts.head_count is not None:
        setattr(*parts.head_count, heads)


@torch.no_grad()
def _install_state_hooks(network: PreTrainedModel) -> None:
    """Ask once for hidden states: Transformers hooks the layers that it finds then, and never looks again."""
    training = network.training
    network.eval()
    tokens = torch.zeros(1, 2, dtype=torch.long, device=network.device)
    network.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True)
    network.train(training)
