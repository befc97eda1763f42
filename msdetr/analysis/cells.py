"""Cells of a study: what is kept of a finished run, small enough to commit, once its directory is gone.

A cell is one configuration with one seed, trained and measured. Cells that differ in nothing but the seed are one row of a
study.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch

from msdetr import config as configuration
from msdetr import files
from msdetr.config import ConfigError, RunConfig
from msdetr.engine import location
from msdetr.engine.checkpoint import latest
from msdetr.errors import RunError
from msdetr.predictor import load

from .candidates import measure_run
from .runs import experiment, read_run

MEASURES = {
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "top-5 IoU": "mean IoU of the top 5",
    "over 0.75": "candidates over IoU 0.75",
    "duplicate gap": "duplicate gap",
}  # column of a table -> where a cell has it


@dataclass(frozen=True)
class Cell:
    """A finished run in a few kilobytes.

    config: the whole configuration, nested; of the data's place only the last folder. metrics: COCO's numbers in [0, 1] of the last evaluation. candidates: of the
    same weights, last decoder layer, see ``analysis.candidates``. evaluations: one entry per evaluation, with step and epoch.
    parameters: "training" and "inference". seconds: of training and its evaluations. code: the commit that trained it,
    with "+" where files were changed. labels: SHA-256 of those that trained ("train") and validated ("val"), as far as
    they are known.
    """

    config: dict[str, Any]
    seed: int
    metrics: dict[str, float | None]
    candidates: dict[str, float | int | None]
    evaluations: list[dict[str, Any]]
    parameters: dict[str, int]
    steps: int
    seconds: float
    device: str
    torch: str
    code: str
    date: str
    labels: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_run(cls, path: str | Path, device: str = "auto") -> Self:
        """Measures a finished run, at its last checkpoint. Raises RunError where it is not finished, and CheckpointError."""
        run = read_run(path)
        last = latest(path).directory
        detector = load(last, device).detector
        return cls(
            config=run.config.override({"data.root": Path(run.config.data.root).name}).to_dict(),
            seed=run.config.seed,
            metrics=run.results["metrics"],
            candidates=measure_run(last, device=device).result().summary(),
            evaluations=[{k: v for k, v in e.items() if k != "kind"} for e in run.results["evaluations"]],
            parameters={
                "training": run.results["parameters"]["total"],
                "inference": sum(p.numel() for p in detector.parameters()),
            },
            steps=run.results["steps"],
            seconds=run.results["seconds"],
            device=run.results["device"],
            torch=str(torch.__version__),
            code=code_version(),
            date=datetime.now(UTC).date().isoformat(),
            labels={role: digest for role, digest in location.digests(path).items() if digest},
        )

    def save(self, path: str | Path) -> None:
        """Writes it whole or not at all. Raises WriteError."""
        files.write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what ``save`` wrote. Raises RunError naming the file where it is something else."""
        found = files.read_json(path, RunError)
        names = {field.name for field in fields(cls)}
        if not isinstance(found, dict) or {"labels", *found} != names or not isinstance(found.get("labels", {}), dict):
            raise RunError(f"{path}: not a cell of a study; move this file away, and the cell is trained again")
        cell = cls(**found)
        try:
            cell.run_config()
        except ConfigError as error:
            raise RunError(f"{path}: its configuration cannot be read: {error}") from error
        return cell

    def run_config(self) -> RunConfig:
        """Its configuration; settings that are newer than the cell have their defaults. Raises ConfigError."""
        return configuration.from_dict(self.config)

    def differs_from(self, config: RunConfig) -> dict[str, tuple[Any, Any]]:
        """Settings in which it was trained otherwise: dotted path -> (its value, the value of ``config``). What repetitions
        may differ in does not count, the seed does; of the data's place the folder's name does."""
        ours, theirs = (experiment(one) | {"seed": one.seed} for one in (self.run_config(), config))
        return {path: (ours[path], theirs[path]) for path in theirs if ours[path] != theirs[path]}

    def value(self, measure: str) -> float | None:
        """One of ``MEASURES``, None where it is undefined."""
        found: Mapping[str, Any] = self.metrics | self.candidates
        return found.get(MEASURES[measure])


def load_cells(folder: str | Path) -> dict[str, Cell]:
    """The finished cells of a study by their names. folder: that ``msdetr sweep`` wrote, or its ``cells``; without cells
    there are none. Raises RunError naming a file that is no cell."""
    inside = Path(folder, "cells")
    files = sorted((inside if inside.is_dir() else Path(folder)).glob("*.json"))
    return {file.stem: Cell.load(file) for file in files}


def code_version() -> str:
    """The commit of this package's repository, "+" behind it where files of the package were changed; "" where there is
    no repository."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent.parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
