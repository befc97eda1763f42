"""How a training step grows with images, queries, objects, batch, layers and ranks, and what the COCO recipe would take on GPUs.

    python benchmarks/scale.py [--recipe coco/ms-detr-pp-300] [--repeats 2] [--output scale] [--figure docs/figures/scale.png]

Each point is a process of its own, forked from one that has the model: forward, losses and backward on random images, once to
warm up and ``--repeats`` times for the median of the processor time; memory is what the peak of its resident memory is
above that before the first step, gradients included. One setting is changed at a time. Ranks exchange gradients over gloo,
with the same batch on each. An exponent is the slope of a line through logarithms, of all points and of the last two.

The prediction for GPUs counts the floating-point operations and the saved activations of a step with the meta device, where
nothing is computed. What is assumed beyond that stands in ``ASSUMED``. Writes results/OUTPUT.json.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from msdetr import recipes
from msdetr.config import RunConfig
from msdetr.data.transforms import CROP_FIRST_SIZES, CROP_RANGE, resized
from msdetr.methods import build_criterion, build_detector
from msdetr.structures import ImageBatch, Targets
from msdetr.viz.style import MARKERS, PALETTE, finish, subplots

BASE = {"side of the images": 192, "queries": 300, "objects": 8, "batch": 1, "decoder layers": 6, "ranks": 1}
AXES = {
    "side of the images": (128, 192, 256, 384),
    "queries": (100, 300, 900),
    "objects": (1, 8, 64),
    "batch": (1, 2, 4),
    "decoder layers": (1, 3, 6),
    "ranks": (1, 2, 4),
}
ASSUMED = {
    "GPU": "A100, 80 GB",
    "peak in bf16, TFLOPS": 312,
    "share of the peak that a step reaches, low": 0.05,
    "share of the peak that a step reaches, high": 0.15,
    "all-reduce within a machine of 8, GB/s": 200,
    "all-reduce between machines, GB/s for each GPU": 25,
    "exchange hidden behind the backward": "nothing of it",
    "images": "640 x 480 and 480 x 640, three to one; each batch of a GPU padded to its largest",
    "memory of the CUDA context and libraries, GB": 1.5,
}
COCO_IMAGES, COCO_VAL = 118_287, 5_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="coco/ms-detr-pp-300")
    parser.add_argument("--output", default="scale")
    parser.add_argument("--figure", default=str(machine.RESULTS.parent.parent / "docs" / "figures" / "scale.png"))
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = recipes.get(options.recipe).override({"model.pretrained": "none"})
    points = measure(config, options.repeats)
    axes = {axis: {"points": found, "exponents": exponents(found)} for axis, found in points.items()}
    result = {"base": BASE, "axes": axes}
    machine.save(options.output, __doc__, "cpu", options, result)
    result |= {"prediction": predict(config, points["side of the images"]), "assumed": ASSUMED}
    draw(result["axes"], Path(options.figure))
    del options.figure
    machine.save(options.output, __doc__, "cpu", options, result)


# ---------------------------------------------------------------- measuring


def measure(config: RunConfig, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Seconds and MiB of a step, by axis and value."""
    known: dict[tuple, dict[str, float]] = {}
    found: dict[str, list[dict[str, float]]] = {axis: [] for axis in AXES}
    for axis, values in AXES.items():
        for value in values:
            setting = BASE | {axis: value}
            key = tuple(setting.values())
            if key not in known:
                known[key] = point(config, setting, repeats)
            found[axis].append({"value": value, **known[key]})
            print(axis, found[axis][-1], flush=True)
    return found


def point(config: RunConfig, setting: dict[str, int], repeats: int) -> dict[str, float]:
    """A step of one setting, in as many processes as it has ranks; the slowest rank counts."""
    detector, criterion = built(config, setting["queries"], setting["decoder layers"])
    context, size = multiprocessing.get_context("fork"), setting["ranks"]
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (detector, criterion, config, setting, repeats, f"file://{folder}/store", results)
        ranks = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(size)]
        for process in ranks:
            process.start()
        found = [results.get() for _ in ranks]
        for process in ranks:
            process.join()
    return {name: max(one[name] for one in found) for name in found[0]}


@functools.cache
def built(config: RunConfig, queries: int, layers: int) -> tuple[nn.Module, nn.Module]:
    """A detector in training mode, and its criterion."""
    torch.manual_seed(0)
    config = config.override({"model.num_queries": queries, "model.decoder_layers": layers})
    return build_detector(config).train(), build_criterion(config)


