"""Which images a step sees, and the loaders that bring them.

The order of an epoch is a pure function of (seed, epoch). Step s of an epoch is the same global batch whatever the number of
ranks, micro-batches or workers, so a run can be stopped at any step and go on elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from ..checks import count
from ..config import RunConfig
from ..errors import AnnotationError, ImageError, InputError
from ..structures import ImageBatch, Targets
from . import shapes
from .coco import CocoDetection, Sample, _mixed, collate
from .parts import Role
from .settings import check_folders, part
from .transforms import eval_transform, train_transform
from .workers import WorkerLoader, start_worker

Batch = tuple[ImageBatch, Targets]
DEFAULT_SHAPES = {"train": 2000, "val": 500}  # images of a generated set where the configuration says 0
_ORDER = 0x6F72646572  # keeps the stream of the order apart from those of the images


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Yields, for each optimiser step, the (epoch, index) keys of this rank's share of the global batch.

    The images are shuffled anew each epoch; the last, incomplete batch of an epoch is left out (other images each time).
    Rank r takes the r-th of ``world_size`` near-equal runs of each batch.

    start:  steps of ``epoch`` that were already done.   epochs: how many epochs to go on for.
    shuffle: False keeps the order of the data set.

    Raises InputError where an epoch would have no step, a rank no image, or ``start`` lies beyond the epoch.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        epochs: int = 1,
        shuffle: bool = True,
    ):
        count(batch_size, "batch_size")
        if num_images < batch_size:
            raise InputError(
                f"{num_images} images are fewer than one batch of {batch_size}: there would be no step to take; "
                "lower train.batch_size or add images"
            )
        if not 0 <= rank < world_size:
            raise InputError(f"rank {rank} is not within world size {world_size}")
        if batch_size < world_size:
            raise InputError(f"a batch of {batch_size} cannot be shared by {world_size} ranks; raise train.batch_size")
        self.num_images, self.batch_size, self.seed, self.shuffle = num_images, batch_size, seed, shuffle
        self.epoch, self.epochs, self.start = epoch, epochs, start
        self.rank, self.world_size = rank, world_size
        if not 0 <= start <= self.steps_per_epoch:
            raise InputError(f"start {start} is not within the {self.steps_per_epoch} steps of an epoch")

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.batch_size

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs - self.start

    def order(self, epoch: int) -> list[int]:
        """Returns the images of an epoch in the order in which they are seen."""
        if not self.shuffle:
            return list(range(self.num_images))
        generator = torch.Generator().manual_seed(_mixed(self.seed, epoch, _ORDER))
        return torch.randperm(self.num_images, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        low = self.rank * self.batch_size // self.world_size
        high = (self.rank + 1) * self.batch_size // self.world_size
        for epoch in range(self.epoch, self.epoch + self.epochs):
            order = self.order(epoch)
            for step in range(self.start if epoch == self.epoch else 0, self.steps_per_epoch):
                first = step * self.batch_size
                yield [(epoch, index) for index in order[first + low : first + high]]


class _MicroBatches:
    """Collates the share of a step into micro-batches."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, samples: list[Sample | None]) -> list[Batch]:
        samples = [sample for sample in samples if sample is not None]
        if not samples:
            raise ImageError("a step without any readable image on this rank; mend the images that cannot be read")
        return [collate(samples[i : i + self.size]) for i in range(0, len(samples), self.size)]


def build_train_loader(
    dataset: CocoDetection,
    config: RunConfig,
    rank: int = 0,
    world_size: int = 1,
    epoch: int = 0,
    start_step: int = 0,
    epochs: int = 1,
) -> DataLoader:
    """Yields, per optimiser step, the list of micro-batches (ImageBatch, Targets) of this rank.

    Goes on from step ``start_step`` of ``epoch``, for ``epochs`` epochs: over several, the worker processes stay alive.
    Raises InputError as EpochSampler does.
    """
    train = config.train
    sampler = EpochSampler(
        len(dataset), train.batch_size, dataset.seed, epoch, rank, world_size, start=start_step, epochs=epochs
    )
    return _loader(
        dataset,
        config.data.workers,
        config.data.worker_timeout,
        batch_sampler=sampler,
        collate_fn=_MicroBatches(train.at_once),
    )


