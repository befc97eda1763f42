"""The family of one-to-many methods: what a training step of each costs, and what MS-DETR (c) adds to each.

    msdetr sweep benchmarks/studies/family.yaml --out benchmarks/results/family
    python benchmarks/family.py cost [--repeats 7] [--data data/shapes] [--clock processor]
    python benchmarks/family.py report

The study trains them. cost: a training step of every method beside the baseline's, on the same eight images in one run, as
results/family_cost.json; with a clock of "processor" the processor time of the process, for a machine that is never idle.
report: results/family.json, with the differences that MS-DETR (c) makes, and docs/figures/family.png, from the study's cells that are there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import machine
import torch

from msdetr import recipes
from msdetr.analysis.ladder import WITH_MS_DETR, ladder_recipes, ladder_results
from msdetr.analysis.study import markdown_table, summary
from msdetr.data import build_dataset, build_train_loader
from msdetr.methods import build_criterion, build_detector
from msdetr.structures import ImageBatch, Targets
from msdetr.viz.study import study_figure

Batch = tuple[ImageBatch, Targets]
OWN = {"Stable-DINO + MS-DETR (c), fading": "shapes/stable-dino-ms-c-fading"}  # see studies/moonshot.yaml
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "family.png"


def eight_images(data: str) -> Batch:
    """The first batch of the training images."""
    config = recipes.get(next(iter(ladder_recipes().values()))).override({"data.root": data})
    return next(iter(build_train_loader(build_dataset(config, "train"), config)))[0]


def training_step(recipe: str, batch: Batch, device: torch.device) -> Callable[[], None]:
    """Forward, losses and backward."""
    torch.manual_seed(0)
    config = recipes.get(recipe)
    detector, criterion = build_detector(config).to(device).train(), build_criterion(config)
    images, targets = (part.to(device) for part in batch)

    def step() -> None:
        criterion(detector(images, targets), targets).total.backward()
        detector.zero_grad(set_to_none=True)

    return step


def peak_memory(recipe: str, batch: Batch, device: torch.device) -> float:
    """MiB that a training step takes at most, beyond what was there before it. In a process of its own: memory that was
    freed is not always given back."""
    torch.set_num_threads(1)
    step = training_step(recipe, batch, device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # what was there at most, e.g. while importing, is forgotten
    before = _resident("VmRSS")
    step()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """Memory of this process in MiB, now (VmRSS) or at most (VmHWM). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 2**10


def parameters(recipe: str) -> dict[str, int]:
    detector, stripped = build_detector(recipes.get(recipe)), build_detector(recipes.get(recipe))
    stripped.strip()
    models = {"training": detector, "inference": stripped}
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def measure_cost(options: argparse.Namespace) -> None:
    """Time and memory of a training step of every method, as ratios to the baseline's."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if options.device == "auto" and torch.cuda.is_available() else "cpu")
    named, batch = ladder_recipes() | OWN, eight_images(options.data)
    steps = {title: training_step(recipe, batch, device) for title, recipe in named.items()}
    seconds = machine.side_by_side(steps, options.repeats, device, options.clock)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as processes:
        memory = {title: processes.apply(peak_memory, (recipe, batch, device)) for title, recipe in named.items()}
    baseline = next(iter(named))
    found = {
        title: {
            "parameters": parameters(recipe),
            "seconds": round(seconds[title], 4),
            "time": round(seconds[title] / seconds[baseline], 3),
            "MiB": round(memory[title], 1),
            "memory": round(memory[title] / memory[baseline], 3),
        }
        for title, recipe in named.items()
    }
    settings = argparse.Namespace(repeats=options.repeats, clock=options.clock)
    what = "A training step of every method on eight images: time and memory as ratios to the baseline's."
    machine.save("family_cost", what, device, settings, {"protocol": "median over turns, one thread", "steps": found})
    for title, row in found.items():
        print(f"{title:32} time {row['time']:5.2f}  memory {row['memory']:5.2f}  parameters {row['parameters']}")


def report(options: argparse.Namespace) -> None:
    """Table and figure of the cells that are there."""
    rows = ladder_results(machine.RESULTS / "family")
    baseline = next(iter(ladder_recipes()))
    costs = machine.RESULTS / "family_cost.json"
    result = {
        "protocol": "COCO bbox on 500 generated images, 100 detections; candidates from the last layer's one-to-one boxes "
        "at the end of training; differences seed by seed",
        "rows": summary(rows, baseline),
        "MS-DETR (c) minus without it": {
            title: summary({title: rows[title], title + WITH_MS_DETR: rows[title + WITH_MS_DETR]}, title)[1][
                "minus the reference"
            ]
            for title in rows
            if title + WITH_MS_DETR in rows
        },
        "cost of a training step": json.loads(costs.read_text())["steps"] if costs.exists() else None,
    }
    machine.save("family", __doc__, "cpu", argparse.Namespace(), result)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    study_figure(rows, ("AP", "AP75", "top-5 IoU", "duplicate gap"), variant=WITH_MS_DETR).savefig(FIGURE, dpi=110)
    print(markdown_table(rows, baseline))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "report"])
    parser.add_argument("--data", default="data/shapes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=machine.CLOCKS, default="wall")
    options = parser.parse_args()
    {"cost": measure_cost, "report": report}[options.what](options)


if __name__ == "__main__":
    main()
