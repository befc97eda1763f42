"""A detector small enough to be built and run in a moment."""

import torch

from msdetr import recipes
from msdetr.config import RunConfig
from msdetr.losses import Criterion
from msdetr.methods import build_criterion, build_detector
from msdetr.model import Detector
from msdetr.structures import ImageBatch, Predictions, Targets

SMALL = {
    "model.hidden_dim": 32,
    "model.num_heads": 4,
    "model.ffn_dim": 32,
    "model.num_queries": 5,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
}


def as_variant(variant: str) -> dict:
    """The setting of a variant, "baseline" among them."""
    return {"ms_detr": None} if variant == "baseline" else {"ms_detr.variant": variant}


def config(variant: str, **changes) -> RunConfig:
    """``shapes/ms-detr-c`` made small, as a variant, with further changes."""
    return recipes.get("shapes/ms-detr-c").override(SMALL | as_variant(variant) | changes)


def built(config: RunConfig, size: int = 64) -> tuple[Detector, Criterion, ImageBatch]:
    """In float64 and always the same: a detector whose parameters are all moved away from where they start, its criterion,
    and two images of size x size pixels."""
    torch.manual_seed(0)
    detector = build_detector(config).double()
    for parameter in detector.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return detector, build_criterion(config), ImageBatch.from_images(list(torch.randn(2, 3, size, size).double()))


def objects(*counts: int) -> Targets:
    """So many objects in each image, always the same ones, in float64."""
    draw = torch.Generator().manual_seed(5)
    boxes = [torch.rand(n, 4, dtype=torch.float64, generator=draw) * 0.3 + 0.3 for n in counts]
    return Targets.from_list([torch.arange(n) % 8 for n in counts], boxes)


def evaluated(detector: Detector, images: ImageBatch) -> Predictions:
    """What a detector predicts in evaluation; strips it, after which it predicts and selects the same to the bit."""
    detector.eval()
    with torch.no_grad():
        whole = detector(images)
        stripped = detector.strip()(images)
    for name in ("logits", "boxes"):
        assert torch.equal(getattr(whole.one_to_one, name), getattr(stripped.one_to_one, name)), name
    assert whole.selected is None or torch.equal(whole.selected, stripped.selected)
    return whole.one_to_one
