"""What the page is made from: runs, the images they looked at, recorded trainings and budgets of lost AP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from msdetr.analysis.specimen import Specimen, recorded
from msdetr.analysis.stability import MatchHistory
from msdetr.config import RunConfig
from msdetr.errors import InputError
from msdetr.viz.page.content import FORMAT, Detail, frame_content, id_text, image_content, rules_content

Key = int | str  # what tells images apart: an image id, or a name


@dataclass(frozen=True)
class View:
    """A run on the images of a page.

    specimens: image → what its checkpoint predicts. films: image → (step, what was predicted then) of a recorded training,
    by ascending step. budget: what ``Budget.to_json`` gives. max_detections: of an image, as evaluated.
    """

    title: str
    specimens: Mapping[Key, Specimen] = field(default_factory=dict)
    films: Mapping[Key, Sequence[tuple[int, Specimen]]] = field(default_factory=dict)
    budget: dict[str, Any] | None = None
    max_detections: int = 100

    def any_specimen(self) -> Specimen:
        """Raises InputError where there is none."""
        for specimen in self.specimens.values():
            return specimen
        for film in self.films.values():
            return film[-1][1]
        raise InputError(f"page: {self.title} has no image to show")


def films_of(history: MatchHistory, config: RunConfig | None = None) -> dict[Key, list[tuple[int, Specimen]]]:
    """The images that a recorded training keeps predictions of, as films. config: the run's, by whose matchers and
    post-processing they are explained; by default the one that was recorded, of before version 0.2 the matching rules alone."""
    ids = history.targets.image_ids or tuple(range(history.targets.num_images))

    def film(image: int) -> list[tuple[int, Specimen]]:
        moments = [recorded(history, i, image) for i in range(len(history.states))]
        return [(int(step), replace(one, config=config or one.config)) for step, one in zip(history.steps, moments)]

    return {ids[image]: film(image) for image in range(len(history.pictures))}


@dataclass(frozen=True)
class About:
    """What the page says of itself. text: lines at its foot, as where the images come from. data: what the data set is called.
    images: how many it has."""

    text: tuple[str, ...] = ()
    data: str = ""
    images: int = 0


def page_content(
    views: Sequence[View],
    images: Sequence[Key],
    detail: Detail,
    about: About = About(),
    comparison: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that a page shows, as JSON values. Raises InputError where there is no image to show.

    images: in what order. comparison: of two runs, what ``Comparison.to_json`` gives.
    """
    shown = [content for key in images if (content := _image(views, key, detail)) is not None]
    if not shown:
        raise InputError("page: there is no image to show; give at least one")
    names: Sequence[str] = max((view.any_specimen().class_names for view in views), key=len)
    return {
        "format": FORMAT,
        "classes": list(names),
        "about": {"text": list(about.text), "data": about.data, "images": max(about.images, len(shown))},
        "comparison": comparison and _ids_as_text(comparison, "objects"),
        "runs": [_run(view) for view in views],
        "images": shown,
    }


def _run(view: View) -> dict[str, Any]:
    some = view.any_specimen()
    best = [float(s.output.one_to_one.logits[-1].sigmoid().max()) for s in view.specimens.values()] or [1.0]
    return {
        "title": view.title,
        "layers": len(some.output.one_to_one.logits),
        "least": round(min(0.5, max(float(np.median(best)) / 2, 0.02)), 2),
        "budget": view.budget and _ids_as_text(view.budget, "images", "failures"),
        **rules_content(some),
    }


def _ids_as_text(report: Mapping[str, Any], *lists: str) -> dict[str, Any]:
    """A report with the image ids of some of its lists as ``id_text``."""
    return {**report} | {
        name: [entry | {"image_id": id_text(entry["image_id"])} for entry in report[name]] for name in lists
    }


def _image(views: Sequence[View], key: Key, detail: Detail) -> dict[str, Any] | None:
    """An image with what every run says of it; None where no run looked at it."""
    own = [view.specimens.get(key) or next((s for _, s in reversed(view.films.get(key, ()))), None) for view in views]
    first = next((specimen for specimen in own if specimen is not None), None)
    if first is None:
        return None
    entries = []
    for view in views:
        specimen = view.specimens.get(key)
        film = _thinned([entry for entry in view.films.get(key, ()) if _same_objects(entry[1], first)], detail.frames)
        if specimen is None and not film:
            entries.append(None)
            continue
        frame = None if specimen is None else frame_content(specimen, detail, view.max_detections)
        coarse = Detail(exact=False, points=0)
        frames = [{"step": step} | frame_content(moment, coarse, view.max_detections) for step, moment in film]
        entries.append({"frame": frame, "film": frames})
    return image_content(first, detail) | {"views": entries}


def _thinned(film: Sequence[Any], most: int) -> list[Any]:
    """At most so many entries, evenly spread, the first and the last among them."""
    if len(film) <= most:
        return list(film)
    return [film[i] for i in np.unique(np.linspace(0, len(film) - 1, most).round().astype(int))]


def _same_objects(one: Specimen, other: Specimen) -> bool:
    """Whether two looks are at the same annotated image."""
    a, b = one.targets, other.targets
    return len(a) == len(b) and bool((a.labels == b.labels).all()) and np.allclose(a.boxes, b.boxes, atol=1e-3)
