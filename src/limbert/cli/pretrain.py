"""``limbert pretrain``: an elastic encoder, to be fine-tuned on any task, from an encoder and plain text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.core.config import CorpusConfig, TrainConfig, field_help

if TYPE_CHECKING:
    from rich.table import Table

    from limbert.evaluation.results import SubnetResult


def pretrain(
    corpus: Annotated[list[str], typer.Option(help=field_help(CorpusConfig, "corpus"), show_default=False)],
    model: Annotated[
        str,
        typer.Option(
            help="masked language model, encoder, or folder with config and tokenizer but no weights (random ones)",
            show_default=False,
        ),
    ],
    output: Annotated[str, typer.Option(help="folder for the elastic encoder", show_default=False)],
    dev: Annotated[list[str] | None, typer.Option(help=field_help(CorpusConfig, "dev"), show_default=False)] = None,
    text_column: Annotated[str | None, typer.Option(help=field_help(CorpusConfig, "text_column"))] = None,
    documents: Annotated[str, typer.Option(help=field_help(CorpusConfig, "documents"))] = "line",
    skip_bad_rows: Annotated[bool, typer.Option(help=field_help(CorpusConfig, "skip_bad_rows"))] = False,
    max_length: Annotated[int, typer.Option(help=field_help(CorpusConfig, "max_length"))] = 128,
    mask_share: Annotated[float, typer.Option(help=field_help(CorpusConfig, "mask_share"))] = 0.15,
    whole_word: Annotated[bool, typer.Option(help=field_help(CorpusConfig, "whole_word"))] = False,
    recipe: Annotated[str, typer.Option(help="recipe: pretrain or a TOML file")] = "pretrain",
    phases: Annotated[
        str | None, typer.Option(help="phases to run, in order: mlm, width, depth, final (default: the recipe's)")
    ] = None,
    widths: opt.SpaceWidths = None,
    depths: opt.SpaceDepths = None,
    layers: opt.SpaceLayers = None,
    epochs: opt.Epochs = None,
    max_steps: opt.MaxSteps = None,
    batch_size: opt.BatchSize = None,
    learning_rate: opt.LearningRate = None,
    phase_overrides: opt.PhaseOverrides = None,
    seed: opt.Seed = 42,
    precision: opt.RunPrecision = "fp32",
    validation: Annotated[
        float, typer.Option(help="fraction of the sequences held out to choose checkpoints, and as many to report on")
    ] = 0.05,
    checkpoint_every: Annotated[float, typer.Option(help=field_help(TrainConfig, "checkpoint_every"))] = 120.0,
    tensorboard: Annotated[bool, typer.Option(help=field_help(TrainConfig, "tensorboard"))] = False,
    overwrite: Annotated[bool, typer.Option(help="replace a run with other settings in the output")] = False,
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
) -> None:
    """Pre-train an elastic encoder on masked words. If interrupted, run the same command again to resume.

    The result is a masked language model that plain Transformers loads at full size, and a base model for any task:
    limbert train --model OUTPUT.

    Example: limbert pretrain --corpus "texts/*.txt" --model bert-base-uncased --output runs/elastic-bert

    Example: limbert pretrain --corpus news.jsonl --model path/to/encoder --whole-word --output runs/elastic
    """
    corpus_config = CorpusConfig(
        corpus=tuple(corpus),
        dev=tuple(dev or ()),
        text_column=text_column,
        documents=documents,  # type: ignore[arg-type]  # checked by the dataclass
        skip_bad_rows=skip_bad_rows,
        max_length=max_length,
        mask_share=mask_share,
        whole_word=whole_word,
    )
    opt.require_tensorboard(tensorboard)
    config = TrainConfig(
        model=model,
        output=output,
        recipe=recipe,
        phases=opt.split_commas(phases),
        seed=seed,
        precision=precision,  # type: ignore[arg-type]
        validation=validation,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard,
    )
    overrides = {
        "space": opt.space_overrides(widths, depths, layers),
        "every_phase": {
            "epochs": epochs,
            "max_steps": max_steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
        },
        "one_phase": phase_overrides or [],
        "phases": config.phases,
    }
    opt.prepare_libraries(threads)
    _pretrain(config, corpus_config, overrides, overwrite=overwrite, as_json=as_json)


def _pretrain(
    config: TrainConfig, corpus: CorpusConfig, overrides: dict[str, Any], *, overwrite: bool, as_json: bool
) -> None:
    from limbert.cli import show
    from limbert.cli.terminal_run import build_recipe, run_in_terminal
    from limbert.data.mlm.corpus import corpus_files
    from limbert.train.distributed import init_distributed
    from limbert.train.pretrain import pretrain_corpus

    init_distributed()  # first, so that an error of any process is reported once
    recipe = build_recipe(config, overrides)
    corpus_files(corpus.corpus, exclude=corpus_files(corpus.dev))
    results = run_in_terminal(
        lambda progress: pretrain_corpus(
            config, recipe, corpus, callbacks=[progress], progress=progress.prepare, overwrite=overwrite
        )
    )
    if as_json:
        show.print_json([result.to_dict() for result in results])
    else:
        show.stdout.print(mlm_results_table(results))
        show.stdout.print(
            f"Saved elastic encoder to {config.output}. Next: limbert train --model {config.output}",
            highlight=False,
            soft_wrap=True,
        )


def mlm_results_table(results: "Sequence[SubnetResult]") -> "Table":
    """A table of sub-networks with their cost and masked-token metrics."""
    from rich.table import Table

    from limbert.cli.show import format_count

    table = Table(header_style="bold", row_styles=["", "dim"])
    table.add_column("sub-network")
    for name in ("parameters", "FLOPs in layers", "masked-token accuracy", "loss", "perplexity"):
        table.add_column(name, justify="right")
    for result in results:
        metrics = result.metrics
        shown = f"{100 * metrics['accuracy']:.1f}", f"{metrics['loss']:.3f}", f"{metrics['perplexity']:.1f}"
        table.add_row(result.subnet, format_count(result.params), format_count(result.flops), *shown)
    return table
