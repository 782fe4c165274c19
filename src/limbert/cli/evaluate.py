"""``limbert evaluate``: what each sub-network, or a dynamic policy, costs and reaches on labelled data."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from limbert.cli import options as opt
from limbert.cli.policies import ExitRuleOption, ExitThreshold, PolicyName, Widths, policy_from_options
from limbert.core.config import DataConfig
from limbert.errors import ConfigError

if TYPE_CHECKING:
    from limbert.data.tokenize import TokenizedExamples


def evaluate(
    run: Annotated[str, typer.Argument(help="elastic model, or a stock model fine-tuned on the task", metavar="RUN")],
    subnet: Annotated[
        list[str] | None,
        typer.Option(help="sub-network: WIDTHxDEPTH, a found or a measured name; may be repeated (default: all)"),
    ] = None,
    task: opt.TaskName = None,
    data: opt.Data = None,
    dev: opt.DevFile = None,
    text_column: opt.TextColumn = None,
    pair_column: opt.PairColumn = None,
    label_column: opt.LabelColumn = None,
    skip_bad_rows: opt.SkipBadRows = False,
    layers: Annotated[str | None, typer.Option(help="layers a depth keeps: first or spread (default: model's)")] = None,
    policy: PolicyName = None,
    widths: Widths = None,
    exit_threshold: ExitThreshold = None,
    exit_rule: ExitRuleOption = None,
    batch_size: Annotated[int, typer.Option(help="examples a batch; only the time depends on it", min=1)] = 64,
    precision: opt.RunPrecision = "fp32",
    threads: opt.Threads = None,
    device: opt.Device = "auto",
    as_json: opt.AsJson = False,
) -> None:
    """Evaluate sub-networks of a trained model, or a policy that chooses a size for each input, on the development set.

    Data and columns default to those of the training. A stock model is cut as if it were elastic: the untrained
    control. What an operating point does, layer by layer, is also kept in the model's folder (policies.jsonl).

    Example: limbert evaluate runs/mrpc --data glue/MRPC --subnet 0.5x0.75 --subnet 0.25x0.5

    Example: limbert evaluate runs/mrpc --policy width+depth --widths 0.5,0.75,0.75,0.75 --exit-threshold 0.15
    """
    if policy is None and (widths or exit_threshold is not None or exit_rule):
        raise ConfigError("--widths, --exit-threshold and --exit-rule belong to a --policy")
    if policy is not None and subnet:
        raise ConfigError("give either --subnet or --policy; one size is --policy static:WIDTHxDEPTH")
    opt.prepare_libraries(threads)
    from limbert.cli import show
    from limbert.core.config import require
    from limbert.core.task_types import TASK_TYPE_SPECS
    from limbert.data.load import load_evaluation_data, load_task_data
    from limbert.data.tasks import requested_task_type
    from limbert.evaluation.choose import resolve_measured_names
    from limbert.evaluation.policies import evaluate_policy, policy_row, upsert_policy_row
    from limbert.evaluation.subnets import evaluate as run_evaluation
    from limbert.inference.load import load_checkpoint
    from limbert.inference.policy import operating_points, reject_token_level_task, resolve_policy

    require(precision in ("fp32", "bf16"), "precision", precision, "fp32 or bf16")
    kind = requested_task_type(DataConfig(task=task))  # a stock model does not say which head it has
    opened = load_checkpoint(run, head=TASK_TYPE_SPECS[kind].head if kind else None, device=device)
    model = opened.model
    if layers is not None:
        model.space = replace(model.space, layers=layers)  # type: ignore[arg-type]  # checked by the dataclass
    named = {name: model.subnet(name) for name in resolve_measured_names(run, subnet or ())}
    subnets = named or model.subnets() | model.searched_subnets()
    config = override_data_config(
        opened.data_config,
        task=task,
        data=data,
        dev=dev,
        text_column=text_column,
        pair_column=pair_column,
        label_column=label_column,
        skip_bad_rows=skip_bad_rows,
    )
    if opened.task is not None:
        known, sets = opened.task, load_evaluation_data(config, opened.task)
    else:
        loaded = load_task_data(config, seed=0)
        known, sets = loaded.task, loaded.dev
    show.print_skipped_rows(sets)
    settings = {"task": known, "batch_size": batch_size, "precision": precision}

    def tokenized() -> "dict[str, TokenizedExamples]":
        return {name: opened.tokenize(part, task=known) for name, part in sets.items()}

    if policy is None:
        with show.progress_bar("evaluating") as advance:
            results = run_evaluation(model, tokenized(), subnets=subnets, progress=advance, **settings)  # type: ignore[arg-type]
        if as_json:
            show.print_json([one.to_dict() for one in results])
        else:
            show.stdout.print(show.results_table(results))
        return
    reject_token_level_task(known.task_type, f"policy {policy}")
    chosen = policy_from_options(
        policy,
        record=model.record,
        task_type=known.task_type,
        widths=widths,
        exit_threshold=exit_threshold,
        exit_rule=exit_rule,
    )
    resolve_policy(chosen, model, task_type=known.task_type)  # refuses early what the model cannot do
    examples = tokenized()
    with show.progress_bar("evaluating") as advance:
        result = evaluate_policy(model, examples, policy=chosen, progress=advance, **settings)  # type: ignore[arg-type]
    if policy in operating_points(model.record) and os.access(run, os.W_OK):  # a model may lie where nobody may write
        row = policy_row(
            policy,
            result,
            split="development",
            source=config.dev or config.data or known.name,
            num_examples=sum(len(part) for part in examples.values()),
            batch_size=batch_size,
            device=model.network.device.type,
        )
        upsert_policy_row(run, row)
    if as_json:
        show.print_json(result.to_dict())
    else:
        show.print_policy_result(result, batch_size=batch_size)


def override_data_config(saved: DataConfig, **overrides: object) -> DataConfig:
    """The training's data settings with what the command line names instead."""
    named = {name: value for name, value in overrides.items() if value}
    if named.keys() & {"data", "train", "dev"}:  # files named now replace files named then
        saved = replace(saved, data=None, train=None, dev=None, skip_bad_rows=False)
    if named:  # other data, or read in another way, than in training
        saved = replace(saved, fingerprints=None)
    return replace(saved, **named)  # type: ignore[arg-type]
