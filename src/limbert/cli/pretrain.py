"""``limbert pretrain``: from an encoder and plain text to an elastic encoder that any task can start from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from limbert.cli import options as opt
from limbert.cli.terminal_run import finished_results, recipe_of, run_in_terminal
from limbert.core.config import CorpusConfig, TrainConfig, help_of

if TYPE_CHECKING:
    from rich.table import Table

    from limbert.evaluation.results import Result
    from limbert.train.recipes import Recipe


def pretrain(
    corpus: Annotated[list[str], typer.Option(help=help_of(CorpusConfig, "corpus"), show_default=False)],
    model: Annotated[
        str,
        typer.Option(
            help="masked-language model, encoder, or folder with a config and tokenizer but no weights (random ones)",
            show_default=False,
        ),
    ],
    output: Annotated[str, typer.Option(help="folder for the elastic encoder", show_default=False)],
    dev: Annotated[list[str] | None, typer.Option(help=help_of(CorpusConfig, "dev"), show_default=False)] = None,
    text_column: Annotated[str | None, typer.Option(help=help_of(CorpusConfig, "text_column"))] = None,
    documents: Annotated[str, typer.Option(help=help_of(CorpusConfig, "documents"))] = "line",
    skip_bad_rows: Annotated[bool, typer.Option(help=help_of(CorpusConfig, "skip_bad_rows"))] = False,
    max_length: Annotated[int, typer.Option(help=help_of(CorpusConfig, "max_length"))] = 128,
    mask_share: Annotated[float, typer.Option(help=help_of(CorpusConfig, "mask_share"))] = 0.15,
    whole_word: Annotated[bool, typer.Option(help=help_of(CorpusConfig, "whole_word"))] = False,
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
    setting: opt.Setting = None,
    seed: opt.Seed = 42,
    precision: opt.RunPrecision = "fp32",
    validation: Annotated[
        float, typer.Option(help="share of the sequences kept back to choose and score, and as many to report on")
    ] = 0.05,
    checkpoint_every: Annotated[float, typer.Option(help=help_of(TrainConfig, "checkpoint_every"))] = 120.0,
    tensorboard: Annotated[bool, typer.Option(help=help_of(TrainConfig, "tensorboard"))] = False,
    overwrite: Annotated[bool, typer.Option(help="replace a run with other settings in the output")] = False,
    threads: opt.Threads = None,
    as_json: opt.AsJson = False,
) -> None:
    """Pre-train an elastic encoder on hidden words. Killed or stopped, the same command goes on where it was.

    The result is a masked-language model that plain Transformers loads at full size, and a start for any task:
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
    opt.check_tensorboard(tensorboard)
    config = TrainConfig(
        model=model,
        output=output,
        recipe=recipe,
        phases=opt.split(phases),
        seed=seed,
        precision=precision,  # type: ignore[arg-type]
        validation=validation,
        checkpoint_every=checkpoint_every,
        tensorboard=tensorboard,
    )
    overrides = {
        "space": opt.space(widths, depths, layers),
        "every_phase": {
            "epochs": epochs,
            "max_steps": max_steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
        },
        "one_phase": setting or [],
        "phases": config.phases,
    }
    opt.prepare_libraries(threads)
    _pretrain(config, corpus_config, overrides, overwrite=overwrite, as_json=as_json)


def _pretrain(
    config: TrainConfig, corpus: CorpusConfig, overrides: dict[str, Any], *, overwrite: bool, as_json: bool
) -> None:
    from limbert.cli import show
    from limbert.data.mlm.corpus import corpus_files
    from limbert.train.distributed import join_processes

    join_processes()  # before anything can be wrong, so that an error of any of several is heard
    recipe = recipe_of(config, overrides)
    corpus_files(corpus.corpus, apart_from=corpus_files(corpus.dev))
    results = _with_progress(config, recipe, corpus, overwrite=overwrite)
    if as_json:
        show.print_json([result.to_dict() for result in results])
    else:
        show.output.print(masked_table(results))
        show.output.print(f"elastic encoder in {config.output}", highlight=False, soft_wrap=True)


def _with_progress(config: TrainConfig, recipe: "Recipe", corpus: CorpusConfig, *, overwrite: bool) -> "list[Result]":
    """Run in the terminal, or read the results of a run that is finished already."""
    from limbert.train.distributed import join_processes
    from limbert.train.fingerprint import corpus_content, settings_of
    from limbert.train.pretrain import PretrainingRun

    recipe = recipe.over(join_processes().count)
    content = corpus_content(corpus, config.model)
    results = finished_results(
        config.output, settings_of(config, recipe.to_dict(), corpus, content), overwrite=overwrite
    )
    if results is not None:
        return results
    return run_in_terminal(
        lambda monitor, should_stop: PretrainingRun(
            config,
            recipe,
            corpus=corpus,
            content=content,
            monitor=monitor,
            should_stop=should_stop,
            overwrite=overwrite,
        )
    )


def masked_table(results: "Sequence[Result]") -> "Table":
    """Sub-networks with what they cost and how well they find hidden words."""
    from rich.table import Table

    from limbert.cli.show import amount

    table = Table(header_style="bold", row_styles=["", "dim"])
    table.add_column("sub-network")
    for name in ("parameters", "FLOPs in layers", "hidden words found", "loss", "perplexity"):
        table.add_column(name, justify="right")
    for result in results:
        metrics = result.metrics
        shown = f"{100 * metrics['accuracy']:.1f}", f"{metrics['loss']:.3f}", f"{metrics['perplexity']:.1f}"
        table.add_row(result.subnet, amount(result.params), amount(result.flops), *shown)
    return table
