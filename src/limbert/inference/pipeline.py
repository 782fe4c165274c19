"""`limbert.pipeline`: predictions for texts by a sub-network or a policy of a trained model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from limbert.core.config import RuntimeConfig
from limbert.data.long_texts import LongTexts
from limbert.data.readers import Examples
from limbert.data.task_registry import TASK_HANDLERS
from limbert.data.tasks import Task
from limbert.errors import ConfigError
from limbert.inference.compiled import open_policy, resolve_runtime
from limbert.inference.load import LoadedCheckpoint, load_checkpoint, warn_if_untrained
from limbert.inference.policy import Policy, named_policy, resolve_policy
from limbert.inference.predict import Prediction, check_top_k, predict
from limbert.inference.runtimes import Runtime
from limbert.inference.segments import CompiledPolicy


@dataclass(frozen=True)
class Pipeline:
    """Predicts texts; for the settings see `pipeline`."""

    checkpoint: LoadedCheckpoint  # the model with its tokenizer and task
    policy: Policy  # what runs
    batch_size: int = 64
    long_texts: LongTexts = "truncate"
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    network: Runtime | CompiledPolicy | None = None  # the policy in that runtime; None: torch runs it

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.checkpoint.trained_task

    def __call__(
        self,
        texts: str | Sequence[str],
        pairs: str | Sequence[str] | None = None,
        *,
        top_k: int | None = 1,
        batch_size: int | None = None,
    ) -> list[Any]:
        """Predictions in the order of the texts, as those of ``transformers.pipeline``.

        Args:
            texts: one or many.
            pairs: the second text of each, for tasks on pairs; for question answering the context.
            top_k: 1: a dict ``{"label": ..., "score": ...}`` for each text; more, or None for all: a list of so many
                dicts for each text, and for a single text this list alone. Other tasks than classification have dicts
                of their own values, see `Prediction`.
            batch_size: texts per batch; default: the pipeline's.

        Raises:
            ConfigError: for texts that are not strings, or as many pairs as texts are not given.
        """
        first, second = ([values] if isinstance(values, str) else values and [*values] for values in (texts, pairs))
        if any(not isinstance(text, str) for text in [*(first or ()), *(second or ())]):
            raise ConfigError("texts and pairs must be strings, one or a list of them")
        if second is not None and len(second) != len(first or ()):
            raise ConfigError(f"{len(second)} pairs for {len(first or ())} texts; each text needs one")
        if not first:
            return []
        pipeline = self if batch_size is None else replace(self, batch_size=batch_size)
        count = None if top_k == 1 else top_k or len(self.task.labels)
        examples = TASK_HANDLERS[self.task.task_type].make_examples(first, second)
        rows = [row.to_dict() for row in pipeline.predict(examples, top_k=count)]
        if count is None:
            return rows
        scores = [row["scores"] for row in rows]
        return list(scores[0]) if isinstance(texts, str) else scores

    def predict(
        self,
        examples: Examples,
        *,
        top_k: int | None = None,
        source: str | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Prediction]:
        """Predictions of examples, in order.

        Args:
            examples: texts, or pairs of texts.
            top_k: number of best labels in ``scores``.
            source: where the examples are from; logged with their number and how many are truncated.
            progress: called with the batches done and in all.
        """
        if top_k is not None:
            check_top_k(self.task, top_k)
        tokens = self.checkpoint.tokenize(examples, long_texts=self.long_texts)
        if source is not None:
            self.checkpoint.log_inputs(source, examples, tokens)
        return predict(
            self.checkpoint.model,
            tokens,
            task=self.task,
            policy=self.policy,
            batch_size=self.batch_size,
            precision=self.runtime.precision,
            top_k=top_k,
            runtime=self.network,
            progress=progress,
        )


def pipeline(
    run: str | Path,
    *,
    subnet: str | None = None,
    policy: Policy | str | None = None,
    widths: Sequence[float] | None = None,
    exit_threshold: float | None = None,
    exit_rule: str | None = None,
    batch_size: int = 64,
    runtime: str = "torch",
    precision: str = "fp32",
    max_drop: float = 1.0,
    long_texts: LongTexts = "truncate",
    device: str = "auto",
    threads: int | None = None,
) -> Pipeline:
    """Load a trained model for predictions: ``pipeline("runs/tickets", subnet="0.5x0.75")(["Where is my card?"])``.

    Args:
        run: elastic model, a folder or a name on the Hub.
        subnet: ``WIDTHxDEPTH`` or a name found by a search; default: the full model.
        policy: instead of a sub-network: a policy, or the name of a policy or operating point such as ``balanced``.
        widths: of a policy given by name; this and the next two: see `named_policy`.
        exit_threshold: likewise.
        exit_rule: likewise.
        batch_size: texts per batch; the predictions do not depend on it.
        runtime: ``torch``, ``onnxruntime``, ``openvino``, or ``auto``: the fastest for a sub-network, else torch.
        precision: ``fp32``, ``bf16`` (torch: under autocast) or ``int8``, where the runtime has it.
        max_drop: points of the metric that bf16 and int8 may lose to fp32 outside torch.
        long_texts: ``truncate`` texts, or read them in overlapping ``windows`` whose logits are averaged.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        threads: of a runtime other than torch; None: as many as torch.

    Raises:
        LimbertError: for a model, name or setting that cannot be used.
    """
    if subnet is not None and policy is not None:
        raise ConfigError("provide either a sub-network or a policy")
    config = RuntimeConfig(runtime, precision, max_drop)  # type: ignore[arg-type]  # checked by the dataclass
    checkpoint = load_checkpoint(run, device=config.model_device(device))
    task, model = checkpoint.trained_task, checkpoint.model
    if not isinstance(policy, Policy):
        settings: dict[str, Any] = {"widths": widths, "exit_threshold": exit_threshold, "exit_rule": exit_rule}
        name = policy or f"static:{subnet or '1x1'}"
        policy = named_policy(name, model.record, task_type=task.task_type, **settings)
    resolve_policy(policy, model, task_type=task.task_type)  # refuses it before any text is read
    if policy.subnet is not None:
        warn_if_untrained(model, policy.subnet)
        name = resolve_runtime(checkpoint, model.subnet(policy.subnet), config, threads=threads)
        config = replace(config, runtime=name)
    network = open_policy(checkpoint, policy, config, threads=threads)
    if network is None:
        config = replace(config, runtime="torch")
    return Pipeline(checkpoint, policy, batch_size, long_texts, config, network)
