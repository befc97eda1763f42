"""Matching stability: how often objects change their queries while a detector learns.

``MatchRecorder`` looks at a fixed set of images at intervals of a training run and writes down who is matched to whom in
every branch of the criterion; ``load_history`` reads that back and ``flip_rates`` measures the change from one record to the
next: one minus the overlap of an object's old and new set of queries, |A ∩ B| / |A ∪ B|. An object that swaps its only
query flips by 1, so where no object has several queries the rate is the share of objects whose query is another one than before. Copies
of an object (hybrid matching) count as the object.

In a two-stage detector query number 7 is a new proposal at every look, so there a query is identified by the encoder
token that it was made from, not by its number. Denoising queries are made from the same noised objects at every look, and a
record says which.

Shape legend: R records, K layers, T objects, S images kept in full, B images, Q queries.
"""

from __future__ import annotations

import itertools
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from msdetr import files
from msdetr.analysis.look import same_draws, training_output
from msdetr.config import RunConfig, plain
from msdetr.errors import InputError, RecordsError, RunError
from msdetr.losses import Criterion, Supervised
from msdetr.matching import MatchingRules
from msdetr.methods import build_criterion, matching_rules
from msdetr.structures import DetectorOutput, ImageBatch, Matches, Predictions, Targets

KEPT = ("one_to_one", "one_to_many")  # branches whose predictions are kept, for the microscope


class MatchRecorder:
    """Writes the assignments of a fixed batch of images to ``directory`` every so many steps of a training run.

    Called as ``recorder(detector, step, epoch)`` after a step; whether anything is due is decided here. A look is one
    forward pass in eval mode, which draws no random number and leaves the detector as it was, so a recorded run is the
    same run. ``seconds`` is what recording has cost so far.

    batch, targets: the images to watch. config: the run's. every: steps between records. states: of how many images the
    predictions are kept in full, to look at them step by step afterwards. budget: the share of the time since the first
    record that recording may take; a record that comes too early for it is left out. Raises InputError for ``every`` < 1, and
    where ``directory`` has records of other images.
    """

    def __init__(
        self,
        directory: str | Path,
        batch: ImageBatch,
        targets: Targets,
        config: RunConfig,
        every: int = 50,
        states: int = 4,
        class_names: Sequence[str] = (),
        budget: float = 1.0,
    ) -> None:
        if every < 1:
            raise InputError(f"every: must be at least 1 step, got {every}")
        self.directory, self.batch, self.targets, self.every = Path(directory), batch, targets, int(every)
        self.criterion, self.states = build_criterion(config), min(int(states), len(batch))
        self.budget, self.seconds, self._began = budget, 0.0, None
        files.make_folder(self.directory)
        pictures = {f"picture_{i}": picture for i, picture in enumerate(_pictures(batch, self.states))}
        objects = {name: getattr(targets, name).cpu().numpy() for name in ("labels", "boxes", "image")}
        self._require_same(objects)
        with files.replacing(self.directory / "objects.npz") as staging:
            np.savez_compressed(staging, **objects, **pictures)
        about = {
            "num_images": targets.num_images,
            "image_ids": list(targets.image_ids),
            "class_names": list(class_names),
        }
        about |= {"matching": vars(matching_rules(config)), "config": plain(config.to_dict())}
        files.write_json(self.directory / "about.json", about)

    def _require_same(self, objects: Mapping[str, np.ndarray]) -> None:
        path = self.directory / "objects.npz"
        if not path.exists() or not any(self.directory.glob("step_*.npz")):
            return
        before = _arrays(path)
        if not all(np.array_equal(before.get(name), table) for name, table in objects.items()):
            number = files.read_json(self.directory / "about.json", RunError).get("num_images", "other")
            raise InputError(
                f"{self.directory}: has records of {number} images and their objects, not of the {self.targets.num_images} images "
                f"that are to be recorded now; go on with the same (--record-matching {number}), or move this folder away"
            )

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
        return cls(directory, batch, targets, config, every, class_names=names, budget=0.03)

    def __call__(self, detector: nn.Module, step: int, epoch: float) -> bool:
        """Records if a record is due at this step; returns whether it did."""
        start = time.perf_counter()
        self._began = start if self._began is None else self._began
        if step % self.every or self.seconds > self.budget * max(start - self._began, 1e-9):
            return False
        device = next(detector.parameters()).device
        output = training_output(detector, self.batch.to(device), self.targets.to(device)).to("cpu")
        arrays = record(output, self.targets, self.criterion, self.states)
        path = self.directory / f"step_{step:08d}.npz"
        with files.replacing(path) as staging:
            np.savez_compressed(staging, step=step, epoch=epoch, **arrays)
        self.seconds += time.perf_counter() - start
        return True


