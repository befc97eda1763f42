"""A study: rows of cells that differ in nothing but the seed, their numbers, and how far they are from a reference row.

The same seed means the same images in the same order and, as far as the models allow, the same first weights, so rows are compared seed by seed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from msdetr.errors import RunError

from .cells import MEASURES, Cell, load_cells
from .runs import Statistic, experiment

Rows = Mapping[str, Sequence[Cell]]
PERCENT = ("AP", "AP50", "AP75")  # given in percent points
LEVEL, RESAMPLES = 0.95, 10_000


def read_rows(folder: str | Path, row: Callable[[Cell, str], str] | None = None) -> dict[str, list[Cell]]:
    """The cells of a study (see ``load_cells``) by the row that ``row(cell, name)`` puts each in, name being the cell's; by
    default what is left of the name without the seed and the words that all cells begin with, hyphens being spaces."""
    cells = load_cells(folder)
    words = {name: tuple(re.sub(r"-s\d+$", "", name).split("-")) for name in cells}
    different = set(words.values())
    shared = len(os.path.commonprefix([own[:-1] for own in different])) if len(different) > 1 else 0
    rows: dict[str, list[Cell]] = {}
    for name, cell in cells.items():
        key = " ".join(words[name][shared:]) if row is None else row(cell, name)
        rows.setdefault(key, []).append(cell)
    return rows


def varied(cells: Iterable[Cell], setting: str) -> list[dict[float, list[Cell]]]:
    """Cells that differ in nothing but a setting and the seed, together: for each such group its cells by the setting's value,
    a number, lowest first. Groups in the order of their first cells; cells without the setting are left out, and so are those of
    a seed with several results, as it is not known which of them is right."""
    groups: dict[str, dict[float, list[Cell]]] = {}
    for cell in cells:
        rest = experiment(cell.run_config())
        if rest.get(setting) is None:
            continue
        own = float(rest.pop(setting))
        found = groups.setdefault(json.dumps(rest, sort_keys=True, default=str), {}).setdefault(own, [])
        if cell not in found:  # the same result may be in two folders
            found.append(cell)
    kept = [{own: _once(found) for own, found in sorted(group.items())} for group in groups.values()]
    kept = [{own: found for own, found in group.items() if found} for group in kept]
    return [group for group in kept if group]


def _once(cells: Sequence[Cell]) -> list[Cell]:
    """The cells whose seed no other has."""
    seeds = [cell.seed for cell in cells]
    return [cell for cell in cells if seeds.count(cell.seed) == 1]


@dataclass(frozen=True)
class Difference:
    """A row minus the reference, seed by seed, for the seeds that both have.

    low, high: Student's 95 % interval of the mean over seeds. resampled: the percentile bootstrap's, which is too narrow for
    what it says while seeds are few (see ``bootstrap_interval``). None for fewer than two seeds.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float | None
    low: float | None
    high: float | None
    resampled: tuple[float, float] | None = None


