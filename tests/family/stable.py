"""Stable-DINO, Align-DETR and the varifocal loss: class losses and matching costs that know the IoU, as published."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import golden
import numpy as np
import torch
from comparison import Case
from denoised_queries import query_case
from golden import CannotHonor
from published import per_image

from msdetr.config import RunConfig
from msdetr.losses import (
    Branch,
    Criterion,
    Supervised,
    aligned_loss,
    focal_loss,
    giou_loss,
    l1_loss,
    position_supervised_loss,
    ranked_giou_loss,
    ranked_l1_loss,
    varifocal_loss,
)
from msdetr.losses.iou_aware import pair_quality, rank_weights
from msdetr.matching import (
    HungarianMatcher,
    ReleasedModulatedMatcher,
    ReleasedRepeatedMatcher,
    detection_costs,
)
from msdetr.methods import DenoisingConfig
from msdetr.methods.denoising_queries import DenoisingQueries
from msdetr.model import DenseFusion, Encoder, EncoderLayer, Proposals, from_released, to_released
from msdetr.modules import Pyramid
from msdetr.structures import DetectorOutput, Matches, Predictions, QueryGroup, Targets

EPS = 1e-6  # added to the areas that GIoU divides by
COSTS = detection_costs(giou_eps=EPS)
overlap = partial(giou_loss, eps=EPS)
DESCRIBED = {"kind", "objects", "B", "Q", "C", "num_boxes", "seed", "loss", "boxes_receive_gradient"}
# keys of a case that describe it or are compared; all others are its settings
DESCRIBED |= {"matchings", "losses", "total", "normaliser", "denoising_pairs", "weights_used", "layers", "groups"}
DESCRIBED |= {
    "group_size",
    "draws",
    "num_dn_group",
    "returns_nothing",
    "num_queries",
    "shapes",
    "valid",
    "gradient_norm",
    "gradient_sum",
}


def cases(folder: Path) -> Iterator[tuple[str, Callable[[Case], None]]]:
    manifest = golden.read_json(folder / "manifest.json")
    for name, spec in manifest["cases"].items():
        check = CHECKS.get(spec["kind"], unknown)
        yield name, partial(check, folder=folder, manifest=manifest, name=name, spec=spec)


def unknown(case: Case, folder: Path, manifest: dict, name: str, spec: dict) -> None:
    raise CannotHonor(f"the case is of the kind {spec['kind']}, which nothing here stands for")


def settings(spec: dict, **known) -> dict:
    """The settings of a case over their defaults. Raises CannotHonor naming those that are unknown."""
    given = {name: value for name, value in spec.items() if name not in DESCRIBED}
    if strange := sorted(given.keys() - known.keys()):
        raise CannotHonor(f"the case carries {', '.join(strange)}, which nothing here stands for")
    return known | given


def released(manifest: dict, system: str, name: str):
    """A published default, as the manifest gives it."""
    (found,) = [values for title, values in manifest["defaults"].items() if title.startswith(system)]
    return found[name]


def tolerance(manifest: dict, of: str) -> dict[str, float]:
    """What the manifest allows in float64, as it says it: "rtol 1e-6, atol 1e-9", or "1e-8 max abs"."""
    (words,) = (text for name, text in manifest["tolerance"]["float64"].items() if of in name.split(", "))
    found = {kind: float(number) for kind, number in re.findall(r"([ra]tol) ([\d.]+e-?\d+)", words)}
    return found or {"atol": float(words.split()[0])}


def read(folder: Path, name: str) -> tuple[dict[str, np.ndarray], Targets]:
    arrays = golden.read_arrays(folder / f"{name}.npz")
    images = sum(key.startswith("targets/") and key.endswith("/labels") for key in arrays)
    return arrays, golden.read_targets(arrays, images, torch.float64)


def predictions_of(arrays: dict, stems: list[str]) -> Predictions:
    """Leaves that a gradient can be asked of."""
    columns = (
        torch.stack([torch.from_numpy(arrays[f"{stem}{kind}"]).double() for stem in stems])
        for kind in ("logits", "boxes")
    )
    return Predictions(*(column.requires_grad_() for column in columns))


def as_matches(pairs: list, targets: Targets) -> Matches:
    """From (query, object) pairs of each image, in the order in which they are recorded."""
    starts = np.cumsum([0, *targets.counts.tolist()])
    rows = [(0, image, query, int(starts[image]) + t) for image, found in enumerate(pairs) for query, t in found]
    return Matches(*torch.tensor(rows, dtype=torch.long).reshape(-1, 4).unbind(1))


def recorded_pairs(arrays: dict, targets: Targets) -> Matches:
    return as_matches([arrays[f"match/{image}"].tolist() for image in range(targets.num_images)], targets)


def compare_gradient(case: Case, predictions: Predictions, arrays: dict, stems: list[str], **tolerance) -> None:
    for layer, stem in enumerate(stems):
        for kind in ("logits", "boxes"):
            tensor = getattr(predictions, kind)
            gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
            if f"grad/{stem}{kind}" in arrays:
                case.close(f"grad/{stem}{kind}", gradient[layer], arrays[f"grad/{stem}{kind}"], **tolerance)


# ---------------------------------------------------------------- single terms


def compare_term(case: Case, term, predictions, targets, matches: Matches, arrays, manifest: dict, spec: dict) -> None:
    loss = term(predictions, targets, matches).sum() / spec["num_boxes"]
    case.close("loss", loss, spec["loss"], **tolerance(manifest, "losses"))
    loss.backward()
    compare_gradient(case, predictions, arrays, [""], **tolerance(manifest, "gradients"))
    case.equal("boxes receive a gradient", predictions.boxes.grad is not None, spec["boxes_receive_gradient"])


def stable_loss_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict) -> None:
    arrays, targets = read(folder, name)
    compare_term(
        case,
        stable_term(manifest, spec),
        predictions_of(arrays, [""]),
        targets,
        recorded_pairs(arrays, targets),
        arrays,
        manifest,
        spec,
    )


def stable_term(manifest: dict, spec: dict, **further):
    power = dict(zip(("ta_alpha", "ta_beta"), released(manifest, "Stable-DINO", "ta_alpha/ta_beta")))
    given = settings(spec, **power, post="none", type="stable", **further)
    if given["type"] == "none":
        return focal_loss
    if given["type"] != "stable":
        raise CannotHonor(f"the case carries type = {given['type']!r}, which nothing here stands for")
    return partial(
        position_supervised_loss,
        iou_power=given["ta_beta"],
        probability_power=given["ta_alpha"],
        transform=given["post"],
    )


def aligned_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict) -> None:
    arrays, targets = read(folder, name)
    given = settings(spec, alpha=None, gamma=None, tau=None, k=1)
    predictions, matches = predictions_of(arrays, [""]), recorded_pairs(arrays, targets)
    term = partial(aligned_loss, **{name: given[name] for name in ("alpha", "gamma", "tau")})
    if "rank_weight" in arrays:
        quality = pair_quality(predictions, targets, matches, given["alpha"])
        case.close(
            "rank_weight",
            rank_weights(quality, targets, matches, given["tau"]),
            arrays["rank_weight"],
            **tolerance(manifest, "losses"),
        )
    compare_term(case, term, predictions, targets, matches, arrays, manifest, spec)


def varifocal_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict) -> None:
    arrays, targets = read(folder, name)
    term = partial(varifocal_loss, **settings(spec, alpha=0.75, gamma=2.0))
    compare_term(
        case, term, predictions_of(arrays, [""]), targets, recorded_pairs(arrays, targets), arrays, manifest, spec
    )


# ---------------------------------------------------------------- costs and matchings


def compare_matching(
    case: Case, matcher: HungarianMatcher, arrays: dict, targets: Targets, spec: dict, rise: float
) -> None:
    """Costs and pairs. rise: what the published costs have more than those here, which no matching depends on."""
    predictions = predictions_of(arrays, [""]).detach()
    table = matcher.cost(predictions, targets)[0]
    pairs = per_image(matcher(predictions, targets), targets)
    for image, want in enumerate(spec["matchings"]):
        cost = table[targets.image == image]
        if f"cost/{image}" in arrays:
            recorded = arrays[f"cost/{image}"]
            copies = recorded.shape[1] // max(len(cost), 1)
            got = cost.repeat(max(copies, 1), 1).T if len(cost) else np.zeros_like(recorded) - rise
            case.close(f"cost/{image}", got + rise, recorded, rtol=1e-9, atol=1e-9)
        case.equal(f"matching {image}", pairs[image], sorted(tuple(pair) for pair in want))


def modulated(manifest: dict, power: float) -> HungarianMatcher:
    weights = dict(zip(("class", "l1", "giou"), released(manifest, "Stable-DINO", "cost class/l1/giou")))
    costs = {kind: (weights[kind], cost) for kind, (_, cost) in COSTS.items()}
    return ReleasedModulatedMatcher(costs, power=power, giou_eps=EPS) if power > 0 else HungarianMatcher(costs)


def stable_match_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict) -> None:
    arrays, targets = read(folder, name)
    given = settings(spec, cec_beta=released(manifest, "Stable-DINO", "cec_beta"))
    matcher = modulated(manifest, given["cec_beta"])
    compare_matching(case, matcher, arrays, targets, spec, rise=matcher.costs["giou"][0])


def mixed_match_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict) -> None:
    arrays, targets = read(folder, name)
    matcher = ReleasedRepeatedMatcher(COSTS, copies=settings(spec, k=1)["k"])
    compare_matching(case, matcher, arrays, targets, spec, rise=0.0)


# ---------------------------------------------------------------- whole criteria


def criterion_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, branches: Callable) -> None:
    """branches: (spec, manifest) -> terms and matchers of the decoder's layers, the encoder, and denoising."""
    arrays, targets = read(folder, name)
    last = spec["layers"] - 1
    stems = {"decoder": [f"matching/{i}/" for i in range(last + 1)], "encoder": ["encoder/"]}
    if spec["denoising_pairs"]:
        stems["denoising"] = [f"denoising/{i}/" for i in range(last + 1)]
    predictions = {kind: predictions_of(arrays, found) for kind, found in stems.items()}
    terms, matchers = branches(spec, manifest)
    criterion = Criterion(
        [
            Branch(
                kind,
                partial(supervised, kind=kind, predictions=found, spec=spec),
                matchers.get(kind),
                weighted(terms[kind], spec, kind),
            )
            for kind, found in predictions.items()
        ]
    )
    output = DetectorOutput(predictions["decoder"])
    losses, given = criterion(output, targets, spec["num_boxes"]), criterion.supervised(output, targets)
    for kind, found in predictions.items():
        for layer in range(len(found.logits)):
            at_end = layer == len(found.logits) - 1
            suffix = SUFFIX[kind] + ("" if at_end else f"_{layer}")
            for term, entry in TERMS.items():
                got, want = losses.terms[f"{kind}/{term}"][layer], spec["losses"][entry + suffix]
                case.close(entry + suffix, got, want, **tolerance(manifest, "losses"))
            part = "enc" if kind == "encoder" else "last" if at_end else f"aux_{layer}"
            divided = criterion.divisor(spec["num_boxes"], given[kind])
            case.equal(f"normaliser of {kind} {part}", divided, spec["normaliser"][DIVIDED[kind] + part])
            if kind != "denoising":
                for image, pairs in enumerate(per_image(losses.matches[kind], targets, layer)):
                    case.equal(f"{part} {image}", pairs, sorted(tuple(p) for p in spec["matchings"][part][image]))
    absent = {name: value for name, value in spec["losses"].items() if "_dn" in name and "denoising" not in predictions}
    case.equal("losses of no denoising", any(absent.values()), False)
    case.close("total", losses.total, spec["total"], **tolerance(manifest, "total"))
    losses.total.backward()
    for kind, found in predictions.items():
        compare_gradient(case, found, arrays, stems[kind], **tolerance(manifest, "gradients"))


