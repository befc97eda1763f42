"""What is known about the matching of one image: every pair of query and object, by branch and decoder layer.

Shape legend: K layers, T objects of the image, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from msdetr.analysis.branches import branch_title
from msdetr.analysis.outcomes import ObjectOutcome, explain_output
from msdetr.analysis.reasons import Reason, innermost, object_name, reason_of
from msdetr.errors import InputLookupError
from msdetr.matching import STATUSES, IoUMatcher, Matcher, MatchingRules, Status, pair_iou
from msdetr.structures import Detections, Matches, Predictions, Targets


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
class BranchExplanation:
    """Every pair of a branch. All tables are numpy arrays [K, T, Q]; ``status`` holds indices into ``STATUSES``.
    matched, status, obstacles, rival, place and votes are what the branch's matcher decided, see ``Decisions``.

    predictions: what is supervised. targets: with what; objects repeated where the branch repeats them. objects: those of the
    image. matcher: None where the pairs were known. parts: the queries are so many equal parts, each matched by itself.
    match_on: what the matcher saw, where that is not what is supervised: boxes that queries start from, anchors of the encoder.
    Probability, IoU, score and costs are of what the matcher saw.
    score is alpha * probability + (1 - alpha) * iou; cost_class, cost_l1 and cost_giou are weighted terms of the
    Hungarian cost. place is the 1-based rank of the query among those the rule lets compete for the object, were it one
    of them. hypothetical: the detector has no such branch, or none that explains itself; its one-to-one
    predictions were used.
    """

    name: str
    predictions: Predictions
    targets: Targets
    objects: Targets
    matching: MatchingRules
    matcher: Matcher | None
    matches: Matches
    probability: np.ndarray
    iou: np.ndarray
    score: np.ndarray
    cost_class: np.ndarray
    cost_l1: np.ndarray
    cost_giou: np.ndarray
    matched: np.ndarray
    status: np.ndarray
    obstacles: Mapping[Status, np.ndarray]
    rival: np.ndarray
    place: np.ndarray
    votes: np.ndarray  # [K, T] number of queries an object may take: k (of as many as there are), or its capped votes
    class_names: tuple[str, ...] = ()
    hypothetical: bool = False
    parts: int = 1
    match_on: Predictions | None = None

    @property
    def title(self) -> str:
        """The name of the branch for people: one-to-one only where its matcher is."""
        return branch_title(self.name, several=self.matcher is not None and self.matcher.each_object != 1)

    @property
    def seen(self) -> Predictions:
        """What the matcher saw, of which all numbers are."""
        return self.predictions if self.match_on is None else self.match_on

    @property
    def by_overlap(self) -> bool:
        """Whether pairs are made by IoU alone, from ``matching.threshold`` on; costs then play no part."""
        return self.matcher is not None and isinstance(innermost(self.matcher), IoUMatcher)

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
            raise InputLookupError(f"query {query}: there are {self.score.shape[-1]}, counted from 0")
        return reason_of(self.matcher)(self, query, target, layer)

    def part(self, query: int) -> slice:
        """The queries that are matched together with this one."""
        size = self.score.shape[-1] // self.parts
        return slice(query // size * size, query // size * size + size)

    def regret(self, query: int, target: int, layer: int = -1) -> float:
        """By how much the least total cost of one-to-one matching grows if the query must serve the object; at least
        0, and 0 for a matched pair."""
        part = self.part(query)
        cost, query = self.cost[self._layer(layer), :, part].astype(np.float64), query - part.start
        rest = np.delete(np.delete(cost, target, axis=0), query, axis=1)
        least, forced = (table[linear_sum_assignment(table)].sum() for table in (cost, rest))
        return float(max(forced + cost[target, query] - least, 0.0))

    def object_name(self, target: int) -> str:
        """'object 2 (circle)', or 'object 2 (class 4)' where names are not known; 'copy 3 of object 2 (circle)' where objects
        are repeated."""
        original = self.targets.original
        if original is None:
            return object_name(target, self.objects, self.class_names)
        number = int((original[:target] == original[target]).sum())
        return f"copy {number + 1} of {object_name(int(original[target]), self.objects, self.class_names)}"

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

    def _layer(self, layer: int) -> int:
        return range(len(self.score))[layer]

    def _object(self, target: int) -> None:
        if not 0 <= target < len(self.targets):
            raise InputLookupError(f"object {target}: the image has {len(self.targets)}, counted from 0")


@dataclass(frozen=True)
class Explanation:
    """Matching of one image in every decoder layer; see ``explain``. branches: by name, ``one_to_one`` and ``one_to_many``
    among them. unexplained: branches whose matchers do not define ``decisions``. postprocess: of the detector's own; None: its
    answer are the best pairs of query and class."""

    branches: Mapping[str, BranchExplanation]
    references: np.ndarray | None = None  # [K, Q, 4] cxcywh
    class_names: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()
    postprocess: Callable[[Predictions, Tensor, int], list[Detections]] | None = None

    @property
    def one_to_one(self) -> BranchExplanation:
        return self.branches["one_to_one"]

    @property
    def one_to_many(self) -> BranchExplanation:
        return self.branches["one_to_many"]

    @property
    def further(self) -> list[BranchExplanation]:
        """The other branches: the encoder's, and those of further query groups."""
        return [branch for name, branch in self.branches.items() if name not in ("one_to_one", "one_to_many")]

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
        """Raises InputLookupError for a branch that the criterion does not have, or the output has nothing for, or whose
        matcher does not explain itself."""
        if name in self.unexplained and name not in self.branches:
            raise InputLookupError(f"branch: {name!r} has a matcher that does not explain itself: define its decisions")
        if name not in self.branches:
            raise InputLookupError(f"branch: {name!r} is none of {', '.join(self.branches)}")
        return self.branches[name]

    def query_path(self, query: int) -> list[QueryStep]:
        """A query from the first layer to the last, as the one-to-one branch predicts it."""
        branch = self.one_to_one
        boxes = branch.predictions.boxes[:, 0, query].numpy()
        overlaps = pair_iou(branch.predictions, branch.targets)[..., query].numpy()  # [K, T], of the boxes predicted
        probability = branch.predictions.logits[:, 0, query].sigmoid().numpy()
        steps = []
        for layer in range(self.num_layers):
            overlap = overlaps[layer]
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
        """Each object's fate in the detector's output; see ``explain_output``."""
        last = self.one_to_one.predictions.layer(-1)
        found = last, self.targets, score_threshold, iou_threshold, max_detections, self.class_names
        return explain_output(*found, self.answer(max_detections))

    def answer(self, max_detections: int = 100) -> Detections | None:
        """What post-processing of the detector's own makes of the image, boxes in fractions of it where its size is not known;
        None where the answer are the best pairs of query and class."""
        if self.postprocess is None:
            return None
        sizes = torch.ones(1, 2) if self.targets.sizes is None else self.targets.sizes
        [found] = self.postprocess(self.one_to_one.predictions, sizes, max_detections)
        return found
