"""Early stopping: training ends where several evaluations in a row bring no better AP (``train.patience``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Evaluation = Mapping[str, Any]  # "step", "epoch", "AP" (None where there is nothing to find) and the other numbers


def best_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The one with the highest AP, the latest of equals; None where no AP is defined."""
    scored = [evaluation for evaluation in evaluations if evaluation["AP"] is not None]
    return max(scored, key=lambda evaluation: (evaluation["AP"], evaluation["step"])) if scored else None


def since_better(evaluations: Sequence[Evaluation]) -> int:
    """How many evaluations there were since the first one with the highest AP; 0 where no AP is defined."""
    scores = [-1.0 if evaluation["AP"] is None else evaluation["AP"] for evaluation in evaluations]
    if max(scores, default=-1.0) < 0:
        return 0
    return len(scores) - 1 - scores.index(max(scores))


def out_of_patience(evaluations: Sequence[Evaluation], patience: int) -> bool:
    """Whether training is to end after these evaluations. A function of what a checkpoint holds, so that a run that resumes
    decides as one that was never interrupted."""
    return 0 < patience <= since_better(evaluations)


def stopping(evaluations: Sequence[Evaluation], patience: int) -> dict[str, Any]:
    """What results.json says of a run that ended early."""
    last, best = evaluations[-1], best_evaluation(evaluations)
    return {
        "step": last["step"],
        "epoch": last["epoch"],
        "patience": patience,
        "text": f"stopped early after epoch {last['epoch']:.2f}: no AP above {best['AP']:.3f} in the last "
        f"{since_better(evaluations)} evaluations (train.patience={patience})",
    }
