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
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from msdetr.boxes import cxcywh_to_xyxy, pairwise_iou
from msdetr.matching import (
    MatchingRules,
    class_probability,
    cost_terms,
    merge_matches,
    pair_iou,
    score,
)
from msdetr.structures import DetectorOutput, Matches, Predictions, Targets


class Status(StrEnum):
    """What became of a pair (query, object); the first that applies."""

    MATCHED = "matched"
    MERGED = "merged"  # one-to-many only: added because it is a one-to-one pair
    BELOW = "dropped by τ"
    LOST = "lost to another object"
    BEYOND = "beyond k"
    UNVOTED = "beyond its votes"  # released rule only: the object takes as many queries as voted for it
    TAKEN = "serves another object"  # one-to-one only
    COSTLIER = "another query costs less"  # one-to-one only


STATUSES = tuple(Status)


class Outcome(StrEnum):
    """What became of an object in the detector's output."""

    FOUND = "found"
    DOUBLED = "doubled"
    NO_BOX = "missed: no box is close enough"
    WRONG_CLASS = "missed: seen as another class"
    LOW_SCORE = "missed: score too low"
    ASSIGNED_ELSEWHERE = "missed: its detection counts for another object"
    CROWDED_OUT = "missed: not among the detections kept"


@dataclass(frozen=True)
class Candidate:
    """One query as an object sees it; ``rank`` counts from 1, by score. Costs are weighted, ``cost`` is their sum."""

    query: int
    rank: int
    probability: float
    iou: float
    score: float
    cost_class: float
    cost_l1: float
    cost_giou: float
    cost: float
    status: Status
    reason: str


@dataclass(frozen=True)
class Reason:
    """Why a query does not serve an object. obstacles: everything that stands in the way (empty: it does serve it);
    numbers: what the words are made of."""

    status: Status
    obstacles: tuple[Status, ...]
    text: str
    numbers: dict[str, float | int]


@dataclass(frozen=True)
class QueryStep:
    """A query in one decoder layer: its box and the reference it started from (cxcywh; None where unknown), its most
    probable class, the objects it serves, and the object it overlaps most (None in an image without objects)."""

    layer: int
    box: np.ndarray
    reference: np.ndarray | None
    label: int
    probability: float
    one_to_one: int | None
    one_to_many: tuple[int, ...]
    nearest: int | None
    iou: float


@dataclass(frozen=True)
class ObjectOutcome:
    """What became of an object in the output: its detections as (query, score, IoU), the first being the one that
    counts, others duplicates; and the reason in words."""

    target: int
    outcome: Outcome
    detections: tuple[tuple[int, float, float], ...]
    text: str
    numbers: dict[str, float | int]


