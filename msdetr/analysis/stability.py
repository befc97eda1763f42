"""Matching stability: how often objects change their queries while a detector learns.

``MatchRecorder`` looks at a fixed set of images at intervals of a training run and writes down who is matched to whom;
``load_history`` reads that back and ``flip_rates`` measures the change from one record to the next:

- one-to-one: the share of objects whose query is another one than before;
- one-to-many: one minus the overlap of the object's old and new set of queries, |A ∩ B| / |A ∪ B| (so an object that
  swaps its only query flips by 1, as in the one-to-one rate).

In a two-stage detector query number 7 is a new proposal at every look, so there a query is identified by the encoder
token that it was made from, not by its number.

Shape legend: R records, K layers, T objects, S images kept in full, Q queries.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from msdetr import files
from msdetr.analysis.look import both_branches
from msdetr.config import RunConfig
from msdetr.errors import RunError
from msdetr.matching import MatchingRules, merge_matches
from msdetr.methods import matching_rules
from msdetr.structures import DetectorOutput, ImageBatch, Matches, Predictions, Targets


class MatchRecorder:
    """Writes the assignments of a fixed batch of images to ``directory`` every so many steps of a training run.

    Called as ``recorder(detector, step, epoch)`` after a step; whether anything is due is decided here. A look is one
    forward pass in eval mode, which draws no random number and leaves the detector as it was, so a recorded run is the
    same run. ``seconds`` is what recording has cost so far.

    batch, targets: the images to watch. every: steps between records. states: of how many images the predictions are
    kept in full, to look at them step by step afterwards. budget: the share of the time since the first record that
    recording may take; a record that comes too early for it is left out.
    """

    def __init__(
        self,
        directory: str | Path,
        batch: ImageBatch,
        targets: Targets,
        matching: MatchingRules,
        every: int = 50,
        states: int = 4,
        class_names: Sequence[str] = (),
        budget: float = 1.0,
    ) -> None:
        if every < 1:
            raise ValueError(f"every: must be at least 1 step, got {every}")
        self.directory, self.batch, self.targets, self.every = Path(directory), batch, targets, int(every)
        self.matching, self.states = matching, min(int(states), len(batch))
        self.budget, self.seconds, self._began = budget, 0.0, None
        self.directory.mkdir(parents=True, exist_ok=True)
        pictures = {f"picture_{i}": picture for i, picture in enumerate(_pictures(batch, self.states))}
        objects = {name: getattr(targets, name).cpu().numpy() for name in ("labels", "boxes", "image")}
        with files.replacing(self.directory / "objects.npz") as staging:
            np.savez_compressed(staging, **objects, **pictures)
        about = {
            "num_images": targets.num_images,
            "image_ids": list(targets.image_ids),
            "class_names": list(class_names),
        }
        files.write_json(self.directory / "about.json", about | {"matching": vars(matching)})

    @classmethod
    def of_run(
        cls,
        run_dir: str | Path,
        dataset,
        config: RunConfig,
        total_steps: int,
        images: int = 16,
        largest: int = 5000,
    ) -> MatchRecorder | None:
        """The recorder of a training run, on the first images of its validation set, in ``run_dir/matching``.

        About forty records, but so few that they take around one per cent of the time, and never more than three. None
        for data sets of more than ``largest`` images (COCO), where looking is not cheap.
        """
        from msdetr.data import collate

        if len(dataset) > largest or len(dataset) == 0:
            return None
        batch, targets = collate([dataset[i] for i in range(min(images, len(dataset)))])
        every = max(total_steps // 40, 50 * len(batch) // config.train.batch_size, 1)
        directory, names = Path(run_dir) / "matching", dataset.class_names
        return cls(directory, batch, targets, matching_rules(config), every, class_names=names, budget=0.03)

    def __call__(self, detector: nn.Module, step: int, epoch: float) -> bool:
        """Records if a record is due at this step; returns whether it did."""
        start = time.perf_counter()
        self._began = start if self._began is None else self._began
        if step % self.every or self.seconds > self.budget * max(start - self._began, 1e-9):
            return False
        device = next(detector.parameters()).device
        output = both_branches(detector, self.batch.to(device)).to("cpu")
        arrays = record(output, self.targets, self.matching, self.states)
        path = self.directory / f"step_{step:08d}.npz"
        with files.replacing(path) as staging:
            np.savez_compressed(staging, step=step, epoch=epoch, **arrays)
        self.seconds += time.perf_counter() - start
        return True


def record(output: DetectorOutput, targets: Targets, matching: MatchingRules, states: int = 0) -> dict[str, np.ndarray]:
    """One record: ``one_to_one`` and ``one_to_many`` as [pairs, 3] rows (layer, object, query identity), and the
    predictions of the first ``states`` images."""
    pairs = matching.hungarian()(output.one_to_one, targets)
    arrays = {"layers": np.asarray(len(output.one_to_one.logits)), "one_to_one": _rows(pairs, output.selected)}
    if output.one_to_many is not None:
        with torch.random.fork_rng(devices=[]):  # the released rule draws random numbers
            many = matching.one_to_many()(output.one_to_many, targets)
        if matching.merge:
            num_images, num_queries = output.one_to_many.logits.shape[1:3]
            many = merge_matches(many, pairs, num_queries, num_images, matching.rule != "literal")
        arrays["one_to_many"] = _rows(many, output.selected)
    for name in ("one_to_one", "one_to_many"):
        predictions = getattr(output, name)
        if states and predictions is not None:
            arrays[f"{name}_logits"] = predictions.logits[:, :states].numpy()
            arrays[f"{name}_boxes"] = predictions.boxes[:, :states].numpy()
    if states and output.references is not None:
        arrays["references"] = output.references[:, :states].numpy()
    return arrays


def _rows(matches: Matches, selected: Tensor | None) -> np.ndarray:
    identity = matches.query if selected is None else selected[matches.image, matches.query]
    return torch.stack([matches.layer, matches.target, identity], -1).numpy().astype(np.int32)


def _pictures(batch: ImageBatch, count: int, longest: int = 320) -> list[np.ndarray]:
    """Images as [h, w, 3] uint8 without padding, spread to the full range, small enough to keep."""
    pictures = []
    for image, mask in zip(batch.images[:count].cpu(), batch.mask[:count].cpu(), strict=True):
        height, width = int((~mask[:, 0]).sum()), int((~mask[0]).sum())
        image = image[:, :height, :width].float()
        low, high = image.amin(), image.amax()
        image = (image - low) / (high - low).clamp(min=1e-6)
        if max(height, width) > longest:
            scale = longest / max(height, width)
            image = torch.nn.functional.interpolate(image[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
        pictures.append((image * 255).round().byte().permute(1, 2, 0).numpy())
    return pictures


@dataclass(frozen=True)
class MatchHistory:
    """What a recorder left. steps, epochs: [R]. one_to_one, one_to_many: per record the rows (layer, object, query
    identity), None for a run without a one-to-many branch. states: per record the output for the first S images, whose
    objects are ``targets_of(i)`` and pictures ``pictures[i]`` [h, w, 3] uint8."""

    steps: np.ndarray
    epochs: np.ndarray
    num_layers: int
    targets: Targets
    matching: MatchingRules
    one_to_one: list[np.ndarray]
    one_to_many: list[np.ndarray] | None
    states: list[DetectorOutput]
    pictures: list[np.ndarray]
    class_names: tuple[str, ...]

    def kept_targets(self) -> Targets:
        """The objects of the images kept in full, as a batch."""
        keep = self.targets.image < len(self.pictures)
        return Targets(
            self.targets.labels[keep],
            self.targets.boxes[keep],
            self.targets.image[keep],
            num_images=len(self.pictures),
            image_ids=self.targets.image_ids[: len(self.pictures)],
        )


def load_history(directory: str | Path) -> MatchHistory:
    """Reads the records of a run, of its directory or the folder with the records themselves.

    Raises FileNotFoundError where there are none, naming how to get them.
    """
    directory = Path(directory)
    if (directory / "matching").is_dir():
        directory /= "matching"
    paths = sorted(directory.glob("step_*.npz"))
    if not paths or not (directory / "objects.npz").exists():
        raise FileNotFoundError(f"{directory}: no recorded matches; train with recording on (MatchRecorder)")
    about = files.read_json(directory / "about.json", RunError)
    with np.load(directory / "objects.npz", allow_pickle=False) as file:
        objects = dict(file)
    records = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            records.append(dict(file))
    return MatchHistory(
        steps=np.array([int(r["step"]) for r in records]),
        epochs=np.array([float(r["epoch"]) for r in records]),
        num_layers=int(records[0]["layers"]),
        targets=Targets(
            *(torch.from_numpy(objects[name]) for name in ("labels", "boxes", "image")),
            num_images=about["num_images"],
            image_ids=tuple(about["image_ids"]),
        ),
        matching=MatchingRules(**about["matching"]),
        one_to_one=[r["one_to_one"] for r in records],
        one_to_many=[r["one_to_many"] for r in records] if "one_to_many" in records[0] else None,
        states=[_state(r) for r in records if "one_to_one_logits" in r],
        pictures=[objects[f"picture_{i}"] for i in range(sum(name.startswith("picture_") for name in objects))],
        class_names=tuple(about["class_names"]),
    )


def _state(arrays: dict[str, np.ndarray]) -> DetectorOutput:
    branches = [
        Predictions(torch.from_numpy(arrays[f"{name}_logits"]), torch.from_numpy(arrays[f"{name}_boxes"]))
        if f"{name}_logits" in arrays
        else None
        for name in ("one_to_one", "one_to_many")
    ]
    references = torch.from_numpy(arrays["references"]) if "references" in arrays else None
    return DetectorOutput(branches[0], branches[1], references=references)


@dataclass(frozen=True)
class FlipRates:
    """Change between consecutive records. steps, epochs: [R - 1], of the later one. one_to_one, one_to_many:
    [R - 1, K] means over objects, NaN where no object counts. An object counts where it has a query in at least one of
    the two records; counted_one_to_one and counted_one_to_many [R - 1, K] say how many do."""

    steps: np.ndarray
    epochs: np.ndarray
    one_to_one: np.ndarray
    counted_one_to_one: np.ndarray
    one_to_many: np.ndarray | None
    counted_one_to_many: np.ndarray | None

    def per_epoch(self, branch: str = "one_to_one") -> tuple[np.ndarray, np.ndarray]:
        """Epochs [E] (whole numbers, the last one of a record) and mean flip rate between records [E, K]."""
        rates = getattr(self, branch)
        epoch = np.ceil(np.maximum(self.epochs, 1e-9)).astype(int)
        groups = np.unique(epoch)
        with np.errstate(invalid="ignore"):
            total = np.stack([np.nansum(rates[epoch == e], axis=0) for e in groups])
            count = np.stack([np.isfinite(rates[epoch == e]).sum(axis=0) for e in groups])
            return groups, np.where(count > 0, total / np.maximum(count, 1), np.nan)


def flip_rates(history: MatchHistory) -> FlipRates:
    """How the matches changed from each record to the next, per decoder layer."""
    if len(history.steps) < 2:
        raise ValueError(f"{len(history.steps)} record(s): a flip rate needs two; record more often")
    sizes = (history.num_layers, len(history.targets))
    one, counted_one = _changes(history.one_to_one, *sizes)
    many, counted_many = (None, None) if history.one_to_many is None else _changes(history.one_to_many, *sizes)
    return FlipRates(history.steps[1:], history.epochs[1:], one, counted_one, many, counted_many)


def _changes(records: Sequence[np.ndarray], num_layers: int, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    slots = num_layers * num_objects
    rates = np.full((len(records) - 1, num_layers), np.nan)
    counts = np.zeros((len(records) - 1, num_layers), dtype=np.int64)
    for i, (before, after) in enumerate(itertools.pairwise(records)):
        # one number per (layer, object, query identity), so that set operations do the rest
        width = 1 + max((int(rows[:, 2].max()) for rows in (before, after) if len(rows)), default=0)
        old, new = (
            np.unique((r[:, 0].astype(np.int64) * num_objects + r[:, 1]) * width + r[:, 2]) for r in (before, after)
        )
        both, any_ = (
            np.bincount(pairs // width, minlength=slots).reshape(num_layers, num_objects)
            for pairs in (np.intersect1d(old, new), np.union1d(old, new))
        )
        counts[i] = (any_ > 0).sum(1)
        distance = np.where(any_ > 0, 1 - both / np.maximum(any_, 1), 0).sum(1)
        np.divide(distance, counts[i], out=rates[i], where=counts[i] > 0)
    return rates, counts
