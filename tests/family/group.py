"""Group DETR as published: LW-DETR and RF-DETR in training and evaluation, and detrex's criterion on given outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import golden
import torch
from comparison import Case
from golden import CannotHonor
from published import (
    DTYPES,
    compare_detections,
    dense_mask,
    gradients_of,
    made_by,
    of_image,
    on_maps,
    padded,
    recorded_errors,
)
from torch import Tensor

from msdetr.config import RunConfig
from msdetr.engine.postprocess import postprocess
from msdetr.losses import Losses
from msdetr.losses.lw_detr import fit_supervised_loss
from msdetr.methods import build_criterion
from msdetr.model import Detector, to_released, training_only_names
from msdetr.modules import Layout
from msdetr.recipes import get
from msdetr.structures import DetectorOutput, GroupOutput, ImageBatch, Matches, Predictions, Targets

TERMS = {"class": ("loss_ce", "loss_class"), "l1": ("loss_bbox",), "giou": ("loss_giou",)}
CONFIG = {
    "hidden_dim": "model.hidden_dim",
    "sa_nheads": "model.num_heads",
    "ca_nheads": "model.cross_heads",
    "dec_layers": "model.decoder_layers",
    "dim_feedforward": "model.ffn_dim",
    "num_queries": "model.num_queries",
    "num_feature_levels": "model.num_levels",
    "dec_n_points": "model.num_points",
    "num_classes": "model.num_classes",
    "group_detr": "lw_detr.groups",
}
FLAGS = ("two_stage", "lite_refpoint_refine", "bbox_reparam", "ia_bce_loss", "cls_loss_coef")
OTHER_LOSSES = {
    "sum_group_losses": {"lw_detr.group_losses": "sum"},
    "ia_bce": {"lw_detr.class_loss": "iou_aware"},
    "focal": {"lw_detr.class_loss": "focal"},
    "varifocal": {"lw_detr.class_loss": "varifocal"},
    "position_supervised": {"lw_detr.class_loss": "position_supervised"},
}


def cases(folder: Path) -> Iterator[tuple[str, Callable[[Case], None]]]:
    manifest = golden.read_json(folder / "manifest.json")
    for name, spec in manifest["cases"].items():
        if spec.get("kind") == "criterion only":
            yield f"{name} float64", lambda case, s=spec: criterion_case(case, folder, manifest, s)
            continue
        for dtype in DTYPES:
            yield f"{name} {dtype}", lambda case, n=name, s=spec, d=dtype: model_case(case, folder, manifest, n, s, d)


# ---------------------------------------------------------------- settings


def settings(given: dict, flags: dict, weights: dict, few_tokens: str = "fewer") -> RunConfig:
    """The recipe with what a case was computed with. Raises CannotHonor naming what there is nothing for."""
    if unknown := sorted((given.keys() - CONFIG.keys()) | (flags.keys() - set(FLAGS))):
        raise CannotHonor(f"the case carries {', '.join(unknown)}, which nothing here stands for")
    if flags["cls_loss_coef"] != weights["loss_ce"]:
        raise CannotHonor(f"the case carries cls_loss_coef = {flags['cls_loss_coef']} and another weight of loss_ce")
    changes = {ours: given[name] for name, ours in CONFIG.items()}
    changes |= {
        "model.pretrained": "none",
        "model.backbone": "conv",  # the maps of its neck are recorded
        "model.box_refine": not flags["lite_refpoint_refine"],
        "model.shared_heads": not flags["lite_refpoint_refine"],
        "model.look_forward_twice": not flags["lite_refpoint_refine"],
        "lw_detr.two_stage": flags["two_stage"],
        "lw_detr.relative_boxes": flags["bbox_reparam"],
        "lw_detr.class_loss": "iou_aware" if flags["ia_bce_loss"] else "focal",
        "lw_detr.few_tokens": few_tokens,
    }
    return get("coco/lw-detr").override(changes | loss_weights(weights))


def loss_weights(weights: dict) -> dict:
    """Every layer and the encoder have the weights of the last layer. Raises CannotHonor where they have not."""
    names = {term: next(name for name in names if name in weights) for term, names in TERMS.items()}
    for name in names.values():
        if odd := [n for n, w in weights.items() if n.startswith(name) and w != weights[name]]:
            raise CannotHonor(f"the case weighs {', '.join(odd)} otherwise than {name}")
    return {f"loss.{term}_weight": weights[name] for term, name in names.items()}


@dataclass(frozen=True)
class Tolerance:
    predictions: dict
    boxes: dict
    losses: dict
    errors: float = 1e-4  # of percentages and counts, which the published code computes in float32

    @classmethod
    def of(cls, manifest: dict, dtype: str) -> Tolerance:
        given = manifest["tolerance"][dtype]
        if dtype == "float64":
            return cls(given["predictions"], given["predictions"], given["losses"])
        return cls(given["logits"], given["boxes"], given["losses"])


# ---------------------------------------------------------------- whole models


@dataclass(frozen=True)
class Run:
    """One recorded run: the detector with its weights, what it reads, and the arrays of training and evaluation."""

    detector: Detector
    config: RunConfig
    batch: ImageBatch
    maps: list[Tensor]
    training: dict
    evaluation: dict


def prepare(folder: Path, manifest: dict, spec: dict, dtype: torch.dtype) -> Run:
    inputs = golden.read_arrays(folder / "inputs.npz")
    if "variant" in spec:
        variant = manifest["variants"][spec["variant"]]
        files = variant.get("files") or next(  # run with the weights and inputs of another variant
            v["files"] for n, v in manifest["variants"].items() if n in variant["note"] and "files" in v
        )
        training, evaluation = (golden.read_arrays(folder / file) for file in files)
        stored, aliases, keys = (
            golden.read_arrays(folder / "weights.npz"),
            variant["aliases"],
            variant["state_dict_keys"],
        )
        given, flags, maps = manifest["config"], variant["flags"], inputs
        few_tokens = "fewer"
    else:
        maps = training = golden.read_arrays(folder / spec["file"])
        evaluation = {k.removeprefix("evaluation/"): v for k, v in training.items() if k.startswith("evaluation/")}
        stored = {k.removeprefix("weights/"): v for k, v in training.items() if k.startswith("weights/")}
        aliases, keys, given, flags = spec["aliases"], list(stored), spec["config"], spec["flags"]
        few_tokens = "learned" if spec["code"] == "rfdetr" else "fewer"
    config = settings(given, flags, spec["weights"], few_tokens)
    levels = [
        torch.from_numpy(maps[f"features/{i}"]).to(dtype).requires_grad_() for i in range(given["num_feature_levels"])
    ]
    state = {name: torch.from_numpy(stored[aliases.get(name, name)]) for name in keys}
    detector = on_maps(config, levels, state, projected=True)  # by the neck, whose output is recorded
    return Run(detector, config, images_of(inputs, maps, dtype), levels, training, evaluation)


def images_of(inputs: dict, maps: dict, dtype: torch.dtype) -> ImageBatch:
    """Empty images with the recorded padding: of the inputs, or none where a case has features of its own."""
    if maps is not inputs:
        batch = len(maps["features/0"])
        return ImageBatch(torch.zeros(batch, 3, 32, 32, dtype=dtype), torch.zeros(batch, 32, 32, dtype=torch.bool))
    return padded(inputs, dtype)


def model_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    kind, tolerance = DTYPES[dtype], Tolerance.of(manifest, dtype)
    run, inputs = prepare(folder, manifest, spec, kind), golden.read_arrays(folder / "inputs.npz")
    objects = spec.get("targets", "objects")
    targets = golden.read_targets(inputs, len(run.batch), kind, f"targets/{objects}/{{}}")
    if "counts" in spec:
        case.equal("objects", targets.counts.tolist(), spec["counts"])
    detector, criterion = run.detector.train(), build_criterion(run.config)
    layers = watch(detector)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # more objects than queries, where there are few tokens
        output = detector(run.batch, targets)
        losses = criterion(output, targets)
    compare_inside(case, detector, run, layers, inputs, targets, manifest, spec, tolerance)
    compare_predictions(case, output, run.training, tolerance)
    given = criterion.supervised(output, targets)["one_to_one"]
    case.equal("num_boxes", criterion.divisor(len(targets), given), spec["num_boxes"])
    compare_matchings(case, output, targets, losses, spec["matchings"])
    compare_losses(case, output, targets, losses, spec, tolerance)
    if dtype == "float64":
        losses.total.backward(retain_graph=True)
        compare_gradients(case, name, run, spec, manifest["tolerance"][dtype])
    for label, other in (spec.get("other_settings") or {}).items():
        if label not in OTHER_LOSSES:
            raise CannotHonor(f"the case carries {label}, which nothing here stands for")
        found = build_criterion(run.config.override(OTHER_LOSSES[label]))(output, targets)
        if label == "position_supervised":
            found = rescaled_over_groups(output, targets, found, spec["num_boxes"], run.config)
        compare_losses(case, output, targets, found, other, tolerance, f"{label} ")

    detector.eval()
    layers = watch(detector)
    with torch.no_grad():
        output = detector(run.batch)
        compare_evaluation(case, detector, run, output, layers, inputs, tolerance)
        if "evaluation" in spec:
            losses = criterion(output, targets)
            given = criterion.supervised(output, targets)["one_to_one"]
            case.equal("num_boxes", criterion.divisor(len(targets), given), spec["evaluation"]["num_boxes"])
            compare_matchings(case, output, targets, losses, spec["evaluation"]["matchings"])
            compare_losses(case, output, targets, losses, spec["evaluation"], tolerance)
        if "variant" in spec:
            compare_stripped(case, run, manifest["variants"][spec["variant"]], output)


def watch(detector: Detector) -> dict:
    """What the decoder's layers give, and what the first self-attention reads and gives, of the next pass."""
    seen: dict = {"layers": []}
    for layer in detector.decoder.layers:
        layer.register_forward_hook(lambda _module, _inputs, result: seen["layers"].append(result[0]))
    first = detector.decoder.layers[0].self_attention.inner

    def attention(_module, inputs, result):
        queries, context = inputs
        seen.update(value=queries, query_key=queries + context.positions, attended=result, start=context.references)

    first.register_forward_hook(attention)
    return seen


