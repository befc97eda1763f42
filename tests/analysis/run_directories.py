"""Run directories with invented numbers, in the files and the format that training writes."""

import json

from small import as_variant

from msdetr.config import RunConfig

SMALL = {"model.backbone": "conv", "model.pretrained": "none", "model.num_classes": 3}


def train_line(step, loss, **changes):
    line = {
        "kind": "train", "step": step, "epoch": step / 10, "lr": {"rest": 1e-4}, "loss": loss, "grad_norm": 5.0,
        "terms": {
            "one_to_one/class": [loss / 10, loss / 12], "one_to_one/l1": [loss / 20, loss / 25],
            "one_to_one/giou": [loss / 20, loss / 30], "one_to_many/class": [loss / 10, loss / 10],
        },
        "positives_per_object": {"one_to_one": 1.0, "one_to_many": 4.0}, "objects_per_image": 3.0,
        "seconds_per_step": 0.2, "data_seconds_per_step": 0.01,
    }  # fmt: skip
    return line | changes


def make_run(path, variant="c", seed=0, ap=0.5, lines=None, status="finished", per_class=None, **overrides):
    """A run directory at ``path``; returns it."""
    config = RunConfig().override({**SMALL, **as_variant(variant), "seed": seed, **overrides})
    path.mkdir(parents=True)
    config.save(path / "config.yaml")
    if lines is None:
        lines = [train_line(step, 20 - step / 3) for step in range(1, 41)]
    evaluations = [
        {"kind": "eval", "step": step, "epoch": step / 10, "AP": ap * share, "AP50": 1.4 * ap * share, "APl": None}
        for step, share in ((20, 0.6), (40, 1.0))
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *evaluations]))
    names = ("AP", "AP50", "AP75", "APs", "APm")
    results = {
        "status": status, "metrics": {**{name: ap for name in names}, "APl": None}, "seconds": 120.0 + seed, "steps": 40,
        "parameters": {"total": 1_200_000, "trainable": 1_100_000}, "device": "cpu",
        "per_class": {"cat": ap, "dog": ap / 2, "<b>$": None} if per_class is None else per_class,
    }  # fmt: skip
    (path / "results.json").write_text(json.dumps(results))
    return path
