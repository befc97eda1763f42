"""The package in five calls: build, load, predict, evaluate, train."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors

from .checks import count, fraction
from .config import RunConfig, parse_overrides
from .data import ImageLike, build_dataset, eval_transform, image_files, to_pixels
from .data.parts import AUTO
from .data.settings import splits_without_validation
from .engine import checkpoint as checkpoints
from .engine import location
from .engine.distributed import pick_device
from .engine.evaluate import evaluate as evaluate_detector
from .engine.evaluate import mixed_precision
from .engine.metric import EvalResult
from .engine.postprocess import postprocess, require_finite
from .engine.train import train as train_run
from .engine.transformers_folder import is_transformers_folder, read_transformers
from .errors import ConfigError, DataError, InputTypeError
from .methods import build_detector, build_postprocess
from .recipes import requested, resolve
from .structures import Detections, ImageBatch

_READ_AHEAD = 4  # batches


@dataclass(frozen=True)
class NamedDetections(Detections):
    """Detections that know what their labels mean: ``class_names[label]``.

    path: the file they were found in, None for other images.
    """

    class_names: tuple[str, ...] = ()
    path: Path | None = None

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def above(self, score: float) -> NamedDetections:
        """The detections with at least this score."""
        keep = self.scores >= score
        return replace(
            self, scores=self.scores[keep], labels=self.labels[keep], boxes=self.boxes[keep], query=self.query[keep]
        )


class Predictor:
    """A trained detector, ready to be asked: image in, named detections out.

    detector: in eval mode, on its device; from ``load`` without the parts that only training needs.
    config: the run's. class_names: index = class. category_ids: class -> category id of the annotations, or None.
    source: the checkpoint's directory, by which the run's own data set is found.
    """

    def __init__(
        self,
        detector: nn.Module,
        config: RunConfig,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int | None] | None = None,
        device: str | torch.device = "auto",
        source: Path | None = None,
    ):
        self.device = pick_device(device)
        self.detector = detector.to(self.device).eval()
        self.config = config
        self.class_names = tuple(class_names or (f"class {i}" for i in range(config.model.num_classes)))
        self.category_ids = None if category_ids is None else tuple(category_ids)
        self.source = source
        self._transform = eval_transform(config.data)
        self.postprocess = build_postprocess(config) or postprocess

    def predict(
        self,
        images: ImageLike | Iterable[ImageLike],
        max_detections: int | None = None,
        min_score: float = 0.0,
        batch_size: int | None = None,
    ) -> NamedDetections | list[NamedDetections]:
        """Detections of one image; of a folder of images, a list or any other iterable of images, a list of them in order.

        images: a path; a PIL image; an array [h, w], [h, w, C]; a tensor [h, w], [C, h, w]: see ``msdetr.data.images``
        for the types and ranges of values. A folder stands for its image files by name.
        max_detections: the run's own by default. min_score: drops detections below it.
        batch_size: images at a time, the run's ``train.micro_batch`` by default.

        Boxes are in pixels of the image, upright, and clipped to it. Raises InputError for values that do not fit, the data
        set's errors for files that cannot be read, and EvaluationError where the weights predict NaN.
        """
        if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):
            images = image_files(Path(images))
        if isinstance(images, (str, os.PathLike, np.ndarray, Tensor, Image.Image)):
            return next(self.stream([images], max_detections, min_score, batch_size))
        if not isinstance(images, Iterable) or isinstance(images, (Mapping, bytes)):
            raise InputTypeError(f"images: expected a path, PIL image, array or tensor, got {type(images).__name__}")
        return list(self.stream(images, max_detections, min_score, batch_size))

    def stream(
        self,
        images: Iterable[ImageLike],
        max_detections: int | None = None,
        min_score: float = 0.0,
        batch_size: int | None = None,
    ) -> Iterator[NamedDetections]:
        """As ``predict`` for an iterable that need not end or fit into memory: yields the detections of each in order.

        A few batches are read ahead. Only images of one size go through the detector together, so there is no padding and a
        prediction is the same, up to the rounding of the last digit, whatever its neighbours.
        """
        settings = self.config.train
        kept = settings.max_detections if max_detections is None else count(max_detections, "max_detections")
        size = settings.at_once if batch_size is None else count(batch_size, "batch_size")
        min_score = fraction(min_score, "min_score")
        return self._stream(iter(images), kept, min_score, size)

    def _stream(
        self, images: Iterator[ImageLike], max_detections: int, min_score: float, batch_size: int
    ) -> Iterator[NamedDetections]:
        number = 0
        while window := [self._prepare(image) for image in itertools.islice(images, _READ_AHEAD * batch_size)]:
            by_size: dict[torch.Size, list[int]] = {}
            for index, image in enumerate(window):
                by_size.setdefault(image.pixels.shape, []).append(index)
            found: dict[int, Detections] = {}
            for same in by_size.values():
                for low in range(0, len(same), batch_size):
                    batch = same[low : low + batch_size]
                    found |= zip(batch, self._detect([window[index] for index in batch], max_detections))
            for index, image in enumerate(window):
                require_finite(found[index], str(image.path or f"image {number}"))
                named = NamedDetections(
                    **{name: getattr(found[index], name) for name in ("scores", "labels", "boxes", "query")},
                    class_names=self.class_names,
                    path=image.path,
                )
                yield named.above(min_score) if min_score > 0 else named
                number += 1

    def _prepare(self, image: ImageLike) -> _Prepared:
        pixels = to_pixels(image)
        path = Path(image) if isinstance(image, (str, os.PathLike)) else None
        return _Prepared(
            self._transform(tv_tensors.Image(pixels)).as_subclass(Tensor), (pixels.shape[-2], pixels.shape[-1]), path
        )

    def _detect(self, images: list[_Prepared], max_detections: int) -> list[Detections]:
        """Detections of images that have one size once resized; boxes in pixels of each, clipped to it."""
        batch = ImageBatch.from_images([image.pixels for image in images]).to(self.device)
        sizes = torch.tensor([image.size for image in images])
        with torch.inference_mode(), mixed_precision(self.device, self.config.train.precision):
            output = self.detector(batch)
            found = self.postprocess(output.one_to_one, sizes, max_detections)
        detections = []
        # copied, since tensors of the inference mode are for reading only
        for one, (height, width) in zip((one.to("cpu", copy=True) for one in found), sizes.tolist()):
            limits = one.boxes.new_tensor([width, height, width, height])
            detections.append(replace(one, boxes=one.boxes.clamp(min=0).minimum(limits)))
        return detections

    def __repr__(self) -> str:
        return f"Predictor({self.config.recipe}, {len(self.class_names)} classes, {self.device})"


@dataclass(frozen=True)
class _Prepared:
    """An image as the detector takes it: pixels [3, h, w] normalised; size: its own (height, width)."""

    pixels: Tensor
    size: tuple[int, int]
    path: Path | None


def build(
    config: RunConfig | Mapping[str, Any] | str | Path = "shapes/ms-detr-c", overrides: Mapping[str, Any] | None = None
) -> nn.Module:
    """A freshly initialised detector of a recipe, a configuration or a YAML file."""
    return build_detector(resolve(config, overrides))


def load(
    path: str | Path, device: str | torch.device = "auto", ema: bool | None = None, strip: bool = True
) -> Predictor:
    """A predictor from a checkpoint directory, or from the best checkpoint of a run.

    A folder of transformers' Deformable DETR is read, too (see ``msdetr.integrations.transformers``).

    ema: the moving average of the weights where the checkpoint has one (default), or False for the weights themselves.
    strip: False keeps the parts of the detector that only training needs, to look at what they do.
    Raises CheckpointError.
    """
    if is_transformers_folder(path):
        return Predictor(*read_transformers(path), device=device)
    checkpoint = checkpoints.find(path, checkpoints.verify_weights)
    config = checkpoint.config
    detector = build_detector(config.override({"model.pretrained": "none"}))
    if checkpoint.manifest.get("stripped"):  # `msdetr export --to weights`: what only training needs is not in it
        detector.strip()
    checkpoints.load_weights(detector, checkpoint.weights(ema))
    if strip:
        detector.strip()
    return Predictor(detector, config, checkpoint.class_names, checkpoint.category_ids, device, checkpoint.directory)


def evaluate(
    model: Predictor | str | Path,
    data: str | Path | None = None,
    split: str | None = None,
    *,
    max_detections: int | None = None,
    limit: int | None = None,
    device: str | torch.device = "auto",
    workers: int | None = None,
    progress: bool = True,
) -> EvalResult:
    """The twelve COCO numbers of a predictor, checkpoint or run on a folder of images and labels.

    data, split: a folder in COCO's, YOLO's or Pascal VOC's layout, and its split; the run's own validation images by default. limit: the first images only. Raises ConfigError where the classes are not the same, and
    InputError for a ``max_detections`` or ``limit`` below 1.
    """
    predictor = model if isinstance(model, Predictor) else load(model, device)
    config = evaluation_config(predictor.config, predictor.source, data, split, limit)
    dataset = build_dataset(config, "val")
    check_classes(predictor, dataset)
    return evaluate_detector(
        predictor.detector,
        dataset,
        max_detections=config.train.max_detections if max_detections is None else max_detections,
        batch_size=config.train.at_once,
        workers=config.data.workers if workers is None else count(workers, "workers", least=0),
        precision=config.train.precision,
        to_detections=build_postprocess(config) or postprocess,
        progress=progress,
    )


def evaluation_config(
    config: RunConfig,
    source: Path | None,
    data: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> RunConfig:
    """The configuration that evaluates on a folder of a person's choice, or on the run's own data set wherever that is now.

    source: the run or checkpoint that the configuration came with. Raises DataError where its data set is not found,
    ConfigError for another folder of which no split is for validation, unless ``split`` names one ("auto": the images that
    training there would hold out), and InputError for a ``limit`` below 1.
    """
    settings: dict[str, Any] = {"data.root": location.root(source, config) if data is None else str(data)}
    settings |= {} if data is None else {"data.generate": "none"}
    settings |= {} if split is None else {"data.val_split": split}
    found = config.override(settings | ({} if limit is None else {"data.num_val": count(limit, "limit")}))
    if data is not None and split is None and not _same_folder(config, source, data):
        splits = splits_without_validation(found.data)
        if splits:
            raise ConfigError(
                f"{data}: no split of it is for validation; name the one to evaluate on, e.g. --split {splits[0]} (there "
                f"{'is' if len(splits) == 1 else 'are'} {', '.join(splits)}); --split {AUTO} takes the images that training "
                "there would hold out"
            )
    return found


def _same_folder(config: RunConfig, source: Path | None, data: str | Path) -> bool:
    """Whether a folder is the run's own."""
    with contextlib.suppress(DataError, OSError):
        return os.path.samefile(location.root(source, config), data)
    return False


