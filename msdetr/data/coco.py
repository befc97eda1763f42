"""A COCO-format data set: images in a folder, annotations in one JSON file."""

from __future__ import annotations

import contextlib
import io
import mmap
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..boxes import xyxy_to_cxcywh
from ..checks import count, machine_memory
from ..errors import AnnotationError, ConfigError, ImageError, InputLookupError
from ..structures import ImageBatch, Targets
from .annotations import Annotations, DataWarning, Report
from .images import Remark, check_files, read_image
from .parts import Part
from .transforms import normalized
from .validate import read_annotations

Key = int | tuple[int, int]
_MAX_RAW_ID = 10_000  # with raw category ids the model has as many classes as the largest id


@dataclass(frozen=True)
class Sample:
    """One image with its objects, ready for the model.

    image [3, h, w] float, normalised. labels [t] int64, boxes [t, 4] float32 cxcywh in [0, 1] of this (resized) image.
    image_id of the data set. size: (height, width) of the original in pixels.
    """

    image: Tensor
    labels: Tensor
    boxes: Tensor
    image_id: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Categories:
    """The bijection between class indices and category ids.

    names[c] is the name of class c. category_ids[c] its id, None for an index that raw ids leave unused.
    """

    names: tuple[str, ...]
    category_ids: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.names)

    def to_class(self, category_id: int) -> int:
        """Returns the class index of a category id. Raises InputLookupError (a KeyError)."""
        if category_id not in self.category_ids or category_id is None:
            raise InputLookupError(
                f"category id {category_id} is unknown; known: {[i for i in self.category_ids if i is not None]}"
            )
        return self.category_ids.index(category_id)

    @classmethod
    def contiguous(cls, annotations: Annotations) -> Categories:
        """Numbers the classes 0 ... C-1, in the order of the ids."""
        return cls(tuple(annotations.category_names), tuple(annotations.category_ids.tolist()))

    @classmethod
    def raw(cls, annotations: Annotations) -> Categories:
        """Takes the category ids themselves as class indices, as the released models have it: COCO's ids up to 90 make 91 classes."""
        ids = annotations.category_ids.tolist()
        if ids[0] < 0 or ids[-1] > _MAX_RAW_ID:
            raise AnnotationError(
                f"{annotations.file}: category ids {ids[0]} … {ids[-1]} cannot be class indices; "
                "use raw_category_ids=False (data.raw_category_ids=false)"
            )
        names = dict(zip(ids, annotations.category_names))
        return cls(
            tuple(names.get(i, f"unused {i}") for i in range(ids[-1] + 1)),
            tuple(i if i in names else None for i in range(ids[-1] + 1)),
        )


