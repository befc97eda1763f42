"""Run directories as data: reading them, grouping seeds, and comparing groups.

A run directory holds config.yaml, metrics.jsonl and results.json (see ``msdetr.engine``). Runs on one data set that differ in
nothing but the seed, and in settings that do not change what is computed, are one group.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from msdetr import config as configuration
from msdetr import files
from msdetr.config import RunConfig
from msdetr.engine import location
from msdetr.engine.run import read_results
from msdetr.errors import CheckpointError, RunError
from msdetr.methods import variant_of

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
FIELD = {
    "dab": "DAB-DETR",
    "hybrid": "H-DETR",
    "group": "Group DETR",
    "lw_detr": "LW-DETR",
    "deta": "DETA",
    "stable": "Stable-DINO",
    "mr_detr": "Mr.DETR",
}  # what methods are called in the literature, by their sections; denoising is DN-DETR's or DINO's


@dataclass(frozen=True)
class Run:
    """One run. steps: the "train" lines of metrics.jsonl; evaluations: its "eval" lines; results: results.json. label: what it
    is called where the name of its directory does not tell it from others (see ``read_runs``)."""

    path: Path
    config: RunConfig
    results: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or self.path.resolve().name

    @property
    def finished(self) -> bool:
        return self.results.get("status") == "finished"

    def metric(self, name: str) -> float | None:
        """A final number ("AP", "AP50", ...), None where it is undefined."""
        value = self.results.get("metrics", {}).get(name)
        return None if value is None else float(value)


@dataclass(frozen=True)
class Statistic:
    """A number over the runs of a group: those that define it, their mean and sample standard deviation (None for
    fewer than two), and how many runs leave it undefined."""

    values: tuple[float, ...]
    undefined: int = 0

    @property
    def mean(self) -> float | None:
        return float(np.mean(self.values)) if self.values else None

    @property
    def std(self) -> float | None:
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "values": list(self.values), "undefined": self.undefined}

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic:
        values = list(values)
        kept = tuple(float(v) for v in values if v is not None)
        return cls(kept, len(values) - len(kept))


@dataclass(frozen=True)
class Row:
    """A group in the comparison: COCO metrics in [0, 1], parameters in total, training time in seconds."""

    name: str
    seeds: tuple[int, ...]
    metrics: dict[str, Statistic]
    parameters: int | None
    seconds: Statistic
    steps: int | None
    device: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seeds": list(self.seeds),
            "metrics": {name: value.to_dict() for name, value in self.metrics.items()},
            "parameters": self.parameters,
            "training_seconds": self.seconds.to_dict(),
            "steps": self.steps,
            "device": self.device,
        }


def read_run(path: str | Path, finished: bool = True) -> Run:
    """Reads a run directory. ``finished``: insist on a run that came to its end.

    Raises RunError where there is no run, a file is damaged, or the run is unfinished.
    """
    path = Path(path)
    if not (path / "config.yaml").exists():
        raise RunError(f"{path}: no run here (config.yaml is missing); give a directory that `msdetr train` wrote")
    try:
        config = configuration.load(path / "config.yaml")
        results = read_results(path)
    except (configuration.ConfigError, CheckpointError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from error
    lines = _lines(path / "metrics.jsonl")
    run = Run(
        path,
        config,
        results,
        steps=[line for line in lines if line.get("kind") == "train"],
        evaluations=[line for line in lines if line.get("kind") == "eval"],
    )
    if finished and not run.finished:
        status = results.get("status", "unknown")
        raise RunError(f"{path}: this run is not finished (status: {status}); resume it, or leave it out")
    return run


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. The last may be cut off while a run goes on; a damaged one before it is an error."""
    if not path.exists():
        return []
    lines = files.read_bytes(path, RunError).splitlines()
    values = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            value = files.parse_json(line, where, RunError, own=False)  # NaN is for health to report
        except RunError:
            if number < len(lines):
                raise
            continue
        values.append(_line(value, where))
    return values


def _line(value: Any, where: str) -> dict[str, Any]:
    """A line of metrics.jsonl, once its kind and numbers are what they should be. Raises RunError."""
    if not isinstance(value, dict):
        raise RunError(f"{where}: is a {type(value).__name__}, not an object")
    step, epoch = value.get("step", 0), value.get("epoch", 0.0)
    if type(step) is not int or not 0 <= step < 2**63:
        raise RunError(f"{where}: step is {str(step)[:80]!r}, not a whole number")
    if type(epoch) not in (int, float) or not 0 <= epoch < 2**63:
        raise RunError(f"{where}: epoch is {str(epoch)[:80]!r}, not a number")
    numbers = ("loss", "grad_norm") if value.get("kind") == "train" else ("AP",) if value.get("kind") == "eval" else ()
    for name in numbers:
        if type(value.get(name)) not in (int, float, type(None)):
            raise RunError(f"{where}: {name} is {str(value[name])[:80]!r}, not a number")
    return value


