"""Fitting a checkpoint's weights to a detector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import CheckpointError

Tensors = Mapping[str, Tensor]
OF_CLASSES = ("class_head", "label_embedding")  # what has rows for classes: predictors, and denoising's labels


@dataclass(frozen=True)
class TakenOver:
    """What loading weights into a detector took over, by parameter name."""

    taken: tuple[str, ...]
    missing: tuple[str, ...] = ()  # of the detector, not in the file: keep their initial values
    unexpected: tuple[str, ...] = ()  # in the file, not of the detector: ignored
    misshapen: tuple[str, ...] = ()  # "name: shape in the file, shape in the detector": keep their initial values
    anew: tuple[str, ...] = ()  # of as many classes, which were to be reset: keep their initial values

    def report(self) -> str:
        lines = [f"{len(self.taken)} tensors taken over"]
        left = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": self.misshapen,
            "started anew": self.anew,
        }
        lines += [f"{len(names)} {what}: {_shortened(names)}" for what, names in left.items() if names]
        return "; ".join(lines)


def load_weights(
    detector: nn.Module,
    tensors: Tensors,
    reset_class_head: bool = False,
    partial: bool = False,
    exact: bool = False,
) -> TakenOver:
    """Copies weights into a detector.

    reset_class_head: class heads, and the label embedding of denoising, keep their initial values, of another number of
        classes or of as many.
    partial: whatever fits is taken, the rest keeps its initial values.
    exact: dtypes must be the same; otherwise weights of another precision are converted.

    Raises CheckpointError listing the keys that are missing, unexpected or misshapen, unless those options cover them, and
    those that are NaN or infinite.
    """
    own = detector.state_dict()
    shared = own.keys() & tensors.keys()
    misshapen = sorted(name for name in shared if not _fits(tensors[name], own[name], exact))
    heads = [name for name in misshapen if _differ_in_classes(name, own[name], tensors[name])]
    anew = sorted(name for name in shared - set(misshapen) if reset_class_head and _of_classes(name))
    taken = sorted(shared - set(misshapen) - set(anew))
    result = TakenOver(
        taken=tuple(taken),
        missing=tuple(sorted(own.keys() - tensors.keys())),
        unexpected=tuple(sorted(tensors.keys() - own.keys())),
        misshapen=tuple(f"{name}: {_difference(tensors[name], own[name])}" for name in misshapen),
        anew=tuple(anew),
    )
    covered = set(heads) if reset_class_head else set()
    if not partial and (result.missing or result.unexpected or set(misshapen) - covered):
        advice = "build the model from the checkpoint's own configuration"
        if heads and not (result.missing or result.unexpected or set(misshapen) - set(heads)):
            ours, theirs = len(own[heads[0]]), len(tensors[heads[0]])
            advice = f"the model has {ours} classes, the weights {theirs}: give reset_class_head to start the class heads anew"
        raise CheckpointError(
            "the weights do not fit the model: "
            + listing(missing=result.missing, unexpected=result.unexpected, misshapen=result.misshapen)
            + f". {advice}"
        )
    if not taken:
        raise CheckpointError("the weights do not fit the model: not one tensor has a name and shape in common")
    check_finite({name: tensors[name] for name in taken}, "the weights")
    with torch.no_grad():
        for name in taken:
            own[name].copy_(tensors[name])
    return result


def _fits(tensor: Tensor, own: Tensor, exact: bool) -> bool:
    kind = tensor.dtype == own.dtype or (not exact and tensor.is_floating_point() and own.is_floating_point())
    return kind and tensor.shape == own.shape


def _difference(tensor: Tensor, own: Tensor) -> str:
    if tensor.shape != own.shape:
        return f"{list(tensor.shape)}, here {list(own.shape)}"
    return f"{tensor.dtype}, here {own.dtype}"


def misfits(tensors: Tensors, like: Tensors) -> str:
    """What of ``tensors`` differs in name, shape or dtype from ``like``; "" where nothing does."""
    return listing(
        missing=like.keys() - tensors.keys(),
        unexpected=tensors.keys() - like.keys(),
        misshapen=[name for name in like.keys() & tensors.keys() if not _fits(tensors[name], like[name], exact=True)],
    )


def check_finite(tensors: Tensors, where: str | Path) -> None:
    """Raises CheckpointError naming the tensors in which a number is NaN or infinite."""
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{where}: {listing(**{'with NaN or infinite numbers': bad})}; a detector with them would find nothing. Use an "
            "earlier checkpoint"
        )


def _of_classes(name: str) -> bool:
    return any(part in name for part in OF_CLASSES)


def _differ_in_classes(name: str, own: Tensor, other: Tensor) -> bool:
    """Whether two tensors are one class head, or label embedding, for different numbers of classes: only the dimension of the
    classes differs."""
    return (
        _of_classes(name)
        and 0 < own.dim() == other.dim()
        and own.shape[1:] == other.shape[1:]
        and own.shape != other.shape
    )


def listing(**keys: Iterable[str]) -> str:
    """ "2 missing: a, b; 1 unexpected: c"; what has no names is left out."""
    return "; ".join(f"{len(names)} {what}: {_shortened(names)}" for what, names in keys.items() if names)


def _shortened(names: Iterable[str], limit: int = 16) -> str:
    names = sorted(names)
    return ", ".join(name[:120] for name in names[:limit]) + (
        f", and {len(names) - limit} more" if len(names) > limit else ""
    )