class CocoDetection(Dataset):
    """Images of a folder with the boxes of a COCO annotation file, checked once at load.

    ``dataset[index]`` or ``dataset[(epoch, index)]`` is a ``Sample``. What ``transform`` does to it at random is a pure
    function of (seed, epoch, index): the same in any worker process, in any order. Images come by ascending id. Crowds are
    not trained on, but stay in ``coco_api()`` for the evaluation to ignore.

    transform:  from (tv_tensors.Image uint8, tv_tensors.BoundingBoxes xyxy) to (normalised float image, boxes); None only
                normalises.
    raw_category_ids: category ids are the class indices (released models), instead of 0 ... C-1.
    on_bad:     "error", or "drop" for annotations that mean nothing; see ``read_annotations``.
    limit:      only the first images, 0 for all.
    cache:      keep decoded images in memory, shared between forked workers.
    skip_images: how many unreadable images to leave out before it is an error; they are counted in ``remarks()``, and
                nothing takes their place.
    read:       reads the annotations, as ``read(on_bad)``, where ``annotation_file`` is not COCO's but names their place.

    Raises AnnotationError; ImageError listing all missing images; ConfigError for a cache that does not fit into memory;
    InputError for counts below 0. Warns DataWarning with the report's counts.
    """

    def __init__(
        self,
        images_dir: str | Path,
        annotation_file: str | Path,
        transform: Callable | None = None,
        *,
        raw_category_ids: bool = False,
        on_bad: Literal["error", "drop"] = "error",
        limit: int = 0,
        cache: bool = False,
        skip_images: int = 0,
        seed: int = 0,
        read: Callable[[Literal["error", "drop"]], tuple[Annotations, Report]] | None = None,
    ):
        self.images_dir, self.annotation_file, self.seed = Path(images_dir), Path(annotation_file), seed
        self.transform = transform if transform is not None else normalized()
        self.part: Part | None = None  # what of a folder it is, where it was made from a configuration
        self.annotations, self.report = read(on_bad) if read is not None else read_annotations(annotation_file, on_bad)
        if self.report:
            warnings.warn(str(self.report), DataWarning, stacklevel=2)
        self.categories = (Categories.raw if raw_category_ids else Categories.contiguous)(self.annotations)
        if count(limit, "limit", least=0):
            self.annotations = self.annotations.first(limit)
        check_files(self.images_dir, self.annotations.file_names, self.image_ids, self.annotation_file)
        self.skip_images = count(skip_images, "skip_images", least=0)
        self._remarks = _Tally(len(self))
        self._pixels = _PixelCache(self.annotations.sizes) if cache else None
        self._load_objects()

    def _load_objects(self) -> None:
        """Boxes and labels of what is trained on, flat, with the range of each image."""
        table = self.annotations
        kept = ~table.crowd
        corners = np.concatenate([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]], axis=1)[kept]
        labels = np.array([self.categories.to_class(i) for i in table.category_ids.tolist()], dtype=np.int64)
        self._boxes = torch.from_numpy(corners.astype(np.float32))
        self._labels = torch.from_numpy(labels[table.category[kept]])
        self._ends = np.searchsorted(table.image[kept], np.arange(len(table) + 1)).tolist()

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; their index is the class."""
        return list(self.categories.names)

    @property
    def image_ids(self) -> list[int]:
        """The image ids in the order of the data set, which is ascending."""
        return self.annotations.image_ids.tolist()

    def __len__(self) -> int:
        return len(self.annotations)

    def path(self, index: int) -> Path:
        return self.images_dir / self.annotations.file_names[index]

    def __getitem__(self, key: Key) -> Sample | None:
        """Reads and augments the sample of an index or (epoch, index); None where an unreadable image was left out."""
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        index = range(len(self))[index]
        try:
            pixels = self.pixels(index)
        except ImageError as error:
            self._note(index, Remark.SKIPPED)
            if self.skipped > self.skip_images:
                raise ImageError(
                    f"{error}; mend the file, or allow for some in training with data.skip_images"
                ) from error
            return None
        low, high = self._ends[index], self._ends[index + 1]
        height, width = pixels.shape[-2:]
        boxes = tv_tensors.BoundingBoxes(self._boxes[low:high], format="XYXY", canvas_size=(height, width))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mixed(self.seed, epoch, index))  # manual_seed would reseed CUDA too
            image, boxes = self.transform(tv_tensors.Image(pixels), boxes)
        h, w = image.shape[-2:]
        scale = torch.tensor([w, h, w, h], dtype=torch.float32)
        corners = (boxes.as_subclass(Tensor).float() / scale).clamp(0, 1)
        seen = (corners[:, 2:] > corners[:, :2]).all(dim=1)
        return Sample(
            image=image.as_subclass(Tensor),
            labels=self._labels[low:high][seen],
            boxes=xyxy_to_cxcywh(corners[seen]),
            image_id=int(self.annotations.image_ids[index]),
            size=(height, width),
        )

    def pixels(self, index: int) -> Tensor:
        """Decodes an image, uint8 RGB [3, h, w], before any transform. Raises ImageError naming path and image id."""
        if self._pixels is not None and (cached := self._pixels.get(index)) is not None:
            return cached
        path, image_id = self.path(index), int(self.annotations.image_ids[index])
        try:
            pixels, remark = read_image(path)
        except ImageError as error:
            raise ImageError(f"image {image_id}: {error}") from error
        annotated = tuple(self.annotations.sizes[index].tolist())
        if tuple(pixels.shape[1:]) != annotated:
            height, width = pixels.shape[1:]
            raise AnnotationError(
                f"{self.annotation_file}: image {image_id}: {path} is {width} × {height} pixels upright, its annotation says "
                f"{annotated[1]} × {annotated[0]}; correct width and height and see that the boxes belong to this image"
            )
        if remark:
            self._note(index, remark)
        if self._pixels is not None:
            self._pixels.put(index, pixels)
        return pixels

    def _note(self, index: int, remark: Remark) -> None:
        self._remarks.array[index] |= int(remark)

    def remarks(self) -> Report:
        """Reports what was out of the ordinary about the images read so far, in this process and its workers."""
        report = Report(self.images_dir)
        for remark in Remark:
            noted = np.nonzero(self._remarks.array & int(remark))[0]
            report.add(f"image {remark.text}, image", self.annotations.image_ids[noted].tolist())
        return report

    @property
    def skipped(self) -> int:
        """The number of unreadable images that were left out so far."""
        return int(np.count_nonzero(self._remarks.array & int(Remark.SKIPPED)))

    def coco_api(self) -> COCO:
        """Returns the checked annotations, crowds included, for pycocotools' box evaluation."""
        api = COCO()
        api.dataset = self.annotations.to_coco()
        _create_index(api)
        return api