def read_runs(paths: Sequence[str | Path], finished: bool = True) -> list[Run]:
    """Several run directories; a directory twice is an error, and so is no directory at all.

    Their names are those of the directories, or, where these are not all different, the shortest ends of their paths that are:
    "base-seed0" and "ms-seed0".
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    if not paths:
        raise RunError("no run directories given")
    resolved = [Path(path).resolve() for path in paths]
    for i, path in enumerate(resolved):
        if path in resolved[:i]:
            raise RunError(f"{paths[i]}: given twice; each run counts once")
    return [replace(read_run(path, finished), label=label) for path, label in zip(paths, _labels(paths), strict=True)]


def _labels(paths: Sequence[str | Path]) -> list[str]:
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    for length in range(1, max(map(len, parts))):
        labels = ["-".join(own[-length:]) for own in parts]
        if len(set(labels)) == len(labels):
            return labels
    return ["-".join(own[1:]) for own in parts]


def find_runs(runs: str | Path | Sequence[str | Path] = "runs", finished: bool = True) -> list[Path]:
    """Run directories from what a notebook or a person gives: a directory, several, or text with spaces between them.

    A folder that holds runs stands for the finished ones among them; with ``finished=False`` those follow that have a
    checkpoint, though they are still going or were stopped. Raises RunError where nothing is found.
    """
    if isinstance(runs, str):
        runs = [runs] if Path(runs).is_dir() else runs.split()
    elif isinstance(runs, Path):
        runs = [runs]
    if not isinstance(runs, Sequence) or not all(isinstance(path, str | Path) for path in runs):
        raise RunError(f"runs: expected run directories, got {runs!r}")
    found: list[Path] = []
    for path in map(Path, runs):
        if not path.is_dir():
            raise RunError(f"{path.absolute()}: there is no such run directory; train one first (notebook 05)")
        if (path / "config.yaml").exists():
            found.append(path)
            continue
        inside = [read_run(folder.parent, finished=False) for folder in sorted(path.glob("*/config.yaml"))]
        usable = [run.path for run in inside if run.finished]
        if not finished:
            going = [run.path for run in inside if not run.finished]
            usable += [path for path in going if any((path / "checkpoints").glob("step_*"))]
        if not usable:
            what = "finished runs" if finished else "runs that have a checkpoint"
            raise RunError(f"{path.absolute()}: neither a run nor a folder with {what}; train one first (notebook 05)")
        found += usable
    return found


def open_folder(path: str | Path) -> Path:
    """A folder to write results into, made where it is missing. Raises RunError where it cannot be written."""
    if not isinstance(path, str | Path) or str(path) == "":
        raise RunError(f"output: expected a folder, got {path!r}")
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error}); give another output folder") from error
    return path


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by configuration and data set, seeds together, in order of appearance; the names say what differs. Data sets are
    told apart by their folders' names, and by the labels that runs validated on.

    Raises RunError where two runs of a group have the same seed: they are one result, not two.
    """
    groups: dict[str, list[Run]] = {}
    for run, settings in zip(runs, _settings(runs), strict=True):
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    for members in groups.values():
        for i, run in enumerate(members):
            for other in members[:i]:
                if run.config.seed == other.config.seed:
                    raise RunError(f"{other.path} and {run.path}: same configuration and seed; give one of them")
    return dict(zip(_names([members[0] for members in groups.values()]), groups.values(), strict=True))


def title(config: RunConfig) -> str:
    """The methods that are on, as the literature calls them: 'DETA', 'MS-DETR (c)', 'DINO + MS-DETR (c)'; without any,
    'Deformable DETR++' or 'Deformable DETR'."""
    variant, two_stage = variant_of(config), config.two_stage
    base = {"two_stage", "ms_detr"}
    names = {s: FIELD.get(s, s) for s in configuration.registered_sections() if s in config.methods and s not in base}
    if "denoising" in names:
        names["denoising"] = "DINO" if config.methods["denoising"].contrastive else "DN-DETR"
    for method, part in (("stable", "denoising"), ("denoising", "dab")):  # which the one is published with
        if method in names and part in names:
            del names[part]
    if variant != "baseline":
        names["ms_detr"] = f"MS-DETR ({variant})"
    plus = two_stage is not None and two_stage.mixed_selection and config.model.look_forward_twice
    return " + ".join(names.values()) or f"Deformable DETR{'++' if plus else ''}"


def differences(groups: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, Any]]:
    """Settings in which groups differ: dotted path -> {group name: value}, or a section that is on
    in some of them -> {group name: whether it is}. What a fair comparison must show."""
    settings = dict(zip(groups, _settings([members[0] for members in groups.values()]), strict=True))
    paths = next(iter(settings.values()), {})
    switched = {
        section: on
        for section in configuration.registered_sections()
        if len(set((on := {name: section in members[0].config.methods for name, members in groups.items()}).values()))
        > 1
    }
    return switched | {
        path: {name: values[path] for name, values in settings.items()}
        for path in paths
        if path.partition(".")[0] not in switched and len({repr(values[path]) for values in settings.values()}) > 1
    }