TERMS = {"class": "loss_class", "l1": "loss_bbox", "giou": "loss_giou"}
SUFFIX = {"decoder": "", "encoder": "_enc", "denoising": "_dn"}
DIVIDED = {"decoder": "", "encoder": "", "denoising": "dn_"}


def weighted(terms: dict, spec: dict, kind: str) -> dict:
    """With the weights of the case. Raises CannotHonor where they are not the same in all layers."""
    found = {}
    for name, term in terms.items():
        entry = TERMS[name] + SUFFIX[kind]
        of_layers = {w for other, w in spec["weights_used"].items() if re.fullmatch(rf"{entry}(_\d+)?", other)}
        if len(of_layers) != 1:
            raise CannotHonor(f"the case carries other weights of {entry} in some layers: {sorted(of_layers)}")
        found[name] = (of_layers.pop(), term)
    return found


def supervised(output: DetectorOutput, targets: Targets, kind: str, predictions: Predictions, spec: dict) -> Supervised:
    if kind != "denoising":
        return Supervised(predictions, targets)
    pairs = as_matches(spec["denoising_pairs"], targets)
    depth = len(predictions.logits)
    layer = torch.arange(depth).repeat_interleave(len(pairs))
    pairs = Matches(layer, *(getattr(pairs, name).repeat(depth) for name in ("image", "query", "target")))
    return Supervised(predictions, targets, pairs=pairs, divisor=spec["groups"])