def record(output: DetectorOutput, targets: Targets, criterion: Criterion, states: int = 0) -> dict[str, np.ndarray]:
    """One record, as arrays; everything is on the CPU. ``branches``: names of the criterion's branches, and by each of these

    NAME: [pairs, 3] rows (layer, object, query identity). NAME.layers, NAME.known: K, and whether the pairs were known.
    NAME.noised: [n, 5] rows (image, query, object, copy, whether it is to find it) of queries made from objects.

    Further, of the first ``states`` images, the predictions of the branches in ``KEPT`` and the references.
    """
    with same_draws():  # the released rule draws random numbers
        supervised = criterion.supervised(output, targets)
        matches = criterion.match(supervised)
    arrays: dict[str, np.ndarray] = {"branches": np.array(list(supervised), dtype=np.str_)}
    for name, given in supervised.items():
        arrays[name] = _rows(matches[name], given)
        arrays[f"{name}.layers"] = np.asarray(len(given.predictions.logits))
        arrays[f"{name}.known"] = np.asarray(given.pairs is not None)
        if given.objects is not None:
            arrays[f"{name}.noised"] = _noised(given)
    for name in KEPT:
        predictions = getattr(output, name)
        if states and predictions is not None:
            arrays[f"{name}_logits"] = predictions.logits[:, :states].numpy()
            arrays[f"{name}_boxes"] = predictions.boxes[:, :states].numpy()
    if states and output.references is not None:
        arrays["references"] = output.references[:, :states].numpy()
    return arrays


def _rows(matches: Matches, given: Supervised) -> np.ndarray:
    original = given.targets.original
    target = matches.target if original is None else original[matches.target]
    identity = given.identity[matches.image, matches.query]
    return torch.stack([matches.layer, target, identity], -1).numpy().astype(np.int32)


def _noised(given: Supervised) -> np.ndarray:
    image, query = (given.objects >= 0).nonzero(as_tuple=True)
    positive = torch.zeros_like(given.objects, dtype=torch.bool)
    if given.pairs is not None:
        positive[given.pairs.image, given.pairs.query] = True
    copy = query // (given.objects.shape[1] // given.parts)
    columns = image, query, given.objects[image, query], copy, positive[image, query]
    return torch.stack([column.long() for column in columns], -1).numpy().astype(np.int32)


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
class NoisedObject:
    """What a denoising query was made from. object: an index into the recorded targets. copy: which of its noised copies,
    from 0. positive: whether the query is to find the object; a negative is background."""

    object: int
    copy: int
    positive: bool


@dataclass(frozen=True)
class BranchHistory:
    """One branch of the criterion over a training run.

    rows: per record [pairs, 3] (layer, object, query identity).   known: the pairs were not matched, but known.
    noised: (image, query) -> the object that the query was made from; empty where queries are not made from objects.
    """

    rows: list[np.ndarray]
    num_layers: int
    known: bool
    noised: Mapping[tuple[int, int], NoisedObject]


@dataclass(frozen=True)
class MatchHistory:
    """What a recorder left. steps, epochs: [R]. branches: by name, in the order of the criterion. states: per record the
    output for the first S images, whose objects are ``kept_targets()`` and pictures ``pictures[i]`` [h, w, 3] uint8. config: the
    run's settings as nested mappings; None in records of before version 0.2."""

    steps: np.ndarray
    epochs: np.ndarray
    targets: Targets
    matching: MatchingRules
    branches: Mapping[str, BranchHistory]
    states: list[DetectorOutput]
    pictures: list[np.ndarray]
    class_names: tuple[str, ...]
    config: Mapping[str, Any] | None = None

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
    """Reads the records of a run, of its directory or the folder with the records themselves; also those of version 0.1.

    Raises RecordsError (a FileNotFoundError) where there are none, naming how to get them, and RunError where they are
    damaged, or not of the same objects.
    """
    directory = Path(directory)
    if (directory / "matching").is_dir():
        directory /= "matching"
    paths = sorted(directory.glob("step_*.npz"))
    if not paths or not (directory / "objects.npz").exists():
        raise RecordsError(f"{directory}: no recorded matches; train with recording on (MatchRecorder)")
    about = files.read_json(directory / "about.json", RunError)
    objects, *records = [_arrays(path) for path in (directory / "objects.npz", *paths)]
    for path, found in zip(paths, records, strict=True):
        _check(path, found, records[0], len(objects["labels"]), about["num_images"])
    return MatchHistory(
        steps=np.array([int(r["step"]) for r in records]),
        epochs=np.array([float(r["epoch"]) for r in records]),
        targets=Targets(
            *(torch.from_numpy(objects[name]) for name in ("labels", "boxes", "image")),
            num_images=about["num_images"],
            image_ids=tuple(about["image_ids"]),
        ),
        matching=MatchingRules(**about["matching"]),
        branches=_branches(records),
        states=[_state(r) for r in records if "one_to_one_logits" in r],
        pictures=[objects[f"picture_{i}"] for i in range(sum(name.startswith("picture_") for name in objects))],
        class_names=tuple(about["class_names"]),
        config=about.get("config"),
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: is damaged: {error}; remove it, the other records can be read without it") from error


def _check(
    path: Path, found: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray], objects: int, images: int
) -> None:
    """Raises RunError where a record is not of the same branches as the first, or of other objects and images."""
    if _names(found) != _names(first) or not all(name in found for name in _names(first)):
        raise RunError(
            f"{path}: has other branches than the first record; remove it, the others can be read without it"
        )
    for name in _names(first):
        pairs, noised = found[name], found.get(f"{name}.noised", np.zeros((0, 5), np.int32))
        limits = ((pairs, (_layers(first, name), objects, np.inf)), (noised, (images, np.inf, objects, np.inf, 2)))
        for table, below in limits:
            if table.ndim != 2 or table.shape[1] != len(below) or ((table < 0) | (table >= below)).any():
                raise RunError(
                    f"{path}: {name}: is not of the {objects} objects of {images} images in objects.npz; move this folder away "
                    "and record again"
                )


