"""Matching and criterion of one training step: the package against the published design, in one run.

    python benchmarks/matching.py [--batch 16] [--queries 900] [--objects 60] [--tokens 5000] [--threads 1] [--repeats 1]

The published design's Hungarian matchings of six layers are the measure; the package's share includes one-to-many matching,
the encoder's and the losses with their gradients. Writes results/matching.json.
"""

from __future__ import annotations

import argparse

import machine
import published
import torch

from msdetr import recipes
from msdetr.methods import build_criterion
from msdetr.structures import DetectorOutput, EncoderOutput, Predictions, Targets


def scene(batch: int, queries: int, objects: int, tokens: int, layers: int, classes: int, device: torch.device):
    """Random predictions that need gradients, and targets."""
    generator = torch.Generator().manual_seed(0)

    def boxes(*shape):
        return (torch.rand(*shape, 4, generator=generator) * 0.4 + 0.2).to(device)

    def predictions(depth, count):
        logits = torch.randn(depth, batch, count, classes, generator=generator).to(device)
        return Predictions(logits.requires_grad_(), boxes(depth, batch, count).requires_grad_())

    labels = [torch.randint(0, classes, (objects,), generator=generator) for _ in range(batch)]
    targets = Targets.from_list(labels, [boxes(objects).cpu() for _ in range(batch)]).to(device)
    encoder = EncoderOutput(predictions(1, tokens), boxes(batch, tokens))
    return DetectorOutput(predictions(layers, queries), predictions(layers, queries), encoder), targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("batch", 16),
        ("queries", 900),
        ("objects", 60),
        ("tokens", 5000),
        ("threads", 1),
        ("repeats", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    config = recipes.get("coco/ms-detr-pp-900").override({"ms_detr.rule": "exclusive"})
    output, targets = scene(options.batch, options.queries, options.objects, options.tokens, 6, 91, device)
    criterion = build_criterion(config)

    def six_hungarian_layers_published():
        for logits, boxes in zip(output.one_to_one.logits.detach(), output.one_to_one.boxes.detach()):
            published.hungarian(logits, boxes, targets)

    hungarian = criterion.branches[0].matcher
    seconds = machine.side_by_side(
        {
            "Hungarian, 6 layers: published": six_hungarian_layers_published,
            "Hungarian, 6 layers: package": lambda: hungarian(output.one_to_one, targets),
            "all matching (6 + 6 layers, encoder): package": lambda: criterion.match(
                criterion.supervised(output, targets)
            ),
            "criterion with matching, forward and backward: package": lambda: criterion(
                output, targets
            ).total.backward(),
        },
        options.repeats,
        device,
    )
    base = seconds["Hungarian, 6 layers: published"]
    shares = {name: value / base for name, value in seconds.items() if "package" in name}
    small, some = scene(2, options.queries, 10, 500, 6, 91, device)  # the quadratic design needs a small scene
    ours, theirs = criterion(small, some).total.item(), published.objective(small, some, config).item()
    result = {
        "seconds": seconds,
        "share of the published Hungarian matchings": shares,
        "relative difference of the two designs' losses": abs(ours - theirs) / theirs,
    }
    for name, value in seconds.items():
        print(f"{name:56} {value:8.3f} s   {100 * value / base:6.2f} %")
    print(f"both designs give the same loss up to {abs(ours - theirs) / theirs:.1e}")
    machine.save("matching", __doc__, device, options, result)


if __name__ == "__main__":
    main()