def compare_inside(case: Case, detector, run: Run, seen, inputs, targets, manifest, spec, tolerance: Tolerance) -> None:
    """Masks, groups, proposals, the attention of the first layer, hidden states and references."""
    arrays, close = run.training, tolerance.predictions
    memory = detector.encoder(detector.pyramid(run.batch))
    proposals, groups = detector.query_groups(memory, targets)
    if "variant" in spec:
        hidden = dense_mask(Layout.of(groups))
        case.equal("self_attention_mask", hidden.tolist(), inputs["self_attention_mask"].tolist())
        start = 0
        for level, (height, width) in enumerate(memory.shapes):
            stop = start + height * width
            got = memory.mask[:, start:stop].unflatten(1, (height, width))
            case.equal(f"masks/{level}", got.tolist(), inputs[f"masks/{level}"].tolist())
            start = stop
    if "encoder/pred_logits" in arrays:
        compare_proposals(case, detector, memory, proposals, arrays, tolerance)
    if "after_self_attention_0" in arrays:
        case.close("after_self_attention_0", seen["attended"], arrays["after_self_attention_0"], **close)
        case.close("query_key", seen["query_key"], arrays["self_attention_0/query_key"], **close)
        case.close("value", seen["value"], arrays["self_attention_0/value"], **close)
    compare_decoder(case, detector, run.config, seen, arrays, tolerance)


