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

import torch

from msdetr.analysis.explanation import BranchExplanation, Candidate, Explanation, QueryStep
from msdetr.analysis.outcomes import ObjectOutcome, Outcome, explain_output
from msdetr.analysis.reasons import Reason, object_name
from msdetr.matching import (
    STATUSES,
    Decisions,
    MatchingRules,
    Status,
    class_probability,
    merge_matches,
    pair_iou,
    score,
)
from msdetr.structures import DetectorOutput, Predictions, Targets

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
    objects = targets.of_image(image).to("cpu")
    first = _of_image(output.one_to_one, image)
    second = first if output.one_to_many is None else _of_image(output.one_to_many, image)
    one_to_one = matching.hungarian().explain(first, objects)
    one_to_many = _one_to_many(second, objects, matching, one_to_one)
    class_names = tuple(class_names)
    return Explanation(
        _branch("one_to_one", first, objects, matching, one_to_one, class_names),
        _branch("one_to_many", second, objects, matching, one_to_many, class_names, output.one_to_many is None),
        None if output.references is None else output.references[:, image].detach().cpu().numpy(),
        class_names,
    )


def _one_to_many(
    predictions: Predictions, targets: Targets, matching: MatchingRules, one_to_one: Decisions
) -> Decisions:
    num_queries = predictions.logits.shape[2]
    rule = replace(matching, k=min(matching.k, max(num_queries, 1))).one_to_many()
    with torch.random.fork_rng(devices=[]):  # the released rule draws at random: the same draw each time
        torch.manual_seed(0)
        decisions = rule.explain(predictions, targets)
    if not matching.merge:
        return decisions
    pairs = merge_matches(decisions.matches, one_to_one.matches, num_queries, 1, exclusive=matching.rule != "literal")
    return decisions.merged(pairs, targets)


def _branch(
    name: str,
    predictions: Predictions,
    targets: Targets,
    matching: MatchingRules,
    decisions: Decisions,
    class_names: tuple[str, ...],
    hypothetical: bool = False,
) -> BranchExplanation:
    costs = matching.hungarian().terms(predictions, targets)
    table = score(predictions, targets, matching.alpha)
    costs = {term: costs.get(term, torch.zeros_like(table)).numpy() for term in ("class", "l1", "giou")}
    return BranchExplanation(
        name,
        predictions,
        targets,
        matching,
        decisions.matches,
        probability=class_probability(predictions, targets).numpy(),
        iou=pair_iou(predictions, targets).numpy(),
        score=table.numpy(),
        cost_class=costs["class"],
        cost_l1=costs["l1"],
        cost_giou=costs["giou"],
        matched=decisions.matched.numpy(),
        status=decisions.status.numpy(),
        obstacles={status: table.numpy() for status, table in decisions.obstacles.items()},
        rival=decisions.rival.numpy(),
        place=decisions.place.numpy(),
        votes=decisions.limit.numpy(),
        class_names=class_names,
        hypothetical=hypothetical,
    )


def _of_image(predictions: Predictions, image: int) -> Predictions:
    one = Predictions(predictions.logits[:, image : image + 1], predictions.boxes[:, image : image + 1])
    return one.detach().to("cpu").float()