@dataclass(frozen=True)
class BranchExplanation:
    """Every pair of a branch. All tables are numpy arrays [K, T, Q]; ``status`` holds indices into ``STATUSES``.

    score is alpha * probability + (1 - alpha) * iou; cost_class, cost_l1 and cost_giou are weighted terms of the
    Hungarian cost. place is the 1-based rank of the query among those the rule lets compete for the object, were it one
    of them. hypothetical: the detector has no such branch; its one-to-one predictions were used.
    """

    name: str
    predictions: Predictions
    targets: Targets
    matching: MatchingRules
    matches: Matches
    probability: np.ndarray
    iou: np.ndarray
    score: np.ndarray
    cost_class: np.ndarray
    cost_l1: np.ndarray
    cost_giou: np.ndarray
    matched: np.ndarray
    status: np.ndarray
    place: np.ndarray
    votes: np.ndarray  # [K, T] number of queries an object may take: k, or with the released rule its capped votes
    class_names: tuple[str, ...] = ()
    hypothetical: bool = False

    @property
    def cost(self) -> np.ndarray:
        """[K, T, Q] total Hungarian cost."""
        return self.cost_class + self.cost_l1 + self.cost_giou

    def candidates(self, target: int, layer: int = -1, top: int | None = 10) -> list[Candidate]:
        """The queries by score with an object, best first (ties: lower index first); ``top`` None for all of them."""
        layer = self._layer(layer)
        self._object(target)
        order = np.argsort(-self.score[layer, target], kind="stable")
        return [self._candidate(int(query), rank, target, layer) for rank, query in enumerate(order[:top], start=1)]

    def serving(self, target: int, layer: int = -1) -> list[int]:
        """Queries matched to an object, best score first."""
        layer = self._layer(layer)
        queries = np.flatnonzero(self.matched[layer, target])
        return queries[np.argsort(-self.score[layer, target, queries], kind="stable")].tolist()

    def served(self, query: int, layer: int = -1) -> list[int]:
        """Objects a query is matched to."""
        return np.flatnonzero(self.matched[self._layer(layer), :, query]).tolist()

    def why_not(self, query: int, target: int, layer: int = -1) -> Reason:
        """Why a query does not serve an object (or that it does)."""
        layer = self._layer(layer)
        self._object(target)
        if not 0 <= query < self.score.shape[-1]:
            raise IndexError(f"query {query}: there are {self.score.shape[-1]}, counted from 0")
        rule = self._one_to_one_reason if self.name == "one_to_one" else self._one_to_many_reason
        return rule(query, target, layer)

    def _candidate(self, query: int, rank: int, target: int, layer: int) -> Candidate:
        at = (layer, target, query)
        terms = [float(table[at]) for table in (self.cost_class, self.cost_l1, self.cost_giou)]
        return Candidate(
            query,
            rank,
            *(float(table[at]) for table in (self.probability, self.iou, self.score)),
            *terms,
            cost=float(self.cost[at]),
            status=STATUSES[self.status[at]],
            reason=self.why_not(query, target, layer).text,
        )

    # --- one-to-many: Algorithm 1 ------------------------------------------------------------------------------------

    def _one_to_many_reason(self, query: int, target: int, layer: int) -> Reason:
        at, m = (layer, target, query), self.matching
        status, value, place = STATUSES[self.status[at]], float(self.score[at]), int(self.place[at])
        sum_text = f"{m.alpha:g} · {self.probability[at]:.3f} + {1 - m.alpha:g} · {self.iou[at]:.3f} = {value:.3f}"
        numbers = {"score": value, "threshold": m.threshold, "place": place, "k": m.k}
        if status is Status.MATCHED:
            text = f"Query {query} serves {self._named(target)}: its score is {sum_text}, its place {place} of at most {m.k}."
            return Reason(status, (), text, numbers)
        if status is Status.MERGED:
            text = f"Query {query} serves {self._named(target)} because one-to-one matching paired them (merge)."
            return Reason(status, (), text, numbers)
        obstacles, words = [], []
        released = m.rule == "released"
        if value <= m.threshold and not released:
            obstacles.append(Status.BELOW)
            words.append(f"its score, {sum_text}, is not above τ = {m.threshold:g}")
        rival = self._rival(query, target, layer)
        if rival is not None:
            obstacles.append(Status.LOST)
            theirs = float(self.score[layer, rival, query])
            numbers |= {"rival": rival, "rival_score": theirs}
            how = "higher" if theirs > value else "alike, and first,"
            words.append(f"it scores {how} with {self._named(rival)} ({theirs:.3f} against {value:.3f})")
        if place > m.k:
            obstacles.append(Status.BEYOND)
            words.append(f"it is number {place} among the object's candidates and k = {m.k}")
        if released and place > self.votes[layer, target] and place <= m.k:
            votes = int(self.votes[layer, target])
            obstacles.append(Status.UNVOTED)
            numbers |= {"votes": votes}
            words.append(f"the object got {votes} votes and takes as many queries; this one is number {place}")
        text = f"Query {query} does not serve {self._named(target)}: {'; '.join(words)}."
        return Reason(status, tuple(obstacles), text, numbers)

    def _rival(self, query: int, target: int, layer: int) -> int | None:
        """The object the query goes to instead: the one it scores highest with, where the rule is exclusive; with the
        released rule and a merge, the one whose pair came later."""
        if self.matching.rule == "literal":
            return None
        if self.matching.rule == "released":
            contested = STATUSES[self.status[layer, target, query]] is Status.LOST
            return self.served(query, layer)[-1] if contested else None
        best = int(self.score[layer, :, query].argmax())
        return None if best == target else best

    # --- one-to-one: Hungarian ---------------------------------------------------------------------------------------

    def _one_to_one_reason(self, query: int, target: int, layer: int) -> Reason:
        at = (layer, target, query)
        status, cost = STATUSES[self.status[at]], float(self.cost[at])
        numbers: dict[str, float | int] = {"cost": cost}
        split = f"class {self.cost_class[at]:.2f}, L1 {self.cost_l1[at]:.2f}, GIoU {self.cost_giou[at]:.2f}"
        if status is Status.MATCHED:
            text = f"Query {query} serves {self._named(target)} at a cost of {cost:.2f} ({split})."
            return Reason(status, (), text, numbers)
        regret = self.regret(query, target, layer)
        numbers |= {"regret": regret}
        holder = self.serving(target, layer)
        text = f"Query {query} does not serve {self._named(target)}: "
        if status is Status.COSTLIER:
            winner = holder[0]
            theirs = float(self.cost[layer, target, winner])
            difference = ", ".join(
                f"{name} {table[at] - table[layer, target, winner]:+.2f}"
                for name, table in (("class", self.cost_class), ("L1", self.cost_l1), ("GIoU", self.cost_giou))
            )
            numbers |= {"winner": winner, "winner_cost": theirs}
            text += f"query {winner} costs {theirs:.2f}, this one {cost:.2f} ({difference})."
        else:
            other = self.served(query, layer)[0]
            numbers |= {"rival": other}
            text += f"it serves {self._named(other)}, and "
            if holder:
                text += f"giving it away would raise the total cost of the image's matching by {regret:.2f}."
            else:
                text += f"there are more objects than queries; serving this one would cost {regret:.2f} more in total."
        return Reason(status, (status,), text, numbers)

    def regret(self, query: int, target: int, layer: int = -1) -> float:
        """By how much the least total cost of one-to-one matching grows if the query must serve the object; at least
        0, and 0 for a matched pair."""
        cost = self.cost[self._layer(layer)].astype(np.float64)
        rest = np.delete(np.delete(cost, target, axis=0), query, axis=1)
        least, forced = (table[linear_sum_assignment(table)].sum() for table in (cost, rest))
        return float(max(forced + cost[target, query] - least, 0.0))

    # -----------------------------------------------------------------------------------------------------------------

    def _layer(self, layer: int) -> int:
        return range(len(self.score))[layer]

    def _object(self, target: int) -> None:
        if not 0 <= target < len(self.targets):
            raise IndexError(f"object {target}: the image has {len(self.targets)}, counted from 0")

    def _named(self, target: int) -> str:
        return object_name(target, self.targets, self.class_names)


