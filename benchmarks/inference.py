"""Inference: the detector against transformers' Deformable DETR on the same weights, in one run: time, memory, whole pipeline.

    python benchmarks/inference.py [--recipe coco/deformable-detr-300] [--height 800] [--width 1066] [--batches 1 2]
                                   [--threads 1] [--repeats 2] [--output inference]

Both run eagerly, in fp32 on a processor, from one folder of transformers' format with random weights; "our operator" is
transformers' model within msdetr.integrations.transformers.patch(). They take turns; each prediction is made in a process forked
for it, after one of 320 x 320 pixels, and its processor time and the growth of the peak of resident memory are counted.
Before and after the detector come a JPEG file of 640 x 480 pixels and 100 detections: theirs by DeformableDetrImageProcessor.
Needs Linux and the extra "transformers". Writes results/OUTPUT.json, anew after each part.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import msdetr
from msdetr import recipes
from msdetr.integrations.transformers import patch, save_transformers
from msdetr.methods import build_detector
from msdetr.model.frozen import FrozenBottleneck
from msdetr.predictor import Predictor

THEIRS, PATCHED, OURS = "transformers", "transformers, our operator", "package"
SHOWN = 14  # kinds of operators in the profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="coco/deformable-detr-300")
    parser.add_argument("--output", default="inference")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    for name, default in (("height", 800), ("width", 1066), ("threads", 1), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from transformers import DeformableDetrForObjectDetection

    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = write_model(options.recipe, Path(place) / "model")
        theirs = DeformableDetrForObjectDetection.from_pretrained(folder).eval()
        models = {THEIRS: theirs, PATCHED: theirs, OURS: msdetr.load(folder, device="cpu")}
        result["milliseconds before and after the detector"] = surroundings(models, folder / "photograph.jpg")
        for size in options.batches:
            result[f"{size} images"] = detectors(models, images_of(options, size), options.repeats)
            machine.save(options.output, __doc__, "cpu", options, result)
        result["share of the detector's time"] = profile(models[OURS].detector, images_of(options, 1))
        machine.save(options.output, __doc__, "cpu", options, result)


# ---------------------------------------------------------------- models


def write_model(recipe: str, folder: Path) -> Path:
    """A model of random weights as transformers writes it, whose maps neither vanish nor grow from block to block."""
    changes = {"model.pretrained": "none", "model.look_forward_twice": False, "two_stage.mixed_selection": False}
    config = recipes.get(recipe).override(changes)
    torch.manual_seed(0)
    detector = build_detector(config).strip()
    for parameter in detector.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    for block in (module for module in detector.modules() if isinstance(module, FrozenBottleneck)):
        block.bn3.weight.fill_(0.1)
    return save_transformers(Predictor(detector, config, device="cpu"), folder)


def images_of(options: argparse.Namespace, size: int) -> Tensor:
    return torch.randn(size, 3, options.height, options.width, generator=torch.Generator().manual_seed(1))


def predict(name: str, model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits and boxes [B, Q, ...] of normalised images."""
    with torch.inference_mode(), patch() if name == PATCHED else contextlib.nullcontext():
        if name == OURS:
            found = model.detector(images).one_to_one.layer(-1)
            return found.logits[0], found.boxes[0]
        found = model(images, pixel_mask=torch.ones(len(images), *images.shape[-2:], dtype=torch.long))
        return found.logits, found.pred_boxes


# ---------------------------------------------------------------- what is measured


def detectors(models: dict[str, Any], images: Tensor, repeats: int) -> dict[str, Any]:
    """From normalised images to logits and boxes."""
    rounds = [{name: in_a_process_of_its_own(name, models[name], images) for name in models} for _ in range(repeats)]
    seconds = {name: statistics.median(one[name]["seconds"] for one in rounds) for name in models}
    ours, theirs = rounds[0][OURS], rounds[0][THEIRS]
    return {
        "seconds": seconds,
        "times as fast as transformers": {name: seconds[THEIRS] / value for name, value in seconds.items()},
        "times as fast as transformers with our operator": seconds[PATCHED] / seconds[OURS],
        "memory of a prediction in MiB": {name: max(one[name]["MiB"] for one in rounds) for name in models},
        "largest difference": {name: float(np.abs(ours[name] - theirs[name]).max()) for name in ("logits", "boxes")},
        "spread of the logits": float(theirs["logits"].std()),
    }


def in_a_process_of_its_own(name: str, model: Any, images: Tensor) -> dict[str, Any]:
    """Processor time and growth of the peak of memory of a prediction, and what is predicted."""
    context = multiprocessing.get_context("fork")
    answer = context.Queue()

    def run() -> None:
        predict(name, model, images[:, :, :320, :320])
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before, start = resident("VmRSS"), time.process_time()
        logits, boxes = predict(name, model, images)
        seconds = time.process_time() - start
        growth = resident("VmHWM") - before
        answer.put({"seconds": seconds, "MiB": growth, "logits": logits.numpy(), "boxes": boxes.numpy()})

    process = context.Process(target=run)
    process.start()
    found = answer.get()
    process.join()
    print(name, round(found["seconds"], 2), "s", found["MiB"], "MiB", flush=True)
    return found


def resident(field: str) -> int:
    """MiB, of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status[field].split()[0]) / 1024)


def surroundings(models: dict[str, Any], file: Path) -> dict[str, float]:
    """What a prediction takes besides: from a file to normalised pixels, from logits and boxes to detections."""
    from transformers import DeformableDetrImageProcessor
    from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrObjectDetectionOutput

    processor, predictor = DeformableDetrImageProcessor(), models[OURS]
    colors = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(2))
    pixels = torch.nn.functional.interpolate(colors, (480, 640), mode="bicubic")[0].clamp(0, 1)
    Image.fromarray((255 * pixels).byte().permute(1, 2, 0).numpy()).save(file, quality=90)
    with torch.inference_mode():
        output = predictor.detector(torch.randn(1, 3, 320, 320)).one_to_one
    found = DeformableDetrObjectDetectionOutput(logits=output.logits[-1], pred_boxes=output.boxes[-1])
    parts = {
        "transformers, before": lambda: processor(images=Image.open(file).convert("RGB"), return_tensors="pt"),
        "package, before": lambda: predictor._prepare(file),
        "transformers, after": lambda: processor.post_process_object_detection(found, 0.0, [(480, 640)], top_k=100),
        "package, after": lambda: predictor.postprocess(output, torch.tensor([[480, 640]]), 100),
    }
    seconds = machine.side_by_side(parts, 5, torch.device("cpu"), "processor")
    return {name: 1000 * value for name, value in seconds.items()}


def profile(detector: torch.nn.Module, images: Tensor) -> dict[str, float]:
    """Share of the detector's time in each kind of operator, largest first."""
    with torch.inference_mode(), torch.profiler.profile() as profiled:
        detector(images)
    own = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    largest = sorted(own, key=own.get, reverse=True)[:SHOWN]
    return {name: own[name] / sum(own.values()) for name in largest}


if __name__ == "__main__":
    main()
