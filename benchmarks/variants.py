"""The baseline and the variants (a) to (d) on the embedded data set, over several seeds.

    python benchmarks/variants.py [--runs runs/variants] [--data data/shapes] [--seeds 0 1 2] [--device auto]

Trains what is not there yet (about six minutes a run on one core; run it several times side by side if you like), then writes
results/variants.json, results/variants.md and the README's figures under docs/figures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import machine

from msdetr import recipes
from msdetr.analysis.candidates import CandidateQuality, measure_run
from msdetr.analysis.runs import Run, compare, group_runs, markdown_table, read_runs
from msdetr.engine import train
from msdetr.viz.candidates import candidate_figure
from msdetr.viz.runs import comparison_figure, learning_curve_figure

RECIPES = ["baseline", "ms-detr-a", "ms-detr-b", "ms-detr-c", "ms-detr-d", "ms-detr-c-released"]
FIGURES = Path(__file__).parent.parent / "docs" / "figures"


def trained(options: argparse.Namespace) -> list[Run]:
    """The runs of all recipes and seeds, trained where they are missing; with --only-finished, those that are there."""
    folders = []
    for seed in options.seeds:
        for name in RECIPES:
            folder = Path(options.runs) / f"{name}-s{seed}"
            if not options.only_finished:
                config = recipes.get(f"shapes/{name}").override({"seed": seed, "data.root": options.data})
                train(config, folder, device=options.device)
            results = folder / "results.json"
            if results.exists() and json.loads(results.read_text())["status"] == "finished":
                folders.append(folder)
    return read_runs(folders)


def candidates(run: Run, device: str) -> CandidateQuality:
    """Candidate quality of a run, measured once and kept beside it."""
    path = run.path / "candidates.json"
    if not path.exists():
        measure_run(run.path, device=device).save(path)
    return CandidateQuality.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs/variants")
    parser.add_argument("--data", default="data/shapes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only-finished", action="store_true", help="train nothing; use the runs that are there")
    options = parser.parse_args()
    groups = group_runs(trained(options))
    rows = compare(groups)
    tables = {name: [candidates(run, options.device).result() for run in members] for name, members in groups.items()}
    result = {
        "protocol": "COCO bbox on 500 generated images, 100 detections; candidates from the last layer's one-to-one boxes",
        "groups": [
            row.to_dict()
            | {
                "recipe": groups[row.name][0].config.recipe,
                "mean IoU of the top 5": [float(t.mean_iou[-1, 4]) for t in tables[row.name]],
                "candidates over IoU 0.75": [
                    float(t.above[-1, (abs(t.thresholds - 0.75)).argmin()]) for t in tables[row.name]
                ],
                "curve": [[(e["epoch"], e["AP"]) for e in run.evaluations] for run in groups[row.name]],
            }
            for row in rows
        ],
    }
    path = machine.save("variants", __doc__, "cpu", argparse.Namespace(seeds=options.seeds), result)
    table = markdown_table(rows)
    path.with_suffix(".md").write_text(table)
    FIGURES.mkdir(parents=True, exist_ok=True)
    paper = {
        name: tables[name]
        for name in tables
        if groups[name][0].config.recipe in ("shapes/baseline", "shapes/ms-detr-c")
    }
    candidate_figure(paper).savefig(FIGURES / "candidate_quality.png", dpi=110)
    comparison_figure(groups, ("AP", "AP50", "AP75")).savefig(FIGURES / "variants.png", dpi=110)
    learning_curve_figure(groups, ("AP",)).savefig(FIGURES / "learning_curves.png", dpi=110)
    print(table)
    for group in result["groups"]:
        print(
            group["recipe"], "top-5 IoU", group["mean IoU of the top 5"], "over 0.75", group["candidates over IoU 0.75"]
        )


if __name__ == "__main__":
    main()
