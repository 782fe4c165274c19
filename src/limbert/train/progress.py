"""What a training run tells while it runs; the command shows it, a library user may ignore it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingProgress:
    """Where a phase stands, some times a minute.

    Attributes:
        phase: its name.
        step: optimizer steps done.
        steps: optimizer steps in all.
        loss: mean loss a sub-network since the last report.
        learning_rate: at this step.
        examples_per_second: training rows since the last report, each counted once.
    """

    phase: str
    step: int
    steps: int
    loss: float
    learning_rate: float
    examples_per_second: float


class TrainingCallback:
    """Listens to a run. This one ignores everything."""

    def on_phase_begin(self, phase: str, *, step: int, steps: int) -> None:
        """A phase begins, or goes on from ``step``."""

    def on_prepare(self, phase: str, description: str, done: int, total: int) -> None:
        """Something that a phase computes before its first step."""

    def on_log(self, progress: TrainingProgress) -> None:
        """Some steps are done."""

    def on_evaluate(self, phase: str, *, step: int, score: float, is_best: bool) -> None:
        """The mean primary metric of the phase's sub-networks on the validation slice."""

    def on_message(self, text: str) -> None:
        """Something that the user should know."""
