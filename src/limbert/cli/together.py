"""The command under torchrun or accelerate launch: only rank 0 prints, and an error is reported once."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from limbert.errors import ConfigError

DISTRIBUTED_COMMANDS = ("train", "pretrain", "demo")  # all others run in one process


def is_distributed_launch() -> bool:
    """Whether this is one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def mute_other_ranks(arguments: Sequence[str]) -> Iterator[None]:
    """Let only rank 0 write to the terminal; errors of the others are raised all the same.

    Raises:
        ConfigError: for a command that runs in one process.
    """
    if not is_distributed_launch():
        yield
        return
    if arguments and not arguments[0].startswith("-") and arguments[0] not in DISTRIBUTED_COMMANDS:
        raise ConfigError(
            f"limbert {arguments[0]} runs in one process; these run in several: {', '.join(DISTRIBUTED_COMMANDS)}"
        )
    if int(os.environ.get("RANK", "0")) == 0:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def exit_if_error_already_reported() -> None:
    """Exit with status 1 if another process has reported the error of this run already."""
    if not is_distributed_launch():
        return
    from limbert.train.distributed import is_first_failed_process

    if not is_first_failed_process():
        sys.exit(1)
