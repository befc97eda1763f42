"""The order of the training images: a pure function of (seed, step), whatever the ranks, workers and micro-batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..config import ConfigError


def seed_from(*numbers: int) -> int:
    """One well-mixed 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class DataOrder:
    """Every epoch is a permutation drawn from (seed, epoch), cut into global batches; the last, incomplete one is left
    out. Raises ConfigError where there are fewer images than a batch."""

    num_images: int
    batch_size: int
    seed: int

    def __post_init__(self):
        if self.num_images < self.batch_size:
            raise ConfigError(
                f"train.batch_size: {self.batch_size} images per step, but the training set has {self.num_images}; "
                f"lower train.batch_size to at most {self.num_images}, or give more data"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.batch_size

    def batch(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, image index) keys of the global batch of a step."""
        epoch, step = divmod(step, self.steps_per_epoch)
        indices = _permutation(self.num_images, self.seed, epoch)
        return [(epoch, index) for index in indices[step * self.batch_size : (step + 1) * self.batch_size]]


@functools.lru_cache(maxsize=2)
def _permutation(num_images: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed_from(seed, epoch))
    return torch.randperm(num_images, generator=generator).tolist()


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of one rank from ``first_step`` up to ``last_step``: a batch sampler for a DataLoader.

    A rank takes its contiguous share of every global batch, in pieces of at most ``micro_batch`` images.
    """

    order: DataOrder
    first_step: int
    last_step: int
    micro_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        if self.order.batch_size % self.world_size:
            raise ConfigError(
                f"train.batch_size: {self.order.batch_size} images per step cannot be shared equally by "
                f"{self.world_size} ranks; make it a multiple of {self.world_size}"
            )

    @property
    def per_step(self) -> int:
        """Micro-batches of a step."""
        return -(-(self.order.batch_size // self.world_size) // self.micro_batch)

    def __len__(self) -> int:
        return self.per_step * max(self.last_step - self.first_step, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.order.batch_size // self.world_size
        for step in range(self.first_step, self.last_step):
            keys = self.order.batch(step)[self.rank * share : (self.rank + 1) * share]
            for start in range(0, share, self.micro_batch):
                yield keys[start : start + self.micro_batch]