def student_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's interval of the mean: of samples that are normal, however few, it holds the true mean in ``level`` of all cases.
    None for fewer than two."""
    if len(values) < 2:
        return None
    samples = np.asarray(values, dtype=np.float64)
    reach = float(stats.t.ppf((1 + level) / 2, len(samples) - 1) * stats.sem(samples))
    return float(samples.mean()) - reach, float(samples.mean()) + reach


def bootstrap_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean; the same numbers give the same interval. None for fewer than two.

    It assumes nothing of the values, but never reaches beyond them: of normal ones the 95 % interval holds the true mean in
    50, 75 and 84 of 100 cases with two, three and five.
    """
    if len(values) < 2:
        return None
    samples = np.asarray(values, dtype=np.float64)
    found = stats.bootstrap(
        (samples,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired_difference(cells: Sequence[Cell], reference: Sequence[Cell], measure: str) -> Difference:
    """``measure`` (of ``MEASURES``) of cells minus that of the reference's cells with the same seeds."""
    theirs = {cell.seed: cell.value(measure) for cell in reference}
    pairs = {c.seed: (c.value(measure), theirs[c.seed]) for c in cells if c.seed in theirs}
    known = {seed: a - b for seed, (a, b) in sorted(pairs.items()) if a is not None and b is not None}
    values = tuple(known.values())
    mean, (low, high) = float(np.mean(values)) if values else None, student_interval(values) or (None, None)
    return Difference(tuple(known), values, mean, low, high, bootstrap_interval(values))


def check_rows(rows: Rows) -> None:
    """Raises RunError where a row has a seed twice: that is one result, not two."""
    for name, cells in rows.items():
        seeds = [cell.seed for cell in cells]
        if len(set(seeds)) < len(seeds):
            raise RunError(f"{name}: a seed appears twice among {sorted(seeds)}; give each cell once")


def summary(
    rows: Rows, reference: str | None = None, measures: Sequence[str] = tuple(MEASURES)
) -> list[dict[str, Any]]:
    """One entry per row, JSON-ready: seeds, measures, learning curves, parameters, seconds, code, and what it is from the
    reference."""
    check_rows(rows)
    entries = []
    for name, cells in rows.items():
        entry: dict[str, Any] = {
            "name": name,
            "recipe": cells[0].config["recipe"],
            "seeds": [cell.seed for cell in cells],
            "measures": {m: Statistic.of(cell.value(m) for cell in cells).to_dict() for m in measures},
            "AP over epochs": [[(e["epoch"], e["AP"]) for e in cell.evaluations] for cell in cells],
            "parameters": cells[0].parameters,
            "seconds": [round(cell.seconds, 1) for cell in cells],
            "code": sorted({cell.code for cell in cells}),
        }
        if reference is not None and name != reference:
            entry["minus the reference"] = {m: asdict(paired_difference(cells, rows[reference], m)) for m in measures}
        entries.append(entry)
    return entries


def markdown_table(rows: Rows, reference: str | None = None, measures: Sequence[str] = tuple(MEASURES)) -> str:
    """The rows as a Markdown table: mean ± sample standard deviation over seeds, AP in percent points. With a reference also
    the difference in AP, seed by seed, and its intervals, Student's and the bootstrap's."""
    check_rows(rows)
    compared = reference is not None and len(rows) > 1
    heads = ["", "seeds", *measures, *([f"AP minus {reference}", "95 % interval", "bootstrap"] if compared else [])]
    lines = [" | ".join(heads), " | ".join(["---"] * len(heads))]
    for name, cells in rows.items():
        fields = [name, str(len(cells))]
        fields += [number(Statistic.of(cell.value(m) for cell in cells), m) for m in measures]
        if compared:
            fields += _difference(cells, rows[reference]) if name != reference else ["", "", ""]
        lines.append(" | ".join(field.replace("|", "\\|") for field in fields))
    return "".join(f"| {line} |\n" for line in lines)


def number(value: Statistic, measure: str) -> str:
    """ "31.2 ± 0.4": mean and, of several, sample standard deviation."""
    if value.mean is None:
        return "undefined"
    factor, digits = (100, 1) if measure in PERCENT else (1, 2 if measure == "over 0.75" else 3)
    text = f"{value.mean * factor:.{digits}f}"
    return text if value.std is None else f"{text} ± {value.std * factor:.{digits}f}"


def _difference(cells: Sequence[Cell], reference: Sequence[Cell]) -> list[str]:
    found = paired_difference(cells, reference, "AP")
    if found.mean is None:
        return ["no seed in common", "", ""]
    mean = f"{100 * found.mean:+.1f} ({len(found.values)})"
    if found.low is None or found.high is None or found.resampled is None:
        return [mean, "", ""]
    intervals = ((found.low, found.high), found.resampled)
    return [mean, *(f"{100 * low:+.1f} to {100 * high:+.1f}" for low, high in intervals)]