def compare(groups: Mapping[str, Sequence[Run]], metrics: Sequence[str] = METRICS) -> list[Row]:
    """One row per group: metrics, parameters and training time over its runs."""
    rows = []
    for name, members in groups.items():
        results = [run.results for run in members]
        rows.append(
            Row(
                name,
                seeds=tuple(run.config.seed for run in members),
                metrics={metric: Statistic.of(run.metric(metric) for run in members) for metric in metrics},
                parameters=results[0].get("parameters", {}).get("total"),
                seconds=Statistic.of(result.get("seconds") for result in results),
                steps=results[0].get("steps"),
                device=" / ".join(sorted({str(result.get("device", "?")) for result in results})),
            )
        )
    return rows


def markdown_table(rows: Sequence[Row]) -> str:
    """The comparison as a Markdown table; AP in percent points, mean ± sample standard deviation over seeds."""
    names = list(rows[0].metrics) if rows else []
    lines = [
        "| model | runs | " + " | ".join(names) + " | parameters (M) | training time (min) |",
        "|---|---|" + "---|" * (len(names) + 2),
    ]
    for row in rows:
        cells = [_cell(row.metrics[name], 100, 1) for name in names]
        parameters = "–" if row.parameters is None else f"{row.parameters / 1e6:.2f}"
        label = row.name.replace("|", "\\|")
        lines.append(
            f"| {label} | {len(row.seeds)} | "
            + " | ".join(cells)
            + f" | {parameters} | {_cell(row.seconds, 1 / 60, 1)} |"
        )
    return "\n".join(lines) + "\n"


def learning_curves(
    members: Sequence[Run], metric: str = "AP", kind: str = "evaluations", at: str = "epoch"
) -> tuple[np.ndarray, np.ndarray]:
    """(x [n], values [runs, n]) of a group, at the points that all its runs have.

    kind: "evaluations" (metric "AP", ...) or "steps" (metric "loss", "grad_norm", ...). at: "epoch" or "step".
    """
    curves = []
    for run in members:
        records = getattr(run, kind)
        curves.append({round(float(r[at]), 6): r[metric] for r in records if r.get(metric) is not None})
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    return np.array(common), np.array([[curve[x] for x in common] for curve in curves], dtype=np.float64)


def _cell(value: Statistic, factor: float, digits: int) -> str:
    if value.mean is None:
        return "undefined"
    text = f"{value.mean * factor:.{digits}f}"
    return text if value.std is None else f"{text} ± {value.std * factor:.{digits}f}"


def experiment(config: RunConfig) -> dict[str, Any]:
    """Dotted path -> value, without what repetitions of one experiment may differ in. Of the data's place the folder's name:
    the same data may lie elsewhere, other data is another experiment."""
    harmless = configuration.harmless_in_comparison()
    values = {path: value for path, value in configuration.flatten(config).items() if path not in harmless}
    return values | {"data.root": Path(config.data.root).name}


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """``experiment`` of each run; where data sets with different labels have the same name, with the first digits of their
    digests behind it."""
    settings = [experiment(run.config) for run in runs]
    data = [(own["data.root"], location.digests(run.path)) for run, own in zip(runs, settings, strict=True)]
    for own, (name, digests) in zip(settings, data, strict=True):
        alike = [other for other_name, other in data if other_name == name]
        if told := [d[:8] for role, d in digests.items() if d and len({other[role] for other in alike} - {""}) > 1]:
            own["data.root"] = f"{name} ({', '.join(told)})"
    return settings


def _names(runs: Sequence[Run]) -> list[str]:
    """A title for each, told apart by the methods and settings in which runs of the same title differ; a value that most of all
    the runs have goes without saying."""
    titles = [title(run.config) for run in runs]
    settings = [_told(run.config, own) for run, own in zip(runs, _settings(runs), strict=True)]
    names = []
    for own, mine in zip(titles, settings, strict=True):
        alike = [other for other, name in zip(settings, titles, strict=True) if name == own]
        differs = [p for p in mine if any(p in other and other[p] != mine[p] for other in alike)]
        told = [
            p for p in differs if 2 * sum(p in other and other[p] == mine[p] for other in settings) <= len(settings)
        ]
        names.append(", ".join([own, *(mine[path] for path in told)]))
    return names


def _told(config: RunConfig, settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings in words, by their paths; of a section that is off, that it is."""
    sections = configuration.registered_sections()
    off = [section for section in sections if section not in config.methods]
    words = {section: f"no {section}" if section in off else section for section in sections}
    names = {path: "data" if path == "data.root" else path.split(".")[-1] for path in settings}
    return words | {path: f"{names[path]} {value}" for path, value in settings.items() if path.split(".")[0] not in off}
