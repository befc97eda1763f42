"""The family of one-to-many methods, each without and with MS-DETR (c), on the embedded data set, over several seeds.

    python benchmarks/family.py train [--cells 1] [--seeds 0 1 2] [--runs runs/family] [--data data/shapes] [--device auto]

Trains what is missing, seed after seed (six minutes and more a cell on one core), and keeps each finished cell as
results/family/CELL.json. It goes on where it was interrupted and trains no finished cell again.
"""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

import machine

from msdetr import recipes
from msdetr.analysis.cells import Cell
from msdetr.config import RunConfig
from msdetr.engine import train

CELLS = machine.RESULTS / "family"
RUNGS = {
    "Deformable DETR++": ("baseline", "ms-detr-c"),
    "H-DETR": ("h-detr", "h-detr-ms-c"),
    "Group DETR": ("group-detr", "group-detr-ms-c"),
    "DN-DETR": ("dn-detr", "dn-detr-ms-c"),
    "DINO": ("dino", "dino-ms-c"),
    "DETA": ("deta",),
    "Stable-DINO": ("stable-dino", "stable-dino-ms-c"),
    "Mr.DETR": ("mr-detr", "mr-detr-ms-c"),
}  # title -> recipes, without and with MS-DETR (c)


def methods() -> dict[str, str]:
    """Title -> recipe of all that the package has."""
    named = {
        title + " + MS-DETR (c)" * with_ms: f"shapes/{name}"
        for title, names in RUNGS.items()
        for with_ms, name in enumerate(names)
    }
    return {title: name for title, name in named.items() if name in recipes.names()}


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
    wanted = [recipes.get(name).override({"seed": s}) for s, name in product(options.seeds, methods().values())]
    missing = [config for config in wanted if kept(config) is None]
    for config in missing[: options.cells]:
        path = cell_path(config.recipe, config.seed)
        folder = Path(options.runs) / path.stem
        train(config.override({"data.root": options.data}), folder, device=options.device)
        Cell.of_run(folder, device=options.device).save(path)
    left = len(missing[options.cells or len(missing) :])
    print(f"{len(wanted) - left} of {len(wanted)} cells are finished")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train"])
    parser.add_argument("--runs", default="runs/family")
    parser.add_argument("--data", default="data/shapes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cells", type=int, help="train at most so many")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    {"train": train_missing}[options.what](options)


if __name__ == "__main__":
    main()
