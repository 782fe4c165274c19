"""Settings of a run as frozen dataclasses, one per concern; the ``help`` of a field is the text of ``--help``."""

import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from limbert.errors import ConfigError

TaskType = Literal["classification", "regression", "multi-label", "token-classification", "question-answering"]
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)
Precision = Literal["fp32", "bf16"]
RuntimePrecision = Literal["fp32", "bf16", "int8"]
_Config = TypeVar("_Config")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def config_field(default: Any, help: str, **option: Any) -> Any:
    """A dataclass field with its default and its help text.

    Args:
        default: of the field and of its command-line option.
        help: of the option.
        option: how the option differs from the field (see `limbert.cli.config_options`): ``option`` its name,
            ``quantity`` its unit, ``repeats`` whether it may be given several times,
            ``required``, ``envvar``, ``minimum``, ``panel`` its heading in the help, ``hidden`` if it is no option.
    """
    return field(default=default, metadata={"help": help, **option})


def configs_from_options(options: Mapping[str, Any], *classes: type) -> tuple[Any, ...]:
    """One config of each class from options with the names of their fields.

    Raises:
        ConfigError: for an option that is no field of any class.
    """
    names = [{item.name for item in fields(config)} for config in classes]
    for name in options.keys() - set().union(*names):
        raise ConfigError(f"unknown option {name!r}; options: {', '.join(sorted(set().union(*names)))}")
    return tuple(
        config(**{name: value for name, value in options.items() if name in own})
        for config, own in zip(classes, names, strict=True)
    )


def take_config(config_class: type[_Config], options: Mapping[str, Any]) -> tuple[_Config, dict[str, Any]]:
    """A config from the options that are its fields, and the other options."""
    names = {item.name for item in fields(config_class)}  # type: ignore[arg-type]  # a dataclass
    own = {name: value for name, value in options.items() if name in names}
    return config_class(**own), {name: value for name, value in options.items() if name not in names}


def shows_options(*classes: type) -> Callable[[_Function], _Function]:
    """Let ``help()`` and completion show the fields of configs that a function takes as ``**options``."""

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        *own, rest = signature.parameters.values()
        shown = [item for config in classes for item in fields(config)]
        options = [
            inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=item.type)
            for item in shown
        ]
        lines = "\n".join(f"        {item.name}: {item.metadata['help']}." for item in shown)
        function.__signature__ = signature.replace(parameters=[*own, *options, rest])  # type: ignore[attr-defined]
        function.__doc__ = f"{function.__doc__}\n    Options:\n{lines}\n    "
        return function

    return decorate


def require_seed(seed: int) -> None:
    """Raise ConfigError unless the seed is valid for Python, NumPy and PyTorch."""
    require(0 <= seed < 2**32, "seed", seed, "from 0 to 4294967295")


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError ``NAME is VALUE; it must be ALLOWED`` unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} is {value!r}; it must be {allowed}")


