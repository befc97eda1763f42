"""Training, evaluation, checkpoints and ranks."""

from ..errors import (
    CheckpointError,
    EngineError,
    EvaluationError,
    NonFiniteError,
    OutOfMemoryError,
    RunDirectoryError,
    StepError,
    Terminated,
    TrainingError,
)
from .evaluate import evaluate
from .metric import EvalResult, coco_metrics
from .optim import MovingAverage, build_optimizer, lr_factor, parameter_groups
from .postprocess import nms_postprocess, postprocess
from .train import train
from .trainer import Step, Trainer

__all__ = [
    "CheckpointError",
    "EngineError",
    "EvalResult",
    "EvaluationError",
    "MovingAverage",
    "NonFiniteError",
    "OutOfMemoryError",
    "RunDirectoryError",
    "Step",
    "StepError",
    "Terminated",
    "Trainer",
    "TrainingError",
    "build_optimizer",
    "coco_metrics",
    "evaluate",
    "lr_factor",
    "nms_postprocess",
    "parameter_groups",
    "postprocess",
    "train",
]
