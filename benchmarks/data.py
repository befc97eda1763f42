"""How fast images reach the model at the COCO recipe, and where the time goes.

    python benchmarks/data.py --root PHOTOS [--repeats 3] [--out benchmarks/results/data.json]

PHOTOS is a COCO-format folder (train2017 and its annotations). Three things are measured on one core each, as a data worker
works: the stages of the full recipe; the multi-scale pipeline against torchvision's own (its CocoDetection and the multiscale
preset of its reference training, with normalisation added, so that both do the same work); the loader with 0, 1 and 2
workers. The first two count processor time, which other work on the machine changes less than it changes the clock's; runs of
the two pipelines alternate; the best of the repeats counts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path

import PIL
import torch
import torchvision
from torchvision.datasets import CocoDetection as TorchvisionCoco
from torchvision.datasets import wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from msdetr.config import DataConfig, RunConfig
from msdetr.data import CocoDetection, build_train_loader, normalized, train_transform
from msdetr.data.transforms import IMAGE_MEAN, IMAGE_STD, RandomShortestSize

SPLIT = "train2017"


def paths(root: Path) -> tuple[Path, Path]:
    return root / SPLIT, root / "annotations" / f"instances_{SPLIT}.json"


def stages(dataset: CocoDetection) -> dict[str, float]:
    """Milliseconds per image of each stage of the full recipe, timed around the very calls that it makes."""
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable) -> Callable:
        def call(*arguments, **named):
            start = time.process_time()
            result = function(*arguments, **named)
            spent[name] += time.process_time() - start
            return result

        return call

    seen = set()  # a pipeline may use a transform in two places

    def instrument(transform: v2.Transform) -> None:
        for part in getattr(transform, "transforms", ()):
            instrument(part)
        if not hasattr(transform, "transforms") and id(transform) not in seen:
            seen.add(id(transform))
            transform.forward = timed(type(transform).__name__, transform.forward)

    instrument(dataset.transform)
    dataset.pixels = timed("read and decode", dataset.pixels)
    start = time.process_time()
    for i in range(len(dataset)):
        dataset[i]
    total = time.process_time() - start
    spent["boxes, random state and the rest"] = total - sum(spent.values())
    return {name: 1000 * seconds / len(dataset) for name, seconds in spent.items()} | {
        "total": 1000 * total / len(dataset)
    }


def ours(root: Path, config: DataConfig) -> CocoDetection:
    """Our multi-scale pipeline without DETR's crop, which torchvision's preset does not have."""
    resize = RandomShortestSize(config.train_sizes, config.max_size)
    return CocoDetection(*paths(root), v2.Compose([v2.RandomHorizontalFlip(), resize, *normalized().transforms]))


def torchvisions(root: Path, config: DataConfig):
    """The multiscale preset of torchvision's reference detection training, in v2, normalised."""
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomShortestSize(min_size=config.train_sizes, max_size=config.max_size),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGE_MEAN, IMAGE_STD),
            v2.SanitizeBoundingBoxes(),
            v2.ToPureTensor(),
        ]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = TorchvisionCoco(*map(str, paths(root)), transforms=transform)
    return wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels"))


def rate(dataset) -> float:
    """Images per second of processor time, one after the other."""
    torch.manual_seed(0)
    start = time.process_time()
    for i in range(len(dataset)):
        dataset[i]
    return len(dataset) / (time.process_time() - start)


def loader(root: Path, workers: int) -> dict[str, float]:
    """The training loader at the COCO recipe over four epochs: images per second without the start of the workers, and
    processor time per image, which other work on the machine changes less."""
    config = RunConfig().override({"data.root": str(root), "data.workers": workers})
    dataset = CocoDetection(*paths(root), train_transform(config.data))
    before = processor_seconds()
    steps, images, late = iter(build_train_loader(dataset, config, epochs=4)), 0, 0
    for index, step in enumerate(steps):
        if index == workers:
            start, late = time.perf_counter(), images
        images += sum(len(batch) for batch, _ in step)
    elapsed = time.perf_counter() - start
    del steps, step
    return {
        "images per second (clock)": round((images - late) / elapsed, 1),
        "processor ms per image": round(1000 * (processor_seconds() - before) / images, 1),
    }


def processor_seconds() -> float:
    """Of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "data.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    root, config = arguments.root, DataConfig()

    pipelines = {"msdetr": ours(root, config), "torchvision": torchvisions(root, config)}
    for dataset in pipelines.values():
        rate(dataset)  # files into the page cache
    rates = {name: [] for name in pipelines}
    for _ in range(arguments.repeats):
        for name, dataset in pipelines.items():
            rates[name].append(rate(dataset))
    recipe = CocoDetection(*paths(root), train_transform(config))
    per_stage = min(
        (stages(CocoDetection(*paths(root), train_transform(config))) for _ in range(arguments.repeats)),
        key=lambda s: s["total"],
    )
    workers = {
        n: max(
            (loader(root, n) for _ in range(arguments.repeats)),
            key=lambda measured: measured["images per second (clock)"],
        )
        for n in (0, 1, 2)
        if n <= os.cpu_count()
    }
    sizes = [recipe.annotations.sizes[:, i].mean() for i in (1, 0)]
    result = {
        "what": "data pipeline of the COCO recipe (DETR multi-scale, 480-800 / 1333), one core per process",
        "date": str(date.today()),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "load average": os.getloadavg()[0],
        },
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__},
        "images": {"count": len(recipe), "mean width": round(float(sizes[0])), "mean height": round(float(sizes[1]))},
        "stages of the full recipe, processor ms per image": {name: round(ms, 2) for name, ms in per_stage.items()},
        "multi-scale pipeline, images per processor second": {
            name: {"best": round(max(r), 1), "median": round(statistics.median(r), 1)} for name, r in rates.items()
        },
        "ratio to torchvision (best)": round(max(rates["msdetr"]) / max(rates["torchvision"]), 3),
        "loader at the full recipe, by workers": {str(n): measured for n, measured in workers.items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
