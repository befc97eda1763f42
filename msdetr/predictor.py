"""The package in five calls: build, load, predict, evaluate, train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from . import config as configs
from . import recipes
from .config import RunConfig
from .engine import checkpoint as checkpoints
from .engine.distributed import pick_device
from .engine.evaluate import EvalResult, autocast
from .engine.evaluate import evaluate as evaluate_detector
from .engine.postprocess import postprocess
from .engine.train import train as train_run
from .errors import ConfigError
from .structures import Detections, ImageBatch


@dataclass(frozen=True)
class NamedDetections(Detections):
    """Detections that know what their labels mean: ``class_names[label]``."""

    class_names: tuple[str, ...] = ()

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


ImageLike = str | Path | np.ndarray | Tensor | Image.Image


class Predictor:
    """A trained detector, ready to be asked: image in, named detections out.

    detector: in eval mode, on its device, the one-to-many branch removed (it serves training alone).
    config: the run's. class_names: index = class. category_ids: class -> category id of the annotations, or None.
    """

    def __init__(
        self,
        detector: nn.Module,
        config: RunConfig,
        class_names: Sequence[str] | None = None,
        category_ids: Sequence[int] | None = None,
        device: str | torch.device = "auto",
    ):
        from .data import eval_transform

        self.device = pick_device(device)
        self.detector = detector.to(self.device).eval()
        self.config = config
        self.class_names = tuple(class_names or (f"class {i}" for i in range(config.model.num_classes)))
        self.category_ids = None if category_ids is None else tuple(category_ids)
        self._transform = eval_transform(config.data)

    def predict(
        self, image: ImageLike | Sequence[ImageLike], max_detections: int | None = None, min_score: float = 0.0
    ) -> NamedDetections | list[NamedDetections]:
        """Detections of one image, or a list of them for a list of images; boxes in pixels of the image as given.

        image: a path; a PIL image; an array [h, w, 3] or [h, w] uint8; a tensor [3, h, w], uint8 or float in [0, 1].
        max_detections: the run's own by default. min_score: drops detections below it.

        Raises TypeError or ValueError for anything else, and the data set's errors for files that cannot be read.
        """
        if isinstance(image, (list, tuple)):
            return [self.predict(one, max_detections, min_score) for one in image]
        pixels = to_pixels(image)
        batch = ImageBatch.from_images([self._transform(pixels)]).to(self.device)
        sizes = torch.tensor([pixels.shape[-2:]])
        with torch.inference_mode(), autocast(self.device, self.config.train.precision):
            output = self.detector(batch)
            count = max_detections or self.config.train.max_detections
            found = postprocess(output.one_to_one.layer(-1), sizes, count)[0].to("cpu")
        named = NamedDetections(found.scores, found.labels, found.boxes, found.query, self.class_names)
        return named.above(min_score) if min_score > 0 else named

    def __repr__(self) -> str:
        return f"Predictor({self.config.recipe}, {len(self.class_names)} classes, {self.device})"


def to_pixels(image: ImageLike) -> Tensor:
    """An image as a uint8 RGB tensor [3, h, w]. Raises TypeError or ValueError saying what is accepted."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import functional as F

    from .data import read_image

    if isinstance(image, (str, Path)):
        return tv_tensors.Image(read_image(image)[0])
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        return tv_tensors.Image(F.pil_to_tensor(image.convert("RGB")))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3):
            raise ValueError(f"an array must be uint8 [h, w, 3] (RGB) or [h, w]; got {image.dtype} {list(image.shape)}")
        return to_pixels(Image.fromarray(image))
    if isinstance(image, Tensor):
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f"a tensor must be [3, h, w] (RGB); got {list(image.shape)}")
        if image.dtype != torch.uint8:
            if not image.is_floating_point() or not bool(((image >= 0) & (image <= 1)).all()):
                raise ValueError("a tensor must be uint8, or float in [0, 1] (not normalised)")
            image = (image.float() * 255).round().to(torch.uint8)
        return tv_tensors.Image(image.cpu())
    raise TypeError(f"expected a path, PIL image, array or tensor, got {type(image).__name__}")


def resolve(
    config: RunConfig | Mapping[str, Any] | str | Path, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """A configuration from a recipe's name, a YAML file, nested values, or itself, with dotted ``overrides`` applied.

    Raises ConfigError for an unknown recipe (listing what there is) or value.
    """
    if isinstance(config, RunConfig):
        resolved = config
    elif isinstance(config, Mapping):
        resolved = configs.from_dict(config)
    elif str(config).endswith((".yaml", ".yml")):
        if not Path(config).is_file():
            raise ConfigError(f"{config}: there is no such configuration file")
        resolved = configs.load(config)
    else:
        resolved = recipes.get(str(config))
    return resolved.override(overrides) if overrides else resolved


def build(
    config: RunConfig | Mapping[str, Any] | str | Path = "shapes/ms-detr-c", overrides: Mapping[str, Any] | None = None
) -> nn.Module:
    """A freshly initialised detector of a recipe, a configuration or a YAML file."""
    from .model import build_model

    return build_model(resolve(config, overrides).model)


def load(path: str | Path, device: str | torch.device = "auto", ema: bool | None = None) -> Predictor:
    """A predictor from a checkpoint directory, or from the best checkpoint of a run.

    ema: the moving average of the weights where the checkpoint has one (default), or False for the weights themselves.
    Raises CheckpointError.
    """
    from .model import build_model

    checkpoint = checkpoints.find(path)
    config = checkpoint.config
    detector = build_model(replace(config.model, pretrained="none"))
    checkpoints.load_weights(detector, checkpoint.weights(ema))
    detector.strip_one_to_many()
    return Predictor(detector, config, checkpoint.class_names, checkpoint.category_ids, device)


def evaluate(
    model: Predictor | str | Path,
    data: str | Path | None = None,
    split: str | None = None,
    *,
    max_detections: int | None = None,
    limit: int = 0,
    device: str | torch.device = "auto",
    workers: int | None = None,
    progress: bool = True,
) -> EvalResult:
    """The twelve COCO numbers of a predictor, checkpoint or run on a COCO-format folder.

    data, split: images in ``data/split``, annotations in ``data/annotations/instances_split.json``; the run's own
    validation set by default. limit: the first images only. Raises ConfigError where the classes are not the same.
    """
    from .data import build_dataset

    predictor = model if isinstance(model, Predictor) else load(model, device)
    config = predictor.config.override(dataset_settings(data, split, limit))
    dataset = build_dataset(config, "val")
    check_classes(predictor, dataset)
    return evaluate_detector(
        predictor.detector,
        dataset,
        max_detections=max_detections or config.train.max_detections,
        batch_size=config.train.micro_batch,
        workers=config.data.workers if workers is None else workers,
        precision=config.train.precision,
        progress=progress,
    )


def dataset_settings(data: str | Path | None = None, split: str | None = None, limit: int = 0) -> dict[str, Any]:
    """The overrides of a configuration that evaluate on other data than the run's own."""
    settings: dict[str, Any] = {} if data is None else {"data.root": str(data), "data.generate": "none"}
    settings |= {} if split is None else {"data.val_split": split}
    return settings | ({"data.num_val": limit} if limit else {})


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
    **options: Any,
) -> dict[str, Any]:
    """Trains a recipe or configuration; returns what ``run_dir/results.json`` says. Options: ``msdetr.engine.train``."""
    return train_run(resolve(config, overrides), run_dir, **options)
