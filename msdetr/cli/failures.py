"""The errors of a detector one by one: ``msdetr failures``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError
from ..files import save_figure
from .app import Argument, Count, command
from .output import require_file


@command("failures")
def failures(
    run: Argument[Path],
    cause: str | None = None,
    category: str | None = None,
    size: str | None = None,
    kind: str | None = None,
    image: int | None = None,
    top: Count = 20,
    picture: Path | None = None,
    data: Path | None = None,
    split: str | None = None,
    limit: Count | None = None,
    device: str = "auto",
) -> None:
    """List the errors of a detector that cost most, each with its reason; of one cause, class, size, kind or image.

    For example:
        msdetr failures runs/mine --cause background --picture annotated.png
        msdetr failures runs/mine --category person --size small --top 50

    Args:
        run: Run directory (its best checkpoint) or checkpoint directory.
        cause: never, lost, class, placed, outranked, rarely, switched, duplicate or background; see docs/inspect.md.
        category: The class of the object, or of a false detection, by name.
        size: small, medium or large, as COCO has it.
        kind: missed (an object), false (a detection) or low (a true detection with a low score).
        image: Image id.
        top: How many.
        picture: Draw the first nine into this file, by their scores where they are false detections of background.
        data: Folder with another data set; the run's own validation images by default.
        split: Its split.
        limit: Only so many images, the first; all by default.
        device: auto, cpu, cuda or cuda:N.
    """
    from ..analysis.budget import Cause, Kind
    from ..analysis.budget.run import RunScenes, measured
    from ..analysis.budget.scoring import SIZES
    from ..predictor import load
    from ..viz.budget import failure_figure
    from ..viz.budget_text import failure_text

    require_file(picture, "--picture")
    for option, value, known in (("--cause", cause, Cause), ("--kind", kind, Kind), ("--size", size, SIZES)):
        _require(option, value, known)
    scenes = RunScenes(load(run, device), data, split, limit, progress=True)
    names = scenes.predictor.class_names
    _require("--category", category, names)
    _require("--image", image, scenes.dataset.image_ids)
    budget, _ = measured(scenes, own_data=data is None and split is None)
    label = None if category is None else names.index(category)
    found = budget.failures_of(image, cause, label, kind, size)
    if cause == Cause.BACKGROUND:
        found = sorted(found, key=lambda one: -(one.score or 0.0))
    print(failure_text(budget, found, top))
    if picture is not None and found:
        save_figure(failure_figure(scenes.dataset, found, 9, budget), picture, dpi=130)
        print(f"\ndrawn: {picture}")


def _require(option: str, value: str | int | None, known: Iterable) -> None:
    """Raises ConfigError where a value is none of the known ones; without them all where they are many."""
    listed = [str(one) for one in known]
    if value is not None and str(value) not in listed:
        shown = ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
        raise ConfigError(f"{option}: {value!r} is none of {shown}")
