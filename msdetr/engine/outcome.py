"""What results.json says of a run that has come to its end."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch

from ..data import CocoDetection
from ..data.annotations import Note
from .distributed import World
from .metric import EvalResult
from .patience import Evaluation, best_evaluation
from .trainer import Trainer


def outcome(
    trainer: Trainer,
    train_set: CocoDetection,
    result: EvalResult,
    evaluations: Sequence[Evaluation],
) -> dict[str, Any]:
    """result: the last evaluation; evaluations: the records of all. The classes are those of the training set, in order."""
    device, parameters = trainer.world.device, list(trainer.detector.parameters())
    return {
        "status": "finished",
        "error": None,
        "metrics": result.metrics,
        "per_class": result.per_class,
        "protocol": result.protocol,
        "best": best_evaluation(evaluations),
        "evaluations": list(evaluations),
        "steps": trainer.steps_done,
        "epochs": trainer.steps_done / trainer.steps_per_epoch,
        "parameters": {
            "total": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        },
        "world_size": trainer.world.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "class_names": list(train_set.class_names),
    }


def image_remarks(dataset: CocoDetection, world: World) -> list[str]:
    """What was out of the ordinary about images that any rank read, e.g. "3 × image unreadable and left out, image 4, 7, 9"."""
    found: dict[str, set[int]] = {}
    for report in world.gather(dataset.remarks()):
        for note in report.notes:
            found.setdefault(note.kind, set()).update(note.ids)
    return [str(Note(kind, tuple(sorted(ids)))) for kind, ids in found.items()]
