"""MS-DETR: DETR training with mixed one-to-one and one-to-many supervision (Zhao et al., CVPR 2024).

    import msdetr

    detector = msdetr.build("shapes/ms-detr-c")   # a recipe's name, a config, or a config.yaml
    predictor = msdetr.load("runs/first")          # a run, or one of its checkpoints
    detections = predictor.predict("photo.jpg")    # also arrays, tensors and PIL images
    result = msdetr.evaluate(predictor, "data/mine", split="val")
    msdetr.train("shapes/ms-detr-c", "runs/first", overrides={"train.epochs": 5})

Importing the package is quick: torch is loaded when the first of these is used.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"
__all__ = ["NamedDetections", "Predictor", "__version__", "build", "evaluate", "load", "resolve", "train"]

_EXPORTS = {
    name: "msdetr.predictor"
    for name in ("NamedDetections", "Predictor", "build", "evaluate", "load", "resolve", "train")
}

# OpenMP threads that wait spin for milliseconds by default. Beside another busy process they then spin where the thread they
# wait for should run, and everything becomes ten times slower. Read when torch loads; whoever set one of these knows better.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="1000")  # a pause of some ten microseconds, then sleep


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'msdetr' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