def run_rank(rank, detector, criterion, config, setting, repeats, store, results) -> None:
    """Times the steps of one rank."""
    model: nn.Module = detector
    if setting["ranks"] > 1:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=setting["ranks"])
        model = DistributedDataParallel(detector, gradient_as_bucket_view=True)
    side, images, objects = setting["side of the images"], setting["batch"], setting["objects"]
    batch = ImageBatch.from_images(list(torch.randn(images, 3, side, side)))
    labels = [torch.randint(0, config.model.num_classes, (objects,)) for _ in range(images)]
    targets = Targets.from_list(labels, [torch.rand(objects, 4) * 0.4 + 0.2 for _ in range(images)])
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory counts from here
    before, times = resident("VmRSS"), []
    for _ in range(1 + repeats):
        start = time.process_time()
        criterion(model(batch, targets), targets).total.backward()
        times.append(time.process_time() - start)
        detector.zero_grad(set_to_none=True)
    results.put({"seconds": statistics.median(times[1:]), "MiB": resident("VmHWM") - before})
    results.close()
    results.join_thread()
    os._exit(0)  # without waiting for the threads of gloo


def resident(field: str) -> int:
    """MiB, of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status[field].split()[0]) / 1024)


def exponents(points: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of seconds and memory, through all points and through the last two."""
    found = {}
    for quantity in ("seconds", "MiB"):
        x, y = (np.log([one[name] for one in points]) for name in ("value", quantity))
        found[quantity] = {
            "all points": round(float(np.polyfit(x, y, 1)[0]), 2),
            "last two": round(float((y[-1] - y[-2]) / (x[-1] - x[-2])), 2),
        }
    return found


# ---------------------------------------------------------------- predicting


def predict(config: RunConfig, measured: list[dict[str, float]]) -> dict[str, Any]:
    """What the recipe would take on GPUs, and how the counts agree with what was measured here."""
    detector = build_detector(config).to("meta").train()
    parameters, side = sum(p.numel() for p in detector.parameters()), measured[-1]["value"]
    learned = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    here = counted(detector, 1, side, side)
    kept = round(here["saved MiB in fp32"] + 4 * learned / 2**20)
    counts = [{"pixels": size, **counted(detector, 1, *size)} for size in ((512, 512), (800, 1066))]
    return {
        "parameters": parameters,
        "learned parameters": learned,
        "counted for one image": counts,
        "counts against what was measured here": {
            "side": side,
            "GFLOPS of one core": round(here["training FLOPs"] / measured[-1]["seconds"] / 1e9, 1),
            "MiB counted, with gradients": kept,
            "MiB measured": measured[-1]["MiB"],
        },
        "GPUs": [on_gpus(gpus, config, counts, parameters, learned, measured[-1]["MiB"] / kept) for gpus in (1, 8, 64)],
    }


