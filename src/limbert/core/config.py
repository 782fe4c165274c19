"""The settings of a run, one frozen dataclass a concern; the ``help`` of a field is the command's help."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from limbert.errors import ConfigError

TaskType = Literal["classification", "regression", "multi-label", "token-classification", "question-answering"]
TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)
Precision = Literal["fp32", "bf16"]


def config_field(default: Any, help: str) -> Any:
    """A dataclass field with its default and the sentence that explains it to a user."""
    return field(default=default, metadata={"help": help})


def field_help(config: type, name: str) -> str:
    """The help sentence of one field of a config dataclass."""
    return next(item.metadata["help"] for item in fields(config) if item.name == name)


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


def require_seed(seed: int) -> None:
    """Raise a ConfigError unless every generator takes the seed."""
    require(0 <= seed < 2**32, "seed", seed, "from 0 to 4294967295")


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raise ConfigError ``name VALUE: must be ALLOWED`` unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} is {value!r}; it must be {allowed}")


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from and how to read them."""

    task: str | None = config_field(
        None,
        "GLUE task (cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte, wnli), ner or squad for data of that form; "
        "omit for other data",
    )
    data: str | None = config_field(
        None, "folder with train.* and dev.* (and optionally test.*), or a Hub data set name"
    )
    train: str | None = config_field(None, "training file: CSV, TSV, JSONL or Parquet (instead of --data)")
    dev: str | None = config_field(None, "development file, only ever reported on (instead of --data)")
    text_column: str | None = config_field(
        None,
        "column with the text (default: the task's; else the first of text, sentence, content, message, review, "
        "question, query; else the first whose cells have several words)",
    )
    pair_column: str | None = config_field(
        None,
        "column with the second text of a pair (default: the task's; else sentence2, text2, question2 or hypothesis "
        "beside sentence1, text1, question1 or premise where no text column is given or found; else none)",
    )
    label_column: str | None = config_field(
        None,
        "column with the label (default: the task's; else the first of label, labels, category, class, target, intent, "
        "score, gold_label)",
    )
    task_type: TaskType | None = config_field(
        None, f"{', '.join(TASK_TYPES[:-1])} or {TASK_TYPES[-1]} (default: follows from the task or the labels)"
    )
    label_names: tuple[str, ...] | None = config_field(
        None, "label names in the order of their ids (default: from the data)"
    )
    train_limit: int | None = config_field(None, "use only this many training rows, chosen by the seed")
    augmented: str | None = config_field(
        None,
        "file of augmented training rows (limbert augment, or train_TASK_aug_with_logits.tsv) for phases that distil",
    )
    skip_bad_rows: bool = config_field(False, "skip malformed rows and say how many, instead of stopping at the first")
    max_length: int = config_field(
        128, "longest input in tokens; longer ones are cut (question answering: into windows)"
    )
    held_out: float | None = config_field(
        None, "share of the training data set aside as development data where there is none (of SQuAD: whole articles)"
    )
    label_separator: str | None = config_field(
        None, "multi-label: what stands between the labels in a cell (default: ,)"
    )
    stride: int | None = config_field(
        None, "question answering: tokens that windows of one context share (default: a quarter of the longest input)"
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
        require(self.held_out is None or 0 < self.held_out < 1, "held-out share", self.held_out, "between 0 and 1")
        require(self.label_separator != "", "label separator", self.label_separator, "at least one character")
        longest = self.max_length // 3
        require(
            self.stride is None or 0 < self.stride <= longest,
            "stride",
            self.stride,
            f"from 1 to {longest}, a third of the longest input",
        )


@dataclass(frozen=True)
class PhaseConfig:
    """How one training phase goes: its length, its optimizer and what each sub-network's loss is made of."""

    epochs: float = config_field(3.0, "passes over the training rows")
    max_steps: int | None = config_field(None, "stop the phase after this many optimizer steps")
    batch_size: int = config_field(32, "training rows an optimizer step, in each process of several")
    learning_rate: float = config_field(2e-5, "highest learning rate; it falls linearly to 0")
    warmup: float = config_field(0.0, "share of the steps in which the learning rate rises from 0")
    weight_decay: float = config_field(0.0, "decoupled weight decay of AdamW")
    adam_epsilon: float = config_field(1e-8, "AdamW's epsilon")
    max_grad_norm: float = config_field(1.0, "gradients are scaled down to this norm")
    label_weight: float = config_field(0.0, "weight of the loss on the true labels")
    logit_weight: float = config_field(0.0, "weight of matching the teacher's answers")
    hidden_weight: float = config_field(0.0, "weight of matching the teacher's states after every layer")
    teacher_width: Literal["full", "matched"] = config_field(
        "full", "run the teacher at full or at the student's width"
    )
    full_weight: float = config_field(1.0, "weight of the largest sub-network's loss among the others'")
    sampled: int = config_field(0, "sub-networks a step, the largest and smallest always among them; 0 trains all")
    evaluations: int = config_field(1, "validations an epoch; the best validated weights are the phase's result")
    grafts: int = config_field(0, "neural graftings an epoch, until the last epoch; 0 for none")
    graft_rate: float = config_field(0.1, "share of the stronger head or neuron that is blended into the weaker")
    graft_share: float = config_field(0.5, "share of the heads and neurons that counts as the weaker ones")

    def __post_init__(self) -> None:
        require(self.epochs > 0, "epochs", self.epochs, "more than 0")
        require(self.max_steps is None or self.max_steps > 0, "max steps", self.max_steps, "at least 1")
        require(self.batch_size > 0, "batch size", self.batch_size, "at least 1")
        require(0 < self.learning_rate < 1, "learning rate", self.learning_rate, "between 0 and 1")
        require(0 <= self.warmup < 1, "warm-up", self.warmup, "a share of the steps, from 0 to below 1")
        for name in ("weight_decay", "label_weight", "logit_weight", "hidden_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("adam_epsilon", "max_grad_norm", "full_weight"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        require(self.teacher_width in ("full", "matched"), "teacher width", self.teacher_width, "full or matched")
        require(self.sampled == 0 or self.sampled >= 2, "sampled", self.sampled, "0 (all) or at least 2")
        require(self.evaluations > 0, "evaluations", self.evaluations, "at least 1")
        require(self.grafts >= 0, "grafts", self.grafts, "0 or more an epoch")
        require(0 < self.graft_rate < 1, "graft rate", self.graft_rate, "between 0 and 1")
        require(0 < self.graft_share <= 0.5, "graft share", self.graft_share, "above 0 and at most 0.5")


GateTarget = Literal["label", "agreement"]


@dataclass(frozen=True)
class GatesConfig:
    """How width gates are trained: how many, towards which target, for how long."""

    count: int | None = config_field(
        None, "width gates, a divisor of the number of layers (default: the largest divisor up to 4)"
    )
    target: GateTarget = config_field(
        "label", "a width suffices where its answer fits the label, or (agreement) the full model's answer"
    )
    cost: float | None = config_field(
        None,
        "aim at the width with the least loss + COST x share of the full width's FLOPs (default: the narrowest right)",
    )
    tolerance: float = config_field(
        0.25, "regression: how far an answer may be off to count as right, in standard deviations of the labels"
    )
    max_rows: int = config_field(20000, "train gates on at most this many training rows")
    epochs: float = config_field(8.0, "passes over the training rows")
    batch_size: int = config_field(32, "training rows an optimizer step")
    learning_rate: float = config_field(2e-4, "highest learning rate; it falls linearly to 0")
    start_temperature: float = config_field(1.0, "temperature of the Gumbel-softmax in the first step")
    end_temperature: float = config_field(0.5, "temperature of the Gumbel-softmax in the last step")

    def __post_init__(self) -> None:
        require(self.count is None or self.count > 0, "gates", self.count, "at least 1")
        require(self.target in ("label", "agreement"), "gate target", self.target, "label or agreement")
        require(self.cost is None or self.cost >= 0, "gate cost", self.cost, "0 or more")
        require(self.tolerance > 0, "gate tolerance", self.tolerance, "more than 0")
        require(self.max_rows > 0, "rows for the gates", self.max_rows, "at least 1")
        require(self.epochs > 0, "epochs", self.epochs, "more than 0")
        require(self.batch_size > 0, "batch size", self.batch_size, "at least 1")
        require(0 < self.learning_rate < 1, "learning rate", self.learning_rate, "between 0 and 1")
        for name in ("start_temperature", "end_temperature"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")


@dataclass(frozen=True)
class TrainConfig:
    """A training run: where from, where to, and what holds for all its phases."""

    model: str = config_field("", "pretrained encoder: a local folder or a name on the Hugging Face hub")
    output: str = config_field("", "folder for the trained elastic model")
    recipe: str = config_field("limbert", "recipe: limbert, dynabert, flexible-bert, demo or a TOML file")
    phases: tuple[str, ...] | None = config_field(None, "phases to run, in order (default: the recipe's)")
    seed: int = config_field(42, "seed of everything that is random")
    precision: Precision = config_field("fp32", "fp32, or bf16 autocast")
    validation: float = config_field(
        0.1, "share of the training rows kept back to choose checkpoints and score importance"
    )
    validation_limit: int = config_field(1000, "at most this many rows are kept back for validation")
    checkpoint_every: float = config_field(120.0, "seconds between checkpoints of a running phase")
    tensorboard: bool = config_field(False, "write a TensorBoard log too")

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require(bool(self.model), "model", self.model, "a folder or a hub name")
        require(bool(self.output), "output", self.output, "a folder")
        require(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")
        require(0 < self.validation < 1, "validation share", self.validation, "between 0 and 1")
        require(self.validation_limit > 1, "validation limit", self.validation_limit, "at least 2")
        require(self.checkpoint_every > 0, "checkpoint interval", self.checkpoint_every, "more than 0 seconds")


AnyPhaseConfig = PhaseConfig | GatesConfig


DocumentRule = Literal["line", "paragraph"]


@dataclass(frozen=True)
class CorpusConfig:
    """Plain text, how it is cut into documents and sequences, and what is hidden in it."""

    corpus: tuple[str, ...] = config_field(
        (),
        "text to learn from: a file (.txt, .raw: plain text; .jsonl, .csv, .tsv, .parquet: a column of it), a folder, "
        "or a glob in quotes; may be repeated",
    )
    dev: tuple[str, ...] = config_field(
        (), "text that is only ever reported on, in the same forms (default: sequences kept back from the corpus)"
    )
    text_column: str | None = config_field(
        None, "column with the text in files of columns (default: 'text', or the first column of text)"
    )
    documents: DocumentRule = config_field(
        "line",
        "in plain text a document is a line, or (paragraph) ends at a blank line; [SEP] stands between them",
    )
    skip_bad_rows: bool = config_field(False, "skip malformed lines and rows, instead of stopping at the first")
    max_length: int = config_field(128, "tokens of a sequence, special ones included; all are filled to this length")
    mask_share: float = config_field(0.15, "share of the tokens that are hidden and asked for")
    whole_word: bool = config_field(False, "hide whole words: all tokens of a word, or none")

    def __post_init__(self) -> None:
        require(bool(self.corpus), "corpus", list(self.corpus), "at least one file, folder or glob")
        require(self.documents in ("line", "paragraph"), "documents", self.documents, "line or paragraph")
        require(self.max_length >= 8, "maximum length", self.max_length, "at least 8 tokens")
        require(0 < self.mask_share <= 0.5, "mask share", self.mask_share, "above 0 and at most 0.5")


SMALL_TASK_EXAMPLES = 10_000  # training rows below which an example gets more copies


@dataclass(frozen=True)
class AugmentConfig:
    """How copies of training rows are made by replacing words (TinyBERT, arXiv 1909.10351, algorithm 1)."""

    lm: str = config_field("", "masked language model: a local folder or a name on the Hugging Face hub")
    output: str = config_field("", "folder for train_aug.*, in the format of the training file")
    neighbours: str = config_field(
        "embeddings",
        "where words of several pieces find their neighbours: a GloVe or word2vec text file, or 'embeddings', "
        "the language model's own",
    )
    copies: int | None = config_field(None, "copies an example (default: 30 below 10,000 training rows, else 20)")
    candidates: int = config_field(15, "words that a word may be replaced by")
    probability: float = config_field(0.4, "probability of replacing a word")
    stop_words: str | None = config_field(None, "file of words to keep, one a line (default: English function words)")
    context: int = config_field(128, "tokens that the language model sees around a word, special ones included")
    with_logits: str | None = config_field(None, "fine-tuned model whose logits are added to each copy")
    seed: int = config_field(42, "seed of everything that is random")
    precision: Precision = config_field("fp32", "fp32, or bf16 autocast")

    def __post_init__(self) -> None:
        require_seed(self.seed)
        require(bool(self.lm), "language model", self.lm, "a folder or a hub name")
        require(bool(self.output), "output", self.output, "a folder")
        require(self.copies is None or self.copies > 0, "copies", self.copies, "at least 1")
        require(self.candidates > 0, "candidates", self.candidates, "at least 1")
        require(0 < self.probability <= 1, "probability", self.probability, "above 0 and at most 1")
        require(self.context >= 8, "context", self.context, "at least 8 tokens")
        require(self.precision in ("fp32", "bf16"), "precision", self.precision, "fp32 or bf16")

    def augmented_per_example(self, num_examples: int) -> int:
        """Copies an example, for so many training rows."""
        return self.copies or (30 if num_examples < SMALL_TASK_EXAMPLES else 20)
