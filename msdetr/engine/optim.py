"""The optimiser: parameter groups, learning-rate schedules as pure functions of the step, and the moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..config import TrainConfig

GROUPS = ("rest", "backbone", "projection")  # the order of the released optimiser state


def lr_groups(module: nn.Module) -> dict[str, str]:
    """The learning-rate group of each parameter, by its name in ``named_parameters()``: the ``lr_group`` of the innermost
    module around it that names one, else "rest". Sampling offsets and reference points are "projection", as in
    Deformable DETR."""
    named = {name: child.lr_group for name, child in module.named_modules() if hasattr(child, "lr_group")}
    groups = {}
    for name, _ in module.named_parameters():
        owner = name
        while owner and owner not in named:
            owner = owner.rpartition(".")[0]
        groups[name] = named.get(owner, "rest")
    return groups


def parameter_groups(detector: nn.Module, config: TrainConfig) -> list[dict]:
    """Three groups of the trainable parameters, always in the order rest, backbone, projection.

    Each has ``params``, their ``names``, its own ``name``, ``base_lr`` (the lr at schedule factor 1) and ``lr``.
    """
    rates = {
        "rest": config.lr,
        "backbone": config.lr_backbone,
        "projection": config.lr * config.lr_projection_factor,
    }
    groups = {
        name: {"params": [], "names": [], "name": name, "base_lr": rates[name], "lr": rates[name]} for name in GROUPS
    }
    of_parameter = lr_groups(detector)
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            group = groups[of_parameter[name]]
            group["params"].append(parameter)
            group["names"].append(name)
    return list(groups.values())


def build_optimizer(detector: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over ``parameter_groups``. Fused, because its step can be skipped on the device (see ``Trainer.step``)."""
    return torch.optim.AdamW(
        parameter_groups(detector, config),
        lr=config.lr,
        betas=tuple(config.betas),
        weight_decay=config.weight_decay,
        fused=True,
    )


def lr_factor(config: TrainConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The factor on every group's ``base_lr`` at a step (the first step is 0): a pure function, so a resumed run
    continues the schedule exactly.

    "step": 1, then 0.1 from ``drop_epoch`` on.
    "one_cycle": from 1/25 up to 1 over ``warmup_fraction`` of the steps, then down to 1/250000, both along a cosine
    (Smith and Topin, 2018; the shape of torch's OneCycleLR).
    """
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return 1.0 if step < round(config.drop_epoch * steps_per_epoch) else 0.1

    start, end = 1 / 25, 1 / 250_000
    peak = max(config.warmup_fraction * total_steps - 1, 0)  # the step at which the factor is 1
    if step <= peak:
        return _cosine(start, 1.0, step / peak if peak > 0 else 1.0)
    return _cosine(1.0, end, (step - peak) / (total_steps - 1 - peak))


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class MovingAverage:
    """Exponential moving average of a detector's weights: ``average = d * average + (1 - d) * weights``.

    ``detector`` is a full copy in eval mode, ready to be evaluated or saved. The decay warms up as
    ``d = min(decay, (1 + t) / (10 + t))`` after t updates, so that short runs are not held back by their random start.
    Buffers are copied.
    """

    def __init__(self, detector: nn.Module, decay: float):
        self.decay = decay
        self.detector = copy.deepcopy(detector).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, detector: nn.Module, step: int) -> None:
        """After optimiser step number ``step`` (the first is 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.detector.parameters()), list(detector.parameters()), 1 - decay)
        for average, buffer in zip(self.detector.buffers(), detector.buffers()):
            average.copy_(buffer)


def global_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The L2 norm of all gradients, 0-d, without waiting for the device."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
