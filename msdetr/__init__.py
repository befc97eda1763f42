"""MS-DETR: DETR training with mixed one-to-one and one-to-many supervision (Zhao et al., CVPR 2024).

    import msdetr

    detector = msdetr.build("shapes/ms-detr-c")   # a recipe's name, a config, or a config.yaml
    predictor = msdetr.load("runs/first")          # a run, or one of its checkpoints
    detections = predictor.predict("photo.jpg")    # also arrays, tensors, PIL images, folders and lists of them
    result = msdetr.evaluate(predictor, "data/mine", split="val")
    msdetr.train("shapes/ms-detr-c", "runs/first", epochs=5)

Importing the package is quick: torch is loaded when something that needs it is first used.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import RunConfig as RunConfig
    from .config import register_section as register_section
    from .data.images import ImageLike as ImageLike
    from .engine.metric import EvalResult as EvalResult
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import EngineError as EngineError
    from .errors import InputError as InputError
    from .errors import MSDETRError as MSDETRError
    from .errors import RunError as RunError
    from .model.detector import Detector as Detector
    from .predictor import NamedDetections as NamedDetections
    from .predictor import Predictor as Predictor
    from .predictor import build as build
    from .predictor import evaluate as evaluate
    from .predictor import load as load
    from .predictor import train as train
    from .recipes import resolve as resolve
    from .structures import Detections as Detections
    from .structures import DetectorOutput as DetectorOutput
    from .structures import ImageBatch as ImageBatch
    from .structures import Matches as Matches
    from .structures import Predictions as Predictions
    from .structures import Targets as Targets

__version__ = "0.2.0.dev0"

_EXPORTS = {  # module -> the names of it that are the package's
    "config": ("RunConfig", "register_section"),
    "data.images": ("ImageLike",),
    "engine.metric": ("EvalResult",),
    "errors": ("CheckpointError", "ConfigError", "DataError", "EngineError", "InputError", "MSDETRError", "RunError"),
    "model.detector": ("Detector",),
    "predictor": ("NamedDetections", "Predictor", "build", "evaluate", "load", "train"),
    "recipes": ("resolve",),
    "structures": ("Detections", "DetectorOutput", "ImageBatch", "Matches", "Predictions", "Targets"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604

# OpenMP threads that wait spin for milliseconds by default. Beside another busy process they then spin where the thread they
# wait for should run, and everything becomes ten times slower. Read when torch loads; whoever set one of these knows better.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="1000")  # a pause of some ten microseconds, then sleep


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'msdetr' has no attribute {name!r}")
    return getattr(importlib.import_module(f"msdetr.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