def compare_decoder(case: Case, detector, config: RunConfig, seen: dict, arrays: dict, tolerance: Tolerance) -> None:
    hidden = arrays.get("decoder/hidden_states", arrays.get("hidden_states"))
    if hidden is not None:
        read = torch.stack([detector.decoder.output_norm(x) for x in seen["layers"]])
        case.close("hidden_states", read, hidden, **tolerance.predictions)
    if "decoder/initial_reference" in arrays:
        initial = torch.from_numpy(arrays["decoder/initial_reference"])
        case.close("initial_reference", seen["start"], as_boxes(initial, config), **tolerance.boxes)


def as_boxes(recorded: Tensor, config: RunConfig) -> Tensor:
    """References, which are recorded before the sigmoid unless boxes are relative."""
    return recorded if config.lw_detr.relative_boxes else recorded.sigmoid()


def compare_proposals(case: Case, detector, memory, proposals, arrays: dict, tolerance: Tolerance) -> None:
    found = proposals.encoder.predictions
    logits, boxes = (x.transpose(0, 1).flatten(1, 2) for x in (found.logits, found.boxes))
    case.close("encoder/pred_logits", logits, arrays["encoder/pred_logits"], **tolerance.predictions)
    case.close("encoder/pred_boxes", boxes, arrays["encoder/pred_boxes"], **tolerance.boxes)
    if "encoder/topk" in arrays:
        case.equal("encoder/topk", proposals.ranking.tolist(), arrays["encoder/topk"].tolist())