def _create_index(api: COCO) -> None:
    """Calls ``COCO.createIndex`` without its prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()


def _mixed(*key: int) -> int:
    """Mixes several numbers into a 64-bit seed."""
    return int(np.random.SeedSequence([k % 2**64 for k in key]).generate_state(1, np.uint64)[0])


class _Tally:
    """Zeroed bytes that worker processes share with their parent, however they are started; a pickled copy starts anew."""

    def __init__(self, size: int):
        self._memory = multiprocessing.RawArray("B", max(size, 1))
        self.array = np.frombuffer(self._memory, dtype=np.uint8)[:size]

    def __reduce__(self):
        if multiprocessing.context.get_spawning_popen() is None:
            return type(self), (len(self.array),)
        return type(self)._of_parent, (self._memory, len(self.array))

    @classmethod
    def _of_parent(cls, memory, size: int) -> Self:
        tally = cls.__new__(cls)
        tally._memory, tally.array = memory, np.frombuffer(memory, dtype=np.uint8)[:size]
        return tally


class _Shared:
    """Zeroed bytes that forked worker processes share with their parent; a pickled copy starts anew."""

    def __init__(self, size: int):
        self.size = size
        self.array = np.frombuffer(mmap.mmap(-1, max(size, 1)), dtype=np.uint8)[:size]

    def __reduce__(self):
        return type(self), (self.size,)


class _PixelCache:
    """Decoded images, filled as they are read, shared between forked worker processes."""

    def __init__(self, sizes: np.ndarray):
        self.sizes = sizes
        self.ends = np.concatenate([[0], np.cumsum(3 * sizes[:, 0] * sizes[:, 1])])
        if self.ends[-1] > machine_memory():
            raise ConfigError(
                f"data.cache: {len(sizes)} decoded images take {self.ends[-1] / 2**30:,.0f} GiB, this machine has "
                f"{machine_memory() / 2**30:,.0f} GiB of memory; set data.cache=false, or use fewer images"
            )
        self.bytes, self.filled = _Shared(int(self.ends[-1])), _Shared(len(sizes))

    def get(self, index: int) -> Tensor | None:
        if not self.filled.array[index]:
            return None
        height, width = self.sizes[index]
        flat = self.bytes.array[self.ends[index] : self.ends[index + 1]]
        return torch.from_numpy(flat.reshape(3, height, width).copy())

    def put(self, index: int, pixels: Tensor) -> None:
        self.bytes.array[self.ends[index] : self.ends[index + 1]] = pixels.numpy().ravel()
        self.filled.array[index] = 1


def collate(samples: Sequence[Sample | None]) -> tuple[ImageBatch, Targets]:
    """Pads and stacks samples; left-out images (None) are passed over. Raises ImageError where none is left."""
    samples = [sample for sample in samples if sample is not None]
    if not samples:
        raise ImageError("a batch without any readable image; mend the images that cannot be read")
    targets = Targets.from_list(
        [sample.labels for sample in samples],
        [sample.boxes for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        sizes=torch.tensor([sample.size for sample in samples]),
    )
    return ImageBatch.from_images([sample.image for sample in samples]), targets
