"""What the page shows, as plain values that JSON can hold: runs, images, and what each run predicts on each image.

Shape legend: K layers, T objects of the image, Q queries, S classes that objects of the image have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from msdetr.analysis.look import SamplingPoints
from msdetr.analysis.matching import BranchExplanation, Explanation
from msdetr.analysis.reasons import innermost
from msdetr.analysis.specimen import Specimen
from msdetr.matching import HungarianMatcher, ReleasedMrDETR, class_probability
from msdetr.matching.score import focal_cost
from msdetr.structures import Predictions
from msdetr.viz.page.packing import packed, picture_text

FORMAT = 2
LEAST = 0.02  # probability of a detection that the page still lists


@dataclass(frozen=True)
class Detail:
    """How much of everything travels with the page. exact: predictions in 32 bits, with which the page's matching equals the
    package's to the last bit; else in 16. picture: longest side in pixels. queries: of how many queries an image the sampling
    points are kept. points: how many of a query in a layer, the heaviest. frames: of a recorded training."""

    exact: bool = True
    picture: int = 640
    queries: int = 16
    points: int = 32
    frames: int = 40


DETAILS = (
    Detail(),
    Detail(exact=False, queries=12, points=24, frames=24),
    Detail(exact=False, picture=480, queries=8, points=16, frames=16),
    Detail(exact=False, picture=320, queries=4, points=12, frames=8),
    Detail(exact=False, picture=240, queries=0, points=0, frames=4),
)


def image_content(specimen: Specimen, detail: Detail) -> dict[str, Any]:
    """Picture and objects of an image, without predictions."""
    picture, targets = specimen.picture, specimen.targets
    height, width = (1, 1) if picture is None else picture.shape[:2]
    return {
        "id": None if not targets.image_ids else id_text(targets.image_ids[0]),
        "name": specimen.name,
        "width": int(width),
        "height": int(height),
        "picture": None if picture is None else picture_text(_eight_bits(picture), detail.picture),
        "labels": targets.labels.tolist(),
        "boxes": packed(targets.boxes.numpy(), "f4"),
    }


def id_text(image_id: int) -> str:
    """An image id as it travels: JavaScript's numbers would make one of ids beyond 2^53 that differ."""
    return str(int(image_id))


def frame_content(specimen: Specimen, detail: Detail, max_detections: int = 100) -> dict[str, Any]:
    """What a detector predicts on an image at one moment: both branches, one-to-one pairs, detections and sampling points."""
    found = specimen.explain()
    one, many = found.one_to_one, found.one_to_many
    layer, target, query = (getattr(one.matches, name).numpy() for name in ("layer", "target", "query"))
    probability = one.predictions.logits[:, 0].float().sigmoid().numpy()  # [K, Q, C]
    detections = _detections(found, probability[-1], max_detections)
    return {
        "one_to_one": _branch(one, detail) | {"class_costs": _class_costs(one, detail), "fates": _fates(one)},
        "one_to_many": None if many.hypothetical else _branch(many, detail),
        "pairs": packed(np.stack([layer, target, query], -1), "u2"),
        "top": {
            "labels": packed(probability.argmax(-1), "u1" if probability.shape[-1] <= 256 else "u2"),
            "scores": packed(probability.max(-1), "f2"),
        },
        "detections": {
            "queries": detections[0].tolist(),
            "labels": detections[1].tolist(),
            "scores": packed(probability[-1][detections], "f4"),
        },
        "references": _references(found),
        "sampling": None if specimen.sampling is None else _sampling(specimen.sampling, found, detections[0], detail),
    }


def rules_content(specimen: Specimen) -> dict[str, Any]:
    """How a run was matched in training: settings, weights of the cost, and whether it had a one-to-many branch."""
    found = specimen.explain()
    many, one = found.one_to_many, found.one_to_one
    rules = asdict(many.matching)
    weights = [rules.pop(f"cost_{name}") for name in ("class", "l1", "giou")]
    if (matcher := _hungarian(one)) is not None:
        weights = [_weight(matcher, name) for name in ("class", "l1", "giou")]
    return {"rules": rules, "weights": weights, "hypothetical": many.hypothetical}