@dataclass(frozen=True)
class Explanation:
    """Matching of one image in every decoder layer; see ``explain``."""

    one_to_one: BranchExplanation
    one_to_many: BranchExplanation
    references: np.ndarray | None = None  # [K, Q, 4] cxcywh
    class_names: tuple[str, ...] = field(default=())

    @property
    def targets(self) -> Targets:
        return self.one_to_one.targets

    @property
    def num_layers(self) -> int:
        return len(self.one_to_one.score)

    @property
    def num_queries(self) -> int:
        return self.one_to_one.score.shape[-1]

    def branch(self, name: str) -> BranchExplanation:
        if name not in ("one_to_one", "one_to_many"):
            raise ValueError(f"branch: {name!r} is neither 'one_to_one' nor 'one_to_many'")
        return getattr(self, name)

    def query_path(self, query: int) -> list[QueryStep]:
        """A query from the first layer to the last, as the one-to-one branch predicts it."""
        branch = self.one_to_one
        boxes = branch.predictions.boxes[:, 0, query].numpy()
        probability = branch.predictions.logits[:, 0, query].sigmoid().numpy()
        steps = []
        for layer in range(self.num_layers):
            overlap = branch.iou[layer, :, query]
            steps.append(
                QueryStep(
                    layer=layer,
                    box=boxes[layer],
                    reference=None if self.references is None else self.references[layer, query],
                    label=int(probability[layer].argmax()),
                    probability=float(probability[layer].max()),
                    one_to_one=next(iter(branch.served(query, layer)), None),
                    one_to_many=tuple(self.one_to_many.served(query, layer)),
                    nearest=int(overlap.argmax()) if len(overlap) else None,
                    iou=float(overlap.max()) if len(overlap) else 0.0,
                )
            )
        return steps

    def outcomes(
        self, score_threshold: float = 0.5, iou_threshold: float = 0.5, max_detections: int = 100
    ) -> list[ObjectOutcome]:
        """Each object's fate in the output of the last layer; see ``explain_output``."""
        last = self.one_to_one.predictions.layer(-1)
        return explain_output(last, self.targets, score_threshold, iou_threshold, max_detections, self.class_names)


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


