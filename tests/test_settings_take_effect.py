"""A setting of the model, the losses, the matching, MS-DETR or two-stage selection changes what is built; one that
does not is a promise that nothing keeps."""

from __future__ import annotations

import pytest
import small
import torch

from msdetr.config import all_paths
from msdetr.methods import build_criterion, build_detector, build_postprocess

SECTIONS = ("model.", "matching.", "loss.", "ms_detr.", "two_stage.", "mr_detr.")
ELSEWHERE = {
    "model.pretrained",
    "model.dilation",
}  # a file to be read, and of large ResNets only: tests of the backbone
BASE = {"model.look_forward_twice": False, "model.backbone": "resnet18", "denoising.queries": 20, "mr_detr": True}
CHANGED = {
    "model.num_classes": 5,
    "model.backbone": "conv",
    "model.backbone_norm": "group",
    "model.trainable_layers": 1,
    "model.finest_stride": 4,
    "model.hidden_dim": 64,
    "model.num_heads": 2,
    "model.cross_heads": 2,
    "model.encoder_layers": 2,
    "model.decoder_layers": 3,
    "model.ffn_dim": 48,
    "model.dropout": 0.5,
    "model.num_queries": 7,
    "model.num_levels": 4,
    "model.num_points": 2,
    "model.box_refine": False,
    "model.look_forward_twice": True,
    "model.shared_heads": True,
    "model.query_positions": "references",
    "model.output_norm": True,
    "model.reference_eps": 1e-3,
    "model.position_temperature": 20.0,
    "ms_detr.variant": "a",
    "ms_detr.heads": "separate",
    "ms_detr.candidate_ffn": "without",
    "ms_detr.rule": "literal",
    "ms_detr.merge": True,
    "ms_detr.k": 2,
    "ms_detr.groups": "all",
    "loss.floor": "product",
    "two_stage.mixed_selection": False,
    "two_stage.rank_by": "best_class",
    "two_stage.match_on": "boxes",
    "two_stage.supervise": "queries",
    "loss.giou_eps": 1e-6,
    "mr_detr.routes": "ffn",
    "mr_detr.instructions": 3,
    "mr_detr.proposals": "own",
    "mr_detr.rule": "literal",
    "mr_detr.k": 2,
    "mr_detr.mix_layers": True,
}
SETTINGS = [path for path in all_paths() if path.startswith(SECTIONS) and path not in ELSEWHERE]
PLAIN = (bool, int, float, str, tuple)


def built(**changes) -> tuple:
    """All that a configuration decides of a detector and its objective, to be compared."""
    config = small.config("c", **BASE | changes)
    with torch.device("meta"):
        detector = build_detector(config)
    settings = [
        (name, str(type(module)), {k: v for k, v in vars(module).items() if isinstance(v, PLAIN)})
        for name, module in detector.named_modules()
    ]
    weights = [(name, weight.shape, weight.requires_grad) for name, weight in detector.named_parameters()]
    criterion = build_criterion(config)
    objective = [
        (
            b.name,
            b.select.__qualname__,
            repr(b.matcher),
            repr(b.terms),
            b.merge_from,
            b.merge_exclusive,
            criterion.floor,
        )
        for b in criterion.branches
    ]
    return settings, weights, objective, build_postprocess(config)


@pytest.fixture(scope="module")
def base():
    return built()


def test_the_same_settings_build_the_same(base):
    assert built() == base


@pytest.mark.parametrize("path", SETTINGS)
def test_a_setting_changes_what_is_built(path, base):
    value = CHANGED.get(path, 0.123)  # other settings are weights, shares and thresholds
    assert built(**{path: value}) != base
