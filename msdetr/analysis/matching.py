"""The matching microscope: why a detector matched, kept or lost an object, in numbers and in words.

``explain`` takes the predictions and objects of one image and runs the same matchers that training runs, then keeps
every quantity they decided on. From an ``Explanation``:

- ``branch.candidates(object, layer)``: the queries ranked by score, with class probability, IoU, the cost split into its
  terms, and what became of each;
- ``branch.why_not(query, object, layer)``: the reason that a query does not serve an object;
- ``query_path(query)``: a query through the layers;
- ``outcomes()``: which objects are found, missed or doubled in the detector's output, and why.

Shape legend: K layers, T objects of the image, Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from msdetr.analysis.explanation import BranchExplanation, Candidate, Explanation, QueryStep
from msdetr.analysis.outcomes import ObjectOutcome, Outcome, explain_output
from msdetr.analysis.reasons import STATUSES, Reason, Status, object_name
from msdetr.matching import MatchingRules, class_probability, cost_terms, merge_matches, pair_iou, score
from msdetr.structures import DetectorOutput, Matches, Predictions, Targets

__all__ = [
    "STATUSES",
    "BranchExplanation",
    "Candidate",
    "Explanation",
    "ObjectOutcome",
    "Outcome",
    "QueryStep",
    "Reason",
    "Status",
    "explain",
    "explain_output",
    "object_name",
]


def explain(
    output: DetectorOutput | Predictions,
    targets: Targets,
    matching: MatchingRules | None = None,
    image: int = 0,
    class_names: Sequence[str] = (),
) -> Explanation:
    """Runs the matchers of a configuration on one image of a batch and keeps what they decided on.

    output: of a detector run with ``one_to_many=True``, or predictions alone (for another detector:
    ``predictions_from_arrays``); without a one-to-many branch, one-to-many matching is shown as it would be on the
    one-to-one predictions. matching: default the released alpha, tau and k with the exclusive rule.

    Raises ValueError for a NaN or infinite prediction, a label outside the predicted classes, or batches that differ.
    """
    matching = MatchingRules() if matching is None else matching
    if isinstance(output, Predictions):
        output = DetectorOutput(output)
    if not 0 <= image < targets.num_images:
        raise IndexError(f"image {image}: the batch has {targets.num_images}")
    if output.one_to_one.logits.shape[1] != targets.num_images:
        raise ValueError(f"predictions of {output.one_to_one.logits.shape[1]} images, objects of {targets.num_images}")
    objects = _on_cpu(targets.of_image(image))
    first = _of_image(output.one_to_one, image)
    second = first if output.one_to_many is None else _of_image(output.one_to_many, image)
    hungarian = matching.hungarian()
    pairs = hungarian(first, objects)
    class_names = tuple(class_names)
    one_to_one = _one_to_one_branch(first, objects, matching, pairs, class_names)
    one_to_many = _one_to_many_branch(second, objects, matching, pairs, class_names)
    return Explanation(
        one_to_one,
        replace(one_to_many, hypothetical=output.one_to_many is None),
        None if output.references is None else output.references[:, image].detach().cpu().numpy(),
        class_names,
    )


def _one_to_one_branch(
    predictions: Predictions, targets: Targets, matching: MatchingRules, pairs: Matches, names: tuple[str, ...]
) -> BranchExplanation:
    tables = _tables(predictions, targets, matching)
    matched = _membership(pairs, tables["score"].shape)
    used = matched.any(1, keepdims=True)
    status = np.where(used, STATUSES.index(Status.TAKEN), STATUSES.index(Status.COSTLIER))
    status = np.where(matched, STATUSES.index(Status.MATCHED), status)
    cost = tables["cost_class"] + tables["cost_l1"] + tables["cost_giou"]
    place = 1 + np.argsort(np.argsort(cost, axis=-1, kind="stable"), axis=-1, kind="stable")
    votes = np.ones(place.shape[:2], dtype=np.int64)
    return BranchExplanation(
        "one_to_one", predictions, targets, matching, pairs, **tables,
        matched=matched, status=status, place=place, votes=votes, class_names=names,
    )  # fmt: skip


def _one_to_many_branch(
    predictions: Predictions, targets: Targets, matching: MatchingRules, one_to_one: Matches, names: tuple[str, ...]
) -> BranchExplanation:
    tables = _tables(predictions, targets, matching)
    table = tables["score"]
    num_queries = table.shape[-1]
    rule = replace(matching, k=min(matching.k, max(num_queries, 1)))
    with torch.random.fork_rng(
        devices=[]
    ):  # the released rule caps its positives at random: one draw, the same each time
        torch.manual_seed(0)
        plain = rule.one_to_many()(predictions, targets)
    final = plain
    if matching.merge:
        final = merge_matches(plain, one_to_one, num_queries, 1, exclusive=matching.rule != "literal")
    before, matched = _membership(plain, table.shape), _membership(final, table.shape)

    competes = np.ones_like(matched)
    if matching.rule == "exclusive" and table.shape[1]:
        competes = np.arange(table.shape[1])[:, None] == table.argmax(1)[:, None]  # first object among equals
    place = _places(table, competes)
    released = matching.rule == "released"
    votes = before.sum(-1) if released else np.full(table.shape[:2], matching.k)

    code = {status: STATUSES.index(status) for status in Status}
    status = np.full(table.shape, code[Status.UNVOTED if released else Status.BEYOND])
    status[place > matching.k] = code[Status.BEYOND]
    status[~competes] = code[Status.LOST]
    if not released:
        status[table <= matching.threshold] = code[Status.BELOW]
    status[before & ~matched] = code[Status.LOST]
    status[matched] = code[Status.MERGED]
    status[matched & before] = code[Status.MATCHED]
    return BranchExplanation(
        "one_to_many", predictions, targets, matching, final, **tables,
        matched=matched, status=status, place=place, votes=votes, class_names=names,
    )  # fmt: skip


def _places(table: np.ndarray, competes: np.ndarray) -> np.ndarray:
    """[K, T, Q]: 1 + the number of *other* competing queries that come before this one (higher score, or the same and
    a lower index)."""
    order = np.argsort(-table, axis=-1, kind="stable")
    ranked = np.take_along_axis(competes, order, axis=-1)
    before = np.cumsum(ranked, axis=-1) - ranked
    place = np.empty(table.shape, dtype=np.int64)
    np.put_along_axis(place, order, before + 1, axis=-1)
    return place


def _tables(predictions: Predictions, targets: Targets, matching: MatchingRules) -> dict[str, np.ndarray]:
    terms = cost_terms(predictions, targets)
    return {
        "probability": class_probability(predictions, targets).numpy(),
        "iou": pair_iou(predictions, targets).numpy(),
        "score": score(predictions, targets, matching.alpha).numpy(),
        "cost_class": matching.cost_class * terms.classification.numpy(),
        "cost_l1": matching.cost_l1 * terms.l1.numpy(),
        "cost_giou": matching.cost_giou * terms.giou.numpy(),
    }


def _membership(matches: Matches, shape: tuple[int, ...]) -> np.ndarray:
    member = np.zeros(shape, dtype=bool)
    member[matches.layer.numpy(), matches.target.numpy(), matches.query.numpy()] = True
    return member


def _of_image(predictions: Predictions, image: int) -> Predictions:
    one = Predictions(predictions.logits[:, image : image + 1], predictions.boxes[:, image : image + 1])
    return one.detach().to("cpu").float()


def _on_cpu(targets: Targets) -> Targets:
    moved = {name: getattr(targets, name).cpu() for name in ("labels", "boxes", "image")}
    return replace(targets, **moved)