# --- the detector's answer --------------------------------------------------------------------------------------------


def explain_output(
    predictions: Predictions,
    targets: Targets,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    class_names: Sequence[str] = (),
) -> list[ObjectOutcome]:
    """Which objects of one image are found, missed or doubled in a detector's output, and why.

    predictions: one layer (the last), one image. Detections are the ``max_detections`` best pairs of query and class
    with probability of at least ``score_threshold``, no suppression. As in COCO's evaluation, detections in
    descending score each take the object of their class with the highest IoU, at least ``iou_threshold``, that is not
    taken yet. A detection left over that overlaps an object taken by another one is a duplicate of the object it
    overlaps most.
    """
    if predictions.logits.shape[:2] != (1, 1) or targets.num_images != 1:
        raise ValueError(
            "explain_output looks at one layer of one image: use predictions.layer(-1) and targets.of_image"
        )
    predictions, targets = predictions.detach().to("cpu").float(), _on_cpu(targets)
    probability = predictions.logits[0, 0].sigmoid().numpy()  # [Q, C]
    overlap = pair_iou(predictions, targets)[0].numpy()  # [T, Q]
    labels = targets.labels.numpy()
    kept = np.argsort(-probability, axis=None, kind="stable")[:max_detections]
    kept = [(int(q), int(c)) for q, c in zip(*np.unravel_index(kept, probability.shape), strict=True)]
    detections = [(q, c) for q, c in kept if probability[q, c] >= score_threshold]
    owner, copies = _assign_detections(detections, labels, overlap, iou_threshold)
    boxes = cxcywh_to_xyxy(predictions.boxes[0, 0])
    between = pairwise_iou(boxes, boxes).numpy()
    outcomes = []
    for target, label in enumerate(labels.tolist()):
        mine = [detection for detection in detections if owner.get(detection) == target]
        mine += [detection for detection in detections if copies.get(detection) == target]
        found = tuple((q, float(probability[q, label]), float(overlap[target, q])) for q, _ in mine)
        name = object_name(target, targets, class_names)
        if not found:
            shown = (detections, kept, probability, overlap[target], label, owner)
            outcome, text, numbers = _why_missed(*shown, score_threshold, iou_threshold, max_detections, class_names)
        elif len(found) == 1:
            (query, s, value), outcome = found[0], Outcome.FOUND
            text, numbers = f"query {query} finds it with probability {s:.2f} at IoU {value:.2f}", {}
        else:
            outcome, (first, second) = Outcome.DOUBLED, found[:2]
            numbers = {"gap": first[1] - second[1], "overlap": float(between[first[0], second[0]])}
            text = (
                f"query {first[0]} finds it ({first[1]:.2f}), and so does query {second[0]} ({second[1]:.2f}), both at or "
                f"over the score threshold {score_threshold:.3g}; their boxes overlap with IoU {numbers['overlap']:.2f}. "
                f"One-to-one supervision should have pushed the second score down: the gap is {numbers['gap']:.2f}"
            )
            text += f"; {len(found) - 1} duplicates in all" if len(found) > 2 else ""
        outcomes.append(ObjectOutcome(target, outcome, found, f"{name}: {text}.", numbers))
    return outcomes


