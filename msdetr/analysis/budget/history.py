"""What a recorded training says of objects that are outranked: seldom matched, or never to the same query for long."""

from __future__ import annotations

import itertools

import numpy as np

from msdetr.analysis.budget.attribution import CAUSES
from msdetr.analysis.budget.causes import Cause
from msdetr.analysis.stability import MatchHistory

OFTEN = 0.5  # the share of records


def recorded_causes(history: MatchHistory) -> dict[int, np.ndarray]:
    """What the objects of the recorded images are called where they are outranked: image id -> [T] indices into ``CAUSES``.

    The later half of the records is looked at, and of each branch the last decoder layer. An object is *rarely matched* if
    one-to-many matching gave it a query in fewer than half of them. Otherwise it is *switched* if its one-to-one query was
    another one than in the record before in at least half of them (queries are told apart as in ``stability``). Else it stays
    *outranked*. A detector without a one-to-many branch has no rarely matched objects; fewer than two records show no switch.
    """
    total = len(history.targets)
    code = np.full(total, CAUSES.index(Cause.OUTRANKED))
    start = len(history.steps) // 2
    if "one_to_one" in history.branches:
        queries = _queries(history, "one_to_one", total)[start:]
        if len(queries) > 1:
            changed = np.array([[a != b for a, b in zip(*pair)] for pair in itertools.pairwise(queries)], bool)
            code[changed.mean(axis=0) >= OFTEN] = CAUSES.index(Cause.SWITCHED)
    if "one_to_many" in history.branches:
        matched = np.array(
            [[bool(one) for one in row] for row in _queries(history, "one_to_many", total)[start:]], bool
        )
        code[matched.mean(axis=0) < OFTEN] = CAUSES.index(Cause.RARELY)
    image = history.targets.image.numpy()
    return {image_id: code[image == place] for place, image_id in enumerate(history.targets.image_ids)}


def told(history: MatchHistory | None) -> tuple[Cause, ...]:
    """The causes that a record can show."""
    if history is None:
        return ()
    causes = (Cause.SWITCHED,) if "one_to_one" in history.branches and len(history.steps) > 2 else ()
    return (*causes, Cause.RARELY) if "one_to_many" in history.branches else causes


def _queries(history: MatchHistory, branch: str, objects: int) -> list[list[frozenset[int]]]:
    """By record and object, the queries that serve it in the last layer."""
    found = []
    last = history.branches[branch].num_layers - 1
    for rows in history.branches[branch].rows:
        serving: list[set[int]] = [set() for _ in range(objects)]
        for layer, target, query in rows.tolist():
            if layer == last:
                serving[target].add(query)
        found.append([frozenset(one) for one in serving])
    return found
