"""Real photographs: mixed sizes, crowds and all. Skips where there are none; the slow part overfits eight of them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import msdetr
from msdetr import recipes
from msdetr.data import build_dataset, build_eval_loader
from msdetr.engine import train

DEFAULT = Path(__file__).parents[2] / "shared" / "coco_tiny"
ROOT = Path(os.environ.get("MSDETR_COCO_TINY", DEFAULT))
SCRATCH = {
    "model.backbone": "resnet18",
    "model.pretrained": "none",
    "model.backbone_norm": "group",
    "model.hidden_dim": 128,
    "model.ffn_dim": 512,
}
TINY = SCRATCH | {
    "data.root": str(ROOT),
    "data.num_train": 6,
    "data.num_val": 6,
    "data.train_sizes": "96,128",
    "data.test_size": 128,
    "data.max_size": 192,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.num_queries": 60,
    "train.epochs": 2,
    "train.batch_size": 3,
    "train.micro_batch": 1,
    "train.precision": "fp32",
}

needs_photographs = pytest.mark.skipif(
    not (ROOT / "annotations").is_dir(), reason=f"no COCO-format photographs at {ROOT}; set MSDETR_COCO_TINY"
)


@needs_photographs
@pytest.mark.parametrize("recipe", ["photos/ms-detr-c", "photos/baseline"])
def test_trains_and_evaluates_with_a_resnet(recipe, tmp_path):
    results = train(recipes.get(recipe).override(TINY), tmp_path / "run", device="cpu", progress=False)
    assert results["status"] == "finished"
    assert 0 <= results["metrics"]["AP"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert all(torch.isfinite(torch.tensor(losses)))


@needs_photographs
def test_a_prediction_does_not_depend_on_its_batch():
    """Alone, or in the evaluation's batches with other photographs: the same numbers."""
    config = recipes.get("photos/ms-detr-c").override(TINY | {"data.num_val": 12})
    dataset = build_dataset(config, "val")
    torch.manual_seed(0)
    detector = msdetr.build(config).eval()
    sizes = set()
    with torch.inference_mode():
        for batch, targets in build_eval_loader(dataset, batch_size=4):
            assert not batch.mask.any()  # no padding
            together = detector(batch).one_to_one.layer(-1)
            sizes.add(len(batch))
            for i in range(len(batch)):
                alone = detector(
                    replace(batch, images=batch.images[i : i + 1], mask=batch.mask[i : i + 1])
                ).one_to_one.layer(-1)
                torch.testing.assert_close(alone.logits[:, 0], together.logits[:, i], atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, i], atol=1e-4, rtol=1e-4)
    assert max(sizes) > 1  # some photographs did share a batch


OVERFIT = SCRATCH | {
    "model.num_queries": 100,
    "ms_detr.k": 6,
    "data.augment": "none",
    "data.train_sizes": "192",
    "data.test_size": 192,
    "data.max_size": 288,
    "data.num_train": 8,
    "data.num_val": 8,
    "data.val_split": "train2017",
    "data.cache": True,
    "train.epochs": 300,
    "train.batch_size": 4,
    "train.micro_batch": 4,
    "train.lr": 4e-4,
    "train.lr_backbone": 4e-4,
    "train.lr_projection_factor": 1.0,
    "train.schedule": "one_cycle",
    "train.eval_every": 50,
    "train.checkpoint_every": 300,
    "train.precision": "fp32",
}


@pytest.mark.slow
@needs_photographs
def test_overfits_eight_photographs(tmp_path):
    """From scratch to AP >= 0.8 on the very photographs it is trained on: nothing in the path is broken."""
    config = recipes.get("photos/ms-detr-c").override({"data.root": str(ROOT), **OVERFIT})
    results = train(config, tmp_path / "run", device="cpu", progress=False)
    curve = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    points = [
        {"epoch": line["epoch"], "AP": line["AP"], "AP50": line["AP50"]} for line in curve if line["kind"] == "eval"
    ]
    if target := os.environ.get("MSDETR_WRITE_CURVE"):
        content = {"recipe": "photos/ms-detr-c", "overrides": OVERFIT, "seconds": results["seconds"], "curve": points}
        Path(target).write_text(json.dumps(content, indent=1) + "\n")
    assert results["metrics"]["AP"] >= 0.8, points