def _branch(branch: BranchExplanation, detail: Detail) -> dict[str, Any]:
    predictions = Predictions(branch.predictions.logits.float(), branch.predictions.boxes.float())
    labels = branch.objects.labels
    columns, first = np.unique(labels.numpy(), return_index=True)
    probability = class_probability(predictions, branch.objects).numpy()[:, first]  # [K, S, Q]
    depth, queries = predictions.logits.shape[0], predictions.logits.shape[2]
    content = {
        "layers": depth,
        "queries": queries,
        "columns": columns.tolist(),
        "scores": packed(probability.transpose(0, 2, 1), "f4" if detail.exact else "f2"),
        "boxes": packed(predictions.boxes[:, 0].numpy(), "f4" if detail.exact else "q2"),
    }
    return content | ({"limit": 225} if isinstance(branch.matcher, ReleasedMrDETR) else {})


def _hungarian(branch: BranchExplanation) -> HungarianMatcher | None:
    """The matcher of a branch if it goes by cost."""
    matcher = None if branch.matcher is None else innermost(branch.matcher)
    return matcher if isinstance(matcher, HungarianMatcher) else None


def _weight(matcher: HungarianMatcher, name: str) -> float:
    return float(matcher.costs.get(name, (0.0, None))[0])


def _class_costs(branch: BranchExplanation, detail: Detail) -> dict[str, Any] | None:
    """[K, T, Q] weighted class terms of the cost where a run has others than the focal ones of Deformable DETR, which the page
    works out itself."""
    matcher = _hungarian(branch)
    if matcher is None:
        return None
    usual = _weight(matcher, "class") * focal_cost(branch.predictions, branch.targets)
    if np.allclose(branch.cost_class, usual.numpy(), rtol=1e-5, atol=1e-6):
        return None
    return packed(branch.cost_class, "f4" if detail.exact else "f2")


def _fates(branch: BranchExplanation) -> dict[str, Any] | None:
    """[K, T, Q] statuses (indices into ``STATUSES``) of a matcher that does not go by cost; of one that does, the page tells
    them from the pairs."""
    return None if _hungarian(branch) is not None else packed(branch.status, "u1")


def _references(found: Explanation) -> dict[str, Any] | None:
    """Where the queries start from in every layer; of the first layer alone where the others start from the boxes before."""
    references = found.references
    if references is None:
        return None
    before = found.one_to_one.predictions.boxes[:-1, 0].numpy()
    refined = np.allclose(references[1:], before, atol=1e-3)
    return packed(references[:1] if refined else references, "q2")


def _detections(found: Explanation, probability: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and classes of the detector's answer, best first: the best pairs (ties: the lower index first), or what the
    run's own post-processing leaves of them. probability: [Q, C] of the last layer."""
    answer = found.answer(most)
    if answer is None:
        best = np.argsort(-probability, axis=None, kind="stable")[:most]
        query, label = np.unravel_index(best, probability.shape)
    else:
        query, label = answer.query.numpy(), answer.labels.numpy()
    sure = probability[query, label] >= LEAST
    return query[sure], label[sure]


def _sampling(
    layers: Sequence[SamplingPoints], found: Explanation, detected: np.ndarray, detail: Detail
) -> dict[str, Any] | None:
    """The heaviest sampling points of the queries that somebody will ask for: those that serve an object in the last layer,
    one-to-one first, and those that detect most surely."""
    one, many = found.one_to_one, found.one_to_many
    wanted = [query for target in range(len(one.objects)) for query in one.serving(target)]
    wanted += [query for target in range(len(many.objects)) for query in many.serving(target)[:1]]
    wanted = list(dict.fromkeys([*wanted, *detected.tolist()]))[: detail.queries]
    if not wanted or not detail.points:
        return None
    places, weights, share = [], [], 1.0
    for layer in layers:
        location = layer.locations[wanted].reshape(len(wanted), -1, 2)
        weight = layer.weights[wanted].reshape(len(wanted), -1)
        heaviest = np.argsort(-weight, axis=1, kind="stable")[:, : detail.points]
        total = weight.sum(1)
        location = np.take_along_axis(location, heaviest[..., None], 1)
        weight = np.take_along_axis(weight, heaviest, 1)
        share = min(share, float((weight.sum(1) / np.maximum(total, 1e-9)).min()))
        places.append(np.clip(location, -0.25, 1.25))
        weights.append(weight)
    return {
        "queries": wanted,
        "points": int(places[0].shape[1]),
        "share": share,
        "places": packed(np.stack(places), "q2"),  # [K, queries, points, 2]
        "weights": packed(np.stack(weights), "f2"),
    }


def _eight_bits(picture: np.ndarray) -> np.ndarray:
    if picture.dtype == np.uint8:
        return picture
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