def build_eval_loader(
    dataset: CocoDetection,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    worker_timeout: float = 300,
) -> DataLoader:
    """Yields (ImageBatch, Targets); over all ranks each image comes exactly once, none is padded in.

    A batch holds images of one size only, so there is no padding and a prediction does not depend on what else is in its
    batch (a convolution sees what padding turned into, and group norm counts it).
    Paper: silent.  Released: mixed sizes, padded.  Here: images are grouped by size.
    """
    batch_size = count(batch_size, "batch_size")
    by_size: dict[tuple[int, ...], list[int]] = {}
    for index in range(rank, len(dataset), world_size):
        by_size.setdefault(tuple(dataset.annotations.sizes[index].tolist()), []).append(index)
    batches = [same[i : i + batch_size] for same in by_size.values() for i in range(0, len(same), batch_size)]
    return _loader(
        dataset, workers, worker_timeout, _ReadableBatches, batch_sampler=batches, collate_fn=_collate_readable
    )


def _collate_readable(samples: list[Sample | None]) -> tuple[ImageBatch, Targets] | None:
    """As ``collate``; None where every image of the batch was unreadable and left out."""
    return collate(samples) if any(sample is not None for sample in samples) else None


class _ReadableBatches(WorkerLoader):
    """Leaves out the batches of which nothing could be read."""

    def __iter__(self):
        return (batch for batch in super().__iter__() if batch is not None)


def _loader(
    dataset: CocoDetection, workers: int, worker_timeout: float, kind: type[DataLoader] = WorkerLoader, **arguments
) -> DataLoader:
    return kind(
        dataset,
        num_workers=workers,
        timeout=worker_timeout if workers else 0,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the loader draws its workers' seeds here, not from the global generator
        **arguments,
    )


def build_datasets(
    config: RunConfig, on_image: Callable[[int, int], None] | None = None
) -> tuple[CocoDetection, CocoDetection]:
    """Opens the training and the validation set of a configuration; a generated set is made where it is missing, with
    ``on_image(done, total)`` called after each image made.

    Raises ConfigError where the configuration names another layout than the data has, AnnotationError, ImageError,
    ShapesError.
    """
    data = config.data
    check_folders(config, given_classes=False)
    if data.generate == "shapes":
        shapes.generate(
            data.root,
            data.num_train or DEFAULT_SHAPES["train"],
            data.num_val or DEFAULT_SHAPES["val"],
            on_image=on_image,
        )
    train_set, val_set = build_dataset(config, "train"), build_dataset(config, "val")
    if train_set.categories != val_set.categories:
        differ = sorted(set(zip(*_named(train_set))) ^ set(zip(*_named(val_set))))
        raise AnnotationError(
            f"{val_set.annotation_file}: has other categories than {train_set.annotation_file}; only one of them has "
            f"{', '.join(f'{name!r} (id {i})' for i, name in differ[:5])}. Give both the same list of categories"
        )
    return train_set, val_set


def _named(dataset: CocoDetection) -> tuple[list[int], list[str]]:
    return dataset.annotations.category_ids.tolist(), dataset.annotations.category_names


def build_dataset(config: RunConfig, role: Role) -> CocoDetection:
    """Opens one of the two, "train" with augmentation or "val" without; nothing is generated. Raises as ``build_datasets``."""
    data, train = config.data, role == "train"
    chosen = part(data, role)
    dataset = CocoDetection(
        chosen.layout.images_dir(chosen.split),
        chosen.layout.annotation_file(chosen.split),
        train_transform(data) if train else eval_transform(data),
        raw_category_ids=data.raw_category_ids,
        on_bad=data.on_bad_annotation,
        limit=data.num_train if train else data.num_val,
        cache=data.cache,
        skip_images=data.skip_images if train else 0,  # an evaluation is of all images or of none
        seed=config.seed,
        read=chosen.read,
    )
    dataset.part = chosen
    return dataset
