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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from msdetr.analysis.explanation import BranchExplanation, Candidate, Explanation, QueryStep
from msdetr.analysis.look import same_draws
from msdetr.analysis.outcomes import ObjectOutcome, Outcome, explain_output
from msdetr.analysis.reasons import Reason, innermost, object_name
from msdetr.errors import InputError, InputLookupError
from msdetr.losses import Branch, Criterion, Supervised, answer, candidates
from msdetr.matching import (
    STATUSES,
    HungarianMatcher,
    IoUMatcher,
    MatchingRules,
    OneToManyMatcher,
    Status,
    class_probability,
    known_pairs,
    merge_matches,
    pair_iou,
    places,
    score,
)
from msdetr.structures import Detections, DetectorOutput, GroupOutput, Predictions, Targets

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
    criterion: Criterion | None = None,
    postprocess: Callable[[Predictions, Tensor, int], list[Detections]] | None = None,
) -> Explanation:
    """Runs the matchers of a configuration on one image of a batch and keeps what they decided on.

    output: of a detector run with ``one_to_many=True`` (and with the targets, for further query groups), or predictions
    alone (for another detector: ``predictions_from_arrays``); without a one-to-many branch, one-to-many matching is shown
    as it would be on the one-to-one predictions. matching: default the released alpha, tau and k with the exclusive rule.
    criterion: the run's, all of whose branches are explained; by default one-to-one and one-to-many matching by the rules of
    ``matching``. A branch whose matcher does not explain itself is in ``unexplained``; one-to-one matching must.
    postprocess: the run's, where it has one of its own (``build_postprocess``), for what is in the detector's output.

    Raises InputError for a NaN or infinite prediction, a label outside the predicted classes, or batches that differ, and
    InputLookupError for an image that the batch does not have.
    """
    matching = MatchingRules() if matching is None else matching
    if isinstance(output, Predictions):
        output = DetectorOutput(output)
    if not 0 <= image < targets.num_images:
        raise InputLookupError(f"image {image}: the batch has {targets.num_images}, counted from 0")
    if output.one_to_one.logits.shape[1] != targets.num_images:
        raise InputError(f"predictions of {output.one_to_one.logits.shape[1]} images, objects of {targets.num_images}")
    targets = targets.to("cpu")
    output, objects = _of_image(output.to("cpu"), targets, image), targets.of_image(image)
    criterion = _both_branches(matching, output.one_to_one) if criterion is None else criterion
    class_names = tuple(class_names)
    found: dict[str, BranchExplanation] = {}
    unexplained = []
    for branch in criterion.branches:
        given = branch.select(output, objects)
        if given is None:
            continue
        try:
            found[branch.name] = _branch(branch, given, objects, matching, found, class_names)
        except NotImplementedError:
            if branch.name == "one_to_one":
                raise
            unexplained.append(branch.name)
    if "one_to_many" not in found:
        branch = _both_branches(matching, output.one_to_one).branches[1]
        given = Supervised(output.one_to_one, objects)
        found["one_to_many"] = _branch(branch, given, objects, matching, found, class_names, hypothetical=True)
    references = None if output.references is None else output.references[:, 0].detach().numpy()
    return Explanation(found, references, class_names, tuple(unexplained), postprocess)


def _both_branches(matching: MatchingRules, predictions: Predictions) -> Criterion:
    """One-to-one and one-to-many matching by these rules, without losses."""
    rules = replace(matching, k=min(matching.k, max(predictions.logits.shape[2], 1)))
    merge_from = "one_to_one" if matching.merge else None
    one_to_many = Branch("one_to_many", candidates, rules.one_to_many(), {}, merge_from, matching.rule != "literal")
    return Criterion([Branch("one_to_one", answer, matching.hungarian()), one_to_many])


def _branch(
    branch: Branch,
    given: Supervised,
    objects: Targets,
    matching: MatchingRules,
    earlier: Mapping[str, BranchExplanation],
    class_names: tuple[str, ...],
    hypothetical: bool = False,
) -> BranchExplanation:
    predictions, targets = given.predictions.detach().float(), given.targets
    matcher = None if given.pairs is not None else innermost(branch.matcher)
    if isinstance(matcher, OneToManyMatcher):  # that of a route has settings of its own
        matching = replace(matching, alpha=matcher.alpha, threshold=matcher.threshold, k=matcher.k)
    if isinstance(matcher, IoUMatcher):  # classes play no part
        matching = replace(matching, alpha=0.0, threshold=matcher.threshold, k=matcher.k)
    seen = predictions if given.match_on is None else given.match_on.detach().float()
    table = score(seen, targets, matching.alpha)
    with same_draws():  # the released rule draws at random
        if given.pairs is not None:
            decisions = known_pairs(given.pairs, places(table), targets)
        else:
            decisions = branch.matcher.explain(seen, targets)
    if branch.merge_from in earlier:
        pairs = earlier[branch.merge_from].matches
        pairs = merge_matches(decisions.matches, pairs, seen.logits.shape[2], 1, exclusive=branch.merge_exclusive)
        decisions = decisions.merged(pairs, targets)
    hungarian = matcher if isinstance(matcher, HungarianMatcher) else matching.hungarian()
    costs = hungarian.terms(seen, targets)
    costs = {term: costs.get(term, torch.zeros_like(table)).numpy() for term in ("class", "l1", "giou")}
    return BranchExplanation(
        branch.name,
        predictions,
        targets,
        objects,
        matching,
        None if given.pairs is not None else branch.matcher,
        decisions.matches,
        probability=class_probability(seen, targets).numpy(),
        iou=pair_iou(seen, targets).numpy(),
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
        parts=given.parts,
        match_on=None if given.match_on is None else seen,
    )


def _of_image(output: DetectorOutput, targets: Targets, image: int) -> DetectorOutput:
    """Everything predicted for one image of a batch, as for a batch of one."""
    one = slice(image, image + 1)
    encoder = output.encoder
    return replace(
        output,
        one_to_one=output.one_to_one.of_image(image),
        one_to_many=None if output.one_to_many is None else output.one_to_many.of_image(image),
        encoder=encoder
        and replace(encoder, predictions=encoder.predictions.of_image(image), anchors=encoder.anchors[one]),
        references=None if output.references is None else output.references[:, one],
        selected=None if output.selected is None else output.selected[one],
        groups={name: _group_of_image(group, targets, image) for name, group in output.groups.items()},
    )


def _group_of_image(group: GroupOutput, targets: Targets, image: int) -> GroupOutput:
    one, own = slice(image, image + 1), targets if group.targets is None else group.targets
    pairs = group.pairs
    if pairs is not None:
        pairs = pairs.select(pairs.image == image)
        first = int((own.image < image).sum())
        pairs = replace(pairs, image=torch.zeros_like(pairs.image), target=pairs.target - first)
    return replace(
        group,
        predictions=group.predictions.of_image(image),
        candidates=None if group.candidates is None else group.candidates.of_image(image),
        references=group.references[:, one],
        targets=None if group.targets is None else group.targets.of_image(image),
        pairs=pairs,
        selected=None if group.selected is None else group.selected[one],
        objects=None if group.objects is None else group.objects[one] - int((targets.image < image).sum()),
    )
