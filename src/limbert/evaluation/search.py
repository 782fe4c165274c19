"""The search itself: NSGA-II over genes, begun from the grid; what the journal knows is not measured again.

Nothing of the optimiser is saved. It is seeded, so that it asks for the same sub-networks when it starts again, and the
journal answers them at once: a search that was killed and restarted ends where an uninterrupted one does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from limbert.core.subnet import Subnet
from limbert.errors import ConfigError
from limbert.run.search.genes import Genes
from limbert.run.search.journal import Journal, Judged

if TYPE_CHECKING:
    import optuna

_GENERATION = 24  # sub-networks a generation; twice those that are uniform if that is more
_CROSSOVER = 0.5  # the other half are one parent with changed genes
_PATIENCE = 50  # generations without anything new after which all that can be reached has been


def require_optuna() -> None:
    """Raise ConfigError where the optimiser is missing, before any long work."""
    if find_spec("optuna") is None:
        raise ConfigError("the search needs optuna; install it with: pip install 'limbert[search]'")


def evolve(
    genes: Genes,
    grid: Sequence[Subnet],
    *,
    measure: Callable[[Subnet], Judged],
    journal: Journal,
    trials: int,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Judged]:
    """Look at ``trials`` different sub-networks, the grid's first.

    Args:
        genes: what may vary.
        grid: where the search begins.
        measure: says what a sub-network reaches; asked once for each that the journal does not know.
        journal: receives what is measured.
        trials: different sub-networks to look at, the grid's among them; fewer where there are no more.
        seed: of the optimiser.
        progress: called with sub-networks done and in all.

    Returns:
        What was found, in the order it was looked at.

    Raises:
        ConfigError: if optuna is not installed.
        StorageError: if the journal cannot be written.
    """
    require_optuna()
    import optuna

    generation = max(_GENERATION, 2 * len({*grid, *genes.uniform}))
    found: dict[Subnet, Judged] = {}
    repeated = 0
    with _quiet():
        study = optuna.create_study(
            directions=["maximize", "minimize"],
            sampler=optuna.samplers.NSGAIISampler(population_size=generation, crossover_prob=_CROSSOVER, seed=seed),
        )
        for first in genes.first_generation(grid, count=generation, seed=seed):
            study.enqueue_trial(first)
        while len(found) < trials and repeated < _PATIENCE * generation:
            progress(len(found), trials)
            trial = study.ask()
            subnet = _asked(trial, genes)
            if subnet in found:  # counts for nothing, so that no generation is filled with copies
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                repeated += 1
                continue
            repeated = 0
            found[subnet] = journal.known(subnet) or journal.add(measure(subnet))
            study.tell(trial, [found[subnet].value, found[subnet].cost])
    progress(len(found), len(found))
    return list(found.values())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without optuna's line for every trial."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _asked(trial: "optuna.trial.Trial", genes: Genes) -> Subnet:
    return genes.subnet({name: trial.suggest_int(name, 0, size - 1) for name, size in genes.sizes.items()})
