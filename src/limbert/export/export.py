"""Export of a sub-network or policy: write, reload in its own runtime, verify, and only then publish the folder."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from limbert.core.config import DataConfig, shows_options, take_config
from limbert.core.verb_config import ExportOptions
from limbert.data.tokenize import TokenizedExamples
from limbert.errors import ConfigError, ExportError, import_optional
from limbert.evaluation.evaluate import Progress, count_parameters, no_progress
from limbert.export.export_result import EXPORT_RECORD_NAME, ExportConfig, ExportResult
from limbert.export.formats import EXPORTERS, Exporter, policy_exporter
from limbert.export.model_card import dev_metrics, export_card
from limbert.export.verify import RuntimeBenchmark, benchmark_runtimes
from limbert.export.vocabulary import reduce_vocabulary
from limbert.files import atomic_folder
from limbert.inference.load import LoadedCheckpoint, load_checkpoint, override_data_config, warn_if_untrained
from limbert.inference.parity import (
    calibration_batches,
    compare_outputs,
    labelled_examples,
    parity_batches,
    parity_examples,
    require_parity,
)
from limbert.inference.policy import Policy, named_policy
from limbert.inference.runtimes import Runtime, load_runtime
from limbert.inference.segments import SegmentedPolicy
from limbert.method.calibration import calibrated_network
from limbert.model.checkpoint import library_versions, write_json


@shows_options(ExportOptions)
def export_model(
    run: str | Path,
    output: str | Path,
    *,
    subnet: str | None = None,
    policy: Policy | str | None = None,
    widths: Sequence[float] | None = None,
    exit_threshold: float | None = None,
    exit_rule: str | None = None,
    threads: int | None = None,
    extra_files: Sequence[Path] = (),
    progress: Progress = no_progress,
    **options: Any,
) -> ExportResult:
    """Export a sub-network or a policy as a standalone folder, verified against its source, whole or not at all.

    Args:
        run: folder or Hub id of the elastic model.
        output: the folder to make.
        subnet: ``WIDTHxDEPTH``, or a name found by a search; default: the full model.
        policy: instead of a sub-network: a policy, or the name of a policy or operating point such as ``balanced``.
        widths: of a policy given by name; this and the next two: see `named_policy`.
        exit_threshold: likewise.
        exit_rule: likewise.
        threads: of the runtime; None: its default.
        extra_files: copied into the folder.
        progress: called with what runs, steps done and steps in all.
        options: those below; for ``vocabulary`` and ``characters`` see `reduce_vocabulary`. Settings of `DataConfig`
            (``data=``, ``dev=`` ...) instead of the training's.

    Raises:
        SubnetError: for a sub-network that the model cannot run.
        ConfigError: for a setting out of range, an output that exists, or a missing library.
        ExportError: if the outputs differ from the source's, or int8 loses too much.
    """
    if subnet is not None and policy is not None:
        raise ConfigError("provide either a sub-network or a policy")
    run = os.path.expanduser(run)
    name = (subnet or "1x1") if policy is None else str(policy)
    form, data = take_config(ExportOptions, options)
    config = check_export(run, output, subnet=name, threads=threads, **vars(form))
    checkpoint = load_checkpoint(run, head="as-saved")
    if isinstance(policy, str):
        given: dict[str, Any] = {"widths": widths, "exit_threshold": exit_threshold, "exit_rule": exit_rule}
        policy = named_policy(policy, checkpoint.model.record, task_type=checkpoint.trained_task.task_type, **given)
    if policy is not None and policy.subnet is not None:  # one sub-network, in any format
        config, policy = replace(config, subnet=policy.subnet), None
    exporter, network, source, params = _sources(checkpoint, config, policy)
    data_config = override_data_config(checkpoint.data_config, **data)
    reduction = None
    if config.vocabulary is not None:
        if policy is not None:
            raise ConfigError("--vocabulary goes with one sub-network; export a policy without it, or name a --subnet")
        checkpoint, network, reduction = reduce_vocabulary(
            checkpoint, network, str(config.vocabulary), data_config, characters=config.characters
        )
        source, params = load_runtime("torch", network, threads=threads), network.num_parameters()
    data_given = bool(data.get("data") or data.get("dev"))
    trial = parity_examples(checkpoint, data_config, required=data_given)
    labelled = None
    if config.int8:  # before the work, because it may refuse
        labelled = labelled_examples(checkpoint, data_config, use_dev_set=data_given)
    batches = list(parity_batches(trial.examples))
    checkpoint.tokenizer.model_max_length = checkpoint.max_length  # the length the model was trained with
    given_names = {*batches[0]} & {*checkpoint.tokenizer.model_input_names}
    with atomic_folder(config.output) as folder:
        exporter.write(network, folder, tuple(name for name in source.input_names if name in given_names))
        checkpoint.tokenizer.save_pretrained(folder)
        parity = compare_outputs(source, exporter.load(folder, threads), batches)
        require_parity(parity)
        benchmarks: Mapping[str, RuntimeBenchmark] = {}
        if labelled is not None:
            reporter = partial(progress, "measuring int8")
            benchmarks = _quantize(checkpoint, config, exporter, folder, labelled, data_config, progress=reporter)
        result = ExportResult(
            config=config,
            policy=policy,
            params=params,
            file_bytes=exporter.file_bytes(folder),
            dev_metrics=dev_metrics(run, checkpoint.model.record, config.subnet),
            parity=parity,
            parity_data=trial.description,
            benchmarks=benchmarks,
            vocabulary=reduction,
        )
        write_json(folder / EXPORT_RECORD_NAME, result.to_dict() | {"versions": library_versions()})
        card = export_card(result, checkpoint, network, takes_pairs=trial.takes_pairs)
        (folder / "README.md").write_text(card, encoding="utf-8")
        for file in extra_files:
            shutil.copy(file, folder)
    return result


def _sources(
    checkpoint: LoadedCheckpoint, config: ExportConfig, policy: Policy | None
) -> tuple[Exporter, PreTrainedModel, Runtime, int | None]:
    """The exporter, the network, the network or policy on torch, and its parameters if it is one sub-network."""
    exporter, model = EXPORTERS[config.format], checkpoint.model
    if policy is None:
        subnet = model.subnet(config.subnet)
        warn_if_untrained(model, config.subnet)
        network = calibrated_network(model, subnet)
        source = load_runtime("torch", network, threads=config.threads)
        return exporter, network, source, count_parameters(model, subnet)
    if exporter.runtime == "torch":
        raise ConfigError(
            f"policy {policy} is several networks, {config.format} holds one; use format onnx or openvino"
        )
    segmented = SegmentedPolicy(checkpoint, policy, exporter.runtime)
    return policy_exporter(exporter, segmented), model.network, segmented.source, None


def check_export(run: str, output: str | Path, **settings: Any) -> ExportConfig:
    """The settings of an export, before any work.

    Raises:
        ConfigError: for a setting out of range, an output that exists, or a missing library.
    """
    config = ExportConfig(run=run, output=Path(output).expanduser(), **settings)
    for library in EXPORTERS[config.format].library.libraries:
        import_optional(library, extra="export")
    return config


def _quantize(
    checkpoint: LoadedCheckpoint,
    config: ExportConfig,
    exporter: Exporter,
    folder: Path,
    examples: TokenizedExamples,
    data_config: DataConfig,
    *,
    progress: Callable[[int, int], None],
) -> dict[str, RuntimeBenchmark]:
    """Quantise the files to int8 and benchmark them before and after."""
    task = checkpoint.trained_task
    assert exporter.quantize is not None
    before = exporter.load(folder, config.threads), exporter.file_bytes(folder)
    exporter.quantize(folder / exporter.model_name, lambda: calibration_batches(checkpoint, data_config))
    after = exporter.load(folder, config.threads), exporter.file_bytes(folder)
    benchmarks = benchmark_runtimes({"fp32": before, "int8": after}, examples, task=task, progress=progress)
    metric = task.primary_metric
    fp32, int8 = (100 * benchmarks[name].metrics[metric] for name in ("fp32", "int8"))
    if fp32 - int8 > config.max_drop:
        raise ExportError(
            f"int8 costs {fp32 - int8:.2f} points of {metric} ({fp32:.2f} to {int8:.2f} on {len(examples)} examples); "
            f"allowed: {config.max_drop:g} (--max-drop); nothing was written"
        )
    return benchmarks