def _names(record: Mapping[str, np.ndarray]) -> list[str]:
    # version 0.1 recorded two branches, without saying so
    return record["branches"].tolist() if "branches" in record else [name for name in KEPT if name in record]


def _layers(record: Mapping[str, np.ndarray], name: str) -> int:
    return int(record[f"{name}.layers"] if f"{name}.layers" in record else record["layers"])


def _branches(records: Sequence[Mapping[str, np.ndarray]]) -> dict[str, BranchHistory]:
    first = records[0]
    return {
        name: BranchHistory(
            [record[name] for record in records],
            _layers(first, name),
            bool(first.get(f"{name}.known", False)),
            {
                (image, query): NoisedObject(target, copy, bool(positive))
                for image, query, target, copy, positive in first.get(f"{name}.noised", np.zeros((0, 5))).tolist()
            },
        )
        for name in _names(first)
    }


def _state(arrays: dict[str, np.ndarray]) -> DetectorOutput:
    branches = [
        Predictions(torch.from_numpy(arrays[f"{name}_logits"]), torch.from_numpy(arrays[f"{name}_boxes"]))
        if f"{name}_logits" in arrays
        else None
        for name in KEPT
    ]
    references = torch.from_numpy(arrays["references"]) if "references" in arrays else None
    return DetectorOutput(branches[0], branches[1], references=references)


@dataclass(frozen=True)
class FlipRates:
    """Change between consecutive records. steps, epochs: [R - 1], of the later one. rates: branch -> [R - 1, K] means over
    objects, NaN where no object counts. An object counts where it has a query in at least one of the two records;
    counted: branch -> [R - 1, K] says how many do. several: branches in which some object had more than one query at once."""

    steps: np.ndarray
    epochs: np.ndarray
    rates: Mapping[str, np.ndarray]
    counted: Mapping[str, np.ndarray]
    several: frozenset[str] = frozenset()

    def per_epoch(self, branch: str = "one_to_one") -> tuple[np.ndarray, np.ndarray]:
        """Epochs [E] (whole numbers, the last one of a record) and mean flip rate between records [E, K]."""
        rates = self.rates[branch]
        epoch = np.ceil(np.maximum(self.epochs, 1e-9)).astype(int)
        groups = np.unique(epoch)
        with np.errstate(invalid="ignore"):
            total = np.stack([np.nansum(rates[epoch == e], axis=0) for e in groups])
            count = np.stack([np.isfinite(rates[epoch == e]).sum(axis=0) for e in groups])
            return groups, np.where(count > 0, total / np.maximum(count, 1), np.nan)


def flip_rates(history: MatchHistory) -> FlipRates:
    """How the matches changed from each record to the next, per branch and layer; branches whose pairs are known have no
    matches that could change. Raises InputError for fewer than two records."""
    if len(history.steps) < 2:
        raise InputError(f"{len(history.steps)} record(s): a flip rate needs two; record more often")
    changes = {
        name: _changes(branch.rows, branch.num_layers, len(history.targets))
        for name, branch in history.branches.items()
        if not branch.known
    }
    rates, counted = ({name: pair[i] for name, pair in changes.items()} for i in (0, 1))
    several = frozenset(name for name in changes if any(map(_several, history.branches[name].rows)))
    return FlipRates(history.steps[1:], history.epochs[1:], rates, counted, several)


def _several(rows: np.ndarray) -> bool:
    """Whether some object has more than one query in a layer. rows: [pairs, 3] layer, object, query identity."""
    return len(np.unique(rows[:, :2], axis=0)) < len(np.unique(rows, axis=0))


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
