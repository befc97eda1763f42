"""Everything this package raises on purpose. Every message names what is wrong, where, and what to do about it.

All of them are ``MSDETRError``: the command line prints such an error without a traceback. Most are also the built-in
exception that a Python user would expect, so ``except ValueError`` keeps working.
"""

from __future__ import annotations


class MSDETRError(Exception):
    """Base of every expected failure."""


class ConfigError(MSDETRError, ValueError):
    """A configuration value, parameter or recipe that does not exist or cannot be; the message names its path."""


class InputError(MSDETRError, ValueError):
    """Tensors, arrays or objects that do not fit what they were given to."""


class InputTypeError(InputError, TypeError):
    """Tensors of a dtype, layout or device that does not fit, or something of another type than was asked for."""


class InputLookupError(InputError, IndexError, KeyError):
    """An index, number or name that does not exist in what it was looked up in."""

    __str__ = Exception.__str__  # a KeyError would show its message in quotation marks


class OperatorError(MSDETRError, RuntimeError):
    """Deformable attention cannot run, or not in the way that was asked for."""


class OperatorWarning(UserWarning):
    """Deformable attention runs, but slower or less repeatably than it could."""


class FileError(MSDETRError, ValueError):
    """A file that cannot be read or is not what it should be."""


class WriteError(MSDETRError, OSError):
    """A file that cannot be written: no room, no permission, no such folder. What was there before is intact."""


class DataError(MSDETRError):
    """A data set that cannot be read or used."""


class MissingDataError(DataError, FileNotFoundError):
    """A folder without the data that is looked for there."""


class AnnotationError(DataError, ValueError):
    """An annotation file, or something in it, that cannot be used."""


class ImageError(DataError, OSError):
    """An image that cannot be read."""


class ShapesError(DataError, RuntimeError):
    """The embedded data set cannot be generated or is not what was asked for."""


class DownloadError(DataError, RuntimeError):
    """A file that cannot be fetched, or is not the one that was asked for."""


class RunError(MSDETRError, RuntimeError):
    """A run directory that cannot be read or compared."""


class RecordsError(RunError, FileNotFoundError):
    """A run without recorded matches."""


class NotebookError(MSDETRError, RuntimeError):
    """A notebook that did not run to its end; the message names the cell."""


class EngineError(MSDETRError, RuntimeError):
    """Base of what training, evaluation and checkpoints raise."""


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


class WorkerError(TrainingError):
    """A data worker died, does not answer, or cannot be started; the message says what to change."""


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
    """A signal asked the process to stop: the step was finished and saved. Exits with 143 = 128 + SIGTERM."""

    def __init__(self, message: str):
        super().__init__(143)
        self.message = message

    def __str__(self) -> str:
        return self.message
