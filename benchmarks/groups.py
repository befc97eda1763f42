"""Query groups attended to as a batch against one dense mask over all of them: time and memory of a training step.

    python benchmarks/groups.py [--groups 11] [--size 128] [--images 1] [--threads 1] [--repeats 3] [--device cpu]

Both steps are the same but for self-attention: groups of equal size stacked on the batch axis, or all queries at once with a
mask [G·N, G·N] of who may not see whom, through the same fused attention function. The model is that of coco/group-detr-300
with random weights. "weights kept" is the dense mask as published implementations pass it, through attention that keeps its
[G·N, G·N] weights for the backward pass.
Memory is what the step needs beyond the model: on a GPU of its allocations, on the CPU of a process of its own.
Losses of all are compared before anything is measured. Writes results/groups.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import machine
import torch
from torch import nn

from msdetr import recipes
from msdetr.methods import build_criterion, build_detector
from msdetr.modules import Layout
from msdetr.modules.context import Block
from msdetr.structures import ImageBatch, Targets

BATCH, DENSE, KEPT = "groups as a batch", "dense mask", "dense mask, weights kept"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-of", choices=(BATCH, DENSE, KEPT), help=argparse.SUPPRESS)  # the process of its own
    numbers = (
        ("groups", 11),
        ("size", 128),
        ("images", 1),
        ("objects", 4),
        ("layers", 6),
        ("threads", 1),
        ("repeats", 3),
    )
    for name, default in numbers:
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    step = training_step(options, device)
    if options.memory_of:
        print(json.dumps(grown(options.memory_of, step)))
        return

    losses = {name: step(name) for name in (BATCH, DENSE, KEPT)}
    if max(losses.values()) - min(losses.values()) > 1e-3 * losses[BATCH]:
        raise SystemExit(f"the steps do not compute the same: {losses}")
    calls = {name: lambda name=name: step(name) for name in losses}
    seconds = machine.side_by_side(calls, options.repeats, device)
    memory = {name: memory_of(name, step, options, device) for name in losses}
    result = {
        "queries": options.groups * recipes.get("coco/group-detr-300").model.num_queries,
        "seconds": seconds,
        "bytes": memory,
        "time, share of the dense mask": {name: seconds[name] / seconds[DENSE] for name in seconds},
        "memory, share of the dense mask": {name: memory[name] / memory[DENSE] for name in memory},
    }
    for name in losses:
        time, bytes_ = (result[f"{what}, share of the dense mask"][name] for what in ("time", "memory"))
        print(f"{name:26} {seconds[name]:7.2f} s {time:6.2f} x   {memory[name] / 2**20:7.0f} MiB {bytes_:6.2f} x")
    options.__dict__.pop("memory_of")
    machine.save("groups", __doc__, device, options, result)


def training_step(options: argparse.Namespace, device: torch.device) -> Callable[[str], float]:
    """Name of a way to attend -> the loss of a step (forward, matching, losses, backward) that attends in this way."""
    torch.manual_seed(0)
    config = recipes.get("coco/group-detr-300").override(
        {"model.pretrained": "none", "model.backbone": "conv", "model.decoder_layers": options.layers}
        | {"group.groups": options.groups}
    )
    detector, criterion = build_detector(config).to(device).train(), build_criterion(config)
    batch = ImageBatch(*(x.to(device) for x in _images(options)))
    labels = [torch.randint(0, config.model.num_classes, (options.objects,)) for _ in range(options.images)]
    targets = Targets.from_list(labels, [torch.rand(options.objects, 4) * 0.4 + 0.2 for _ in labels]).to(device)

    def step(name: str) -> float:
        with attending(name):
            output = detector(batch, targets)
            if output.one_to_one.boxes.shape[2] < config.model.num_queries:
                raise SystemExit(
                    f"--size={options.size}: the image has fewer tokens than a group has queries; take 128 or more"
                )
            total = criterion(output, targets).total
            total.backward()
        detector.zero_grad(set_to_none=True)
        return total.item()

    return step


def _images(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    size = options.images, options.size, options.size
    return torch.randn(size[0], 3, *size[1:]), torch.zeros(size, dtype=torch.bool)


@contextlib.contextmanager
def attending(name: str) -> Iterator[None]:
    """Makes decoders attend in one of the three ways."""
    if name == BATCH:
        yield
        return
    original, attend = Layout.of, nn.MultiheadAttention.forward
    masks: dict[tuple, torch.Tensor] = {}

    def dense(groups) -> Layout:
        layout = original(groups)
        key = tuple((block.start, block.size, block.parts) for block in layout.blocks)
        device = groups[0].contents.device
        if key not in masks:
            masks[key] = hidden(layout).to(device)
        block = Block(0, len(masks[key]), 1, mask=masks[key])
        return type(layout)(**{**vars(layout), "blocks": (block,)})

    def kept(self, *args, **settings):
        return attend(self, *args, **settings | {"need_weights": True})

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(Layout, "of", dense))
        if name == KEPT:
            patches.enter_context(mock.patch.object(nn.MultiheadAttention, "forward", kept))
        yield


def hidden(layout: Layout) -> torch.Tensor:
    """[Q, Q] bool: True where a query (row) may not see another."""
    number = torch.cat(
        [torch.arange(b.parts).repeat_interleave(b.size) + 1000 * i for i, b in enumerate(layout.blocks)]
    )
    return number[:, None] != number


def memory_of(name: str, step: Callable[[str], float], options: argparse.Namespace, device: torch.device) -> int:
    """Bytes that a step needs at its peak beyond what is there before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step(name)
        return torch.cuda.max_memory_allocated(device) - before
    given = [f"--{key}={value}" for key, value in vars(options).items() if key not in ("memory_of",)]
    command = [sys.executable, __file__, *given, f"--memory-of={name}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def grown(name: str, step: Callable[[str], float]) -> int:
    """How far the peak of this process's memory is above what it has before its first step (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _status("VmRSS")
    step(name)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes of a field of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


if __name__ == "__main__":
    main()
