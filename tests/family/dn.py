"""DN-DETR (IDEA-Research/DN-DETR): DN-DAB-Deformable-DETR, one-stage, and its two-stage model with contrastive denoising."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import golden
import torch
from comparison import Case
from denoised import (
    FIXED,
    HONORED,
    WITHOUT_EFFECT,
    Flags,
    System,
    logged,
    model_cases,
    overridden,
    shared_changes,
)
from denoised_queries import DTYPE, query_case
from golden import CannotHonor
from torch import Tensor
from torch.nn.functional import pad

from msdetr.config import RunConfig
from msdetr.losses import Supervised
from msdetr.methods import DenoisingConfig
from msdetr.methods.dn_detr import IndicatedQueries, ReleasedContrastiveQueries
from msdetr.structures import Matches, QueryGroup

ONE_STAGE, TWO_STAGE = "dn_dab_deformable_detr", "dn_dab_dino_deformable_detr"
DETECTIONS = 100  # that the one-stage model keeps, whatever it is told
FLAGS = Flags(
    honored=HONORED
    | frozenset(["two_stage", "scalar", "label_noise_scale", "box_noise_scale", "contrastive", "num_results"]),
    fixed=FIXED,
    without_effect=WITHOUT_EFFECT,
)


def groups_of(code: str, scalar: int, contrastive: bool) -> dict:
    """The published number of groups: ``scalar``, but in the two-stage model from 100 on as many as fit, and at least 1;
    an image counts its objects twice where there are negatives."""
    if code == "two_stage" and scalar >= 100:
        return {"queries": scalar // (2 if contrastive else 1)}
    if code != "two_stage" and scalar < 1:
        raise CannotHonor(f"the case carries scalar = {scalar}: there is no denoising without groups here")
    return {"groups": max(scalar, 1)}


def run_config(variant: Mapping, spec: Mapping) -> RunConfig:
    given, model = FLAGS.read(variant, spec), variant["model"]
    if model not in (ONE_STAGE, TWO_STAGE):
        raise CannotHonor(f"the case carries model = {model!r}, which nothing here stands for")
    if given["two_stage"] != (model == TWO_STAGE):
        raise CannotHonor(f"the case carries two_stage = {given['two_stage']} with {model}")
    code, contrastive = "two_stage" if given["two_stage"] else "dab", given["contrastive"]
    if contrastive and code == "dab":
        raise CannotHonor(f"the case carries contrastive = True with {model}")
    (num_classes,) = {shape[0] for name, shape in variant["parameters"].items() if name.endswith("class_embed.0.bias")}
    changes = shared_changes(given, num_classes)
    changes |= {f"denoising.{name}": value for name, value in groups_of(code, given["scalar"], contrastive).items()}
    if given["two_stage"]:
        changes |= {"two_stage.mixed_selection": True, "two_stage.match_on": "boxes"}
    else:
        changes |= {"dab.indicator": True}
    return overridden(
        changes
        | {
            "loss.giou_eps": 1e-6,
            "model.query_positions": "scaled_references",
            "model.look_forward_twice": given["two_stage"],
            "denoising.contrastive": contrastive,
            "denoising.style": "released_contrastive" if contrastive else "indicated",
            "denoising.noise": "corners" if given["two_stage"] else "centers",
            "denoising.label_noise": given["label_noise_scale"],
            "denoising.box_noise": given["box_noise_scale"],
        }
    )


def detections(variant: Mapping, spec: Mapping) -> int:
    return FLAGS.read(variant, spec)["num_results"] if variant["model"] == TWO_STAGE else DETECTIONS


def entry(branch: str, term: str, suffix: str) -> str:
    if branch == "denoising":
        return f"tgt_{term}{suffix}"
    return term + ("_enc" if branch == "encoder" else suffix)


def others(branch: str, given: Supervised, matches: Matches, layer: int, divisor: float) -> Mapping[str, float]:
    """Errors; of denoising queries the share of all whose best class is not the one they are to learn, "no object" among
    these."""
    if branch != "denoising":
        return logged(given.predictions, matches, given.targets, layer)
    pairs = matches.select(matches.layer == layer)
    found = given.predictions.logits[layer, pairs.image, pairs.query].argmax(-1)
    wrong = (found != given.targets.labels[pairs.target]).double()
    return {"class_error": 100 * wrong.mean().item() if len(wrong) else 0.0}


SYSTEM = System(run_config, detections, entry, "enc", others)


def query_set(folder: Path, name: str, spec: Mapping, case: Case) -> None:
    arrays = golden.read_arrays(folder / f"query_{name}.npz")
    code, contrastive = spec["code"], spec["contrastive"]
    if code not in ("dab", "two_stage"):
        raise CannotHonor(f"the case carries code = {code!r}, which nothing here stands for")
    config = DenoisingConfig(
        **groups_of(code, spec["scalar"], contrastive),
        contrastive=contrastive,
        label_noise=spec["label_noise_scale"],
        box_noise=spec["box_noise_scale"],
        noise="corners" if code == "two_stage" else "centers",
    )
    label_enc = torch.from_numpy(arrays["label_enc"]).to(DTYPE)
    kind = ReleasedContrastiveQueries if contrastive else IndicatedQueries
    source = kind(label_enc.shape[1] + 1, spec["num_classes"], config).to(DTYPE)
    source.load_state_dict({"label_embedding.weight": label_enc})
    query_case(case, source, matching_queries(arrays, spec, label_enc.shape[1] + 1), arrays, spec)


def matching_queries(arrays: Mapping, spec: Mapping, dim: int) -> QueryGroup:
    """Learned contents with an indicator of 0, and learned boxes, where the case records them."""

    def learned(name: str, width: int) -> Tensor:
        found = arrays.get(name)
        rows = (
            torch.zeros(spec["num_queries"], width, dtype=DTYPE) if found is None else torch.from_numpy(found).to(DTYPE)
        )
        return rows.expand(len(spec["objects"]), -1, -1)

    contents = pad(learned("tgt_embed", dim - 1), (0, 1))
    return QueryGroup("primary", contents, contents, learned("refpoint_embed", 4).sigmoid())


def cases(folder: Path) -> Iterator[tuple[str, Callable[[Case], None]]]:
    manifest = golden.read_json(folder / "manifest.json")
    yield from model_cases(SYSTEM, folder, manifest)
    for name, spec in manifest["query_cases"].items():
        yield f"query {name}", partial(query_set, folder, name, spec)
