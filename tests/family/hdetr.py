"""H-DETR (HDETR/H-Deformable-DETR): whole models in training and evaluation, and the hybrid criterion on given outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import golden
import torch
from comparison import Case
from golden import CannotHonor
from published import (
    DTYPES,
    compare_detections,
    compare_gradients,
    dense_mask,
    described,
    made_by,
    number,
    numbered,
    of_image,
    on_maps,
    recorded_errors,
    sizes_in,
)

from msdetr.config import RunConfig
from msdetr.engine.postprocess import postprocess
from msdetr.losses import Losses
from msdetr.methods import build_criterion
from msdetr.model import Detector
from msdetr.modules import Layout
from msdetr.recipes import get
from msdetr.structures import DetectorOutput, EncoderOutput, GroupOutput, ImageBatch, Predictions, Targets

FLAGS = ("with_box_refine", "two_stage", "mixed_selection", "look_forward_twice")
NUMBERS = ("num_queries_one2one", "num_queries_one2many", "k_one2many", "lambda_one2many")
BRANCHES = {"one_to_one": "one2one", "hybrid": "one2many", "encoder": "enc"}
TERMS = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


def cases(folder: Path) -> Iterator[tuple[str, Callable[[Case], None]]]:
    manifest = golden.read_json(folder / "manifest.json")
    for name, spec in manifest["cases"].items():
        for dtype in DTYPES:
            yield f"{name} {dtype}", lambda case, s=spec, d=dtype: model_case(case, folder, manifest, s, d)
    for name, spec in manifest["criterion"].items():
        yield f"criterion {name}", lambda case, s=spec: criterion_case(case, folder, manifest, s)


# ---------------------------------------------------------------- settings


def settings(manifest: dict, flags: dict, weights: dict) -> RunConfig:
    """The recipe with what a case was computed with. Raises CannotHonor naming what there is nothing for."""
    if unknown := sorted(flags.keys() - {*FLAGS, *NUMBERS}):
        raise CannotHonor(f"the case carries {', '.join(unknown)}, which nothing here stands for")
    given = dict.fromkeys(FLAGS, False) | flags
    changes = described(manifest)
    two_stage, further = given["two_stage"], given["num_queries_one2many"]
    if further and not given["k_one2many"]:
        raise CannotHonor("the case carries k_one2many = 0 with queries; here queries without supervision are an error")
    if two_stage and not given["with_box_refine"]:
        raise CannotHonor("the case carries two_stage without with_box_refine, which the published code has not")
    changes |= {
        "model.pretrained": "none",
        "model.backbone": "conv",  # its maps are recorded
        "model.num_queries": given["num_queries_one2one"],
        "model.box_refine": given["with_box_refine"],
        "model.look_forward_twice": given["look_forward_twice"],
        "two_stage": two_stage,
        "hybrid": bool(further),
    }
    if two_stage:
        changes |= {"two_stage.mixed_selection": given["mixed_selection"], "two_stage.match_on": "boxes"}
    if further:
        changes |= {f"hybrid.{name}": given[f"{old}_one2many"] for name, old in HYBRID.items()}
    for section, suffix in {"loss": "", "two_stage": "_enc"}.items():
        if section == "loss" or two_stage:
            changes |= {f"{section}.{term}_weight": weights[name + suffix] for term, name in TERMS.items()}
    if differing := [n for n, w in weights.items() if n.endswith("_one2many") and w != weights[n[: -len("_one2many")]]]:
        raise CannotHonor(f"the case carries other weights of the second branch than of the first: {differing}")
    return get("coco/h-detr-300").override(changes)


HYBRID = {"queries": "num_queries", "k": "k", "weight": "lambda"}


# ---------------------------------------------------------------- whole models


@dataclass(frozen=True)
class Tolerance:
    """What two numbers may differ by, of one precision."""

    logits: float
    boxes: float
    losses: float
    features: float
    errors: float = 1e-4  # of percentages and counts, which the published code computes in float32

    @classmethod
    def of(cls, manifest: dict, dtype: str) -> Tolerance:
        given = manifest["tolerance"][dtype]
        features = given.get("features", given["pred_logits"])
        return cls(given["pred_logits"], given["pred_boxes"], given["losses_rtol"], features)


def model_case(case: Case, folder: Path, manifest: dict, spec: dict, dtype: str) -> None:
    kind, tolerance = DTYPES[dtype], Tolerance.of(manifest, dtype)
    config = settings(manifest, spec["flags"], spec["weights"])
    inputs = golden.read_arrays(folder / f"inputs_{spec['input']}.npz")
    arrays = golden.read_arrays(folder / spec["file"])
    maps = [torch.from_numpy(inputs[name]).to(kind).requires_grad_() for name in numbered(inputs, "feat/{}")]
    mask = torch.from_numpy(inputs["mask"])
    batch = ImageBatch(torch.zeros(len(mask), 3, *mask.shape[1:], dtype=kind), mask)
    targets = golden.read_targets(inputs, len(mask), kind)
    case.equal("objects", targets.counts.tolist(), spec["objects"])
    detector = on_maps(config, maps, golden.read_weights(folder, manifest, spec))
    criterion = build_criterion(config)

    detector.train()
    compare_start(case, detector, batch, targets, arrays, tolerance)
    encoder = folder / f"encoder_{spec['input']}.npz"
    if config.two_stage is not None and encoder.exists():  # the small cases do without
        compare_encoder(case, detector, batch, golden.read_arrays(encoder), tolerance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more repeated objects than queries, in one case
        output = detector(batch, targets)
        losses = criterion(output, targets)
    compare_predictions(case, "", output, arrays, config, tolerance)
    compare_matchings(case, output, targets, losses, arrays)
    compare_losses(case, output, targets, losses, spec["losses"], config, tolerance)
    case.close("total", losses.total, spec["total"], rtol=tolerance.losses)
    if dtype == "float64":
        losses.total.backward()
        compare_gradients(case, detector, config, maps, manifest, spec, arrays["grads"])

    detector.eval()
    with torch.no_grad():
        output = detector(batch)
        losses = criterion(output, targets)
    compare_predictions(case, "eval/", output, arrays, config, tolerance)
    compare_losses(case, output, targets, losses, spec["eval_losses"], config, tolerance)
    compare_detected(case, output, arrays, manifest["arrays"]["<case>.npz"], manifest["tolerance"], dtype)


def compare_start(case: Case, detector: Detector, batch, targets, arrays: dict, tolerance: Tolerance) -> None:
    """Query groups before the decoder: who sees whom, what they start from, and the tokens they were made from."""
    memory = detector.encoder(detector.pyramid(batch))
    for prefix, objects in (("", targets), ("eval/", None)):
        _, groups = detector.query_groups(memory, objects)
        seen = dense_mask(Layout.of(groups))
        case.equal(f"{prefix}self_attn_mask", seen.tolist(), arrays[f"{prefix}self_attn_mask"].tolist())
        start = torch.cat([group.references for group in groups], 1)
        case.close(f"{prefix}init_reference", start, arrays[f"{prefix}init_reference"], atol=tolerance.boxes)
        if f"{prefix}topk_proposals" in arrays:
            tokens = torch.cat([group.selected for group in groups], 1)
            case.equal(f"{prefix}topk_proposals", tokens.tolist(), arrays[f"{prefix}topk_proposals"].tolist())
        if f"{prefix}queries/content" in arrays:
            for name, stored in (("contents", "content"), ("positions", "position")):
                got = torch.cat([getattr(group, name) for group in groups], 1)
                case.close(f"queries/{stored}", got, arrays[f"queries/{stored}"], atol=tolerance.features)


def compare_encoder(case: Case, detector: Detector, batch, arrays: dict, tolerance: Tolerance) -> None:
    pyramid = detector.pyramid(batch)
    memory = detector.encoder(pyramid)
    found = {"src": pyramid.tokens, "position": pyramid.positions, "memory": memory.tokens}
    real = ~pyramid.mask  # of a column of padding the sine of a huge number is taken: no two precisions agree on it
    for name, got in found.items():
        if f"enc/{name}" in arrays:
            case.close(f"enc/{name}", got[real], arrays[f"enc/{name}"][real.numpy()], atol=tolerance.features)
    case.close("enc/valid_ratios", pyramid.valid_ratios, arrays["enc/valid_ratios"], atol=tolerance.features)
    case.equal("enc/mask", pyramid.mask.tolist(), arrays["enc/mask"].tolist())
    case.equal("enc/spatial_shapes", [list(shape) for shape in pyramid.shapes], arrays["enc/spatial_shapes"].tolist())
    proposals = detector.query_groups(memory)[0].encoder.predictions
    case.close("enc/pred_logits", proposals.logits[0], arrays["enc/pred_logits"], atol=tolerance.logits)
    case.close("enc/pred_boxes", proposals.boxes[0], arrays["enc/pred_boxes"], atol=tolerance.boxes)


def compare_predictions(case: Case, prefix: str, output: DetectorOutput, arrays, config, tolerance: Tolerance) -> None:
    """Classes and boxes of every layer and group, and the references that the layers start from."""
    found = {"one2one": output.one_to_one} | {BRANCHES[n]: g.predictions for n, g in output.groups.items()}
    if prefix:
        case.equal("groups of evaluation", list(found), ["one2one"])
    for branch, predictions in found.items():
        depth = len(predictions.logits)
        case.equal(f"{prefix}layers", depth, len(numbered(arrays, (prefix or f"{branch}/") + "{}/pred_boxes")))
        for layer in range(depth):
            stem = f"{prefix or branch + '/'}{layer}/"
            case.close(
                stem + "pred_logits", predictions.logits[layer], arrays[stem + "pred_logits"], atol=tolerance.logits
            )
            case.close(stem + "pred_boxes", predictions.boxes[layer], arrays[stem + "pred_boxes"], atol=tolerance.boxes)
    if prefix:
        return
    after = arrays["inter_references"]
    started = torch.cat([output.references, *(g.references for g in output.groups.values())], 2)
    case.close("inter_references", started[1:, ..., : after.shape[-1]], after[:-1], atol=tolerance.boxes)
    if config.model.box_refine:  # the last layer's is what it predicts
        last = torch.cat([predictions.boxes[-1] for predictions in found.values()], 1)
        case.close("inter_references", last, after[-1], atol=tolerance.boxes)


def compare_matchings(case: Case, output, targets: Targets, losses: Losses, arrays: dict) -> None:
    """Pairs (query, object) of every branch, layer and image; copies of an object are one object."""
    predictions = supervised(output, targets)
    for branch, matches in losses.matches.items():
        made, objects = predictions[branch]
        copies = len(objects) // max(len(targets), 1)
        for layer in range(len(made.logits)):
            for image in range(targets.num_images):
                stem = f"indices/{BRANCHES[branch]}/" + (f"{layer}/" if branch != "encoder" else "") + str(image)
                rows, count = arrays[stem].tolist(), targets.counts[image].item()
                case.equal(f"{stem} objects", all(row[1] == row[2] % count for row in rows), True)
                got = [(query, target // copies) for query, target in of_image(matches, objects, layer, image)]
                case.pairs(stem, got, [(row[0], row[1]) for row in rows], made_by(made, layer, image))


def supervised(output: DetectorOutput, targets: Targets) -> dict[str, tuple[Predictions, Targets]]:
    """Branch -> its predictions and objects."""
    found = {"one_to_one": (output.one_to_one, targets)}
    found |= {name: (group.predictions, group.targets) for name, group in output.groups.items()}
    if output.encoder is not None:
        found["encoder"] = (output.encoder.predictions, targets.class_agnostic())
    return found


def compare_losses(case: Case, output, targets, losses: Losses, recorded: dict, config, tolerance: Tolerance) -> None:
    """Every entry of the published dictionary, also what it only logs; those of the second branch are times lambda."""
    entries = {}
    for branch, (made, objects) in supervised(output, targets).items():
        suffix, factor = {"hybrid": ("_one2many", config.hybrid and config.hybrid.weight), "encoder": ("_enc", 1)}.get(
            branch, ("", 1)
        )
        last = len(made.logits) - 1
        values = {name: losses.terms[f"{branch}/{term}"].tolist() for term, name in TERMS.items()}
        values |= recorded_errors(made, losses.matches[branch], objects)
        for name, of_layers in values.items():
            for layer, value in enumerate(of_layers):
                if name != "class_error" or (layer == last and branch != "encoder"):
                    entries[name + (f"_{layer}" if layer != last else "") + suffix] = factor * value
    case.equal("losses", sorted(entries), sorted(recorded))
    for name, want in recorded.items():
        errors = tolerance.errors if "error" in name else 1e-12
        case.close(name, entries[name], want, rtol=tolerance.losses, atol=errors)


def compare_detected(case: Case, output: DetectorOutput, arrays, of_arrays: dict, tolerance: dict, dtype: str) -> None:
    (text,) = (text for name, text in of_arrays.items() if name.startswith("detections/"))
    sizes = sizes_in(text)
    allowed = tolerance["float64"]["detections"]
    scores, boxes = number(r"scores ([\d.e-]+)", allowed), number(r"boxes ([\d.e-]+)", allowed)
    if dtype == "float32":  # tolerances are given for boxes in [0, 1]
        scores, boxes = tolerance[dtype]["pred_logits"], tolerance[dtype]["pred_boxes"] * sizes.max().item()
    found = postprocess(output.one_to_one.layer(-1), sizes, number(r"topk=(\d+)", text))
    compare_detections(case, found, arrays, "detections/{}/", {"atol": scores}, {"atol": boxes})


# ---------------------------------------------------------------- the criterion alone


def criterion_case(case: Case, folder: Path, manifest: dict, spec: dict) -> None:
    arrays = golden.read_arrays(folder / spec["file"])
    allowed = manifest["tolerance"]["float64"]["criterion_*, given outputs"]
    losses_rtol = number(r"losses rtol ([\d.e-]+)", allowed)
    rtol, atol = (number(f"gradients rtol {x}", allowed) for x in (r"([\d.e-]+)", r"[\d.e-]+ atol ([\d.e-]+)"))

    def given(prefix: str, count: int | None = None) -> Predictions:
        names = [f"{prefix}/{layer}/" for layer in range(count)] if count else [f"{prefix}/"]
        found = golden.read_predictions(arrays, names, torch.float64)
        return Predictions(found.logits.requires_grad_(), found.boxes.requires_grad_())

    layers = len(numbered(arrays, "one2one/{}/pred_boxes"))
    branches = {"one_to_one": given("one2one", layers), "hybrid": given("one2many", layers), "encoder": given("enc")}
    flags = {"two_stage": True, "with_box_refine": True, "num_queries_one2one": branches["one_to_one"].boxes.shape[2]}
    flags |= {name: spec[name] for name in ("k_one2many", "lambda_one2many")}
    flags["num_queries_one2many"] = branches["hybrid"].boxes.shape[2]
    weights = next(model["weights"] for model in manifest["cases"].values())
    config = settings(manifest, flags, weights)
    targets = golden.read_targets(arrays, branches["one_to_one"].boxes.shape[1], torch.float64)
    case.equal("objects", targets.counts.tolist(), spec["objects"])
    copies = config.hybrid.k
    group = GroupOutput(
        branches["hybrid"], None, branches["hybrid"].boxes.detach(), targets=targets.repeated(copies), divisor=copies
    )
    encoder = EncoderOutput(branches["encoder"], branches["encoder"].boxes.detach()[0])
    output = DetectorOutput(branches["one_to_one"], encoder=encoder, groups={"hybrid": group})
    losses = build_criterion(config)(output, targets)
    losses.total.backward()

    compare_matchings(case, output, targets, losses, arrays)
    exact = Tolerance(0, 0, losses_rtol, 0)
    compare_losses(case, output, targets, losses, spec["losses"], config, exact)
    case.close("total", losses.total, spec["total"], rtol=losses_rtol)
    for branch, found in branches.items():
        for layer in range(len(found.logits)):
            stem = f"grad/{BRANCHES[branch]}/" + (f"{layer}/" if branch != "encoder" else "")
            for leaf, tensor in (("pred_logits", found.logits), ("pred_boxes", found.boxes)):
                case.close(stem + leaf, tensor.grad[layer], arrays[stem + leaf], rtol=rtol, atol=atol)
