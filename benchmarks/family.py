"""The family of one-to-many methods, each without and with MS-DETR (c), on the embedded data set, over several seeds.

    python benchmarks/family.py train [--cells 1] [--seeds 0 1 2] [--runs runs/family] [--data data/shapes] [--device auto]
    python benchmarks/family.py cost [--repeats 7] [--data data/shapes] [--clock processor]
    python benchmarks/family.py report

train: trains what is missing, seed after seed (six minutes and more a cell on one core), and keeps each finished cell as
results/family/CELL.json. It goes on where it was interrupted and trains no finished cell again. cost: a training step of every
method beside the baseline's, on the same eight images in one run, as results/family_cost.json; with a clock of "processor"
the processor time of the process, for a machine that is never idle. report: results/family.json,
results/family.md and docs/figures/family.png from what is there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import machine
import torch

from msdetr import recipes
from msdetr.analysis.cells import Cell
from msdetr.analysis.ladder import WITH_MS_DETR, ladder_recipes
from msdetr.analysis.study import markdown_table, summary
from msdetr.config import RunConfig
from msdetr.data import build_dataset, build_train_loader
from msdetr.engine import train
from msdetr.methods import build_criterion, build_detector
from msdetr.structures import ImageBatch, Targets
from msdetr.viz.study import study_figure

CELLS = machine.RESULTS / "family"
Batch = tuple[ImageBatch, Targets]
OWN = {"Stable-DINO + MS-DETR (c), fading": "shapes/stable-dino-ms-c-fading"}  # see studies/moonshot.yaml
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "family.png"


def cell_path(recipe: str, seed: int) -> Path:
    return CELLS / f"{recipe.removeprefix('shapes/')}-s{seed}.json"


def kept(config: RunConfig) -> Cell | None:
    """The finished cell of a configuration, None where it is still to be trained. Stops where a cell is of other settings."""
    path = cell_path(config.recipe, config.seed)
    if not path.exists():
        return None
    cell = Cell.load(path)
    if different := cell.differs_from(config):
        changes = ", ".join(f"{name} was {old}, is {new}" for name, (old, new) in different.items())
        sys.exit(f"{path}: trained with other settings ({changes}); remove it, and it is trained again")
    return cell


def train_missing(options: argparse.Namespace) -> None:
    """Trains and keeps the cells that are missing, at most ``options.cells`` of them."""
    CELLS.mkdir(parents=True, exist_ok=True)
    wanted = [recipes.get(name).override({"seed": s}) for s, name in product(options.seeds, ladder_recipes().values())]
    missing = [config for config in wanted if kept(config) is None]
    for config in missing[: options.cells]:
        path = cell_path(config.recipe, config.seed)
        folder = Path(options.runs) / path.stem
        train(config.override({"data.root": options.data}), folder, device=options.device)
        Cell.of_run(folder, device=options.device).save(path)
    left = len(missing[options.cells or len(missing) :])
    print(f"{len(wanted) - left} of {len(wanted)} cells are finished")


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
    wanted = {
        t: [kept(recipes.get(r).override({"seed": s})) for s in options.seeds] for t, r in ladder_recipes().items()
    }
    rows = {title: found for title, cells in wanted.items() if (found := [cell for cell in cells if cell])}
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
    path = machine.save("family", __doc__, "cpu", argparse.Namespace(seeds=options.seeds), result)
    table = markdown_table(rows, baseline)
    path.with_suffix(".md").write_text(table)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    study_figure(rows, ("AP", "AP75", "top-5 IoU", "duplicate gap"), variant=WITH_MS_DETR).savefig(FIGURE, dpi=110)
    print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "cost", "report"])
    parser.add_argument("--runs", default="runs/family")
    parser.add_argument("--data", default="data/shapes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", type=int, help="train at most so many")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=machine.CLOCKS, default="wall")
    options = parser.parse_args()
    {"train": train_missing, "cost": measure_cost, "report": report}[options.what](options)


if __name__ == "__main__":
    main()
