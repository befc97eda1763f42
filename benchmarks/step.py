"""A training step: the package against the published design, in one run, with where the time goes.

    python benchmarks/step.py [--recipe shapes/ms-detr-c] [--size 128] [--images 8] [--threads 1] [--repeats 5]
                              [--clock processor] [--device cpu] [--output step]

Both run the same model on the same batch. The published design is PyTorch's own modules, with the attention operator as a
composition of grid_sample calls, and matches layer by layer, with a cost between all queries and all objects of the batch
(see published.py). A clock of "processor" counts the processor time of this process, for a machine that is never idle.
Writes results/OUTPUT.json.
"""

from __future__ import annotations

import argparse

import machine
import published
import torch

from msdetr import recipes
from msdetr.engine.evaluate import mixed_precision
from msdetr.methods import build_criterion, build_detector
from msdetr.model import PRIMARY
from msdetr.ops import backend
from msdetr.structures import DetectorOutput, ImageBatch, Targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="shapes/ms-detr-c")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", default="step")
    parser.add_argument("--clock", choices=machine.CLOCKS, default="wall")
    for name, default in (("size", 128), ("images", 0), ("objects", 4), ("threads", 1), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    config = recipes.get(options.recipe).override({"ms_detr.rule": "exclusive", "model.pretrained": "none"})
    images = options.images or config.train.micro_batch
    detector, criterion = build_detector(config).to(device).train(), build_criterion(config)
    batch = ImageBatch.from_images([torch.randn(3, options.size, options.size) for _ in range(images)]).to(device)
    labels = [torch.randint(0, config.model.num_classes, (options.objects,)) for _ in range(images)]
    targets = Targets.from_list(labels, [torch.rand(options.objects, 4) * 0.4 + 0.2 for _ in range(images)]).to(device)

    def step(plain_operator: bool, objective, precision: str = "fp32") -> None:
        with backend("plain" if plain_operator else "auto"):
            with mixed_precision(device, precision):
                output = detector(batch, targets)
            objective(output).backward()
        detector.zero_grad(set_to_none=True)

    def ours(output):
        return criterion(output, targets).total

    def theirs(output):
        return published.objective(output, targets, config)

    @torch.no_grad()
    def difference() -> float:
        """Between the losses of both, of the same weights and batch."""
        detector.eval()  # no dropout
        with backend("plain"):
            expected = theirs(detector(batch, targets, one_to_many=detector.decoder.one_to_many is not None))
        loss = ours(detector(batch, targets, one_to_many=detector.decoder.one_to_many is not None))
        detector.train()
        return abs(loss - expected).item() / expected.item()

    seconds = machine.side_by_side(
        {
            "published design": lambda: step(True, theirs),
            "package": lambda: step(False, ours),
            "package, plain PyTorch operator": lambda: step(True, ours),
            "package, bf16 autocast": lambda: step(False, ours, "bf16"),
        },
        options.repeats,
        device,
        options.clock,
    )
    ratios = {name: seconds["published design"] / value for name, value in seconds.items()}
    shares = where_the_time_goes(detector, batch, targets, criterion) if device.type == "cpu" else {}
    result = {
        "images per step": images,
        "seconds": seconds,
        "times as fast as the published design": ratios,
        "relative difference of the losses": difference(),
        "share of the package's step": shares,
        "inference": inference(detector, batch, options.repeats, device, options.clock),
    }
    for name, value in seconds.items():
        print(f"{name:35} {1000 * value:9.1f} ms   {ratios[name]:5.2f} x")
    for name, share in result["share of the package's step"].items():
        print(f"    {name:31} {100 * share:6.1f} %")
    print("inference:", result["inference"])
    machine.save(options.output, __doc__, device, options, result)


def where_the_time_goes(detector, batch, targets, criterion) -> dict[str, float]:
    """Share of a step on a processor spent in each part: forward of the model's parts, matching, losses, everything's
    backward. What a GPU does, and its host, is in cuda_step.py."""
    with torch.profiler.profile() as profile:
        for _ in range(2):
            with torch.profiler.record_function("part: backbone and pyramid"):
                pyramid = detector.pyramid(batch)
            with torch.profiler.record_function("part: encoder"):
                memory = detector.encoder(pyramid)
            with torch.profiler.record_function("part: query selection"):
                proposals, groups = detector.query_groups(memory, targets)
            with torch.profiler.record_function("part: decoder"):
                outputs = detector.decoder(groups, memory, detector.decoder.one_to_many is not None)
            primary = outputs.pop(PRIMARY)
            output = DetectorOutput(primary.predictions, primary.candidates, proposals.encoder, groups=outputs)
            with torch.profiler.record_function("part: matching"):
                criterion.match(criterion.supervised(output, targets))
            with torch.profiler.record_function("part: losses (with matching)"):
                total = criterion(output, targets).total
            with torch.profiler.record_function("part: backward"):
                total.backward()
            detector.zero_grad(set_to_none=True)
    parts = {
        e.key.removeprefix("part: "): e.cpu_time_total for e in profile.key_averages() if e.key.startswith("part: ")
    }
    whole = sum(parts.values()) - parts["matching"]  # matched once on its own, and again within the criterion
    return {name: value / whole for name, value in parts.items()}


@torch.no_grad()
def inference(detector, batch, repeats, device, clock) -> dict[str, float]:
    """What the training-only branch would cost at inference, and what stripping it saves."""
    detector.eval()
    if detector.decoder.one_to_many is None:
        return {}
    seconds = machine.side_by_side(
        {"without one-to-many": lambda: detector(batch), "with one-to-many": lambda: detector(batch, one_to_many=True)},
        repeats,
        device,
        clock,
    )
    extra = sum(p.numel() for p in detector.decoder.one_to_many.parameters())
    return {
        "milliseconds without the branch": 1000 * seconds["without one-to-many"],
        "milliseconds with the branch": 1000 * seconds["with one-to-many"],
        "parameters": sum(p.numel() for p in detector.parameters()),
        "parameters of the branch": extra,
    }


if __name__ == "__main__":
    main()
