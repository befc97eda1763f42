"""Hugging Face transformers: folders of its ``DeformableDetrForObjectDetection``, read and written, and our operator in its
place.

    predictor = msdetr.load("folder")                      # config.json and model.safetensors
    save_transformers(predictor, "folder")
    with patch(): ...                                      # transformers' Deformable DETR runs on this package's operator

Reading and writing needs neither transformers nor a network.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Self

from torch import Tensor

from ..engine.transformers_folder import is_transformers_folder, read_transformers, save_transformers
from ..errors import InputError
from ..ops import ms_deform_attn

__all__ = ["Patch", "is_transformers_folder", "patch", "read_transformers", "save_transformers"]

FAMILY = ("deformable_detr", "grounding_dino", "mm_grounding_dino", "rt_detr", "lw_detr", "rf_detr", "omdet_turbo")
ARGUMENTS = (
    "self",
    "value",
    "value_spatial_shapes",
    "value_spatial_shapes_list",
    "level_start_index",
    "sampling_locations",
    "attention_weights",
    "im2col_step",
)


class Patch:
    """Classes of transformers that run on this package's operator until ``undo``, or the end of a ``with`` block."""

    def __init__(self, classes: list[type]):
        self._originals = [(cls, cls.forward) for cls in classes]
        for cls, original in self._originals:
            cls.forward = functools.wraps(original)(_attend)

    def undo(self) -> None:
        """Gives the classes back what they had; nothing happens the second time."""
        while self._originals:
            cls, original = self._originals.pop()
            cls.forward = original

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def patch(*models: str) -> Patch:
    """Makes this package's operator the one that transformers' Deformable DETR runs on, models made before included.

    models: transformers' names of others that have the same operator; see ``FAMILY``. Raises InputError where transformers
    is not installed, or a model has no such operator in the installed version.
    """
    classes = []
    for model in models or FAMILY[:1]:
        try:
            module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
        except ImportError as error:
            raise InputError(
                f"transformers' {model} cannot be imported ({error}); install it with pip install 'msdetr[transformers]', or "
                f"name one of {', '.join(FAMILY)}"
            ) from error
        cls = getattr(module, "MultiScaleDeformableAttention", None)
        if cls is None or tuple(inspect.signature(cls.forward).parameters) != ARGUMENTS:
            raise InputError(f"transformers' {model}: has no MultiScaleDeformableAttention of the expected arguments")
        classes.append(cls)
    return Patch(classes)


def _attend(
    self,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: list[tuple],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    shapes = [(int(height), int(width)) for height, width in value_spatial_shapes_list]
    return ms_deform_attn(value, shapes, sampling_locations, attention_weights)