def by_group(output: DetectorOutput, of: Callable[[Predictions], Tensor]) -> Tensor:
    """[K, B, G x Q, ...] of the primary group and the others."""
    parts = [of(output.one_to_one), *(of(group.predictions) for group in output.groups.values())]
    return torch.cat(parts, dim=2)


def compare_predictions(case: Case, output: DetectorOutput, arrays: dict, tolerance: Tolerance) -> None:
    logits, boxes = by_group(output, lambda p: p.logits), by_group(output, lambda p: p.boxes)
    recorded = {key for key in arrays if key.startswith("predictions/")}
    case.equal("layers", 2 * len(logits), len(recorded))
    for layer in range(len(logits)):
        stem = f"predictions/{layer}/pred_"
        case.close(stem + "logits", logits[layer], arrays[stem + "logits"], **tolerance.predictions)
        case.close(stem + "boxes", boxes[layer], arrays[stem + "boxes"], **tolerance.boxes)


def compare_evaluation(case: Case, detector, run: Run, output, seen, inputs, tolerance: Tolerance) -> None:
    case.equal("groups of evaluation", list(output.groups), [])
    compare_predictions(case, output, run.evaluation, tolerance)
    compare_decoder(case, detector, run.config, seen, run.evaluation, tolerance)
    if "encoder/pred_logits" in run.evaluation:
        memory = detector.encoder(detector.pyramid(run.batch))
        compare_proposals(case, detector, memory, detector.query_groups(memory)[0], run.evaluation, tolerance)
    if not any(key.startswith("detections/") for key in run.evaluation):
        return
    sizes = torch.from_numpy(inputs["image_sizes"])
    count = len(run.evaluation["detections/0/scores"])
    pixels = tolerance.boxes | {"atol": tolerance.boxes["atol"] * sizes.max().item()}
    found = postprocess(output.one_to_one.layer(-1), sizes, count)
    compare_detections(case, found, run.evaluation, "detections/{}/", tolerance.predictions, pixels)


def compare_stripped(case: Case, run: Run, variant: dict, output: DetectorOutput) -> None:
    """What evaluation does without, by its published names; stripped, the detector predicts the same to the bit."""
    state, gone = run.detector.state_dict(), training_only_names(run.detector)
    published = {name: tensor for name, tensor in to_released(state, run.config).items()}
    left = to_released({n: t for n, t in state.items() if not n.startswith(gone)}, run.config)
    case.equal("dropped_at_inference", sorted(published.keys() - left.keys()), sorted(variant["dropped_at_inference"]))
    for name, (first, stop) in variant["rows_used_at_inference"].items():
        case.equal(f"rows of {name}", torch.equal(left[name], published[name][first:stop]), True)
    alone = run.detector.strip()(run.batch)
    case.equal("stripped", torch.equal(alone.one_to_one.boxes, output.one_to_one.boxes), True)


# ---------------------------------------------------------------- losses, shared by models and criteria


def parts_of(output: DetectorOutput, losses: Losses) -> list[tuple[str, Predictions, int]]:
    """Branch, its predictions, and where its queries begin among those of all groups, of the decoder's branches."""
    size = output.one_to_one.boxes.shape[2]
    found = [("one_to_one", output.one_to_one, 0)]
    found += [(name, group.predictions, size) for name, group in output.groups.items()]
    return [part for part in found if part[0] in losses.matches]


