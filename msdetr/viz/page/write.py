"""``msdetr inspect RUN --html FILE``: the page of a run, or of two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msdetr import files
from msdetr.analysis.runs import title
from msdetr.analysis.specimen import Microscope
from msdetr.analysis.stability import load_history
from msdetr.errors import ConfigError, RecordsError
from msdetr.viz.page.content import DETAILS, Detail
from msdetr.viz.page.html import page_html
from msdetr.viz.page.views import Key, View, films_of, page_content

LIMIT = 5_000_000  # bytes


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
    *,
    data: str | Path | None = None,
    split: str | None = None,
    device: str = "auto",
    text: Sequence[str] = (),
    limit: int = LIMIT,
) -> Page:
    """Writes the page of one run, or of two, to a file.

    runs: run or checkpoint directories. images: how many, those with the most lost AP; or which, by id or file name. data, split: another
    data set than the first run's validation images. text: lines at the page's foot, as an attribution of the images. limit: bytes; predictions
    travel in 32 bits where they fit, else in 16, pictures and recorded trainings as large as fit.

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
    order = _chosen(scopes, images)
    views = [
        _view(scope, run, name, order) for scope, run, name in zip(scopes, runs, _titles(runs, scopes), strict=True)
    ]
    names = f"{dataset.path(0).parent.name}, {len(dataset)} images"
    for detail in DETAILS:
        page = page_html(page_content(views, order, detail, text, names, len(dataset)), f"{views[0].title}: inspection")
        size = len(page.encode())
        if size <= limit:
            files.write_atomically(Path(path), page)
            return Page(Path(path), size, len(order), detail)
    raise ConfigError(
        f"page: {len(order)} images take {size / 1e6:.1f} MB even with little detail, more than {limit / 1e6:g} MB; "
        "ask for fewer images, or allow more"
    )


def _chosen(scopes: Sequence[Microscope], images: int | Sequence[int | str | Path]) -> list[int]:
    """Ids of the images to show, in the order of the page."""
    dataset = scopes[0].dataset
    if not isinstance(images, int):
        return [dataset.image_ids[scopes[0].index(image)] for image in images]
    if images < 1:
        raise ConfigError(f"images: at least one, not {images}")
    return list(dataset.image_ids[:images])


def _view(scope: Microscope, run: str | Path, name: str, order: Sequence[int]) -> View:
    return View(
        name,
        {image: scope.look(image) for image in order},
        _films(Path(run)),
        max_detections=scope.config.train.max_detections,
    )


def _films(run: Path) -> dict[Key, list[tuple[int, Any]]]:
    """The recorded training of a run directory; nothing where none was recorded."""
    try:
        history = load_history(run)
    except RecordsError:
        return {}
    return films_of(history) if history.states else {}


def _titles(runs: Sequence[str | Path], scopes: Sequence[Microscope]) -> list[str]:
    """Names of runs for people: the folder and the method, or the path where two folders are called the same."""
    names = [Path(run).resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return [f"{name} · {title(scope.config)}" for name, scope in zip(names, scopes, strict=True)]