def stable_branches(spec: dict, manifest: dict) -> tuple[dict, dict]:
    given = {**spec}
    power = given.pop("cec_beta", released(manifest, "Stable-DINO", "cec_beta"))
    terms = {"class": stable_term(manifest, given), "l1": l1_loss, "giou": overlap}
    matcher = modulated(manifest, power)
    return dict.fromkeys(("decoder", "encoder", "denoising"), terms), {"decoder": matcher, "encoder": matcher}


def align_branches(spec: dict, manifest: dict) -> tuple[dict, dict]:
    alpha, gamma = released(manifest, "Align-DETR", "alpha/gamma")
    given = settings(spec, match_num=None, tau=None, alpha=alpha, gamma=gamma)
    alpha, gamma = given["alpha"], given["gamma"]
    ranked = {
        "class": partial(aligned_loss, alpha=alpha, gamma=gamma, tau=given["tau"]),
        "l1": partial(ranked_l1_loss, alpha=alpha, tau=given["tau"]),
        "giou": partial(ranked_giou_loss, alpha=alpha, tau=given["tau"], eps=EPS),
    }
    plain = {"class": partial(aligned_loss, alpha=alpha, gamma=gamma), "l1": l1_loss, "giou": overlap}
    of_encoder, *of_layers = given["match_num"]
    matchers = {
        "decoder": ReleasedRepeatedMatcher(COSTS, copies=tuple(of_layers)),
        "encoder": ReleasedRepeatedMatcher(COSTS, copies=of_encoder),
    }
    return {"decoder": ranked, "encoder": ranked, "denoising": plain}, matchers