def compare_matchings(case: Case, output, targets: Targets, losses: Losses, recorded: list) -> None:
    for entry in recorded:
        for image, pairs in enumerate(entry["pairs"]):
            name, want = f"matching {entry['of']} {entry['layer']} image {image}", [tuple(pair) for pair in pairs]
            got, made = [], []
            if entry["of"] == "encoder":
                predictions = output.encoder.predictions
                for group in range(len(predictions.logits)):
                    start = group * predictions.boxes.shape[2]
                    found = of_image(losses.matches["encoder"], targets, group, image)
                    got += [(query + start, target) for query, target in found]
                    made.append(made_by(predictions, group, image))
            else:
                for branch, predictions, start in parts_of(output, losses):
                    found = of_image(losses.matches[branch], targets, entry["layer"], image)
                    got += [(query + start, target) for query, target in found]
                    made.append(made_by(predictions, entry["layer"], image))
            case.pairs(name, got, want, torch.cat(made))


def rescaled_over_groups(output, targets: Targets, losses: Losses, num_boxes: float, config: RunConfig) -> Losses:
    """The losses with a class term that sees all groups at once: it rescales by the best match of an image, which the
    published code looks for in all groups, and here each group in itself."""
    queries, matches = of_all_groups(output, losses)
    values, terms, weight = (
        fit_supervised_loss(queries, targets, matches) / num_boxes,
        dict(losses.terms),
        config.loss.class_weight,
    )
    total = losses.total - weight * sum(v.sum() for n, v in terms.items() if n.endswith("/class"))
    terms |= {name: torch.zeros_like(value) for name, value in terms.items() if name.endswith("/class")}
    terms["one_to_one/class"] = values
    if output.encoder is not None:
        flat, pairs = proposals_of_all_groups(output, losses)
        terms["encoder/class"] = fit_supervised_loss(flat, targets, pairs) / num_boxes
        total = total + weight * terms["encoder/class"].sum()
    return replace(losses, terms=terms, total=total + weight * values.sum())


def of_all_groups(output: DetectorOutput, losses: Losses) -> tuple[Predictions, Matches]:
    queries = Predictions(by_group(output, lambda p: p.logits), by_group(output, lambda p: p.boxes))
    return queries, every_match(output, losses)


def proposals_of_all_groups(output: DetectorOutput, losses: Losses) -> tuple[Predictions, Matches]:
    found, pairs = output.encoder.predictions, losses.matches["encoder"]
    flat = Predictions(*(x.transpose(0, 1).flatten(1, 2)[None] for x in (found.logits, found.boxes)))
    return flat, Matches(pairs.layer * 0, pairs.image, pairs.query + pairs.layer * found.boxes.shape[2], pairs.target)


def compare_losses(
    case: Case, output, targets: Targets, losses: Losses, spec: dict, tolerance: Tolerance, label: str = ""
) -> None:
    """Every entry of the published dictionary, also what it only logs, and the total."""
    entries, depth = {}, len(output.one_to_one.logits)
    branches = [branch for branch, *_ in parts_of(output, losses)]
    for layer in range(depth):
        suffix = "" if layer == depth - 1 else f"_{layer}"
        for term, names in TERMS.items():
            value = sum(losses.terms[f"{branch}/{term}"][layer].item() for branch in branches)
            entries |= {name + suffix: value for name in names}
    entries |= errors_of(*of_all_groups(output, losses), targets)
    if output.encoder is not None and "encoder" in losses.matches:
        entries |= {f"{name}_enc": losses.terms[f"encoder/{term}"].sum().item() for term, (name, *_) in TERMS.items()}
        proposals = proposals_of_all_groups(output, losses)
        entries["cardinality_error_enc"] = recorded_errors(*proposals, targets)["cardinality_error"][0]
    for name, want in spec["losses"].items():
        if name not in entries:
            raise CannotHonor(f"the case carries the loss {name}, which nothing here stands for")
        allowed = {"atol": tolerance.errors} if "error" in name else tolerance.losses
        case.close(label + name, entries[name], want, **allowed)
    if "total" in spec:
        case.close(label + "total", losses.total, spec["total"], **tolerance.losses)


def every_match(output: DetectorOutput, losses: Losses) -> Matches:
    """The matches of all groups, queries numbered over all of them."""
    found = [(losses.matches[branch], start) for branch, _, start in parts_of(output, losses)]
    columns = {name: torch.cat([getattr(m, name) for m, _ in found]) for name in ("layer", "image", "target")}
    return Matches(query=torch.cat([m.query + start for m, start in found]), **columns)


