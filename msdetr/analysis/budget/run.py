"""The budget of a trained run: its detector's answer to the images of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from msdetr.analysis.budget.assemble import Accounts
from msdetr.analysis.budget.doctor import Diagnosis, Suppression, diagnose
from msdetr.analysis.budget.report import Budget
from msdetr.analysis.budget.scene import Found, Layers, Objects, Scene
from msdetr.analysis.cells import Cell
from msdetr.analysis.stability import MatchHistory, load_history
from msdetr.boxes import predicted_corners
from msdetr.data import build_dataset, build_eval_loader
from msdetr.engine.evaluate import mixed_precision
from msdetr.engine.postprocess import postprocess, require_finite
from msdetr.errors import RecordsError
from msdetr.predictor import Predictor, check_classes, evaluation_config, load
from msdetr.structures import Detections, DetectorOutput, Predictions


def measure_budget(
    run: str | Path,
    data: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    device: str = "auto",
    cells: Sequence[Cell] = (),
    progress: bool = False,
    max_detections: int | None = None,
) -> tuple[Budget, Diagnosis]:
    """Where the lost AP of a run went, and what would bring some of it back.

    run: run directory (its best checkpoint) or checkpoint directory. data, split, limit: as for ``msdetr.evaluate``, whose AP
    this is. cells: of studies, see ``diagnose``. max_detections: how many count, the run's own by default. Training that was
    recorded is taken into account on the run's own validation images. Raises the errors of ``msdetr.load``, ``msdetr.evaluate``
    and of the data set.
    """
    scenes = RunScenes(load(run, device), data, split, limit, progress, max_detections)
    return measured(scenes, cells, own_data=data is None and split is None)


def measured(scenes: RunScenes, cells: Sequence[Cell] = (), own_data: bool = True) -> tuple[Budget, Diagnosis]:
    """As ``measure_budget``, of images and a detector at hand. own_data: the images are those that the run validated on, so
    that what was recorded of its training is about them."""
    predictor = scenes.predictor
    accounts = Accounts(predictor.class_names, scenes.max_detections, _history(predictor) if own_data else None)
    suppressions = Suppression.usual(scenes.max_detections, pairs=scenes.answers_pairs)
    for scene in scenes:
        accounts.add(scene)
        for suppression in suppressions:
            suppression.add(scene)
    found = accounts.budget()
    return found, diagnose(found, suppressions, cells, predictor.config)


class RunScenes:
    """The images of a data set, in its order, with what a run's detector answers.

    max_detections: the run's by default. answers_pairs: the answer are the best pairs of query and class, without suppression.
    """

    def __init__(
        self,
        predictor: Predictor,
        data: str | Path | None = None,
        split: str | None = None,
        limit: int | None = None,
        progress: bool = False,
        max_detections: int | None = None,
    ) -> None:
        self.predictor = predictor
        self.config = evaluation_config(predictor.config, predictor.source, data, split, limit)
        self.dataset = build_dataset(self.config, "val")
        check_classes(predictor, self.dataset)
        self.max_detections = self.config.train.max_detections if max_detections is None else max_detections
        self.answers_pairs = predictor.postprocess is postprocess
        self.progress = progress
        table, categories = self.dataset.annotations, self.dataset.categories
        self._labels = np.array([categories.to_class(i) for i in table.category_ids.tolist()], np.int64)[table.category]
        self._ends = np.searchsorted(table.image, np.arange(len(table) + 1))
        self._used = np.array([one is not None for one in categories.category_ids], bool)
        self._index = {image_id: i for i, image_id in enumerate(self.dataset.image_ids)}

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Scene]:
        from msdetr.engine.progress import Progress

        settings = self.config.train
        loader = build_eval_loader(self.dataset, settings.at_once, workers=self.config.data.workers)
        bar = Progress(len(self), title="budget", unit="image", enabled=self.progress, brief=True)
        for batch, targets in loader:
            with torch.inference_mode(), mixed_precision(self.predictor.device, settings.precision):
                output = self.predictor.detector(batch.to(self.predictor.device))
                answers = self._answers(output.one_to_one, targets.sizes)
            for i, image_id in enumerate(targets.image_ids):
                require_finite(answers[-1][i], f"image id {image_id}")
                found = [self._found(layer[i].to("cpu")) for layer in answers]
                layers = _layers(output, i, targets.sizes[i])
                if not self.answers_pairs:
                    layers = replace(layers, answers=tuple(found))
                yield self._scene(image_id, found[-1], layers)
            bar.advance(len(targets.image_ids))
        bar.close()

    def _answers(self, predictions: Predictions, sizes: torch.Tensor) -> list[list[Detections]]:
        """The detections of each image after the last decoder layer, and, where post-processing is the run's own, before them
        those after each earlier one."""
        total = len(predictions.logits)
        return [
            self.predictor.postprocess(
                Predictions(predictions.logits[:k], predictions.boxes[:k]), sizes, self.max_detections
            )
            for k in range(total if self.answers_pairs else 1, total + 1)
        ]

    def _scene(self, image_id: int, found: Found, layers: Layers) -> Scene:
        index, table = self._index[image_id], self.dataset.annotations
        rows = slice(self._ends[index], self._ends[index + 1])
        objects = Objects(table.boxes[rows], self._labels[rows], table.areas[rows], table.crowd[rows])
        return Scene(image_id, objects, found, layers, self.dataset.path(index).name)

    def _found(self, answer: Detections) -> Found:
        kept = self._used[answer.labels.numpy()]
        return Found(
            _sized(answer.boxes)[kept],
            answer.scores.double().numpy()[kept],
            answer.labels.numpy()[kept],
            answer.query.numpy()[kept],
        )


def _layers(output: DetectorOutput, image: int, size: torch.Tensor) -> Layers:
    predictions = output.one_to_one.of_image(image).to("cpu").float()
    height, width = size.tolist()
    corners = predicted_corners(predictions.boxes[:, 0]) * torch.tensor([width, height, width, height])
    return Layers(_sized(corners), predictions.logits[:, 0].sigmoid().double().numpy())


def _sized(corners: torch.Tensor) -> np.ndarray:
    """(x0, y0, x1, y1) -> COCO's (x, y, width, height) in float64, as the evaluation has it."""
    boxes = corners.double().numpy()
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def _history(predictor: Predictor) -> MatchHistory | None:
    """What was recorded of the training; None where nothing was."""
    folders = [] if predictor.source is None else list(predictor.source.parents)[:2]
    for folder in folders:
        try:
            return load_history(folder)
        except RecordsError:
            continue
    return None
