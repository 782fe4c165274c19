"""``limbert pretrain``: from an encoder and plain text to an elastic encoder that any task can fine-tune."""

from dataclasses import fields
from typing import Any

from limbert.cli import options as opt
from limbert.cli.config_options import ConfigOptions, config_options
from limbert.core.config import CorpusConfig, TrainConfig

_HELPS = {
    "model": "masked language model, encoder, or folder with config and tokenizer but no weights (random ones)",
    "output": "folder for the elastic encoder",
    "recipe": "pretrain or a TOML file",
    "phases": "phases to run, in order: mlm, width, depth, final (default: the recipe's)",
    "validation": "fraction of the sequences that chooses checkpoints; as many again are reported on",
}


@config_options(
    corpus=ConfigOptions(CorpusConfig, "Data"),
    config=ConfigOptions(
        TrainConfig,
        "Model and training",
        only=tuple(item.name for item in fields(TrainConfig) if item.name != "class_weights"),
        defaults={"recipe": "pretrain", "validation": 0.05},
        helps=_HELPS,
    ),
    **opt.TRAINING,
)
def pretrain(
    corpus: CorpusConfig,
    config: TrainConfig,
    space: dict[str, Any],
    every_phase: dict[str, Any],
    run: opt.TrainingRun,
) -> None:
    """Pre-train an elastic encoder on masked words. If interrupted, run the same command again to resume.

    The result is a masked language model that plain Transformers loads at full size, and a base model for any task:
    limbert train --model OUTPUT.

    \b
    Example: limbert pretrain --corpus "texts/*.txt" --model bert-base-uncased --output runs/elastic-bert
    Example: limbert pretrain --corpus news.jsonl --model path/to/encoder --whole-word --output runs/elastic
    """
    opt.prepare_libraries(run.threads)
    from limbert.cli import console
    from limbert.cli.training import run_in_terminal
    from limbert.core.units import format_quantity
    from limbert.train.distributed import init_distributed
    from limbert.train.pretrain import pretrain_corpus
    from limbert.train.recipes import recipe_for

    init_distributed()  # first, so that an error of any process is reported once
    recipe = recipe_for(config, space=space, every_phase=every_phase, one_phase=run.one_phase)
    results = run_in_terminal(
        lambda progress: pretrain_corpus(
            config, recipe, corpus, callbacks=[progress], progress=progress.prepare, overwrite=run.overwrite
        )
    )
    if run.json:
        console.print_json([result.to_dict() for result in results])
        return
    header = ["sub-network", "parameters", "FLOPs in layers", "masked-token accuracy", "loss", "perplexity"]
    rows = []
    for result in results:
        costs = [format_quantity(cost, quantity_type="count") for cost in (result.params, result.flops)]
        accuracy, loss, perplexity = (result.metrics[name] for name in ("accuracy", "loss", "perplexity"))
        rows.append([result.subnet, *costs, f"{100 * accuracy:.1f}", f"{loss:.3f}", f"{perplexity:.1f}"])
    console.print_table(header, rows, dim=range(1, len(rows), 2))
    console.say(f"Saved elastic encoder to {config.output}. Next: limbert train --model {config.output}")