def _assign_detections(
    detections: Sequence[tuple[int, int]], labels: np.ndarray, overlap: np.ndarray, iou_threshold: float
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
    """Which object each detection (query, class) takes, and which one a left-over detection is a duplicate of."""
    owner: dict[tuple[int, int], int] = {}
    copies: dict[tuple[int, int], int] = {}
    for query, label in detections:
        reachable = [t for t in np.flatnonzero(labels == label).tolist() if overlap[t, query] >= iou_threshold]
        free = [t for t in reachable if t not in owner.values()]
        if free:
            owner[query, label] = max(free, key=lambda t: overlap[t, query])
        elif reachable:
            copies[query, label] = max(reachable, key=lambda t: overlap[t, query])
    return owner, copies


def _why_missed(
    detections: Sequence[tuple[int, int]],
    kept: Sequence[tuple[int, int]],
    probability: np.ndarray,
    overlap: np.ndarray,
    label: int,
    owner: dict[tuple[int, int], int],
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    class_names: Sequence[str],
) -> tuple[Outcome, str, dict[str, float | int]]:
    placed = np.flatnonzero(overlap >= iou_threshold)
    if not len(placed):
        if not len(overlap):
            return Outcome.NO_BOX, "there are no queries", {}
        best = int(overlap.argmax())
        numbers = {"query": best, "iou": float(overlap[best])}
        return (
            Outcome.NO_BOX,
            f"the closest box, of query {best}, has IoU {overlap[best]:.2f} < {iou_threshold:g}",
            numbers,
        )
    best = int(placed[probability[placed, label].argmax()])
    own = float(probability[best, label])
    numbers = {"query": best, "probability": own, "iou": float(overlap[best])}
    if own >= score_threshold:
        if (best, label) not in kept:
            text = f"query {best} sees it ({own:.2f}), but {max_detections} pairs of query and class score higher"
            return Outcome.CROWDED_OUT, text, numbers
        other = owner[best, label]
        numbers |= {"rival": other}
        text = f"query {best} ({own:.2f}, IoU {overlap[best]:.2f}) counts for object {other}, which it overlaps no less"
        return Outcome.ASSIGNED_ELSEWHERE, text, numbers
    wrong = [(float(probability[q, c]), q, c) for q, c in detections if q in placed and c != label]
    if wrong:
        value, query, other = max(wrong)
        name = class_names[other] if other < len(class_names) else f"class {other}"
        numbers |= {"query": query, "class": other, "class_probability": value, "iou": float(overlap[query])}
        numbers |= {"probability": float(probability[query, label])}
        text = f"query {query}, at IoU {overlap[query]:.2f}, calls it {name} ({value:.2f}); its own class gets "
        return Outcome.WRONG_CLASS, text + f"{probability[query, label]:.2f} there", numbers
    boxes = "1 box has" if len(placed) == 1 else f"{len(placed)} boxes have"
    text = f"{boxes} IoU ≥ {iou_threshold:g}, but the highest probability among them is {own:.2f} "
    return Outcome.LOW_SCORE, text + f"(query {best}) < {score_threshold:.3g}", numbers


def object_name(target: int, targets: Targets, class_names: Sequence[str] = ()) -> str:
    """'object 2 (circle)', or 'object 2 (class 4)' where names are not known."""
    label = int(targets.labels[target])
    return f"object {target} ({class_names[label] if label < len(class_names) else f'class {label}'})"