def on_gpus(
    gpus: int, config: RunConfig, counts: list[dict[str, Any]], parameters: int, learned: int, overhead: float
) -> dict[str, Any]:
    """Time and memory of the recipe. overhead: what memory takes, measured, of what is counted."""

    def at(name: str, of_pixels: float) -> float:
        """Everything grows with the pixels, beside a fixed part of the decoder."""
        (low, high), (small, large) = zip(*((one["pixels"][0] * one["pixels"][1], one[name]) for one in counts))
        return small + (large - small) / (high - low) * (of_pixels - low)

    images = max(config.train.batch_size, gpus)  # of a step
    share = images // gpus
    at_once = min(share, config.train.at_once)
    padded = padded_pixels(config, at_once)
    link = "all-reduce within a machine of 8, GB/s" if gpus <= 8 else "all-reduce between machines, GB/s for each GPU"
    exchange = 2 * (gpus - 1) / gpus * 4 * learned / (1e9 * ASSUMED[link])
    row: dict[str, Any] = {"GPUs": gpus, "images a step": images, "images at once on a GPU": at_once}
    for name in ("high", "low"):
        rate = 1e12 * ASSUMED["peak in bf16, TFLOPS"] * ASSUMED[f"share of the peak that a step reaches, {name}"]
        step = share * at("training FLOPs", padded) / rate
        evaluation = COCO_VAL / gpus * at("inference FLOPs", 800 * 1066) / rate
        hours = (COCO_IMAGES // images * (step + exchange) + evaluation) / 3600
        row[name] = {
            "hours an epoch": round(hours, 3),
            "GPU-hours of the recipe": round(config.train.epochs * gpus * hours, 1),
            "exchange, share of a step": round(exchange / (step + exchange), 3),
            "images a second": round(COCO_IMAGES / 3600 / hours),
        }
    activations = at_once * at("saved MiB in bf16", 1333 * 1333 if at_once > 1 else 800 * 1333) * 2**20
    memory = overhead * (4 * learned + activations) + 4 * parameters + 8 * learned
    row["memory of a GPU, GB"] = round(memory / 1e9 + ASSUMED["memory of the CUDA context and libraries, GB"], 1)
    return row


def counted(detector: nn.Module, images: int, height: int, width: int) -> dict[str, float]:
    """FLOPs of a step and of a prediction, and MiB of what the forward pass keeps for the backward, counted without computing.

    The operator's own, which the counter does not know, are added: ten for each channel of a sampled value, three times as
    many in the backward. bf16 halves what is kept, but for boxes and locations, which are few.
    """
    batch = ImageBatch(
        torch.empty(images, 3, height, width, device="meta"),
        torch.zeros(images, height, width, dtype=torch.bool, device="meta"),
    )
    own = {x.untyped_storage()._cdata for x in (*detector.parameters(), *detector.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}
    sampled = 0

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    def count_operator(module, given, made) -> None:
        nonlocal sampled
        sampled += given[0].shape[0] * given[0].shape[1] * module.num_levels * module.num_points * made.shape[-1]

    attention = [m for m in detector.modules() if hasattr(m, "sampling_offsets")]
    hooks = [m.register_forward_hook(count_operator) for m in attention]
    with FlopCounterMode(display=False) as flops, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = detector(batch)
        for hook in hooks:
            hook.remove()
        forward = flops.get_total_flops() + 10 * sampled
        sides = [output.one_to_one, output.one_to_many, output.encoder and output.encoder.predictions]
        sum(x.sum() for side in sides if side for x in (side.logits, side.boxes)).backward()
    training = flops.get_total_flops() + 40 * sampled
    detector.zero_grad(set_to_none=True)
    bytes_kept = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    detector.eval()
    with FlopCounterMode(display=False) as flops:  # which cannot do without gradients
        detector(batch)
    detector.train()
    return {
        "forward FLOPs": forward,
        "training FLOPs": training,
        "inference FLOPs": flops.get_total_flops() + 10 * sampled,
        "saved MiB in fp32": round(bytes_kept / 2**20),
        "saved MiB in bf16": round(bytes_kept / 2**21),
    }


def padded_pixels(config: RunConfig, images: int, draws: int = 4000) -> float:
    """Pixels of an image of a batch padded to its largest, on average over the augmentation of DETR (Section A.4)."""
    rng, data = np.random.default_rng(0), config.data
    totals = []
    for _ in range(draws):
        shapes = []
        for _ in range(images):
            height, width = (480, 640) if rng.random() < 0.75 else (640, 480)
            if rng.random() < 0.5:
                height, width = resized(height, width, int(rng.choice(CROP_FIRST_SIZES)))
                low, high = CROP_RANGE
                height, width = (int(rng.integers(min(low, s), min(high, s) + 1)) for s in (height, width))
            shapes.append(resized(height, width, int(rng.choice(data.train_sizes)), data.max_size))
        totals.append(max(h for h, _ in shapes) * max(w for _, w in shapes))
    return float(np.mean(totals))


# ---------------------------------------------------------------- drawing


def draw(axes: dict[str, Any], path: Path) -> None:
    """Time above, memory below, one column for each axis, both on logarithmic scales."""
    figure, panels = subplots(columns=len(axes), rows=2, width=13, height=2.7, sharex="col", sharey="row")
    for column, (axis, found) in enumerate(axes.items()):
        values = [one["value"] for one in found["points"]]
        for row, (quantity, unit, color, marker) in enumerate(
            (("seconds", "seconds of a step", PALETTE[0], MARKERS[0]), ("MiB", "memory, GiB", PALETTE[3], MARKERS[1]))
        ):
            panel = panels[row * len(axes) + column]
            y = [one[quantity] / (1024 if quantity == "MiB" else 1) for one in found["points"]]
            panel.plot(values, y, color=color, marker=marker)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xticks(values, [str(value) for value in values])
            panel.minorticks_off()
            slope = found["exponents"][quantity]["last two"]
            title = f"{axis}\nend: exponent {slope:.2f}" if row == 0 else f"end: exponent {slope:.2f}"
            finish(panel, title, axis if row else "", unit if column == 0 else "", legend=False)
            panel.title.set_fontsize(9)
    for row in range(2):
        low, high = panels[row * len(axes)].get_ylim()
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low <= t <= high]
        panels[row * len(axes)].set_yticks(ticks, [f"{t:g}" for t in ticks])
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
