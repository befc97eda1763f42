"""A detector small enough to be built and run in a moment."""

from msdetr import recipes
from msdetr.config import RunConfig

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
