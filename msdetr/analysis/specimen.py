"""What lies under the microscope: one image with its objects and everything a detector predicted for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from msdetr.analysis.arrays import predictions_from_arrays, targets_from_arrays
from msdetr.analysis.look import SamplingPoints, sampling_points, training_output
from msdetr.analysis.matching import Explanation, explain
from msdetr.analysis.stability import MatchHistory
from msdetr.config import RunConfig, from_dict
from msdetr.errors import ConfigError, InputError
from msdetr.matching import MatchingRules
from msdetr.methods import build_criterion, build_postprocess, matching_rules
from msdetr.structures import DetectorOutput, Predictions, Targets


@dataclass(frozen=True)
class Specimen:
    """One image: output of a detector for it (a batch of one), its objects, the picture [H, W, 3] uint8 (None: a blank
    canvas) and how matching is configured. sampling: per decoder layer, where queries look, if known. config: the run's, if
    known, which says what further branches there are."""

    output: DetectorOutput
    targets: Targets
    matching: MatchingRules
    picture: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    name: str = "image"
    sampling: tuple[SamplingPoints, ...] | None = None
    config: RunConfig | None = None

    def explain(self, **changes: Any) -> Explanation:
        """The matching of this image, with some settings changed: ``explain(threshold=0.5, k=3, alpha=0.2)``.

        Raises ConfigError for an unknown setting or a value out of range.
        """
        rules, criterion, postprocess = self.matching.changed(**changes), None, None
        if self.config is not None:
            most = max(self.output.one_to_one.logits.shape[2], 1)
            criterion = build_criterion(replace(rules, k=min(rules.k, most)).applied(self.config))
            postprocess = build_postprocess(self.config)
        known = {"class_names": self.class_names, "criterion": criterion, "postprocess": postprocess}
        return explain(self.output, self.targets, rules, **known)

    @classmethod
    def from_arrays(
        cls,
        boxes: Any,
        scores: Any,
        object_boxes: Any,
        object_labels: Any,
        *,
        picture: np.ndarray | None = None,
        box_format: str = "cxcywh",
        image_size: tuple[float, float] | None = None,
        class_names: Sequence[str] = (),
        matching: MatchingRules | None = None,
        name: str = "image",
    ) -> Specimen:
        """Predictions that did not come from this package's model; arguments as for ``predictions_from_arrays``.

        image_size: (height, width) where boxes are in pixels.
        """
        return cls(
            DetectorOutput(predictions_from_arrays(boxes, scores, box_format, image_size)),
            targets_from_arrays(object_boxes, object_labels, box_format, image_size),
            MatchingRules() if matching is None else matching,
            picture,
            tuple(class_names),
            name,
        )


class Microscope:
    """A run, or one of its checkpoints, and images of a data set to look at it with.

    path: run directory (its best checkpoint) or checkpoint directory. data, split: a folder with images and labels; the
    run's own validation images by default. What only training needs, as the one-to-many branch, is kept. Raises
    CheckpointError, ConfigError for a data set of other classes, and the data set's errors.
    """

    def __init__(
        self, path: str | Path, data: str | Path | None = None, split: str | None = None, device: str = "auto"
    ) -> None:
        from msdetr.data import build_dataset
        from msdetr.predictor import check_classes, evaluation_config, load

        predictor = load(path, device, strip=False)
        self.device: torch.device = predictor.device
        self.config: RunConfig = predictor.config
        self.class_names = predictor.class_names
        self.detector: nn.Module = predictor.detector
        self.dataset = build_dataset(evaluation_config(predictor.config, predictor.source, data, split), "val")
        check_classes(predictor, self.dataset)

    def index(self, image: int | str | Path) -> int:
        """The place of an image in the data set: by image id, or by file name or path, of which as much as it takes to tell it from
        the others. Raises ConfigError for none, and for several."""
        ids = list(self.dataset.image_ids)
        text = str(image)
        if text.lstrip("-").isdigit() and int(text) in ids:
            return ids.index(int(text))
        names = [self.dataset.path(i).name for i in range(len(ids))]
        same = [i for i, name in enumerate(names) if name == Path(text).name]
        fitting = {i: _alike(self.dataset.path(i), Path(text)) for i in same}
        best = [i for i in same if fitting[i] == max(fitting.values())]
        if len(best) == 1:
            return best[0]
        if best:
            raise ConfigError(
                f"image {text!r}: {len(best)} images of the data set are called so, among them {self.dataset.path(best[0])} and "
                f"{self.dataset.path(best[1])}; name one of them with its folder, or by its id"
            )
        raise ConfigError(
            f"image {text!r}: neither an image id nor a file name of the data set, whose first are "
            f"{', '.join(f'{i} ({name})' for i, name in zip(ids[:3], names[:3], strict=True))}"
        )

    def look(self, image: int | str | Path, sampling: bool = True) -> Specimen:
        """The detector's view of one image of the data set (an image id, or a file name)."""
        from msdetr.data import collate

        index = self.index(image)
        batch, targets = collate([self.dataset[index]])
        batch = batch.to(self.device)
        points = sampling_points(self.detector, batch) if sampling else None
        return Specimen(
            training_output(self.detector, batch, targets.to(self.device)).to("cpu"),
            targets,
            matching_rules(self.config),
            self.dataset.pixels(index).permute(1, 2, 0).numpy(),
            self.class_names,
            self.dataset.path(index).name,
            None if points is None else tuple(points),
            self.config,
        )


def _alike(path: Path, other: Path) -> int:
    """How many names, from the last one backwards, two paths have in common."""
    pairs = zip(reversed(path.parts), reversed(other.parts))
    return next((i for i, (one, two) in enumerate(pairs) if one != two), min(len(path.parts), len(other.parts)))


def recorded(history: MatchHistory, record: int, image: int) -> Specimen:
    """One image as a detector saw it at one recorded step of its training.

    record: 0 for the first of ``history.steps``. Raises InputError where no predictions were kept, and ConfigError where the
    run had settings that are none any more.
    """
    if not history.states:
        raise InputError("no predictions were kept: record with states > 0")
    output = history.states[record]

    def one(predictions: Predictions | None) -> Predictions | None:
        if predictions is None:
            return None
        return Predictions(predictions.logits[:, image : image + 1], predictions.boxes[:, image : image + 1])

    references = None if output.references is None else output.references[:, image : image + 1]
    targets = history.kept_targets().of_image(image)
    return Specimen(
        DetectorOutput(one(output.one_to_one), one(output.one_to_many), references=references),
        targets,
        history.matching,
        history.pictures[image],
        history.class_names,
        f"image {targets.image_ids[0] if targets.image_ids else image}, step {history.steps[record]}",
        config=None if history.config is None else from_dict(history.config),
    )
