"""Notebook 06, comparing runs: what differs, how large a gain is over seeds, and whether chance explains it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .exercise import Case, Exercise


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    def flat(settings: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
        for name, value in settings.items():
            if isinstance(value, Mapping):
                yield from flat(value, (*above, name))
            else:
                yield ".".join((*above, name)), value

    a, b = dict(flat(one)), dict(flat(other))
    return {name: (a.get(name), b.get(name)) for name in a | b if a.get(name) != b.get(name)}


def _settings(draw: np.random.Generator) -> Iterator[Case]:
    config = {
        "seed": 0,
        "model": {"queries": 100, "dim": 64},
        "train": {"lr": 0.1, "schedule": {"name": "step", "drop": 11}},
    }
    yield Case("settings that are alike", (config, config))
    yield Case("another seed", (config, config | {"seed": 1}))
    yield Case("a setting of a section", (config, config | {"model": {"queries": 300, "dim": 64}}))
    deeper = {"lr": 0.1, "schedule": {"name": "step", "drop": 40}}
    yield Case("a setting two sections deep", (config, config | {"train": deeper}))
    yield Case("a setting that only the first has", (config | {"clip": 0.1}, config))
    yield Case("a section that only the second has", (config, config | {"ms_detr": {"k": 6, "alpha": 0.3}}))
    yield Case("a section that only the first has", (config | {"ms_detr": {"k": 6, "alpha": 0.3}}, config))
    for _ in range(8):
        yield Case(
            "random settings",
            tuple({"a": {x: int(draw.integers(2)) for x in "xyz"}, "b": int(draw.integers(2))} for _ in "12"),
        )


def _paired_gain(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float | None, float | None, int]:
    gains = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    mean = float(gains.mean()) if len(gains) else None
    return mean, float(gains.std(ddof=1)) if len(gains) > 1 else None, len(gains)


def _seeds(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("three seeds of each", ({0: 0.43, 1: 0.45, 2: 0.44}, {0: 0.40, 1: 0.41, 2: 0.38}))
    yield Case("seeds in another order", ({0: 0.43, 1: 0.45}, {1: 0.41, 0: 0.40}))
    yield Case("one seed of each", ({0: 0.43}, {0: 0.40}))
    yield Case("seeds that only one side has", ({0: 0.43, 1: 0.45, 7: 0.9}, {5: 0.1, 1: 0.41, 0: 0.40}))
    yield Case("no seed in common", ({0: 0.43}, {1: 0.40}))
    for _ in range(6):
        yield Case(
            "random seeds",
            tuple({int(s): float(draw.uniform()) for s in draw.choice(6, 4, replace=False)} for _ in "12"),
        )


def _p_value(ours: list[float], theirs: list[float]) -> float:
    pool = np.array([*ours, *theirs])
    observed = abs(pool[: len(ours)].mean() - pool[len(ours) :].mean())
    as_large = 0
    for chosen in itertools.combinations(range(len(pool)), len(ours)):
        rest = np.setdiff1d(np.arange(len(pool)), chosen)
        as_large += abs(pool[list(chosen)].mean() - pool[rest].mean()) >= observed - 1e-9
    return as_large / math.comb(len(pool), len(ours))


def _results(draw: np.random.Generator) -> Iterator[Case]:
    yield Case("three seeds, all of them better", ([45.0, 46.0, 47.0], [40.0, 41.0, 42.0]))
    yield Case("three seeds, all of them worse", ([40.0, 41.0, 42.0], [45.0, 46.0, 47.0]))
    yield Case("one run against one", ([45.0], [40.0]))
    yield Case("results that are all alike", ([40.0, 40.0], [40.0, 40.0]))
    yield Case("two seeds against three", ([44.0, 43.0], [40.0, 42.0, 41.0]))
    for trial in range(20):
        ours, theirs = (draw.integers(36, 46, int(draw.integers(1, 5))) / (1, 10)[trial % 2] for _ in "12")
        yield Case("random results", (ours.tolist(), theirs.tolist()))


EXERCISES = (
    Exercise("6.1", "differing", _differing, _settings),
    Exercise("6.2", "paired_gain", _paired_gain, _seeds),
    Exercise("6.3", "p_value", _p_value, _results),
)