def check_classes(predictor: Predictor, dataset) -> None:
    """Raises ConfigError where a data set's classes are not those the predictor was trained on, in order."""
    theirs, ours = tuple(dataset.class_names), predictor.class_names
    if theirs != ours:
        differ = [f"{i}: {a!r} / {b!r}" for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
        raise ConfigError(
            f"the model was trained on {len(ours)} classes, the data set has {len(theirs)}; "
            + (f"first differences (model / data): {', '.join(differ[:5])}. " if differ else "")
            + "Evaluate on data with the same categories"
        )


def train(
    config: RunConfig | Mapping[str, Any] | str | Path,
    run_dir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    data: str | Path | None = None,
    epochs: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    resume: str | Path = "auto",
    progress: bool = True,
    init_from: str | Path | None = None,
    reset_class_head: bool = False,
    init_partial: bool = False,
    allow_config_change: bool = False,
    recorder: Callable[..., Any] | None = None,
    on_step: Callable[[nn.Module, int, float], Any] | None = None,
) -> dict[str, Any]:
    """Trains a recipe or configuration and leaves everything about it in ``run_dir``; returns what its results.json says.

    config: a recipe's name, a YAML file, nested values or a RunConfig. overrides: ``{"train.lr": 1e-4}``.
    data, epochs, seed: short for the overrides data.root, train.epochs and seed.
    The others, and the errors, are those of ``msdetr.engine.train``.
    """
    return train_run(
        requested(config, data, epochs, seed, overrides),
        run_dir,
        device,
        resume,
        progress,
        init_from=init_from,
        reset_class_head=reset_class_head,
        init_partial=init_partial,
        allow_config_change=allow_config_change,
        given_classes="model.num_classes" in parse_overrides(overrides) or None,
        recorder=recorder,
        on_step=on_step,
    )
