"""ElasticModel: a stock Transformers model that runs at any of its sub-networks."""

import copy
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import HfApi
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from limbert.core.space import Space, is_width_depth_name
from limbert.core.subnet import Shape, Subnet
from limbert.deprecation import RenamedAttribute
from limbert.errors import SubnetError
from limbert.files import atomic_folder
from limbert.model import card, checkpoint
from limbert.model.families import (
    Family,
    family_of,
    head_size,
    layer_parts,
    max_input_length,
    set_stack,
    shape_of,
    stack_of,
)
from limbert.model.inference_mode import evaluation_mode
from limbert.model.layerwise import PreparedBatch, layers_bypassed, record_layer_calls, recorded_states
from limbert.model.sliced_linear import layer_widths, make_sliced, set_widths
from limbert.model.standalone import make_standalone
from limbert.model.views import ViewFactory
from limbert.model.width_gates import GATES_FILENAME, WidthGates, read_gates, save_gates


class ElasticModel:
    """One pretrained encoder with its task head, and all its sub-networks.

    Use `at` to train and evaluate a sub-network, `view` to serve it and `extract` to get a standalone copy. Calls,
    ``to``, ``eval``, ``train``, ``config``, ``device``, ``dtype`` and ``parameters`` are those of the network.

    Attributes:
        network: the stock model. Outside `at` its outputs, parameter names and weights are unchanged, bit for bit.
        space: the sub-networks that are (or will be) trained.
        shape: layers, heads and neurons of the full encoder.
        family: paths of the parts of this architecture.
        record: other content of ``limbert.json``: task, finished phases, settings, metrics, versions.
        gates: width gates, which choose widths per input; None if they are not trained.

    Raises:
        UnsupportedModelError: for a family that is not in the table of families.
    """

    def __init__(self, network: PreTrainedModel, *, space: Space | None = None, record: dict[str, Any] | None = None):
        self.network = network
        self.family: Family = family_of(network)
        self.shape: Shape = shape_of(network, self.family)
        self.space = space or Space()
        self.record: dict[str, Any] = record or {}
        self.gates: WidthGates | None = None
        self._layers = list(stack_of(network, self.family))
        self._lock = threading.RLock()  # held inside `at`; other threads wait
        self._views: dict[Subnet, PreTrainedModel] = {}
        self._view_factory_cache: ViewFactory | None = None
        self._view_factory_key: frozenset[tuple[int, int]] = frozenset()
        self._layer_parts = [layer_parts(layer, self.family) for layer in self._layers]
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
        new_head: bool | None = None,
        **model_kwargs: Any,
    ) -> Self:
        """Load a stock checkpoint or an elastic one.

        Args:
            path_or_hub_id: a local folder, or a model name on the Hugging Face Hub.
            space: the sub-networks to train; default: the space of the checkpoint, else the widths and depths of the
                DynaBERT paper.
            head: the task head, a key of ``limbert.model.checkpoint.TASK_HEADS``; ``"as-saved"`` is the class that the
                checkpoint's config names; default: the head for the task in ``limbert.json``, else sequence
                classification.
            new_head: whether a task head that the checkpoint does not have is initialised at random, for training.
                Default: if ``num_labels`` or ``id2label`` is given. All other weights must be in the checkpoint.
            model_kwargs: passed on to Transformers, for example ``num_labels=3`` or ``dtype=torch.bfloat16``.

        Raises:
            CheckpointError: if there is no such checkpoint, it cannot be read, or weights are missing or have another
                shape.
            UnsupportedModelError: for a family that is not in the table of families.
        """
        if new_head is None:
            new_head = bool({"num_labels", "id2label"} & model_kwargs.keys())
        if "id2label" in model_kwargs:
            model_kwargs.setdefault("label2id", {name: index for index, name in model_kwargs["id2label"].items()})
        loaded = checkpoint.load_network(path_or_hub_id, head=head, new_head=new_head, **model_kwargs)
        network, record = loaded.network, loaded.record
        saved_space = Space.from_dict(record.pop("space")) if "space" in record else None
        model = cls(network, space=space or saved_space, record=record)
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
        """Write an elastic checkpoint: a stock folder plus ``limbert.json``, a model card, and ``gates.safetensors``.

        ``AutoModelForSequenceClassification.from_pretrained(directory)`` loads it as the full-size model. The folder is
        written under another name and renamed, so after a crash either the old or the new one exists.

        Args:
            directory: the folder; an existing one is replaced.
            tokenizer: saved too, so that ``transformers.pipeline`` loads the folder.
            add_files: called with the new folder before it replaces ``directory``, to add more files.

        Raises:
            StorageError: if the disk is full or the folder cannot be written; an existing folder is unchanged.
        """
        with self.at(self.full), atomic_folder(directory) as folder:
            self.network.save_pretrained(folder)
            if tokenizer is not None:
                tokenizer.save_pretrained(folder)
            record = {"space": self.space.to_dict()} | self.record | {"versions": checkpoint.library_versions()}
            checkpoint.write_json(folder / checkpoint.RECORD_FILENAME, record)
            if self.gates is not None:
                save_gates(self.gates, folder)
            text = card.model_card(
                Path(directory).name,
                network=self.network,
                shape=self.shape,
                subnets=self.space.named_subnets(self.shape),
                record=self.record,
                has_gates=self.gates is not None,
            )
            (folder / "README.md").write_text(text, encoding="utf-8")
            add_files(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: Any = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload elastic model",
        create_pr: bool = False,
    ) -> str:
        """Upload the elastic checkpoint to the Hugging Face Hub: everything that `save_pretrained` writes.

        Files of the same names in the repository are replaced.

        Args:
            repo_id: ``user/name`` or ``name``; created if it does not exist.
            tokenizer: uploaded too.
            private: whether a new repository is private.
            token: of the Hub; default: the one of ``hf auth login``.
            revision: branch to upload to.
            commit_message: title of the commit.
            create_pr: upload as a pull request.

        Returns:
            The URL of the commit.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory(prefix="limbert-") as temporary:
            folder = Path(temporary) / repo_id.rpartition("/")[2]
            self.save_pretrained(folder, tokenizer=tokenizer)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        return str(commit.commit_url)

    def __repr__(self) -> str:
        shape, space = self.shape, self.space
        widths, depths = (", ".join(f"{value:g}" for value in values) for values in (space.widths, space.depths))
        gates = "" if self.gates is None else f", {len(self.gates)} width gates"
        return (
            f"{type(self).__name__}({type(self.network).__name__}, {shape.layers} layers x {shape.heads} heads x "
            f"{shape.neurons} neurons, widths {widths}, depths {depths}, layers {space.layers!r}{gates})"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network: the full model, or inside `at` the sub-network."""
        return self.network(*args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move network and gates to a device or dtype in place, as ``torch.nn.Module.to``."""
        with self.at(self.full):
            self.network.to(*args, **kwargs)
        if self.gates is not None:
            self.gates.to(*args, **kwargs)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training mode (dropout on) in place, as ``torch.nn.Module.train``."""
        with self.at(self.full):
            self.network.train(mode)
        return self

    def eval(self) -> Self:
        """Set evaluation mode (dropout off) in place, as ``torch.nn.Module.eval``."""
        return self.train(False)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the full network, for an optimizer. Width gates are trained on their own: see ``gates``."""
        with self.at(self.full):
            return iter([*self.network.parameters()])

    @property
    def training(self) -> bool:
        """Whether the network is in training mode."""
        return self.network.training

    @property
    def config(self) -> PreTrainedConfig:
        """Config of the full network."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.network.dtype

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return head_size(self.network.config)

    @property
    def max_input_length(self) -> int:
        """Maximum input length in tokens."""
        return max_input_length(self.network.config)

    @property
    def full(self) -> Subnet:
        """The whole encoder as a sub-network."""
        return Subnet.full(self.shape)

    def subnet(self, name: str) -> Subnet:
        """The uniform sub-network called ``name``, for example ``"0.5x0.75"`` (width x depth), or a searched one.

        Raises:
            SubnetError: if the name is neither, or the sub-network keeps no head or no layer.
        """
        searched = self.searched_subnets()
        if searched and name not in searched and not is_width_depth_name(name):
            raise SubnetError(f"no sub-network {name!r}; write WIDTHxDEPTH, or one of {', '.join(searched)}")
        return searched[name] if name in searched else self.space.subnet(self.shape, name)

    def subnets(self) -> dict[str, Subnet]:
        """The sub-networks of the model's space by name, full size first."""
        return {item.name: item.subnet for item in self.space.named_subnets(self.shape)}

    def searched_subnets(self) -> dict[str, Subnet]:
        """The sub-networks outside the space that ``limbert search`` saved with the model, by name.

        Raises:
            SubnetError: if an entry of the record is invalid.
        """
        saved: dict[str, Any] = self.record.get(checkpoint.SEARCHED_SUBNETS_KEY, {})
        return {name: Subnet.from_dict(values) for name, values in saved.items()}

    @contextmanager
    def at(self, subnet: Subnet) -> Iterator[PreTrainedModel]:
        """Run the network as one sub-network inside a ``with`` block, for training and evaluation.

        Call ``backward()`` inside the block: gradient checkpointing runs the forward pass again. Blocks nest, and the
        previous state is restored, also after an exception. One thread at a time: others wait at the ``with``.

        Raises:
            SubnetError: if the model has fewer layers, heads or neurons, or its family needs layer 0.
        """
        self.check(subnet)
        with self._lock:
            stack = stack_of(self.network, self.family)
            before = [layer_widths(parts) for parts in self._layer_parts]
            try:
                for index, (heads, neurons) in subnet.layer_widths().items():
                    set_widths(self._layer_parts[index], (heads, heads * self.head_size, neurons))
                set_stack(self.network, self.family, nn.ModuleList(self._layers[index] for index in subnet.layers))
                yield self.network
            finally:
                set_stack(self.network, self.family, stack)
                for parts, widths in zip(self._layer_parts, before, strict=True):
                    set_widths(parts, widths)

    def view(self, subnet: Subnet) -> PreTrainedModel:
        """The sub-network as a separate module that shares the weights of the network, for serving and measuring.

        In evaluation mode and without gradients. Safe to call and to run from many threads. It follows later training
        of the network, which must not run at the same time; after the network moved to another device or dtype, call
        `view` again. Cached: the same sub-network is the same object.

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
        """As `view`, but not cached: the caller may replace its layers."""
        self.check(subnet)
        with self._lock:
            return self._view_factory().build(subnet)

    def layer_view(self, index: int, *, heads: int, neurons: int) -> nn.Module:
        """One layer at one width: the module that the views of this model run.

        Raises:
            SubnetError: if the model has fewer layers, heads or neurons.
        """
        Subnet((index,), (heads,), (neurons,)).check(self.shape)
        with self._lock:
            return self._view_factory().layer(index, heads, neurons)

    def extract(self, subnet: Subnet) -> PreTrainedModel:
        """The sub-network as a standalone model with its own weights, which can be trained.

        Its ``save_pretrained`` writes a folder that Transformers loads, with ``trust_remote_code=True`` if some layer
        has fewer heads.

        Raises:
            SubnetError: as `at`.
        """
        with self._lock:
            return make_standalone(copy.deepcopy(self.new_view(subnet)).requires_grad_(True))

    @contextmanager
    def recorded_states(self) -> Iterator[list[Tensor]]:
        """Record the embedding output and each layer's output, ``(batch, tokens, hidden)``, in the yielded list."""
        with recorded_states(self.network, self.family) as states:
            yield states

    def apply_head(self, state: Tensor, **inputs: Tensor) -> Any:
        """Apply the task head to a layer's output, as if that layer were the last.

        Args:
            state: ``(batch, tokens, hidden)``, from `recorded_states`.
            inputs: the inputs of the forward pass.

        Returns:
            The outputs of the stock model without the layers after that one.
        """
        with self._lock, layers_bypassed(self.network, self.family, state):
            return self.network(**inputs)

    def layer_calls(self, **inputs: Tensor) -> PreparedBatch:
        """Run the stock forward pass up to the first layer, to run the layers one by one in any order.

        Args:
            inputs: inputs of the network, without labels.

        Returns:
            The embedding output ``(batch, tokens, hidden)``, and the arguments of the layers.
        """
        with self._lock:
            return record_layer_calls(self.network, self.family, inputs)

    def layers(self) -> list[nn.Module]:
        """All layers of the full encoder, lowest first."""
        return list(self._layers)

    def check(self, subnet: Subnet) -> None:
        """Raise SubnetError if this model cannot run the sub-network: it is too large, or lacks a required layer 0."""
        subnet.check(self.shape)
        if self.family.requires_first_layer and subnet.layers[0] != 0:
            raise SubnetError(
                f"{self.config.model_type} needs its layer 0, got layers {', '.join(map(str, subnet.layers))}"
            )

    def _view_factory(self) -> ViewFactory:
        key = self._storage_key()
        if self._view_factory_cache is None or key != self._view_factory_key:  # the weights moved: views are stale
            self._views, self._view_factory_key = {}, key
            self._view_factory_cache = ViewFactory(self.network, self._layers, self.family)
        return self._view_factory_cache

    def _storage_key(self) -> frozenset[tuple[int, int]]:
        """Addresses of all weights; with their versions in families where slices are copies."""
        copied = self.family.attention_blocks > 1 or self.family.mlp_blocks > 1
        tensors = [*self.network.parameters()] + [p for layer in self._layers for p in layer.parameters()]
        return frozenset((tensor.data_ptr(), tensor._version if copied else 0) for tensor in tensors)

    longest_input = RenamedAttribute("max_input_length")
    found = RenamedAttribute("searched_subnets")
    read_out = RenamedAttribute("apply_head")


def _install_state_hooks(network: PreTrainedModel) -> None:
    """Request hidden states once, while all layers are there: Transformers installs its hooks on the first request."""
    tokens = torch.zeros(1, 2, dtype=torch.long, device=network.device)
    with evaluation_mode(network):
        network.base_model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True)
