"""The causes of lost AP: what an error of a detector is put down to.

Those of final boxes are in the spirit of TIDE (Bolya et al., *TIDE: A General Toolbox for Identifying Object Detection Errors*, ECCV
2020). Here a detector's queries are known, too, so that a missed object has a reason, and a mended one has a detection where TIDE
takes it out of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Cause(StrEnum):
    """Why AP was lost; the value is the id that files and pages use."""

    NEVER = "never"
    LOST = "lost"
    CLASS = "class"
    PLACED = "placed"
    OUTRANKED = "outranked"
    RARELY = "rarely"
    SWITCHED = "switched"
    DUPLICATE = "duplicate"
    BACKGROUND = "background"

    @property
    def title(self) -> str:
        """Its name for people, as 'never a candidate'."""
        return ABOUT[self].title

    @property
    def description(self) -> str:
        """What it means, in a sentence."""
        return ABOUT[self].description

    @property
    def mended(self) -> str:
        """What mending it does to the detections, in a sentence."""
        return ABOUT[self].mended


class Kind(StrEnum):
    """What an error is to the metric: an object without a detection, a detection without an object, or a true detection
    that a false one of its class outranks."""

    MISSED = "missed"
    FALSE = "false"
    LOW = "low"


@dataclass(frozen=True)
class About:
    title: str
    description: str
    mended: str


_FIRST = "the object is detected, ahead of everything else of its class"

ABOUT = {
    Cause.NEVER: About(
        "never a candidate",
        "No query of any decoder layer reaches the IoU with the object, unless it counts for another, and no detection is on it.",
        _FIRST,
    ),
    Cause.LOST: About(
        "lost on the way",
        "A query of an earlier decoder layer reaches the IoU with the object, no free one of the last does.",
        "the query is detected as it was in that layer, with the score that it had there",
    ),
    Cause.CLASS: About(
        "wrong class",
        "A detection on the object is of another class.",
        "the detection gets the object's class and box and keeps its score",
    ),
    Cause.PLACED: About(
        "badly placed",
        "A detection has the object's class, but its IoU, at least 0.1, is below the threshold.",
        "the detection gets the object's box and keeps its score",
    ),
    Cause.OUTRANKED: About(
        "outranked",
        "A good box with a low score: it ranks below a false detection of its class, or is not among those kept.",
        _FIRST,
    ),
    Cause.RARELY: About(
        "rarely matched",
        "Outranked, and the record of training shows that one-to-many matching seldom gave the object a query.",
        _FIRST,
    ),
    Cause.SWITCHED: About(
        "switched",
        "Outranked, and the record of training shows that the object kept changing its one-to-one query.",
        _FIRST,
    ),
    Cause.DUPLICATE: About(
        "duplicate kept",
        "A detection of an object that a detection with a higher score has found.",
        "the detection is dropped",
    ),
    Cause.BACKGROUND: About(
        "background taken for an object",
        "A detection that is on no object of any class.",
        "the detection is dropped",
    ),
}
NEED_HISTORY = (Cause.RARELY, Cause.SWITCHED)
