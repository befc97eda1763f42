"""Twenty steps of seeded losses and gradient norms of five recipes, in float64: what a refactoring must not change.

    python tests/seeded_losses.py            # prints where the present code differs from tests/seeded_losses.json
    python tests/seeded_losses.py --record   # writes the file anew

Weights are filled by parameter name, so that neither the order in which modules are made nor how they initialise
themselves matters; the loss then depends on the forward pass, the matching, the criterion and the optimiser alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

from msdetr import recipes
from msdetr.engine.optim import build_optimizer, global_norm
from msdetr.methods import build_criterion, build_detector
from msdetr.structures import ImageBatch, Targets

RECORD = Path(__file__).with_name("seeded_losses.json")
SMALL = {
    "model.backbone": "conv",
    "model.pretrained": "none",
    "model.hidden_dim": 32,
    "model.num_heads": 4,
    "model.encoder_layers": 1,
    "model.decoder_layers": 3,
    "model.ffn_dim": 48,
    "model.num_queries": 24,
    "model.num_levels": 3,
    "model.num_classes": 8,
}
CASES = {
    "shapes/baseline": {},
    "shapes/ms-detr-a": {},
    "shapes/ms-detr-c": {},
    "coco/ms-detr-300": {"train.lr": 1e-3},  # released matching, dropout 0.1
    "shapes/ms-detr-d": {"ms_detr.merge": True, "two_stage": None},
}


def fill(detector: torch.nn.Module) -> None:
    """Weights that depend on nothing but the name and shape of each parameter."""
    for name, parameter in detector.named_parameters():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if parameter.dim() > 1:
            scale, offset = 1 / parameter[0].numel() ** 0.5, 0.0
        else:
            scale, offset = 0.02, 1.0 if "norm" in name and name.endswith("weight") else 0.0
        if "class_head" in name and name.endswith("bias"):
            offset = -3.0
        with torch.no_grad():
            parameter.copy_(noise * scale + offset)


def batch(step: int) -> tuple[ImageBatch, Targets]:
    generator = torch.Generator().manual_seed(step)
    images = [torch.randn(3, h, w, generator=generator, dtype=torch.float64) for h, w in ((64, 80), (72, 64))]
    counts = [int(torch.randint(0, 5, (), generator=generator)) for _ in images]
    labels = [torch.randint(0, 8, (n,), generator=generator) for n in counts]
    boxes = []
    for n in counts:
        corner = torch.rand(n, 2, generator=generator, dtype=torch.float64) * 0.6
        size = 0.1 + 0.3 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
        boxes.append(torch.cat([corner + size / 2, size], dim=1))
    return ImageBatch.from_images(images), Targets.from_list(labels, boxes, image_ids=(0, 1))


def measure(name: str, overrides: dict, steps: int = 20) -> list[tuple[str, str]]:
    """(loss, gradient norm) of each step, as exact hexadecimal numbers."""
    config = recipes.get(name).override(SMALL | overrides)
    torch.manual_seed(0)
    detector = build_detector(config).double().train()
    fill(detector)
    criterion = build_criterion(config)
    optimizer = build_optimizer(detector, config.train)
    rows = []
    for step in range(steps):
        images, targets = batch(step % 5)
        torch.manual_seed(step)
        losses = criterion(detector(images), targets)
        optimizer.zero_grad()
        losses.total.backward()
        norm = global_norm(detector.parameters())
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        rows.append((losses.total.item().hex(), norm.item().hex()))
    return rows


def main() -> int:
    torch.set_num_threads(1)
    measured = {name: measure(name, overrides) for name, overrides in CASES.items()}
    if "--record" in sys.argv:
        RECORD.write_text(json.dumps(measured, indent=0) + "\n")
        return 0
    recorded, same = json.loads(RECORD.read_text()), True
    for name, rows in measured.items():
        pairs = [(float.fromhex(a), float.fromhex(b)) for x, y in zip(rows, recorded[name]) for a, b in zip(x, y)]
        worst = max(abs(a - b) / max(abs(b), 1e-300) for a, b in pairs)
        same &= worst == 0
        print(f"{name:24} {'identical to the last bit' if worst == 0 else f'largest relative difference {worst:.1e}'}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