# ---------------------------------------------------------------- queries and encoder


def denoising_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict) -> None:
    arrays, targets = read(folder, name)
    given = settings(
        spec, dn_number=None, gdn_k=2, neg_step_type="none", label_noise_ratio=None, box_noise_scale=None
    )  # fmt: skip
    kind, _, step = given["neg_step_type"].partition(":")
    if kind not in ("none", "add"):
        raise CannotHonor(f"the case carries neg_step_type = {given['neg_step_type']!r}, which nothing here stands for")
    config = DenoisingConfig(
        queries=given["dn_number"],
        negatives=given["gdn_k"] - 1,
        negative_step=float(step or 0),
        label_noise=given["label_noise_ratio"] / 2,
        box_noise=given["box_noise_scale"],
        noise="clamped_corners",
    )
    embedding = torch.from_numpy(arrays["label_enc"]).double() if "label_enc" in arrays else torch.zeros(spec["C"], 4)
    source = DenoisingQueries(embedding.shape[1], len(embedding), config).double()
    source.load_state_dict({"label_embedding.weight": embedding})
    empty = torch.zeros(targets.num_images, spec["num_queries"], 4, dtype=torch.float64)
    primary = QueryGroup("primary", empty.new_zeros(*empty.shape[:2], embedding.shape[1]), empty, empty)
    if spec.get("returns_nothing"):
        group = source(Proposals(None, embed=lambda references: (references, None)), targets, {"primary": primary})
        case.equal("queries", group.contents.shape[1], 0)
        return
    spec = spec | {"pad_size": spec["num_dn_group"] * spec["group_size"]}
    query_case(case, source, primary, arrays, spec)


