"""The errors a run ends with. Every message names what is wrong, where, and what to do."""

from __future__ import annotations


class EngineError(RuntimeError):
    """Base of everything the engine raises on purpose; the command line prints it without a traceback."""


class TrainingError(EngineError):
    """Training cannot start or go on."""


class StepError(TrainingError):
    """A step cannot be taken; the weights are as they were before it.

    step: its number, from 0. image_ids: the images this rank had in it.
    """

    def __init__(self, message: str, step: int = -1, image_ids: tuple[int, ...] = ()):
        super().__init__(message)
        self.step, self.image_ids = step, image_ids


class NonFiniteError(StepError):
    """The loss or a gradient is NaN or infinite; no weight has been changed by that step."""


class OutOfMemoryError(TrainingError):
    """A step did not fit into the device's memory; the message has the batch's shape and what to change."""


class RunDirectoryError(EngineError):
    """The run directory cannot be written, is in use, or holds another run."""


class CheckpointError(EngineError):
    """A checkpoint cannot be written, read or fitted to the model."""


class EvaluationError(EngineError):
    """Detections or annotations that cannot be scored."""


class EvaluationStopped(EngineError):
    """An evaluation was given up because the process was asked to stop."""


class Terminated(SystemExit):
    """SIGTERM arrived: the step was finished and saved. Exits with 143 = 128 + SIGTERM."""

    def __init__(self, message: str):
        super().__init__(143)
        self.message = message

    def __str__(self) -> str:
        return self.message
