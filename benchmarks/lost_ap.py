"""Where the points of a study go: the budget of lost AP of every run, and AP with duplicates suppressed.

    python benchmarks/lost_ap.py runs/photographs_bccd/runs [--output photographs_bccd_lost_ap]

RUNS: the run directories that `msdetr sweep` leaves beside its cells. Each finished run is measured once, at its last checkpoint,
which is what the study compares; runs that the result file has already are kept as they are, so the directories of earlier ones may be gone.
Suppression is class-wise, among the pairs of query and class. Writes results/OUTPUT.json and prints means over seeds and differences to
the first recipe, seed by seed.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import machine
import torch

from msdetr.analysis.budget.run import measure_budget
from msdetr.analysis.runs import read_run
from msdetr.engine.checkpoint import latest
from msdetr.errors import RunError

SUPPRESSED = "suppression at IoU 0.7"


def measured(run: Path) -> dict[str, Any]:
    """Recipe, seed, AP, points lost by cause, AP with suppression. Raises RunError where it is not finished."""
    config = read_run(run).config
    found, diagnosis = measure_budget(latest(run).directory, device="cpu")
    gain = next(remedy.gain for remedy in diagnosis.remedies if remedy.change == SUPPRESSED)
    return {
        "recipe": config.recipe,
        "seed": config.seed,
        "AP": found.ap,
        SUPPRESSED: found.ap + gain,
        "lost": {one.cause.title: one.share for one in found.whole.causes},
    }


def numbers(row: dict[str, Any]) -> dict[str, float]:
    return {"AP": row["AP"], "AP, " + SUPPRESSED: row[SUPPRESSED], **row["lost"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", default="photographs_bccd_lost_ap")
    options = parser.parse_args()
    path = machine.RESULTS / f"{options.output}.json"
    rows = {row["run"]: row for row in json.loads(path.read_text())["runs"]} if path.exists() else {}
    for run in sorted(options.runs.iterdir()):
        if run.name in rows:
            continue
        try:
            rows[run.name] = {"run": run.name, **measured(run)}
        except RunError as error:
            print(error)
            continue
        content = {"runs": [rows[name] for name in sorted(rows)]}
        machine.save(options.output, __doc__, torch.device("cpu"), argparse.Namespace(), content)
    recipes = defaultdict(dict)
    for name in sorted(rows):
        recipes[rows[name]["recipe"]][rows[name]["seed"]] = numbers(rows[name])
    first = next(iter(recipes))
    for recipe, seeds in recipes.items():
        shared = [] if recipe == first else [seed for seed in seeds if seed in recipes[first]]
        print(f"{recipe}, seeds {', '.join(map(str, seeds))}")
        for what in next(iter(seeds.values())):
            differences = ", ".join(f"{seeds[seed][what] - recipes[first][seed][what]:+.1f}" for seed in shared)
            print(f"  {what:34} {mean(one[what] for one in seeds.values()):5.1f}   {differences}")


if __name__ == "__main__":
    main()
