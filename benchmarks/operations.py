"""How many operations a training step asks of the host, counted: what a GPU waits for where its kernels are short.

    python benchmarks/operations.py [--recipes coco/deformable-detr-pp-300 coco/ms-detr-pp-300] [--images 2] [--output operations]

Forward, losses and backward in bf16 on small random images, on the path that a GPU takes, counted on a processor: the number
depends on layers and levels, not on sizes. "operations" compute or copy something (on a GPU at least one kernel each),
"views" are those that only say how to read a tensor. Writes results/OUTPUT.json.
"""

from __future__ import annotations

import argparse
import traceback
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import machine
import torch
from cuda_step import micro_batch
from torch.utils._python_dispatch import TorchDispatchMode

import msdetr
from msdetr import recipes
from msdetr.methods import build_criterion, build_detector

CPU = torch.device("cpu")
PACKAGE = str(Path(msdetr.__file__).parent)


class Counted(TorchDispatchMode):
    """Counts what is dispatched: operations by name and by file of the package, and views."""

    def __init__(self) -> None:
        super().__init__()
        self.views, self.names, self.files = 0, Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        first = next((x for x in args if isinstance(x, torch.Tensor)), None)
        if func.is_view or (
            isinstance(output, torch.Tensor) and first is not None and _same_memory(output, first, func)
        ):
            self.views += 1
            return output
        self.names[func.overloadpacket.__name__] += 1
        frames = (frame.filename for frame in reversed(traceback.extract_stack()))
        where = next((name for name in frames if name.startswith(PACKAGE)), None)
        self.files["backward" if where is None else str(Path(where).relative_to(PACKAGE))] += 1
        return output

    def found(self) -> dict[str, Any]:
        counts = {"operations": self.names.total(), "views": self.views}
        return counts | {"by name": dict(self.names.most_common(12)), "by file": dict(self.files.most_common(12))}


def _same_memory(output: torch.Tensor, first: torch.Tensor, func: torch._ops.OpOverload) -> bool:
    return not func._schema.is_mutable and output.numel() > 0 and output.data_ptr() == first.data_ptr()


def counted(recipe: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    config = recipes.get(recipe).override({"model.pretrained": "none"})
    detector, criterion = build_detector(config).train(), build_criterion(config)
    images, targets = micro_batch(config, options)
    with Counted() as forward, torch.autocast("cpu", torch.bfloat16):
        output = detector(images, targets)
    with Counted() as losses:
        total = criterion(output, targets).total
    with Counted() as backward:
        total.backward()
    parts = {"forward": forward, "losses": losses, "backward": backward}
    return {name: part.found() for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["coco/deformable-detr-pp-300", "coco/ms-detr-pp-300"])
    parser.add_argument("--output", default="operations")
    for name, default in (("images", 2), ("height", 96), ("width", 128), ("objects", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    # as on a GPU: no fast path for processors, norms folded into convolutions, losses of all images at once
    with (
        mock.patch("msdetr.losses.terms._CACHED", 2**40),
        mock.patch("msdetr.ops.linear.multiplies_bf16", lambda: False),
        mock.patch("msdetr.model.frozen.folds", lambda x: True),
    ):
        steps = {recipe: counted(recipe, options) for recipe in options.recipes}
    for recipe, parts in steps.items():
        for name, part in parts.items():
            print(f"{recipe:30} {name:9} {part['operations']:5} operations, {part['views']:5} views")
            print("    ", ", ".join(f"{where} {number}" for where, number in part["by file"].items()))
    machine.save(options.output, __doc__, CPU, options, {"steps": steps})


if __name__ == "__main__":
    main()
