"""The optimiser's state and the random generators' as tensors, checked before native code gets them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError
from .weights import listing

Tensors = Mapping[str, Tensor]
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, each like its parameter; "step" is a number
CUDA_STATE_BYTES = 16


def optimizer_files(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as flat tensors keyed by parameter name, and its groups' settings as plain values.

    A group's "untouched" names the parameters that have no state, because no gradient has reached them.
    """
    tensors = {}
    plain = (str, int, float, bool, list, tuple, type(None))
    settings = []
    for group in optimizer.param_groups:
        untouched = []
        for name, parameter in zip(group["names"], group["params"]):
            state = optimizer.state.get(parameter, {})
            tensors |= {f"{key}.{name}": value for key, value in state.items()}
            untouched += [] if state else [name]
        values = {key: value for key, value in group.items() if key != "params" and isinstance(value, plain)}
        settings.append(values | {"untouched": untouched})
    return tensors, settings


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Tensors,
    settings: list[dict[str, Any]],
    step: int,
    path: str | Path = "optimizer",
) -> None:
    """Puts back what ``optimizer_files`` took after ``step`` steps.

    Raises CheckpointError, with nothing changed, where parameters or their groups are others, or where a moment is
    missing or has another shape, dtype or range than the parameter's can have.
    """
    groups = optimizer.param_groups
    saved, here = ({name for group in some for name in group["names"]} for some in (settings, groups))
    if saved != here:
        raise CheckpointError(
            f"{path}: the optimiser's state is of other parameters: "
            + listing(missing=here - saved, unexpected=saved - here)
        )
    if _structure(settings) != _structure(groups):
        raise CheckpointError(f"{path}: the optimiser's state has its parameters in other groups")
    parameters = {name: p for group in groups for name, p in zip(group["names"], group["params"])}
    moments = check_moments(tensors, parameters, settings, step, path)
    for name, state in moments.items():
        # AdamW's fused step keeps the step count beside the parameter, as it does the moments
        device = parameters[name].device
        optimizer.state[parameters[name]] = {key: value.to(device) for key, value in state.items()}


def _structure(groups: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    return sorted((group.get("name", ""), sorted(group["names"])) for group in groups)


def check_moments(
    tensors: Tensors,
    parameters: Tensors,
    settings: Sequence[Mapping[str, Any]],
    step: int,
    path: str | Path = "optimizer",
) -> dict[str, dict[str, Tensor]]:
    """Parameter name -> its state. Raises CheckpointError naming the first tensor that cannot be AdamW's state, or the
    parameters whose state is missing.

    parameters: name -> a tensor of the parameter's shape and dtype; where there are none, moments are compared with each
    other. settings: of the groups, as ``optimizer_files`` gives them. step: optimiser steps done.
    """

    def refuse(name: str, problem: str) -> CheckpointError:
        return CheckpointError(
            f"{path}: {name[:120]}: {problem}. Use another checkpoint, or its weights with --init-from"
        )

    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        moment, _, name = key.partition(".")
        if moment not in (*MOMENTS, "step") or not name:
            raise refuse(key, "is no state of AdamW")
        moments.setdefault(name, {})[moment] = value
    for name, state in moments.items():
        if missing := {*MOMENTS, "step"} - state.keys():
            raise refuse(name, f"has no {', '.join(sorted(missing))}")
        if parameters and name not in parameters:
            raise refuse(name, "is the state of a parameter that the model does not have")
        like = parameters.get(name, state["exp_avg"])
        if not like.is_floating_point():
            raise refuse(name, f"is the state of numbers of {like.dtype}, which do not learn")
        for moment in MOMENTS:
            value = state[moment]
            if value.shape != like.shape or value.dtype != like.dtype:
                raise refuse(
                    f"{moment}.{name}",
                    f"is {list(value.shape)} of {value.dtype}, the parameter {list(like.shape)} of {like.dtype}",
                )
            if not bool(value.isfinite().all()) or (moment == "exp_avg_sq" and bool((value < 0).any())):
                raise refuse(
                    f"{moment}.{name}", "has numbers that are NaN, infinite or, in a mean of squares, negative"
                )
        count = state["step"]
        if count.shape != () or count.dtype != torch.float32:
            raise refuse(f"step.{name}", f"is {list(count.shape)} of {count.dtype}, not one number of torch.float32")
        if not 0 <= float(count) <= step or float(count) != int(count):
            raise refuse(f"step.{name}", f"is {float(count):g} after {step} steps")
    names = {name for group in settings for name in group["names"]}
    untouched = {name for group in settings for name in group.get("untouched") or ()}
    lost = names - moments.keys() - untouched
    told = all(group.get("untouched") is not None for group in settings)  # the oldest checkpoints do not say
    if step and lost and (told or not moments):
        raise CheckpointError(
            f"{path}: the optimiser's state lacks {listing(parameters=lost)}. Use another checkpoint, or its weights with "
            "--init-from"
        )
    return moments


def check_generator_states(tensors: Tensors, path: str | Path, world_size: int = 0) -> None:
    """Raises CheckpointError unless tensors are the states of random generators, of each of ``world_size`` ranks."""
    for name, value in tensors.items():
        kind = re.fullmatch(r"(cpu|cuda)\.\d+", name)
        if kind is None or value.dtype != torch.uint8 or value.dim() != 1:
            raise CheckpointError(
                f"{path}: {name[:80]}: {list(value.shape)} of {value.dtype} is no random generator's state"
            )
        if kind[1] == "cuda" and len(value) != CUDA_STATE_BYTES:
            raise CheckpointError(f"{path}: {name[:80]}: {len(value)} bytes are no CUDA generator's state")
        if kind[1] == "cpu":
            try:
                torch.Generator().set_state(value)
            except (RuntimeError, TypeError) as error:
                raise CheckpointError(f"{path}: {name[:80]}: is no random generator's state ({error})") from error
    if missing := {f"cpu.{rank}" for rank in range(min(world_size, 2**16))} - tensors.keys():
        raise CheckpointError(f"{path}: lacks {listing(states=missing)}")
