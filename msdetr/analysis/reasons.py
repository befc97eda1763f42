"""Why a query serves an object, or does not: what a branch decided, in words and numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msdetr.matching import (
    STATUSES,
    HungarianMatcher,
    Matcher,
    OneToManyMatcher,
    PartwiseMatcher,
    SharedMatcher,
    Status,
)
from msdetr.structures import Targets

if TYPE_CHECKING:
    from msdetr.analysis.explanation import BranchExplanation


@dataclass(frozen=True)
class Reason:
    """Why a query does not serve an object. obstacles: everything that stands in the way (empty: it does serve it);
    numbers: what the words are made of."""

    status: Status
    obstacles: tuple[Status, ...]
    text: str
    numbers: dict[str, float | int]


def innermost(matcher: Matcher) -> Matcher:
    """The matcher that decides, without what applies it to parts or layers."""
    while isinstance(matcher, (PartwiseMatcher, SharedMatcher)):
        matcher = matcher.matcher
    return matcher


def reason_of(matcher: Matcher | None) -> Callable[[BranchExplanation, int, int, int], Reason]:
    """What puts the decisions of a matcher into words; None: pairs were known."""
    if matcher is None:
        return known_reason
    matcher = innermost(matcher)
    kinds = {OneToManyMatcher: one_to_many_reason, HungarianMatcher: one_to_one_reason}
    return next((rule for kind, rule in kinds.items() if isinstance(matcher, kind)), plain_reason)


def one_to_many_reason(branch: BranchExplanation, query: int, target: int, layer: int) -> Reason:
    at, m = (layer, target, query), branch.matching
    status, value, place = STATUSES[branch.status[at]], float(branch.score[at]), int(branch.place[at])
    sum_text = f"{m.alpha:g} · {branch.probability[at]:.3f} + {1 - m.alpha:g} · {branch.iou[at]:.3f} = {value:.3f}"
    numbers = {"score": value, "threshold": m.threshold, "place": place, "k": m.k}
    if status is Status.MATCHED:
        text = f"Query {query} serves {branch.object_name(target)}: its score is {sum_text}, its place {place} of at most {m.k}."
        return Reason(status, (), text, numbers)
    if status is Status.MERGED:
        text = f"Query {query} serves {branch.object_name(target)} because one-to-one matching paired them (merge)."
        return Reason(status, (), text, numbers)
    obstacles = tuple(name for name, table in branch.obstacles.items() if table[at])
    words = []
    if Status.BELOW in obstacles:
        words.append(f"its score, {sum_text}, is not above τ = {m.threshold:g}")
    if Status.LOST in obstacles:
        rival = int(branch.rival[at])
        theirs = float(branch.score[layer, rival, query])
        numbers |= {"rival": rival, "rival_score": theirs}
        how = "higher" if theirs > value else "alike, and first,"
        words.append(f"it scores {how} with {branch.object_name(rival)} ({theirs:.3f} against {value:.3f})")
    if Status.BEYOND in obstacles:
        words.append(f"it is number {place} among the object's candidates and k = {m.k}")
    if Status.UNVOTED in obstacles:
        votes = int(branch.votes[layer, target])
        numbers |= {"votes": votes}
        words.append(f"the object got {votes} votes and takes as many queries; this one is number {place}")
    text = f"Query {query} does not serve {branch.object_name(target)}: {'; '.join(words)}."
    return Reason(status, obstacles, text, numbers)


def one_to_one_reason(branch: BranchExplanation, query: int, target: int, layer: int) -> Reason:
    at = (layer, target, query)
    status, cost = STATUSES[branch.status[at]], float(branch.cost[at])
    numbers: dict[str, float | int] = {"cost": cost}
    split = f"class {branch.cost_class[at]:.2f}, L1 {branch.cost_l1[at]:.2f}, GIoU {branch.cost_giou[at]:.2f}"
    if status is Status.MATCHED:
        text = f"Query {query} serves {branch.object_name(target)} at a cost of {cost:.2f} ({split})."
        return Reason(status, (), text, numbers)
    regret = branch.regret(query, target, layer)
    numbers |= {"regret": regret}
    part = branch.part(query)
    holder = [q for q in branch.serving(target, layer) if part.start <= q < part.stop]
    text = f"Query {query} does not serve {branch.object_name(target)}: "
    if status is Status.COSTLIER:
        winner = holder[0]
        theirs = float(branch.cost[layer, target, winner])
        difference = ", ".join(
            f"{name} {table[at] - table[layer, target, winner]:+.2f}"
            for name, table in (("class", branch.cost_class), ("L1", branch.cost_l1), ("GIoU", branch.cost_giou))
        )
        numbers |= {"winner": winner, "winner_cost": theirs}
        text += f"query {winner} costs {theirs:.2f}, this one {cost:.2f} ({difference})."
    else:
        other = int(branch.rival[at])
        numbers |= {"rival": other}
        text += f"it serves {branch.object_name(other)}, and "
        if holder:
            text += f"giving it away would raise the total cost of the image's matching by {regret:.2f}."
        else:
            text += f"there are more objects than queries; serving this one would cost {regret:.2f} more in total."
    return Reason(status, (status,), text, numbers)


def plain_reason(branch: BranchExplanation, query: int, target: int, layer: int) -> Reason:
    """Of any other matcher: what stood in the way, without its numbers."""
    at = (layer, target, query)
    status = STATUSES[branch.status[at]]
    if status in (Status.MATCHED, Status.MERGED):
        return Reason(status, (), f"Query {query} serves {branch.object_name(target)}.", {})
    obstacles = tuple(name for name, table in branch.obstacles.items() if table[at])
    text = f"Query {query} does not serve {branch.object_name(target)}: {'; '.join(obstacles)}."
    return Reason(status, obstacles, text, {})


def known_reason(branch: BranchExplanation, query: int, target: int, layer: int) -> Reason:
    at = (layer, target, query)
    status = STATUSES[branch.status[at]]
    if status is Status.MATCHED:
        return Reason(status, (), f"Query {query} was made to find {branch.object_name(target)}.", {})
    if status is Status.TAKEN:
        text = f"Query {query} was made to find {branch.object_name(int(branch.rival[at]))}, not {branch.object_name(target)}."
        return Reason(status, (status,), text, {"rival": int(branch.rival[at])})
    text = f"Query {query} is to find nothing: it was made as a negative, or fills up its group."
    return Reason(status, (status,), text, {})


def object_name(target: int, targets: Targets, class_names: Sequence[str] = ()) -> str:
    """'object 2 (circle)', or 'object 2 (class 4)' where names are not known."""
    label = int(targets.labels[target])
    return f"object {target} ({class_names[label] if label < len(class_names) else f'class {label}'})"
