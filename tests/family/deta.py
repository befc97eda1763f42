"""DETA: assigners, selection of proposals, criterion, post-processing and whole models of the published code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import golden
import numpy as np
import torch
from comparison import Case
from golden import CannotHonor
from published import (
    DTYPES,
    as_pairs,
    compare_detections,
    compare_gradients,
    described,
    number,
    numbered,
    on_maps,
    per_image,
    recorded_errors,
    sizes_in,
)
from torch import Tensor

from msdetr import recipes
from msdetr.config import RunConfig
from msdetr.losses import Losses
from msdetr.matching import ReleasedIoUMatcher, pair_iou
from msdetr.matching.one_to_many import favourite
from msdetr.methods import DETAConfig, build_criterion, build_postprocess
from msdetr.model import Detector, without_duplicates
from msdetr.model.postprocess import nms_postprocess, postprocess
from msdetr.structures import DetectorOutput, EncoderOutput, ImageBatch, Predictions, Targets

KNOWN = {  # fields of a case: what it is compared with, what it is made of, and what is said of it
    "losses", "total", "weights", "pairs", "objects", "file", "draw", "target_draw", "tokens", "levels", "sizes", "queries",
    "classes", "detections", "postprocess", "parameters", "stored_as", "per_level", "kept_by_nms", "unusable_selected",
    "fallback", "encoder", "input", "targets", "flags", "total_grad_norm", "parameters_without_gradient", "num_queries",
    "assign_first_stage", "assign_second_stage", "t_low", "t_high", "max_k", "recorded", "cap_on_positives",
    "arbitrary_objects", "smallest_margin", "positives", "queries_with_two_objects", "objects_without_query",
    "forced_below_threshold",
}  # fmt: skip
TERMS = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}
FLAGS = {  # of the published command line -> setting here
    "with_box_refine": "model.box_refine",
    "num_queries": "model.num_queries",
    "num_feature_levels": "model.num_levels",
    "assign_first_stage": "deta.encoder",
    "assign_second_stage": "deta.decoder",
}


def cases(folder: Path) -> Iterator[tuple[str, Callable[[Case], None]]]:
    manifest = golden.read_json(folder / "manifest.json")
    for stage, found in manifest["assign"].items():
        for name, spec in found.items():
            yield f"{stage} {name}", checked(assign_case, folder, manifest, spec, stage=stage)
    for kind, check in (("select", select_case), ("post", post_case)):
        for name, spec in manifest[kind].items():
            yield f"{kind} {name}", checked(check, folder, manifest, spec)
    for name, spec in manifest["criterion"].items():
        yield f"criterion {name}", checked(criterion_case, folder, manifest, spec)
    for name, spec in manifest["cases"].items():
        for dtype in ("float64", "float32"):
            yield f"{name} {dtype}", checked(model_case, folder, manifest, spec, dtype=dtype)


def checked(check: Callable, folder: Path, manifest: dict, spec: dict, **further) -> Callable[[Case], None]:
    """One comparison. Raises CannotHonor where the case carries what no comparison reads."""

    def run(case: Case) -> None:
        if unknown := sorted(spec.keys() - KNOWN):
            raise CannotHonor(f"the case carries {', '.join(unknown)}, which nothing here stands for")
        check(case, folder, manifest, spec, **further)

    return run


def allowed(manifest: dict, of: str, *words: str) -> list[float]:
    """Tolerances of float64 that the manifest has in a sentence: the number after each of the words."""
    (sentence,) = (text for name, text in manifest["tolerance"]["float64"].items() if name.startswith(of))
    return [number(word + r"\D*?([\d.]+(?:e-?\d+)?)", sentence) for word in words]


# ---------------------------------------------------------------- assigners


def assign_case(case: Case, folder: Path, manifest: dict, spec: dict, stage: str) -> None:
    arrays = golden.read_arrays(folder / spec["file"])
    boxes = torch.from_numpy(arrays["boxes"]).double()[None]
    predictions = Predictions(boxes.new_zeros(*boxes.shape[:3], 1), boxes)
    targets = golden.read_targets(arrays, boxes.shape[1], torch.float64)
    targets = targets.class_agnostic()  # classes play no part
    published = DETAConfig()
    threshold = spec.get("t_high", published.encoder_threshold if stage == "stage1" else published.decoder_threshold)
    matcher = ReleasedIoUMatcher(threshold, spec["max_k"])
    table = pair_iou(predictions, targets)
    positive, favorites = matcher.positive(table, targets)[0], favourite(table, targets)[0]
    arbitrary = set(spec.get("arbitrary_objects", []))
    for image in range(targets.num_images):
        own = targets.image == image
        if own.any():  # nothing is recorded of an image without objects
            recorded = np.flatnonzero(arrays[f"label/{image}"] == 1).tolist()
            case.equal(f"positives {image}", positive[own].any(0).nonzero().flatten().tolist(), recorded)
            best = favorites[own].int().argmax(0).tolist()
            case.equal(f"best object {image}", best, arrays[f"best_object/{image}"].tolist())
        # one image at a time: each has its own recorded draw
        draw = torch.from_numpy(arrays.get(f"permutation/{image}/positive", np.zeros(0, dtype=np.int64)))
        capped = ReleasedIoUMatcher(
            threshold, spec["max_k"], spec["cap_on_positives"], permutation=drawn(draw, spec.get("recorded", False))
        )
        found = per_image(capped(predictions.of_image(image), targets.of_image(image)), targets.of_image(image))[0]
        want = as_pairs(arrays[f"pairs/{image}"])
        case.equal(f"pairs {image}", *([pair for pair in pairs if pair[1] not in arbitrary] for pairs in (found, want)))
        for target in arbitrary:  # nothing overlaps them: any query is as good
            case.equal(f"pairs of {target}", *(sum(t == target for _, t in pairs) for pairs in (found, want)))


def drawn(permutation: Tensor, recorded: bool) -> Callable[[int], Tensor]:
    def draw(count: int) -> Tensor:
        if not recorded or len(permutation) != count:
            raise CannotHonor(f"a random subset of {count} positives is drawn, of which no draw is recorded")
        return permutation

    return draw


# ---------------------------------------------------------------- selection and post-processing


def select_case(case: Case, folder: Path, manifest: dict, spec: dict) -> None:
    arrays = golden.read_arrays(folder / spec["file"])
    scores, boxes = (torch.from_numpy(arrays[name]) for name in ("objectness", "boxes"))
    shapes = [tuple(shape) for shape in arrays["shapes"].tolist()]
    wanted = spec["num_queries"]
    found = without_duplicates(scores, boxes, shapes, wanted, first=wanted)
    compare_selection(case, found, arrays["selected"], arrays["unusable"], shapes)
    usable = torch.from_numpy(~arrays["unusable"])
    chosen = boxes.gather(1, found[..., None].expand(-1, -1, 4))
    case.close("boxes of the selected", chosen, arrays["selected_boxes"])
    for image in range(len(scores)):
        kept = arrays[f"kept_by_nms/{image}"]
        survivors = len(kept)
        if survivors < wanted:
            continue  # ranked by score alone
        everything = without_duplicates(scores, boxes, shapes, scores.shape[1], first=wanted)[image, :survivors]
        compare_sets(case, f"survivors {image}", everything, kept, usable[image], shapes)


def compare_selection(case: Case, found: Tensor, want: np.ndarray, unusable: np.ndarray, shapes: list) -> None:
    """Tokens in the order of their queries; unusable ones, which are copies of each other, by their level alone, and in
    any order: they all have one score."""
    case.equal("selected", tuple(found.shape), want.shape)
    for image, (ours, theirs) in enumerate(zip(found, torch.from_numpy(want))):
        usable = ~torch.from_numpy(unusable[image])
        places = [[(i, int(t)) for i, t in enumerate(tokens) if usable[t]] for tokens in (ours, theirs)]
        case.equal(f"selected {image}", *places)
        compare_sets(case, f"unusable selected {image}", ours, theirs.numpy(), usable, shapes)


def compare_sets(case: Case, name: str, ours: Tensor, theirs: np.ndarray, usable: Tensor, shapes: list) -> None:
    level = torch.arange(len(shapes)).repeat_interleave(torch.tensor([h * w for h, w in shapes]))
    case.equal(name, *(
        sorted(("level", int(level[t])) if not usable[t] else ("token", int(t)) for t in tokens)
        for tokens in (ours.tolist(), theirs.tolist())
    ))  # fmt: skip


def post_case(case: Case, folder: Path, manifest: dict, spec: dict) -> None:
    tolerance = of_detections(manifest, "post")
    arrays = golden.read_arrays(folder / spec["file"])
    predictions = golden.read_predictions(arrays, [""], torch.float64)
    sizes = torch.from_numpy(arrays["target_sizes"])
    for kind, function in (("nms", nms_postprocess), ("plain", postprocess)):
        if any(name.startswith(f"{kind}/") for name in arrays):
            detections = function(predictions, sizes)
            compare_detections(case, detections, arrays, kind + "/{}/", **tolerance)


def of_detections(manifest: dict, of: str) -> dict[str, dict[str, float]]:
    return {kind: {"atol": limit} for kind, limit in zip(("scores", "boxes"), allowed(manifest, of, "scores", "boxes"))}


# ---------------------------------------------------------------- criterion


def configuration(flags: dict, weights: dict, **changes) -> RunConfig:
    """Of flags of the published command line and the weights of its losses."""
    flags = dict(flags)
    if not flags.pop("two_stage", True):
        raise CannotHonor("the case carries two_stage = False; DETA starts from proposals here")
    flags.pop("cls_loss_coef", None)  # the weights have it, too
    if unknown := sorted(flags.keys() - FLAGS.keys()):
        raise CannotHonor(f"the case carries {', '.join(unknown)}, which nothing here stands for")
    changes |= {FLAGS[name]: value for name, value in flags.items()}
    for section, suffix in (("loss", ""), ("two_stage", "_enc")):
        changes |= {f"{section}.{name}_weight": weights[term + suffix] for name, term in TERMS.items()}
    changes |= {"model.pretrained": "none", "model.backbone": "conv"}
    if not changes.get("deta.encoder", True):  # then matched on boxes, with the class cost, as the decoder is
        changes["two_stage.match_on"] = "boxes"
    return recipes.get("coco/deta-900").override(changes)


def criterion_case(case: Case, folder: Path, manifest: dict, spec: dict) -> None:
    arrays = golden.read_arrays(folder / spec["file"])
    layers = len(numbered(arrays, "decoder/{}/pred_logits"))
    decoder = golden.read_predictions(arrays, [f"decoder/{i}/" for i in range(layers)], torch.float64)
    encoder = golden.read_predictions(arrays, ["encoder/"], torch.float64)
    leaves = {"decoder": decoder, "encoder": encoder}
    for predictions in leaves.values():
        predictions.logits.requires_grad_(), predictions.boxes.requires_grad_()
    start, anchors = (torch.from_numpy(arrays[n]).double() for n in ("init_reference", "encoder/anchors"))
    output = DetectorOutput(decoder, None, EncoderOutput(encoder, anchors), start[None].expand(layers, -1, -1, -1))
    targets = golden.read_targets(arrays, decoder.logits.shape[1], torch.float64)
    flags = {name: spec[name] for name in ("assign_first_stage", "assign_second_stage", "num_queries")}
    run = configuration(flags, spec["weights"], **{"model.num_classes": decoder.logits.shape[-1]})
    losses = build_criterion(run)(output, targets)
    losses_rtol, rtol, atol = allowed(manifest, "criterion", "losses rtol", "gradients rtol", "atol")
    compare_losses(case, losses, output, targets, spec, arrays, rtol=losses_rtol)
    losses.total.backward()
    for name, predictions in leaves.items():
        for layer in range(len(predictions.logits)):
            stem = f"grad/decoder/{layer}/pred_" if name == "decoder" else "grad/encoder/pred_"
            for leaf in ("logits", "boxes"):
                tensor = getattr(predictions, leaf)
                gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                case.close(stem + leaf, gradient[layer], arrays[stem + leaf], rtol=rtol, atol=atol)


def compare_losses(
    case: Case, losses: Losses, output: DetectorOutput, targets: Targets, spec: dict, arrays: dict, rtol: float
) -> None:
    """Pairs, every loss and the logged errors, and the total."""
    found, last = {}, len(output.one_to_one.logits) - 1
    for branch, recorded in (("one_to_one", "decoder/{}"), ("encoder", "encoder")):
        matches = losses.matches[branch]
        predictions = output.one_to_one if branch == "one_to_one" else output.encoder.predictions
        for layer in range(len(predictions.logits)):
            suffix = "_enc" if branch == "encoder" else "" if layer == last else f"_{layer}"
            stem = f"indices/{recorded.format(layer)}/"
            if stem + "0" not in arrays:
                stem = f"indices/{recorded.format(last)}/"  # one assignment for all layers
            for image, pairs in enumerate(per_image(matches, targets, layer)):
                case.equal(stem + str(image), pairs, as_pairs(arrays[stem + str(image)]))
            found |= {TERMS[n] + suffix: losses.terms[f"{branch}/{n}"][layer].item() for n in TERMS}
            errors = recorded_errors(predictions, matches, targets)
            found |= {name + suffix: values[layer] for name, values in errors.items()}
    for name, want in spec["losses"].items():
        case.close(name, found[name], want, rtol=max(rtol, 1e-6) if "error" in name else rtol, atol=1e-12)
    case.close("total", losses.total, spec["total"], rtol=rtol)


# ---------------------------------------------------------------- whole models


def model_case(case: Case, folder: Path, manifest: dict, spec: dict, dtype: str) -> None:
    kind, tolerance = DTYPES[dtype], manifest["tolerance"][dtype]
    inputs = golden.read_arrays(folder / f"inputs_{spec['input']}.npz")
    arrays = golden.read_arrays(folder / spec["file"])
    run = configuration(spec["flags"], spec["weights"], **described(manifest), **{"deta.token_contents": True})
    maps = [torch.from_numpy(inputs[name]).to(kind).requires_grad_() for name in numbered(inputs, "feat/{}")]
    batch = ImageBatch(torch.zeros(len(inputs["mask"]), 3, 1, 1, dtype=kind), torch.from_numpy(inputs["mask"]))
    detector = on_maps(run, maps, golden.read_weights(folder, manifest, spec))
    own = arrays if "targets/0/labels" in arrays else inputs
    targets = golden.read_targets(own, len(batch.mask), kind)
    case.equal("objects", targets.counts.tolist(), spec["objects"])

    logits, boxes = tolerance["pred_logits"], tolerance["pred_boxes"]
    features = tolerance.get("features", logits)
    encoded = golden.read_arrays(folder / spec["encoder"])
    detector.train()
    compare_encoder(case, detector, batch, encoded, logits, boxes, features)
    output = detector(batch, targets)
    shapes = [tuple(shape) for shape in encoded["enc/spatial_shapes"].tolist()]
    compare_selection(case, output.selected, arrays["selected"], encoded["enc/unusable"], shapes)
    proposals, (group,) = detector.query_groups(detector.encoder(detector.pyramid(batch)))
    for name, got in (("content", group.contents), ("position", group.positions)):
        case.close(f"queries/{name}", got, arrays[f"queries/{name}"], atol=features)
    if run.deta.encoder:
        found, usable = proposals.encoder.predictions, torch.from_numpy(~encoded["enc/unusable"])
        everything = detector.query_selection.ranking(
            found.logits[0, ..., 0], found.boxes[0], shapes, found.logits.shape[2]
        )
        for image, tokens in enumerate(everything):
            kept = arrays[f"kept_by_nms/{image}"]
            compare_sets(case, f"survivors {image}", tokens[: len(kept)], kept, usable[image], shapes)
    case.close("init_reference", output.references[0], arrays["init_reference"], atol=boxes)
    case.close("inter_references", output.one_to_one.boxes, arrays["inter_references"], atol=boxes)
    for layer, predicted in enumerate(output.one_to_one.logits):
        stem = f"decoder/{layer}/pred_"
        case.close(stem + "logits", predicted, arrays[stem + "logits"], atol=logits)
        case.close(stem + "boxes", output.one_to_one.boxes[layer], arrays[stem + "boxes"], atol=boxes)
    losses = build_criterion(run)(output, targets)
    compare_losses(case, losses, output, targets, spec, arrays, rtol=tolerance["losses_rtol"])
    if dtype == "float64":
        losses.total.backward()
        compare_gradients(case, detector, run, maps, manifest, spec, arrays["grads"])

    with torch.no_grad():
        last = detector.eval()(batch).one_to_one.layer(-1)
    case.equal("postprocess", spec["postprocess"], "NMSPostProcess" if build_postprocess(run) else "PostProcess")
    (sentence,) = (text for name, text in manifest["arrays"]["<case>.npz"].items() if name.startswith("detections"))
    detections = (build_postprocess(run) or postprocess)(last, sizes_in(sentence), 100)
    if dtype == "float64":  # nothing is said of the scores of float32
        compare_detections(case, detections, arrays, "detections/{}/", **of_detections(manifest, "detections"))


def compare_encoder(
    case: Case, detector: Detector, batch: ImageBatch, arrays: dict, logits: float, boxes: float, features: float
) -> None:
    pyramid = detector.pyramid(batch)
    memory = detector.encoder(pyramid)
    case.equal("spatial_shapes", [list(shape) for shape in pyramid.shapes], arrays["enc/spatial_shapes"].tolist())
    case.equal("mask", pyramid.mask.tolist(), arrays["enc/mask"].tolist())
    case.close("valid_ratios", pyramid.valid_ratios, arrays["enc/valid_ratios"], atol=boxes)
    real = ~pyramid.mask[:, ::16]  # where all is padding, the sine of a huge number is taken
    for name, got in (("src", pyramid.tokens), ("position", pyramid.positions), ("memory", memory.tokens)):
        recorded = torch.from_numpy(arrays[f"enc/{name}_every16"])
        case.close(name, got[:, ::16][real], recorded[real], atol=features)
    proposals, _ = detector.query_groups(memory)
    found = proposals.encoder.predictions
    case.close("encoder logits", found.logits[0, :, ::16], arrays["enc/pred_logits_every16"], atol=logits)
    case.close("objectness", found.logits[0, ..., 0], arrays["enc/objectness"], atol=logits)
    case.close("encoder boxes", found.boxes[0], arrays["enc/pred_boxes"], atol=boxes)
    case.close("anchors", proposals.encoder.anchors, arrays["enc/anchors"], atol=boxes)
    _, usable = detector.query_selection.anchors(memory)
    case.equal("unusable", (~usable).tolist(), arrays["enc/unusable"].tolist())
