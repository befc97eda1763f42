"""What a study found: tables, figures and numbers of the cells that are finished, however many that are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import files
from ..analysis.cells import Cell
from ..analysis.study import Rows, markdown_table, summary
from ..errors import RunError
from ..viz.study import CURVES, curve_figure, difference_figure, sets_figure, study_figure
from .study import Study, digests_once, kept


@dataclass(frozen=True)
class Section:
    """Rows that are compared with each other, on one data set. reference: the row that others are compared with."""

    title: str
    rows: Rows
    reference: str | None


def sections(study: Study, out: str | Path) -> list[Section]:
    """Finished cells, by what they are to be compared with: recipes under one change, changes of one recipe, or all of a
    data set where the study names no reference. Raises RunError where two cells of one data set had different labels."""
    found: dict[str, dict[str, list[Cell]]] = {}
    trained_on: dict[tuple[Any, ...], tuple[str, str]] = {}
    digests = digests_once()
    for planned in study.cells():
        cell = kept(planned, Path(out) / "cells", digests)
        if study.reference in study.recipes:
            row, kind = planned.recipe, planned.change
        elif study.reference is not None:
            row, kind = planned.change, planned.recipe
        else:
            row, kind = ", ".join(filter(None, (planned.recipe, planned.change))), ""
        title = ", ".join(filter(None, (planned.data, kind)))
        settings = planned.config.data
        for role, digest in cell.labels.items() if cell is not None else ():
            place = (role, planned.folder, settings.train_split, settings.val_split)
            first, other = trained_on.setdefault(place, (digest, planned.name))
            if first != digest:
                raise RunError(
                    f"{Path(out) / 'cells'}: {other} and {planned.name} were trained on different data of one name (labels of "
                    f"the {role} split differ); move those of one of them away"
                )
        if cell is not None:
            found.setdefault(title, {}).setdefault(row, []).append(cell)
    return [Section(title, rows, study.reference if study.reference in rows else None) for title, rows in found.items()]


def compared_twice(found: list[Section]) -> dict[str, dict[str, Rows]]:
    """The sections' rows by their titles, for every row that is compared with the reference in more than one of them."""
    compared: dict[str, dict[str, Rows]] = {}
    for section in found:
        for name in section.rows if section.reference is not None else ():
            if name != section.reference:
                compared.setdefault(name, {})[section.title] = section.rows
    return {name: rows for name, rows in compared.items() if len(rows) > 1}


def write_report(study: Study, out: str | Path) -> list[Path]:
    """Writes results.md, results.json and figures into the sweep's folder; nothing where no cell is finished. Raises WriteError."""
    out, written = Path(out), []
    text, content = [f"# {study.title}\n"], []
    found = sections(study, out)
    for name, sets in compared_twice(found).items():
        figure = out / f"{_stem(name)}-everywhere.png"
        files.save_figure(sets_figure(sets, name, study.reference, study.measures[:4]), figure, dpi=110)
        written.append(figure)
        text += [f"![{name} in all sections]({figure.name})\n"]
    for section in found:
        stem = _stem(section.title)
        figure = out / f"{stem}.png"
        files.save_figure(study_figure(section.rows, study.measures[:4]), figure, dpi=110)
        written.append(figure)
        text += [f"## {section.title}\n"] if section.title else []
        text += [markdown_table(section.rows, section.reference, study.measures), f"![results]({figure.name})\n"]
        if measures := [m for m in study.measures if m in CURVES]:
            figure = out / f"{stem}-curves.png"
            files.save_figure(curve_figure(section.rows, measures[0]), figure, dpi=110)
            written.append(figure)
            text += [f"![learning curves]({figure.name})\n"]
        if section.reference is not None and len(section.rows) > 1:
            figure = out / f"{stem}-differences.png"
            files.save_figure(difference_figure(section.rows, section.reference, study.measures[0]), figure, dpi=110)
            written.append(figure)
            text += [f"![differences]({figure.name})\n"]
        rows: list[dict[str, Any]] = summary(section.rows, section.reference, study.measures)
        content.append({"section": section.title, "reference": section.reference, "rows": rows})
    if not content:
        return []
    files.write_atomically(out / "results.md", "\n".join(text))
    files.write_json(out / "results.json", {"title": study.title, "sections": content})
    return [out / "results.md", out / "results.json", *written]


def _stem(title: str) -> str:
    return "-".join(filter(None, ("results", "".join(c if c.isalnum() else "-" for c in title))))