def errors_of(predictions: Predictions, matches: Matches, targets: Targets) -> dict[str, float]:
    errors, last = recorded_errors(predictions, matches, targets), len(predictions.logits) - 1
    entries = {"class_error": errors["class_error"][last]}
    for layer, value in enumerate(errors["cardinality_error"]):
        entries["cardinality_error" + ("" if layer == last else f"_{layer}")] = value
    return entries


def compare_gradients(case: Case, name: str, run: Run, spec: dict, tolerance: dict) -> None:
    gradients = gradients_of(run.detector)
    published = to_released(gradients, run.config)
    for key, want in spec["gradient_norms"].items():
        case.close(f"|{key}|", published[key].norm(), want, **tolerance["gradient_norms"])
    silent = [n for n, p in run.detector.named_parameters() if p.grad is None]
    case.equal("no_gradient", sorted(to_released({n: gradients[n] for n in silent}, run.config)) if silent else [],
               sorted(spec["no_gradient"]))  # fmt: skip
    for level, want in enumerate(spec.get("feature_gradient_norms", [])):
        case.close(f"|features/{level}|", run.maps[level].grad.norm(), want, **tolerance["gradient_norms"])
    if name == f"{spec.get('variant')}_objects":
        for key in [key for key in run.training if key.startswith("gradients/")]:
            got = published[key.removeprefix("gradients/")]
            case.close(key, got, run.training[key], **tolerance["gradients"])


# ---------------------------------------------------------------- the criterion alone


def criterion_case(case: Case, folder: Path, manifest: dict, spec: dict) -> None:
    arrays, tolerance = golden.read_arrays(folder / spec["file"]), Tolerance.of(manifest, "float64")
    layers = sum(key.endswith("/pred_boxes") and not key.startswith("gradients/") for key in arrays)
    given = golden.read_predictions(arrays, [f"{layer}/" for layer in range(layers)], torch.float64)
    given.logits.requires_grad_(), given.boxes.requires_grad_()
    targets = golden.read_targets(arrays, given.boxes.shape[1], torch.float64)
    case.equal("objects", targets.counts.tolist(), spec["counts"])
    groups, size = manifest["config"]["group_detr"], manifest["config"]["num_queries"]
    base = get("coco/group-detr-300").override(
        {"model.num_classes": given.logits.shape[3], "model.num_queries": size, "group.groups": groups}
        | {"loss.floor": "product", "loss.giou_eps": 1e-6}
        | loss_weights(spec["weights"])
    )
    primary, further = (
        Predictions(given.logits[:, :, where], given.boxes[:, :, where])
        for where in (slice(size), slice(size, groups * size))
    )
    others = GroupOutput(further, None, further.boxes.detach(), parts=groups - 1, divisor=groups)
    output = DetectorOutput(primary, groups={"group": others})
    criterion = build_criterion(base)
    losses = criterion(output, targets)
    losses.total.backward()
    supervised = criterion.supervised(output, targets)["one_to_one"]
    case.equal("num_boxes", criterion.divisor(len(targets), supervised), spec["num_boxes"])
    compare_matchings(case, output, targets, losses, spec["matchings"])
    compare_losses(case, output, targets, losses, spec, tolerance)
    for layer in range(layers):
        for leaf, tensor in (("pred_logits", given.logits), ("pred_boxes", given.boxes)):
            key = f"gradients/{layer}/{leaf}"
            case.close(key, tensor.grad[layer], arrays[key], **manifest["tolerance"]["float64"]["gradients"])

    alone, expected = DetectorOutput(Predictions(primary.logits[-1:], primary.boxes[-1:])), spec["first_group_only"]
    with torch.no_grad():
        losses = criterion(alone, targets)
    supervised = criterion.supervised(alone, targets)["one_to_one"]
    case.equal("num_boxes of one group", criterion.divisor(len(targets), supervised), expected["num_boxes"])
    for image, pairs in enumerate(expected["matching"]):
        got = of_image(losses.matches["one_to_one"], targets, 0, image)
        case.pairs(f"first group {image}", got, [tuple(pair) for pair in pairs], made_by(alone.one_to_one, 0, image))
    compare_losses(case, alone, targets, losses, {"losses": expected["losses"]}, tolerance)
