"""Notebook 02, decoder layers: refine a box, put a layer together, find out what a branch reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ...model.coding import LogitBoxes
from .exercise import Case, Exercise


def _refined(reference: Tensor, offset: Tensor) -> Tensor:
    return LogitBoxes()(reference, offset)


def _references(draw: np.random.Generator) -> Iterator[Case]:
    box = torch.tensor([0.3, 0.5, 0.2, 0.4], dtype=torch.float64)
    yield Case("an offset of 0", (box, torch.zeros(4, dtype=torch.float64)))
    yield Case("an offset of 1 on every number", (box, torch.ones(4, dtype=torch.float64)))
    edges = torch.tensor([0.0, 1.0, 1e-7, 1 - 1e-7], dtype=torch.float64)
    yield Case("a reference at 0 and at 1", (edges, torch.tensor([0.5, -0.5, 2.0, 1.0], dtype=torch.float64)))
    far = torch.tensor([12.0, -12.0, 11.0, -11.0], dtype=torch.float64)
    yield Case("a reference at 0 and at 1, and offsets that lead far away", (edges, far))
    for _ in range(8):
        yield Case(
            "several references",
            (torch.from_numpy(draw.uniform(0, 1, (3, 4))), torch.from_numpy(draw.normal(0, 2, (3, 4)))),
        )


Step = Callable[[str], str]
ORDERS = {  # variant -> sub-layers in order, and after how many of them the candidates are read
    "baseline": ("self_attention cross_attention ffn", None),
    "a": ("self_attention cross_attention ffn", 3),
    "b": ("cross_attention self_attention ffn", 3),
    "c": ("cross_attention self_attention ffn", 1),
    "d": ("self_attention cross_attention ffn", 1),
}


def _layer(
    variant: str, queries: str, cross_attention: Step, self_attention: Step, ffn: Step, candidate_ffn: Step
) -> tuple[str, str | None]:
    steps = {"cross_attention": cross_attention, "self_attention": self_attention, "ffn": ffn}
    order, read_after = ORDERS[variant]
    seen = [queries]
    for name in order.split():
        seen.append(steps[name](seen[-1]))
    if read_after is None:
        return seen[-1], None
    return seen[-1], candidate_ffn(seen[read_after]) if variant in "cd" else seen[read_after]


def _step(name: str) -> Step:
    def step(queries: str) -> str:
        return f"{name}({queries})"

    step.__name__ = name
    return step


def _layers(draw: np.random.Generator) -> Iterator[Case]:
    steps = tuple(map(_step, ("CrossAttn", "SelfAttn", "FFN", "FFN'")))
    for variant in ORDERS:
        yield Case("the baseline" if variant == "baseline" else f"variant ({variant})", (variant, "Q", *steps))


def _reached(order: list[str], read_after: int, layers: int) -> list[set[str]]:
    """By differentiating: every sub-layer is a number that multiplies."""
    numbers = [{name: torch.ones((), requires_grad=True) for name in order} for _ in range(layers)]
    value = torch.ones(())
    for layer in numbers:
        for place, name in enumerate(order, 1):
            value = value * layer[name]
            if place == read_after:
                candidates = value
    candidates.backward()  # those of the last layer
    return [{name for name, number in layer.items() if number.grad is not None} for layer in numbers]


def _orders(draw: np.random.Generator) -> Iterator[Case]:
    for layers in (1, 2, 3):
        for variant, (order, read_after) in ORDERS.items():
            if read_after is not None:
                yield Case(f"variant ({variant}) and {layers} layer(s)", (order.split(), read_after, layers))
    order = ["cross_attention", "self_attention", "ffn"]
    yield Case("candidates read after two of three sub-layers", (order, 2, 2))


EXERCISES = (
    Exercise("2.1", "refined", _refined, _references),
    Exercise("2.2", "layer_of_variant", _layer, _layers),
    Exercise("2.3", "who_learns", _reached, _orders),
)