def _expand_home(config: object, *names: str) -> None:
    """Replace ``~`` at the beginning of these paths of a config."""
    for name in names:
        object.__setattr__(config, name, os.path.expanduser(getattr(config, name)))


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from and how they are read."""

    task: str | None = config_field(None, "GLUE task such as mrpc, ner or squad; omit for other data")
    data: str | None = config_field(None, "folder with train.*, dev.* (and test.*), or a Hub data set")
    train: str | None = config_field(None, "training file: CSV, TSV, JSONL or Parquet, instead of --data")
    dev: str | None = config_field(None, "development file, for reporting only, instead of --data")
    text_column: str | None = config_field(None, "column with the text (default: the task's, or found by name)")
    pair_column: str | None = config_field(None, "column with the second text (default: likewise)")
    label_column: str | None = config_field(None, "column with the label (default: the task's, or found by name)")
    task_type: TaskType | None = config_field(
        None, f"{', '.join(TASK_TYPES[:-1])} or {TASK_TYPES[-1]} (default: from task or labels)"
    )
    label_names: tuple[str, ...] | None = config_field(None, "labels in the order of their ids (default: the data's)")
    train_limit: int | None = config_field(None, "use this many training examples, chosen with the seed")
    augmented: str | None = config_field(None, "augmented examples for phases with a teacher (limbert augment)")
    skip_bad_rows: bool = config_field(False, "skip and count malformed rows, instead of stopping")
    max_length: int = config_field(128, "longest input in tokens; the rest is cut off")
    held_out: float | None = config_field(
        None, "without development data: fraction of the training data to hold out as development data"
    )
    label_separator: str | None = config_field(None, "multi-label: separator of labels in a cell (default: ,)")
    label_columns: tuple[str, ...] | None = config_field(
        None, "multi-label: columns of 0 and 1, instead of --label-column"
    )
    metric: str | None = config_field(None, "metric that chooses checkpoints (default: the task's first)")
    fingerprints: dict[str, str] | None = config_field(
        None, "fingerprints of the examples read in training, by train and dev; others are refused", hidden=True
    )
    stride: int | None = config_field(
        None,
        "tokens shared by neighbouring windows, for question answering and --long-texts windows "
        "(default: a quarter of --max-length)",
    )

    def __post_init__(self) -> None:
        require(
            self.task_type is None or self.task_type in TASK_TYPES,
            "task type",
            self.task_type,
            "one of " + ", ".join(TASK_TYPES),
        )
        require(self.train_limit is None or self.train_limit > 0, "train limit", self.train_limit, "at least 1")
        require(self.max_length >= 4, "maximum length", self.max_length, "at least 4 tokens")
        require(self.held_out is None or 0 < self.held_out < 1, "held-out fraction", self.held_out, "between 0 and 1")
        require(self.label_separator != "", "label separator", self.label_separator, "at least one character")
        require(
            self.label_columns is None or (self.label_column is None and self.label_names is None),
            "label columns",
            self.label_columns,
            "given without label column, label names",
        )
        for name in ("data", "train", "dev", "augmented"):  # absolute, so that a saved setting keeps its meaning
            path = Path(getattr(self, name) or "").expanduser()
            if getattr(self, name) and path.exists():
                object.__setattr__(self, name, str(path.absolute()))
        max_stride = self.max_length // 3
        require(
            self.stride is None or 0 < self.stride <= max_stride,
            "stride",
            self.stride,
            f"from 1 to {max_stride}, a third of the maximum length",
        )


@dataclass(frozen=True)
class PhaseConfig:
    """One training phase: its length, its optimizer, and the terms of each sub-network's loss."""

    epochs: float = config_field(3.0, "passes over the training examples")
    max_steps: int | None = config_field(None, "stop the phase after this many optimizer steps")
    min_steps: int | None = config_field(None, "raise the epochs until the phase has this many steps: for few examples")
    batch_size: int = config_field(32, "training examples per step and process")
    learning_rate: float = config_field(2e-5, "peak learning rate; it decays linearly to 0")
    warmup: float = config_field(0.0, "fraction of the steps in which the learning rate rises from 0")
    weight_decay: float = config_field(0.0, "decoupled weight decay of AdamW")
    adam_epsilon: float = config_field(1e-8, "AdamW's epsilon")
    max_grad_norm: float = config_field(1.0, "clip gradients to this norm")
    label_weight: float = config_field(0.0, "weight of the loss on the true labels")
    logit_weight: float = config_field(0.0, "weight of the distillation loss on the teacher's logits")
    hidden_weight: float = config_field(0.0, "weight of the distillation loss on the teacher's hidden states")
    teacher_width: Literal["full", "matched"] = config_field(
        "full", "run the teacher at full or at the student's width"
    )
    full_weight: float = config_field(1.0, "weight of the largest sub-network's loss relative to the others")
    sampled: int = config_field(0, "sub-networks per step, always with the largest and the smallest; 0 trains all")
    evaluations: int = config_field(1, "validations per epoch; the weights with the best validation result are kept")
    grafts: int = config_field(0, "neural graftings per epoch, except in the last epoch; 0 for none")
    graft_rate: float = config_field(0.1, "weight of the stronger head or neuron when it is blended into the weaker")
    graft_share: float = config_field(0.5, "fraction of the heads and neurons that counts as weak")

    def __post_init__(self) -> None:
        require(self.epochs > 0, "epochs", self.epochs, "more than 0")
        require(self.max_steps is None or self.max_steps > 0, "max steps", self.max_steps, "at least 1")
        require(self.min_steps is None or self.min_steps > 0, "min steps", self.min_steps, "at least 1")
        require(self.batch_size > 0, "batch size", self.batch_size, "at least 1")
        require(0 < self.learning_rate < 1, "learning rate", self.learning_rate, "between 0 and 1")
        require(0 <= self.warmup < 1, "warm-up", self.warmup, "a fraction of the steps, from 0 to below 1")
        for name in ("weight_decay", "label_weight", "logit_weight", "hidden_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("adam_epsilon", "max_grad_norm", "full_weight"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        require(self.teacher_width in ("full", "matched"), "teacher width", self.teacher_width, "full or matched")
        require(self.sampled == 0 or self.sampled >= 2, "sampled", self.sampled, "0 (all) or at least 2")
        require(self.evaluations > 0, "evaluations", self.evaluations, "at least 1")
        require(self.grafts >= 0, "grafts", self.grafts, "0 or more per epoch")
        require(0 < self.graft_rate < 1, "graft rate", self.graft_rate, "between 0 and 1")
        graft_share = "graft_share (fraction of weak heads and neurons)"
        require(0 < self.graft_share <= 0.5, graft_share, self.graft_share, "above 0 and at most 0.5")


@dataclass(frozen=True)
class RuntimeConfig:
    """What computes the sub-networks of a trained model, and in which precision."""

    runtime: str = config_field(
        "torch", "torch, onnxruntime, openvino, or auto: the fastest installed one, measured at start"
    )
    precision: RuntimePrecision = config_field(
        "fp32", "fp32, bf16 (torch: autocast; openvino) or int8 (onnxruntime, openvino)"
    )
    max_drop: float = config_field(
        1.0, "points of the metric that bf16 and int8 may lose to fp32 (onnxruntime, openvino)"
    )

    def __post_init__(self) -> None:
        allowed = ("torch", "onnxruntime", "openvino", "auto")
        require(self.runtime in allowed, "runtime", self.runtime, f"one of {', '.join(allowed)}")
        precisions = get_args(RuntimePrecision)
        require(self.precision in precisions, "precision", self.precision, f"one of {', '.join(precisions)}")
        require(0 <= self.max_drop <= 100, "max drop", self.max_drop, "between 0 and 100 points")

    def model_device(self, requested: str) -> str:
        """The device to load the model on: for ``auto`` the CPU, if the runtime computes there only."""
        return "cpu" if requested == "auto" and self.runtime in ("onnxruntime", "openvino") else requested


GateTarget = Literal["label", "agreement"]


@dataclass(frozen=True)
class GatesConfig:
    """Training of width gates: their number, their targets and the optimizer."""

    count: int | None = config_field(
        None, "number of gates, a divisor of the layers (default: up to 4)", option="gates"
    )
    target: GateTarget = config_field(
        "label",
        "a width suffices if it predicts the label, or (agreement) what the full model predicts",
        option="gate_target",
    )
    cost: float | None = config_field(
        None,
        "target the width of least loss + COST x its fraction of FLOPs (default: the narrowest correct one)",
        option="gate_cost",
    )
    tolerance: float = config_field(
        0.25, "regression: largest error that counts as correct, in standard deviations of the labels"
    )
    max_rows: int = config_field(20000, "train gates on at most this many training examples")
    epochs: float = config_field(8.0, "passes over the training examples")
    batch_size: int = config_field(32, "training examples per optimizer step")
    learning_rate: float = config_field(2e-4, "peak learning rate; it decays linearly to 0")
    start_temperature: float = config_field(1.0, "temperature of the Gumbel-softmax in the first step")
    end_temperature: float = config_field(0.5, "temperature of the Gumbel-softmax in the last step")

    def __post_init__(self) -> None:
        require(self.count is None or self.count > 0, "gates", self.count, "at least 1")
        require(self.target in ("label", "agreement"), "gate target", self.target, "label or agreement")
        require(self.cost is None or self.cost >= 0, "gate cost", self.cost, "0 or more")
        require(self.tolerance > 0, "gate tolerance", self.tolerance, "more than 0")
        require(self.max_rows > 0, "maximum number of training examples", self.max_rows, "at least 1")
        require(self.epochs > 0, "epochs", self.epochs, "more than 0")
        require(self.batch_size > 0, "batch size", self.batch_size, "at least 1")
        require(0 < self.learning_rate < 1, "learning rate", self.learning_rate, "between 0 and 1")
        for name in ("start_temperature", "end_temperature"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")


@dataclass(frozen=True)
class TrainConfig:
    """A training run: base model, output, and the settings that all its phases share."""

    model: str = config_field("", "pretrained encoder: a folder or a Hub name", required=True)
    output: str = config_field("", "folder for the trained elastic model", required=True, panel="Output")
    recipe: str = config_field("limbert", "limbert, quick, dynabert, flexible-bert, demo or a TOML file")
    phases: tuple[str, ...] | None = config_field(None, "phases to run, in order (default: the recipe's)")
    seed: int = config_field(42, "random seed")
    precision: Precision = config_field("fp32", "fp32, or bf16 autocast")
    validation: float = config_field(
        0.1,
        "fraction held out to choose checkpoints",
    )
    validation_limit: int = config_field(1000, "maximum size of the validation split", hidden=True)
    checkpoint_every: float = config_field(120.0, "seconds between checkpoints", panel="Output")
    tensorboard: bool = config_field(False, "also write a TensorBoard log", panel="Output")
    device: str = config_field("auto", "auto (a GPU if any), cpu or cuda")
    class_weights: str | None = config_field(None, "loss weights of the classes: balanced, or by label id 1,3.5")

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require(bool(self.model), "model", self.model, "a folder or a hub name")
        require(bool(self.output), "output", self.output, "a folder")
        _expand_home(self, "model", "output")
        if Path(self.output).name in ("", ".."):  # has no name to derive that of the work folder from
            object.__setattr__(self, "output", os.path.abspath(self.output))
        require(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")
        allowed = "auto, cpu or cuda; choose one of several GPUs with CUDA_VISIBLE_DEVICES"
        require(self.device in ("auto", "cpu", "cuda"), "device", self.device, allowed)
        require(0 < self.validation < 1, "validation fraction", self.validation, "between 0 and 1")
        require(self.validation_limit > 1, "validation limit", self.validation_limit, "at least 2")
        if self.class_weights is not None and not isinstance(self.class_weights, str):
            object.__setattr__(self, "class_weights", ",".join(map(str, self.class_weights)))
        weights = (self.class_weights or "balanced").split(",")
        numbers = all(re.fullmatch(r"\s*\d*\.?\d+(e-?\d+)?\s*", part) for part in weights)
        allowed = "balanced, or one number of 0 or more for each class, such as 1,3.5"
        require(numbers or weights == ["balanced"], "class weights", self.class_weights, allowed)
        require(self.checkpoint_every > 0, "checkpoint interval", self.checkpoint_every, "more than 0 seconds")

    @property
    def class_weight_values(self) -> list[float] | str | None:
        """``class_weights`` as numbers, or "balanced"."""
        weights = self.class_weights
        return weights if weights in (None, "balanced") else [float(part) for part in weights.split(",")]


AnyPhaseConfig = PhaseConfig | GatesConfig


DocumentRule = Literal["line", "paragraph"]


@dataclass(frozen=True)
class CorpusConfig:
    """A text corpus, how it is split into documents and sequences, and which tokens are masked."""

    corpus: tuple[str, ...] = config_field(
        (),
        "text to train on: a file (.txt, .raw: plain text; .jsonl, .csv, .tsv, .parquet: one column), a folder, or a "
        "quoted glob; may be repeated",
        required=True,
        repeats=True,
    )
    dev: tuple[str, ...] = config_field(
        (), "text for reporting only, in the same formats (default: a split of the corpus)", repeats=True
    )
    text_column: str | None = config_field(
        None, "column with the text in tabular files (default: 'text', or the first column of text)"
    )
    documents: DocumentRule = config_field(
        "line",
        "in plain text a document is a line, or (paragraph) ends at a blank line; [SEP] separates documents",
    )
    skip_bad_rows: bool = config_field(False, "skip malformed lines and rows, instead of stopping at the first")
    max_length: int = config_field(128, "tokens per sequence, including special tokens; all sequences have this length")
    mask_share: float = config_field(0.15, "fraction of the tokens to mask and predict")
    whole_word: bool = config_field(False, "mask whole words: all tokens of a word, or none")

    def __post_init__(self) -> None:
        require(bool(self.corpus), "corpus", list(self.corpus), "at least one file, folder or glob")
        require(self.documents in ("line", "paragraph"), "documents", self.documents, "line or paragraph")
        require(self.max_length >= 8, "maximum length", self.max_length, "at least 8 tokens")
        mask_share = "mask_share (fraction of masked tokens)"
        require(0 < self.mask_share <= 0.5, mask_share, self.mask_share, "above 0 and at most 0.5")


SMALL_TASK_EXAMPLES = 10_000  # below this, more augmented examples are made per training example


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training examples by replacing words (TinyBERT, arXiv 1909.10351, algorithm 1)."""

    lm: str = config_field("", "masked language model: a folder, or a name on the Hub", required=True)
    output: str = config_field("", "folder for train_aug.*, in the format of the training file", required=True)
    neighbours: str = config_field(
        "embeddings",
        "word vectors for replacing words of several tokens: a GloVe or word2vec text file, or 'embeddings' for "
        "those of the language model",
    )
    copies: int | None = config_field(
        None, "augmented examples per training example (default: 30 below 10,000 training examples, else 20)"
    )
    candidates: int = config_field(15, "candidate replacements per word")
    probability: float = config_field(0.4, "probability of replacing a word")
    stop_words: str | None = config_field(
        None, "file of words that are never replaced, one per line (default: English function words)"
    )
    context: int = config_field(128, "tokens of context around a word for the language model, including special tokens")
    with_logits: str | None = config_field(None, "fine-tuned model whose logits are added to each augmented example")
    seed: int = config_field(42, "random seed")
    precision: Precision = config_field("fp32", "fp32, or bf16 autocast")

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require(bool(self.lm), "language model", self.lm, "a folder or a hub name")
        require(bool(self.output), "output", self.output, "a folder")
        _expand_home(self, "lm", "output", "neighbours")
        require(self.copies is None or self.copies > 0, "copies", self.copies, "at least 1")
        require(self.candidates > 0, "candidates", self.candidates, "at least 1")
        require(0 < self.probability <= 1, "probability", self.probability, "above 0 and at most 1")
        require(self.context >= 8, "context", self.context, "at least 8 tokens")
        require(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")

    def augmented_per_example(self, num_examples: int) -> int:
        """Augmented examples per training example, for this number of training examples."""
        return self.copies or (30 if num_examples < SMALL_TASK_EXAMPLES else 20)
