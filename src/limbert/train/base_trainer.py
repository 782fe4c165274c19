"""A `transformers.Trainer` of an elastic model: unwrapped, one batch for all processes, whole checkpoints."""

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.trainer_utils import rotate_checkpoints

from limbert.model.checkpoint import RECORD_FILENAME
from limbert.model.elastic import ElasticModel
from limbert.model.width_gates import GATES_FILENAME
from limbert.train.arguments import ElasticTrainingArguments
from limbert.train.checkpoints import STATE_NAME, checkpoint_path, load_optimizer, save_optimizer, write_into
from limbert.train.data import Indices

logger = logging.getLogger(__name__)


class UnwrappedTrainer(Trainer):
    """A Trainer without DistributedDataParallel and without autocast around ``forward``.

    Its checkpoints are elastic checkpoints with the training's state beside them.

    Attributes:
        elastic: the model.
        examples_seen: over all processes since the last log.
        speed_since: when that was; moved on by what is no training.
    """

    args: ElasticTrainingArguments
    elastic: ElasticModel
    model: Any  # transformers' types allow None and dictionaries everywhere
    train_dataset: Any
    eval_dataset: Any

    def __init__(self, model: nn.Module, args: ElasticTrainingArguments, **options: Any) -> None:
        config = getattr(model, "config", None)
        use_cache = getattr(config, "use_cache", None)
        if args.device.type == "cuda" and args.n_gpu > 1:
            logger.warning("training on one of %d GPUs; start with torchrun to use all of them", args.n_gpu)
            args._n_gpu = 1  # else the stock Trainer splits every batch over threads
        super().__init__(model, args, **options)
        if config is not None and use_cache is not None:
            config.use_cache = use_cache  # the stock Trainer sets it, and saves it with every checkpoint
        if args.disable_tqdm:
            self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = False  # True counts the labels of every step in all processes
        self.examples_seen, self.speed_since = 0, time.monotonic()

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.prepare_model = lambda model, **_: model

    def same_batches_loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """A loader that gives the same batches in every process, on the device; it tells its sampler the epoch."""
        loader, device = self.loader(dataset, **options), self.args.device
        one: dict[str, Any] = {"num_processes": 1, "process_index": 0}
        return prepare_data_loader(loader, device=device, put_on_device=True, non_blocking=True, **one)

    def loader(self, dataset: Any, **options: Any) -> DataLoader[Any]:
        """A DataLoader of indices with the workers that the arguments set; ``collate_fn`` fetches the examples."""
        args = self.args
        return DataLoader(
            Indices(dataset),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            **options,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.monotonic()
            logs["examples_per_second"] = self.examples_seen / max(now - self.speed_since, 1e-9)
            self.examples_seen, self.speed_since = 0, now
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the stock estimate assumes one pass of the full network

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Nothing: every saved elastic model has its card."""

    # -- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.args.should_save:
            write_into(output_dir or self.args.output_dir, self._save_elastic)

    def _save_elastic(self, folder: Path, add_files: Callable[[Path], None] = lambda folder: None) -> None:
        self.elastic.save_pretrained(folder, tokenizer=self.processing_class, add_files=add_files)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        started, state, output_dir = time.monotonic(), self.state, self.args.output_dir
        folder = checkpoint_path(output_dir, state.global_step)
        if state.best_global_step:
            state.best_model_checkpoint = str(checkpoint_path(output_dir, state.best_global_step))
        if self.args.should_save:
            callbacks: list[Any] = [*self.callback_handler.callbacks, self.control]
            exportable = [callback for callback in callbacks if isinstance(callback, ExportableState)]
            state.stateful_callbacks = TrainerState(stateful_callbacks=exportable).stateful_callbacks  # type: ignore[arg-type]
            self._save_elastic(folder, self._add_training_state)
            rotate_checkpoints(str(output_dir), self.args.save_total_limit, state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()  # others may load the best one next
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        self.speed_since += time.monotonic() - started

    def _add_training_state(self, folder: Path) -> None:
        if not self.args.save_only_model:
            save_optimizer(folder, self.optimizer, self.lr_scheduler)
        self.state.save_to_json(str(folder / STATE_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)
            if self.state.best_global_step:  # beside this one, wherever the folder was when it was saved
                best = checkpoint_path(Path(checkpoint).parent, self.state.best_global_step)
                self.state.best_model_checkpoint = str(best)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: every step seeds itself."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        for name in (RECORD_FILENAME, GATES_FILENAME):  # the stock method copies config and weights
            if self.args.should_save and (Path(checkpoint_folder) / name).exists():
                shutil.copy(Path(checkpoint_folder) / name, str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)


def step_seed(seed: int, name: str, step: int) -> int:
    """A seed for every step of every phase."""
    value = 14695981039346656037  # FNV-1a: the same on every machine, unlike hash()
    for byte in f"{seed} {name} {step}".encode():
        value = (value ^ byte) * 1099511628211 % 2**64
    return value % 2**63
