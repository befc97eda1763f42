"""What metrics.jsonl says about training: means over the steps since its last line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from .distributed import World
from .trainer import Step


class Window:
    """Sums of what the steps since the last line of metrics reported; the device is waited for once per line."""

    def __init__(self, world: World):
        self.world = world
        self.clear()

    def clear(self) -> None:
        self.steps: list[Step] = []
        self.start, self.waiting = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the block is not the time of a step."""
        start = time.perf_counter()
        yield
        self.start += time.perf_counter() - start

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waiting += time.perf_counter() - start

    def summary(self) -> dict[str, Any]:
        """Means over the steps and ranks, as plain values."""
        names = list(self.steps[0].terms)
        rows = [torch.cat([s.loss[None], s.grad_norm[None], *(s.terms[name] for name in names)]) for s in self.steps]
        values = iter(self.world.mean_(torch.stack(rows).mean(0).float()).tolist())
        loss, grad_norm = next(values), next(values)
        terms = {name: [next(values) for _ in range(len(self.steps[0].terms[name]))] for name in names}

        counts = {
            (kind, branch): sum(getattr(step, kind)[branch] for step in self.steps)
            for kind in ("positives", "queries", "wanted")
            for branch in getattr(self.steps[0], kind)
        }
        objects, images, *sums = self.world.sum(
            [sum(s.num_objects for s in self.steps), sum(s.num_images for s in self.steps), *counts.values()]
        )
        counts = dict(zip(counts, sums))
        positives = {branch: number for (kind, branch), number in counts.items() if kind == "positives"}
        seconds = time.perf_counter() - self.start
        return {
            "loss": loss,
            "terms": terms,
            "grad_norm": grad_norm,
            "positives_per_object": {branch: n / max(objects, 1) for branch, n in positives.items()},
            "positives_per_query": {b: n / q if (q := counts["queries", b]) else 0.0 for b, n in positives.items()},
            "matched_share": {b: n / w for b, n in positives.items() if (w := counts.get(("wanted", b)))},
            "objects_per_image": objects / images,
            "seconds_per_step": seconds / len(self.steps),
            "data_seconds_per_step": self.waiting / len(self.steps),
            "images_per_second": images / seconds,
            "memory_mb": _memory_mb(self.world.device),
        }


def _memory_mb(device: torch.device) -> float:
    """Peak memory: of the device, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