def fusion_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict) -> None:
    settings(spec)
    arrays = golden.read_arrays(folder / f"{name}.npz")
    weights = {
        key[len("weight/") :]: torch.from_numpy(w).double() for key, w in arrays.items() if key.startswith("weight/")
    }
    shapes = tuple(tuple(shape) for shape in arrays["spatial_shapes"].tolist())
    dim, heads = arrays["tokens"].shape[-1], int(re.search(r"(\d+) heads", manifest["kinds"]["stable_fusion"])[1])
    points = len(weights["layers.0.attentions.0.attention_weights.bias"]) // heads // len(shapes)
    ffn = len(weights["layers.0.ffns.0.layers.0.0.bias"])
    layers = [EncoderLayer(dim, heads, len(shapes), points, ffn, 0.0) for _ in range(spec["layers"])]
    encoder = Encoder(layers, DenseFusion(spec["layers"], dim)).double()
    run = RunConfig().override({"stable.memory_fusion": True})
    state = from_released({f"transformer.encoder.{key}": weight for key, weight in weights.items()}, run)
    encoder.load_state_dict({key.removeprefix("encoder."): weight for key, weight in state.items()})

    tokens, position, mask = (torch.from_numpy(arrays[key]) for key in ("tokens", "position", "padding_mask"))
    tokens = tokens.double().requires_grad_()
    levels = [own.unflatten(1, shape) for own, shape in zip(mask.split([h * w for h, w in shapes], 1), shapes)]
    ratios = [torch.stack([(~m[:, 0]).double().mean(1), (~m[:, :, 0]).double().mean(1)], -1) for m in levels]
    pyramid = Pyramid(tokens, position.double(), mask, shapes, torch.stack(ratios, 1))
    case.close(
        "reference_points",
        pyramid.per_level(pyramid.token_centers()),
        arrays["reference_points"],
        **tolerance(manifest, "references"),
    )
    output = encoder(pyramid).tokens
    case.close("output", output, arrays["output"], **tolerance(manifest, "memory"))
    (output * torch.from_numpy(arrays["grad_output"]).double()).sum().backward()
    gradients = to_released({f"encoder.{key}": p.grad for key, p in encoder.named_parameters()}, run)
    gradients = {key.removeprefix("transformer.encoder."): gradient for key, gradient in gradients.items()}
    case.close("grad/tokens", tokens.grad, arrays["grad/tokens"], **tolerance(manifest, "gradients"))
    for key, gradient in gradients.items():
        case.close(f"|{key}|", gradient.norm(), spec["gradient_norm"][key], **tolerance(manifest, "gradient_norm"))
        if "gradient_sum" in spec:
            case.close(f"sum {key}", gradient.sum(), spec["gradient_sum"][key], atol=1e-7 * spec["gradient_norm"][key])
        if f"grad/{key}" in arrays:
            case.close(f"grad/{key}", gradient, arrays[f"grad/{key}"], **tolerance(manifest, "gradients"))
    case.equal("parameters", sorted(gradients), sorted(spec["gradient_norm"]))


CHECKS = {
    "stable_fusion": fusion_case,
    "stable_cdn": denoising_case,
    "stable_loss": stable_loss_case,
    "stable_match": stable_match_case,
    "stable_criterion": partial(criterion_case, branches=stable_branches),
    "ia_bce": aligned_case,
    "mixed_match": mixed_match_case,
    "align_criterion": partial(criterion_case, branches=align_branches),
    "vfl": varifocal_case,
}
