"""Folders of transformers' ``DeformableDetrForObjectDetection``: config.json and model.safetensors, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..config import RunConfig, flatten
from ..data.settings import settings_line
from ..errors import CheckpointError
from ..files import make_folder, write_atomically
from ..methods import build_detector
from ..model.convert_transformers import (
    CONFIG,
    SAME,
    class_names,
    config_from_transformers,
    config_to_transformers,
    from_transformers,
    to_transformers,
)

WEIGHTS = "model.safetensors"
SHAPING = {"model.backbone", "model.dilation", *(path for path in SAME.values() if path.startswith("model."))} - {
    "model.dropout"
}


class Named(Protocol):
    """A detector, the configuration it was built from and its class names: a ``Predictor``."""

    detector: nn.Module
    config: RunConfig
    class_names: tuple[str, ...]


def is_transformers_folder(folder: str | Path) -> bool:
    """Whether a folder has a ``config.json`` with a ``model_type``, as transformers writes it."""
    try:
        values = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and "model_type" in values


def read_transformers(folder: str | Path) -> tuple[nn.Module, RunConfig, tuple[str, ...]]:
    """Detector, configuration and class names of a folder of transformers' Deformable DETR. Raises CheckpointError naming the
    file, and the field or tensor, that cannot be used. Nothing that is pickled is read."""
    values, config, found = _read(Path(folder))
    detector = build_detector(config)
    _require_same(Path(folder, WEIGHTS), detector.state_dict(), found)
    detector.load_state_dict(found)
    return detector, config, class_names(values)


def transformers_weights(folder: str | Path, config: RunConfig) -> dict[str, Tensor]:
    """The weights in a folder of transformers' Deformable DETR under the names here, for a model of ``config`` with classes of
    its own. Raises CheckpointError where it is a model of other settings, with the line that makes them the same."""
    _, theirs, found = _read(Path(folder))
    wanted = {path: value for path, value in flatten(theirs).items() if path in SHAPING}
    own = flatten(config)
    settings: dict[str, Any] = {}
    if (config.two_stage is None) != (theirs.two_stage is None):
        settings["two_stage"] = "null" if theirs.two_stage is None else "true"
    if theirs.two_stage is not None and (config.two_stage is None or config.two_stage.mixed_selection):
        settings["two_stage.mixed_selection"] = False
    settings |= {path: value for path, value in wanted.items() if own[path] != value}
    if settings and not theirs.model.box_refine and config.model.look_forward_twice:
        settings["model.look_forward_twice"] = False
    if settings:
        if "two_stage.mixed_selection" in settings:
            settings.pop("two_stage", None)  # any field given turns a section on
        raise CheckpointError(
            f"{folder}: is a model of other settings than {config.recipe}. With these it can be started from: "
            f"{settings_line(settings)}"
        )
    return found


def _read(folder: Path) -> tuple[dict[str, Any], RunConfig, dict[str, Tensor]]:
    """config.json, the configuration it stands for, and the weights under the names here."""
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / CONFIG}: cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / CONFIG}: is not a mapping of settings")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder}: has no {WEIGHTS}; save the model in one file with transformers' save_pretrained(..., "
            "max_shard_size='100GB'). Pickled weights (pytorch_model.bin) are not read"
        )
    try:
        config = config_from_transformers(values)
        return values, config, from_transformers(load_file(folder / WEIGHTS), config)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder / WEIGHTS}: cannot be read: {error}") from error


def _require_same(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where names, shapes or values of weights cannot be those of a model."""
    faults = [f"missing {name}" for name in wanted if name not in found]
    faults += [f"unexpected {name}" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        if found[name].shape != wanted[name].shape:
            faults.append(f"{name} is {list(found[name].shape)}, not {list(wanted[name].shape)}")
        elif not found[name].is_floating_point() or not found[name].isfinite().all():
            faults.append(f"{name} has values that are no weights (NaN, infinite or whole numbers)")
    if faults:
        raise CheckpointError(
            f"{path}: does not hold the weights that {CONFIG} describes: {'; '.join(sorted(faults)[:5])}"
        )


def save_transformers(predictor: Named, folder: str | Path) -> Path:
    """Writes ``config.json`` and ``model.safetensors`` as transformers does; returns the folder.

    Raises InputError for a model that transformers' Deformable DETR cannot be, e.g. one of mixed selection, before
    anything is written.
    """
    folder, config = Path(folder), predictor.config
    fields = config_to_transformers(config, predictor.class_names)
    state = to_transformers(predictor.detector.state_dict(), config)
    weights = save({name: t.detach().cpu().contiguous() for name, t in state.items()}, metadata={"format": "pt"})
    make_folder(folder)
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / CONFIG, (json.dumps(fields, indent=2) + "\n").encode())
    return folder
