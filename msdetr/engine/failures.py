"""Failures of a step or of another rank, told so that one can do something about them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..errors import RunDirectoryError, StepError, TrainingError, WriteError
from .distributed import World
from .run import RunDirectory

SIGNS_OF_A_DEAD_RANK = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe", "timed out")


@contextlib.contextmanager
def explaining_dead_ranks(world: World) -> Iterator[None]:
    """The death of another rank, which PyTorch raises in this rank's next exchange, as an error that says what to do."""
    try:
        yield
    except TrainingError:
        raise
    except RuntimeError as error:
        if world.size > 1 and any(sign in str(error) for sign in SIGNS_OF_A_DEAD_RANK):
            raise TrainingError(
                f"rank {world.rank}: another rank has died or cannot be reached; its own output says why. The last "
                "checkpoint is intact: start the ranks again to go on from it, or let torchrun do so (--max-restarts). "
                f"({str(error).splitlines()[0]})"
            ) from error
        raise


@contextlib.contextmanager
def reporting_failed_step(run: RunDirectory, world: World) -> Iterator[None]:
    """Leaves a file in the run directory about a step that failed: which images this rank had in it, and why."""
    try:
        yield
    except StepError as error:
        values = {"step": error.step, "rank": world.rank, "image_ids": error.image_ids, "error": str(error)}
        with contextlib.suppress(WriteError, RunDirectoryError):  # the step's error is the one to tell
            run.report(f"failed_step_{error.step}_rank{world.rank}.json", values)
        raise
