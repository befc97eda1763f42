"""Training methods, one file each: query groups, branches, perhaps a decoder layer, and a config section of their own."""

from .assembly import build_criterion, build_detector, build_postprocess, methods_of
from .base import Method
from .dab import DAB, DABConfig
from .denoising import Denoising, DenoisingConfig
from .deta import DETA, DETAConfig
from .group import Group, GroupConfig
from .hybrid import Hybrid, HybridConfig
from .lw_detr import LWDETR, LWDETRConfig
from .mr_detr import MrDETR, MrDETRConfig
from .ms_detr import MSDETR, CandidateHeads, MSDETRConfig, matching_rules, variant_of
from .registry import register
from .stable import Stable, StableConfig
from .two_stage import TwoStage, TwoStageConfig

for _method in (MSDETR, TwoStage):
    register(_method, on=True)
for _method in (DAB, Hybrid, Group, LWDETR, DETA, Denoising, Stable, MrDETR):
    register(_method)

__all__ = [
    "DAB",
    "DETA",
    "LWDETR",
    "MSDETR",
    "CandidateHeads",
    "DABConfig",
    "DETAConfig",
    "Denoising",
    "DenoisingConfig",
    "Group",
    "GroupConfig",
    "Hybrid",
    "HybridConfig",
    "LWDETRConfig",
    "MSDETRConfig",
    "Method",
    "MrDETR",
    "MrDETRConfig",
    "Stable",
    "StableConfig",
    "TwoStage",
    "TwoStageConfig",
    "build_criterion",
    "build_detector",
    "build_postprocess",
    "matching_rules",
    "methods_of",
    "register",
    "variant_of",
]
