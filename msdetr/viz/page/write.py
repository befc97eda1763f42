"""``msdetr inspect RUN --html FILE``: the page of a run, or of two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdetr import files
from msdetr.analysis.budget import Budget, compare_budgets
from msdetr.analysis.budget.doctor import Diagnosis
from msdetr.analysis.budget.run import measure_budget
from msdetr.analysis.runs import title
from msdetr.analysis.specimen import Microscope, Specimen
from msdetr.analysis.stability import load_history
from msdetr.config import RunConfig
from msdetr.errors import ConfigError, RecordsError
from msdetr.viz.page.content import DETAILS, Detail
from msdetr.viz.page.html import page_html
from msdetr.viz.page.views import About, Key, View, films_of, page_content

LIMIT = 5_000_000  # bytes
FAILURES = 20  # that travel with the page, of an image on average


@dataclass(frozen=True)
class Page:
    """A page that was written. exact: its matching equals the package's to the last bit; see ``Detail``."""

    path: Path
    bytes: int
    images: int
    detail: Detail

    @property
    def exact(self) -> bool:
        return self.detail.exact


def write_page(
    path: str | Path,
    runs: Sequence[str | Path],
    images: int | Sequence[int | str | Path] = 24,
    measured: Sequence[tuple[Budget, Diagnosis]] | None = None,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    device: str = "auto",
    limit: int | None = None,
    text: Sequence[str] = (),
    most_bytes: int = LIMIT,
) -> Page:
    """Writes the page of one run, or of two, to a file.

    runs: run or checkpoint directories. images: how many, those with the most lost AP; or which, by id or file name.
    measured: what ``measure_budget`` gives for each run; measured here by default, with ``limit`` on so many images only.
    data, split: another data set than the runs' validation images. text: lines at the page's foot, as an attribution of
    the images. most_bytes: predictions travel in 32 bits where they fit, else in 16, pictures and recorded trainings as
    large as fit.

    Raises ConfigError for runs of different classes or images that do not fit, and what reading runs and data sets raises.
    """
    if not 1 <= len(runs) <= 2:
        raise ConfigError(f"page: shows one run or two side by side, not {len(runs)}")
    scopes = [Microscope(run, data, split, device) for run in runs]
    dataset = scopes[0].dataset
    for run, scope in zip(runs, scopes, strict=True):
        if tuple(scope.class_names) != tuple(scopes[0].class_names):
            raise ConfigError(f"{run}: was trained on other classes than {runs[0]}; give two runs on the same data")
        if list(scope.dataset.image_ids) != list(dataset.image_ids):
            raise ConfigError(f"{run}: validates on other images than {runs[0]}; name a data set for both with --data")
    if measured is None:
        measured = [measure_budget(run, data, split, limit, device) for run in runs]
    budgets = [budget for budget, _ in measured]
    films = [_films(Path(run), scope.config) for run, scope in zip(runs, scopes, strict=True)]
    order = _worst(budgets, images, films) if isinstance(images, int) else [_id(scopes[0], own) for own in images]
    titles = _titles(runs, scopes)
    views = [
        _view(scope, name, order, film, *found)
        for scope, name, film, found in zip(scopes, titles, films, measured, strict=True)
    ]
    comparison = _comparison(budgets, titles, order) if len(budgets) == 2 else None
    about = About(tuple(text), f"{_name(dataset)}, {budgets[0].num_images} images", budgets[0].num_images)
    for detail in DETAILS:
        page = page_html(page_content(views, order, detail, about, comparison), f"{' and '.join(titles)}: inspection")
        size = len(files.encode(page))
        if size <= most_bytes:
            files.write_atomically(Path(path), page)
            return Page(Path(path), size, len(order), detail)
    raise ConfigError(
        f"page: {len(order)} images take {size / 1e6:.1f} MB even with little detail, more than {most_bytes / 1e6:g} MB; "
        "ask for fewer images, or allow more"
    )


Films = dict[Key, list[tuple[int, Specimen]]]


def _worst(budgets: Sequence[Budget], number: int, films: Sequence[Films]) -> list[int]:
    """Ids of the images with the most lost AP, of both runs together; a sixth of the places, those at the end, go to images
    whose training was recorded."""
    if number < 1:
        raise ConfigError(f"images: at least one, not {number}")
    lost: dict[int, float] = {}
    for budget in budgets:
        for image in budget.images:
            lost[image.image_id] = lost.get(image.image_id, 0.0) + image.lost_ap
    order = sorted(lost, key=lambda image_id: -lost[image_id])
    recorded = [image_id for image_id in order if any(image_id in film for film in films)][: -(-number // 6)]
    if number == 1:
        return order[:1]
    kept = [image_id for image_id in order if image_id not in recorded][: number - len(recorded)]
    return [*kept, *recorded]


def _id(scope: Microscope, image: int | str | Path) -> int:
    return scope.dataset.image_ids[scope.index(image)]


def _name(dataset: Any) -> str:
    """What a data set's folder is called, and its split."""
    folder = dataset.path(0).parent
    return f"{folder.parent.name}/{folder.name}"


def _view(
    scope: Microscope, name: str, order: Sequence[int], films: Films, budget: Budget, diagnosis: Diagnosis
) -> View:
    own = budget.to_json(failures=FAILURES * len(order), image_ids=order)
    own["images"] = [image for image in own["images"] if image["image_id"] in set(order)]
    own["remedies"] = diagnosis.to_json()["remedies"]
    looks = {image: scope.look(image) for image in order}
    return View(name, looks, {i: films[i] for i in order if i in films}, own, scope.config.train.max_detections)


def _comparison(budgets: Sequence[Budget], titles: Sequence[str], order: Sequence[int]) -> dict[str, Any]:
    found = compare_budgets(budgets[0], budgets[1], (titles[0], titles[1])).to_json()
    return found | {"objects": [one for one in found["objects"] if one["image_id"] in set(order)]}


def _films(run: Path, config: RunConfig) -> Films:
    """The recorded training of a run directory; nothing where none was recorded."""
    try:
        history = load_history(run)
    except RecordsError:
        return {}
    return films_of(history, config) if history.states else {}


def _titles(runs: Sequence[str | Path], scopes: Sequence[Microscope]) -> list[str]:
    """Names of runs for people: the method, or the folder where the methods are alike, or both for a run alone."""
    methods = [title(scope.config) for scope in scopes]
    names = [Path(run).resolve().name for run in runs]
    if len(runs) == 1:
        return [f"{names[0]} · {methods[0]}"]
    return next((given for given in (methods, names) if len(set(given)) == len(given)), list(map(str, runs)))
