"""What saving costs: ``python benchmarks/checkpoint.py`` measures the state of the 900-query ResNet-50 model.

Training waits only for the copy to host memory; writing, flushing to the disk and checksums happen in the background. The
whole save is compared with an epoch of COCO 2017 (7,392 steps of 16 images): it stays under 2 % of it as long as a step takes
longer than ``step_ms_for_2_percent``. Results go to benchmarks/results/checkpoint.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from msdetr import recipes
from msdetr.engine import MovingAverage, build_optimizer
from msdetr.engine import checkpoint as checkpoints
from msdetr.methods import build_detector

EPOCH_STEPS = 118_287 // 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write checkpoints: the disk that is measured")
    options = parser.parse_args()

    config = recipes.get("coco/ms-detr-pp-900").override({"model.pretrained": "none"})
    detector = build_detector(config)
    optimizer = build_optimizer(detector, config.train)
    for parameter in detector.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3) if parameter.requires_grad else None
    optimizer.step()
    average = MovingAverage(detector, 0.999)
    tensors, groups = checkpoints.optimizer_files(optimizer)
    files = {"model": detector.state_dict(), "ema": average.detector.state_dict(), "optimizer": tensors}
    files["rng"] = {"cpu.0": torch.get_rng_state()}
    manifest = {"epoch": 0.0, "config": config.to_dict(), "metrics": {}}
    manifest["class_names"] = [f"class {i}" for i in range(config.model.num_classes)]
    manifest["category_ids"] = list(range(config.model.num_classes))
    manifest["training"] = {"optimizer": groups, "world_size": 1, "seconds": 0.0, "evaluations": []}

    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        writer = checkpoints.Writer(folder)
        for step in range(1, options.repeat + 1):
            start = time.perf_counter()
            writer.save(step, files, manifest)
            blocked = time.perf_counter() - start
            writer.wait()
            saved = time.perf_counter() - start
            found = checkpoints.verify(Path(folder, "checkpoints", f"step_{step:08d}"))
            verified = time.perf_counter() - start - saved
            rows.append({"blocked_s": blocked, "saved_s": saved, "verified_s": verified})
        size = found.bytes / 2**20
    middle = {name: sorted(row[name] for row in rows)[len(rows) // 2] for name in rows[0]}
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "state_mib": size,
        **middle,
        "step_ms_for_2_percent": 1e3 * middle["saved_s"] / 0.02 / EPOCH_STEPS,
        "repeats": rows,
    }
    target = Path(__file__).parent / "results" / "checkpoint.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(f"state of {size:.0f} MiB: training waits {middle['blocked_s']:.2f} s, on disk after {middle['saved_s']:.2f} s, "
          f"verified in {middle['verified_s']:.2f} s")  # fmt: skip
    print(
        f"under 2 % of a COCO epoch if a step of 16 images takes longer than {result['step_ms_for_2_percent']:.0f} ms"
    )


if __name__ == "__main__":
    main()
