"""Compares the package with numbers of the published reference implementation.

    python tests/conformance.py DIR

DIR holds one folder per item (op, module, hungarian, o2m, criterion, model, fullsize, keys, trajectory, postprocess) or
per published system of the family (the modules of tests/family, of the same names), each with a manifest.json that lists its cases and tolerances. Prints a line per case, ends in "N passed, M failed" and
exits with 1 if a case failed. A setting that a case carries and that cannot be honored here fails the case by its name.

Queries that make the same prediction, such as copies chosen from padding, are tied: which of them is matched is nobody's
decision. Matchings that differ only in that do not fail, but the line of the case names the tie, and everything else is
then computed from the recorded matching.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import family
import golden
from comparison import Case
from published import DTYPES, as_pairs, compare_detections, made_by, per_image, recorded_errors

from msdetr.boxes import iou  # noqa: F401  (imported early: a broken installation fails here, not in every case)
from msdetr.config import RunConfig
from msdetr.engine.optim import lr_groups
from msdetr.engine.postprocess import nms_postprocess, postprocess
from msdetr.losses import Criterion
from msdetr.matching import (
    HungarianMatcher,
    Matcher,
    OneToManyMatcher,
    ReleasedOneToMany,
    detection_costs,
    merge_matches,
    score,
)
from msdetr.methods import build_criterion, build_detector
from msdetr.model import from_released, to_released
from msdetr.modules import MultiScaleDeformableAttention
from msdetr.ops import ms_deform_attn
from msdetr.ops.reference import ms_deform_attn_loop
from msdetr.structures import DetectorOutput, EncoderOutput, Matches, Predictions, Targets

# ---------------------------------------------------------------- operator and module


def op_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    arrays = golden.read_arrays(folder / f"{name}.npz")
    tolerance = {k: v for k, v in manifest["tolerance"][dtype].items() if k in ("rtol", "atol")}
    inputs = {
        key: torch.from_numpy(arrays[key]).to(DTYPES[dtype]).requires_grad_()
        for key in ("value", "sampling_locations", "attention_weights")
    }
    shapes = [tuple(row) for row in arrays["spatial_shapes"].tolist()]
    value, locations, weights = inputs.values()
    with torch.no_grad():
        case.close("loop", ms_deform_attn_loop(value, shapes, locations, weights), arrays["output"], **tolerance)
    output = ms_deform_attn(value, shapes, locations, weights)
    case.close("output", output, arrays["output"], **tolerance)
    if "grad_output" not in arrays:
        return
    output.backward(torch.from_numpy(arrays["grad_output"]).to(output))
    for key, tensor in inputs.items():
        want, allowed = arrays[f"grad_{key}"], dict(tolerance)
        if dtype == "float64" and want.dtype == np.float32:
            allowed = {"rtol": 1e-6, "atol": 1e-7}
        elif dtype == "float32" and key == "sampling_locations":
            allowed["atol"] = 1e-3 * float(np.abs(want).max())
        case.close(f"grad_{key}", tensor.grad, want, **allowed)


def module_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    arrays = golden.read_arrays(folder / f"{name}.npz")
    kind, tolerance = DTYPES[dtype], manifest["tolerance"][dtype]
    module = MultiScaleDeformableAttention(spec["d_model"], spec["n_heads"], spec["n_levels"], spec["n_points"]).to(
        kind
    )
    module.load_state_dict({k[3:]: torch.from_numpy(v).to(kind) for k, v in arrays.items() if k.startswith("sd/")})
    inputs = {
        k: torch.from_numpy(arrays[k]).to(kind).requires_grad_() for k in ("query", "reference_points", "input_flatten")
    }
    mask = torch.from_numpy(arrays["padding_mask"]) if "padding_mask" in arrays else None
    shapes = tuple(tuple(row) for row in arrays["spatial_shapes"].tolist())
    output = module(*inputs.values(), shapes, mask)
    case.close("output", output, arrays["output"], **tolerance)
    output.backward(torch.from_numpy(arrays["grad_output"]).to(output))
    stored = {"rtol": 1e-6, "atol": 1e-7} if dtype == "float64" else tolerance
    gradients = {f"grad/{k}": t.grad for k, t in inputs.items()}
    gradients |= {f"gradp/{k}": p.grad for k, p in module.named_parameters() if f"gradp/{k}" in arrays}
    for key, gradient in gradients.items():
        case.close(key, gradient, arrays[key], **stored)


# ---------------------------------------------------------------- matching


def matching_inputs(arrays: dict, dtype: str) -> tuple[Predictions, Targets]:
    predictions = golden.read_predictions(arrays, [""], DTYPES[dtype])
    return predictions, golden.read_targets(arrays, predictions.logits.shape[1], DTYPES[dtype])


def hungarian_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    arrays = golden.read_arrays(folder / f"{name}.npz")
    predictions, targets = matching_inputs(arrays, dtype)
    matcher = HungarianMatcher(detection_costs(spec["cost_class"], spec["cost_bbox"], spec["cost_giou"]))
    for image, pairs in enumerate(per_image(matcher(predictions, targets), targets)):
        want = np.stack([arrays[f"indices/{image}/0"], arrays[f"indices/{image}/1"]], -1)
        case.pairs(f"image {image}", pairs, as_pairs(want), made_by(predictions, 0, image))


def o2m_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    if spec.get("informational"):
        return o2m_random_case(case, folder, name, spec, dtype)
    arrays = golden.read_arrays(folder / f"{name}.npz")
    predictions, targets = matching_inputs(arrays, dtype)
    num_images, num_queries = predictions.logits.shape[1:3]
    settings = {"threshold": spec["threshold"], "k": spec["k"]}
    released = ReleasedOneToMany(**settings)(predictions, targets)
    literal = OneToManyMatcher(**settings, exclusive=False)(predictions, targets)
    one_to_one = HungarianMatcher()(predictions, targets)
    merged = merge_matches(released, one_to_one, num_queries, num_images)
    starts = np.cumsum([0, *targets.counts.tolist()])
    table = score(predictions, targets, 0.3)[0]
    for image in range(num_images):
        want = arrays[f"scores/{image}"]
        case.close(
            f"scores {image}",
            table[starts[image] : starts[image + 1]],
            want,
            atol=1e-6 if dtype == "float32" else 1e-12,
        )
        made = made_by(predictions, 0, image)
        for rule, matches, recorded in (("released", released, "indices"), ("literal", literal, "paper")):
            pairs, wanted = per_image(matches, targets)[image], as_pairs(arrays[f"{recorded}/{image}/pairs"])
            case.pairs(f"{rule} {image}", pairs, wanted, made, keeps_both=rule == "released")
        if f"merged/{image}/pairs" in arrays:
            skip = set(spec.get("merged_ambiguous_queries", [[]] * num_images)[image])
            got, expected = per_image(merged, targets)[image], as_pairs(arrays[f"merged/{image}/pairs"])
            got, expected = ([p for p in pairs if p[0] not in skip] for pairs in (got, expected))
            case.pairs(f"merged {image}", got, expected, made, keeps_both=True)


def o2m_random_case(case: Case, folder: Path, name: str, spec: dict, dtype: str) -> None:
    """The random cap of the released code: every pair comes from the recorded union, counts within the recorded range."""
    arrays = golden.read_arrays(folder / f"{name}.npz")
    predictions, targets = matching_inputs(arrays, dtype)
    matcher = ReleasedOneToMany(threshold=spec["threshold"], k=spec["k"])
    allowed = set(as_pairs(arrays["union_pairs"]))
    low, high = spec["num_pairs_over_200_seeds"]
    for seed in range(50):
        torch.manual_seed(seed)
        pairs = per_image(matcher(predictions, targets), targets)[0]
        case.equal(f"seed {seed}: all from the union", set(pairs) <= allowed, True)
        case.equal(f"seed {seed}: {len(pairs)} pairs", low <= len(pairs) <= high, True)


# ---------------------------------------------------------------- criterion


def loss_name(branch: str, term: str, layer: int, last: int) -> str:
    """The released name of a loss entry, e.g. loss_bbox_0_o2m."""
    term = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}.get(term, term)
    depth = "" if layer == last else f"_{layer}"
    return term + {"one_to_one": depth, "one_to_many": f"{depth}_o2m", "encoder": "_enc"}[branch]


def loss_entries(output: DetectorOutput, targets: Targets, losses) -> dict[str, float]:
    """Every entry of the released loss dictionary, also those it only logs."""
    predictions = {"one_to_one": output.one_to_one, "one_to_many": output.one_to_many}
    if output.encoder is not None:
        predictions["encoder"] = output.encoder.predictions
    entries = {}
    for key, values in losses.terms.items():
        branch, term = key.split("/")
        for layer, value in enumerate(values.tolist()):
            entries[loss_name(branch, term, layer, len(values) - 1)] = value
    for branch, matches in losses.matches.items():
        last = len(predictions[branch].logits) - 1
        for error, values in recorded_errors(predictions[branch], matches, targets).items():
            layers = range(last + 1) if error == "cardinality_error" else [last] if branch != "encoder" else []
            for layer in layers:
                entries[loss_name(branch, error, layer, last)] = values[layer]
    return entries


KINDS = {"o2o": "one_to_one", "o2m": "one_to_many", "enc": "encoder"}


def compare_matchings(
    case: Case, where: str, criterion: Criterion, output: DetectorOutput, targets: Targets, recorded: list
) -> Criterion:
    """Compares the matchings of every branch, before one-to-one pairs are merged in, with the recorded ones, which stand
    in the order of the published code: last layer, then the others; one-to-one, one-to-many, encoder.

    Returns the criterion, which takes the recorded pairs where queries are tied.
    """
    supervised = criterion.supervised(output, targets)
    matches = criterion.match(supervised, merge=False)
    depth = len(output.one_to_one.logits)
    order = [depth - 1, *range(depth - 1)]
    calls = [(k, layer) for k, name in KINDS.items() if name in matches for layer in (order if k != "enc" else [0])]
    case.equal(f"{where}matchings", [kind for kind, _ in calls], [kind for kind, _ in recorded])
    tied, pairs = set(), []
    for (kind, layer), (_, images) in zip(calls, recorded):
        given = supervised[KINDS[kind]]
        got = per_image(matches[KINDS[kind]], targets, layer)
        case.equal(f"{where}images matched", len(images), len(got))
        for image, (ours, theirs) in enumerate(zip(got, images)):
            theirs = [tuple(pair) for pair in theirs]
            made = made_by(given.predictions, layer, image)
            if given.match_on is not None:
                made = torch.cat([made, made_by(given.match_on, layer, image)], -1)
            name = f"{where}matching {kind} layer {layer} image {image}"
            if case.pairs(name, ours, theirs, made, keeps_both=kind == "o2m"):
                tied.add(KINDS[kind])
            pairs += [(KINDS[kind], layer, image, query, target) for query, target in theirs]
    branches = [
        replace(b, matcher=Recorded([p[1:] for p in pairs if p[0] == b.name])) if b.name in tied else b
        for b in criterion.branches
    ]
    return Criterion(branches)


class Recorded(Matcher):
    """Gives the pairs that were recorded: (layer, image, query, object of the image)."""

    def __init__(self, pairs: list[tuple[int, int, int, int]]):
        self.pairs = pairs

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor]:
        return (score(predictions, targets, 0.3),)  # of a query's pairs, the one that scores highest gives its class

    def assign(self, host, predictions: Predictions, targets: Targets) -> Matches:
        starts = np.cumsum([0, *targets.counts.tolist()])
        found = [(layer, image, query, int(starts[image]) + target) for layer, image, query, target in self.pairs]
        found.sort(key=lambda pair: (pair[0], host[0][pair[0], pair[3], pair[2]].item()))
        return Matches(*torch.tensor(found, dtype=torch.long).reshape(-1, 4).unbind(1))


def criterion_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    arrays, kind = golden.read_arrays(folder / f"{name}.npz"), DTYPES[dtype]
    targets = golden.read_targets(arrays, spec["B"], kind)
    layers = sum(key.startswith("o2o/") and key.endswith("/pred_logits") for key in arrays)

    def predictions(prefix: str, count: int) -> Predictions | None:
        names = [f"{prefix}/{i}/" for i in range(count)] if prefix != "enc" else ["enc/"]
        if f"{names[0]}pred_logits" not in arrays:
            return None
        found = golden.read_predictions(arrays, names, kind)
        return Predictions(found.logits.requires_grad_(), found.boxes.requires_grad_())

    branches = {"o2o": predictions("o2o", layers), "o2m": predictions("o2m", layers), "enc": predictions("enc", 1)}
    encoder = None
    if branches["enc"] is not None:
        encoder = EncoderOutput(branches["enc"], torch.from_numpy(arrays["enc/anchors"]).to(kind))
    output = DetectorOutput(branches["o2o"], branches["o2m"], encoder)
    given = golden.settings(manifest, spec)
    if given["dec_layers"] < layers:  # the published criterion weighs the losses of that many layers
        raise golden.CannotHonor(f"the case carries dec_layers = {given['dec_layers']} and {layers} layers")
    if given["use_indices_merge"] and given["num_queries"] != output.one_to_one.logits.shape[2]:
        raise golden.CannotHonor(
            f"the case carries num_queries = {given['num_queries']}, its arrays have another number"
        )
    changes = {"model.num_classes": given["num_classes"]}
    changes |= {"ms_detr": branches["o2m"] is not None, "two_stage": encoder is not None}
    config = golden.run_config(RunConfig().override(changes), given)
    criterion = compare_matchings(case, "", build_criterion(config), output, targets, spec["matchings"])
    losses = criterion(output, targets)
    losses.total.backward()

    tolerance = manifest["tolerance"][dtype]
    entries = loss_entries(output, targets, losses)
    for key, want in spec["losses"].items():
        case.close(key, entries[key], want, rtol=tolerance["losses_rtol"], atol=1e-5 if "error" in key else 1e-12)
    case.close("total", losses.total, spec["total"], rtol=tolerance["losses_rtol"])
    allowed = {"rtol": 2e-6, "atol": 1e-9} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-6}
    for prefix, found in branches.items():
        if found is None:
            continue
        for layer in range(len(found.logits)):
            stem = "grad/enc/" if prefix == "enc" else f"grad/{prefix}/{layer}/"
            for leaf, tensor in (("pred_logits", found.logits), ("pred_boxes", found.boxes)):
                if stem + leaf in arrays:
                    gradient = tensor.grad[layer] if tensor.grad is not None else torch.zeros_like(tensor[layer])
                    case.close(stem + leaf, gradient, arrays[stem + leaf], **allowed)


# ---------------------------------------------------------------- whole models


def load_model(folder: Path, variant: str, given: dict, dtype: torch.dtype):
    config = golden.model_config(given)
    model = build_detector(config).to(dtype)
    model.load_state_dict(from_released(golden.released_state(folder, variant, dtype), config))
    return model, config


def model_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    kind, tolerance = DTYPES[dtype], manifest["tolerance"][dtype]
    images = golden.read_arrays(folder / manifest["images"]["file"])
    batch = golden.read_images(images, sorted(k for k in images if k.startswith("u8/")), kind)
    model, _ = load_model(folder, name, golden.settings(manifest, spec), kind)
    model.eval()
    arrays = golden.read_arrays(folder / spec["file"])
    with torch.no_grad():
        output = model(batch, one_to_many=model.decoder.one_to_many is not None)

    last = len(output.one_to_one.logits) - 1
    for stem, found in (("", output.one_to_one), ("o2m_outputs/", output.one_to_many)):
        if found is None:
            continue
        for layer in range(last + 1):
            name = stem if layer == last else f"{stem}aux_outputs/{layer}/"
            case.close(
                f"{name}pred_logits", found.logits[layer], arrays[f"{name}pred_logits"], atol=tolerance["pred_logits"]
            )
            case.close(
                f"{name}pred_boxes", found.boxes[layer], arrays[f"{name}pred_boxes"], atol=tolerance["pred_boxes"]
            )
    start = arrays["debug/init_reference"]
    case.close("init_reference", output.references[0, ..., : start.shape[-1]], start, atol=tolerance["pred_boxes"])
    if output.encoder is not None:
        compare_selection(case, output, arrays["debug/topk_proposals"])
        encoder, proposals = golden.read_arrays(folder / "enc_outputs.npz"), output.encoder.predictions
        case.close(
            "encoder logits", proposals.logits[0][..., 0], encoder["pred_logits_class0"], atol=tolerance["pred_logits"]
        )
        case.close(
            "encoder logits", proposals.logits[0][:, ::4], encoder["pred_logits_every4"], atol=tolerance["pred_logits"]
        )
        case.close("encoder boxes", proposals.boxes[0], encoder["pred_boxes"], atol=tolerance["pred_boxes"])
        case.close("anchors", output.encoder.anchors, encoder["anchors"], atol=tolerance["pred_boxes"])


def compare_selection(case: Case, output: DetectorOutput, recorded: np.ndarray) -> None:
    """The tokens that became queries, in their order; those of unusable tokens are tied."""
    case.equal("topk_proposals of images", recorded.shape, tuple(output.selected.shape))
    for image, (got, want) in enumerate(zip(output.selected.tolist(), recorded.tolist())):
        made = made_by(output.encoder.predictions, 0, image)
        case.pairs(f"topk_proposals {image}", list(zip(got, range(len(got)))), list(zip(want, range(len(want)))), made)


def fullsize_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    tolerance = manifest["tolerance"]["float64"]
    images = golden.read_arrays(folder / "inputs.npz")
    batch = golden.read_images(images, sorted(k for k in images if k.startswith("u8/")), torch.float64)
    model, _ = load_model(folder, name, golden.settings(manifest, spec), torch.float64)
    model.eval()
    arrays = golden.read_arrays(folder / spec["file"])
    with torch.no_grad():
        output = model(batch, one_to_many=model.decoder.one_to_many is not None)
    for stem, found in (("", output.one_to_one), ("o2m_outputs/", output.one_to_many)):
        if found is None:
            continue
        logits, boxes = found.logits[-1], found.boxes[-1]
        case.close(
            f"{stem}pred_logits", logits[:, ::6], arrays[f"{stem}pred_logits_every6"], atol=tolerance["pred_logits"]
        )
        case.close(
            f"{stem}pred_logits_max", logits.amax(-1), arrays[f"{stem}pred_logits_max"], atol=tolerance["pred_logits"]
        )
        case.close(f"{stem}pred_boxes", boxes, arrays[f"{stem}pred_boxes"], atol=tolerance["pred_boxes"])
    if output.selected is not None:
        compare_selection(case, output, arrays["debug/topk_proposals"])


def keys_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    """Names, shapes, shared tensors, optimiser groups, frozen parameters and buffers, and the way back."""
    record = golden.read_json(folder / spec["file"])
    config = golden.model_config(golden.settings(manifest, spec))
    with torch.device("meta"):
        model = build_detector(config)
    state = model.state_dict(keep_vars=True)
    released = to_released(state, config)
    shapes = {name: list(tensor.shape) for name, tensor in released.items()}
    case.equal("names", sorted(shapes), sorted(record["keys"]))
    case.equal("shapes", shapes, record["keys"])
    aliases = {name: first for name, first in record["alias_of_first"].items()}
    case.equal("shared tensors", all(released[a] is released[b] for a, b in aliases.items()), True)

    originals = {id(t): name for name, t in released.items() if name not in aliases}
    group_names = lr_groups(model)
    groups: dict[str, set[str]] = {"rest": set(), "backbone": set(), "projection": set()}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[group_names[path]].add(originals[id(parameter)])
    for (kind, names), want in zip(groups.items(), record["optimizer_groups"]):
        case.equal(f"optimizer group {kind}", names, {aliases.get(n, n) for n in want})
    frozen = {originals[id(p)] for p in model.parameters() if not p.requires_grad}
    case.equal("frozen", frozen, set(record["frozen_params"]))
    buffers = {originals[id(t)] for t in state.values() if not isinstance(t, torch.nn.Parameter)}
    case.equal("buffers", buffers, set(record["buffers"]))
    case.equal("parameters", sum(p.numel() for p in model.parameters()), spec["params_total"])
    back = from_released(released, config)
    case.equal("round trip", {n: id(t) for n, t in back.items()}, {n: id(t) for n, t in state.items()})


# ---------------------------------------------------------------- training


def trajectory_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    kind, tolerance = torch.float64, spec["suggested_tolerance_float64"]
    inputs = golden.read_arrays(folder / "inputs.npz")
    given = golden.settings(manifest, spec)
    if given["dropout"]:
        raise golden.CannotHonor(f"the case carries dropout = {given['dropout']}: its random numbers are not recorded")
    model, config = load_model(folder.parent / "model", name, given, kind)
    model.train()
    criterion = build_criterion(golden.run_config(config, given))
    optimizer = released_optimizer(model, given)
    batches = 1 + max(int(key.split("/")[0]) for key in inputs)
    for number, step in enumerate(spec["steps"]):
        prefix = f"{number % batches}/"
        images = sorted(k for k in inputs if k.startswith(prefix) and k.endswith("/u8"))
        batch = golden.read_images(inputs, images, kind)
        targets = golden.read_targets(inputs, len(images), kind, prefix + "{}")
        output = model(batch)
        where = f"step {number} "
        losses = compare_matchings(case, where, criterion, output, targets, step["matchings"])(output, targets)
        optimizer.zero_grad()
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), given["clip_max_norm"] or float("inf"))

        case.close(where + "total", losses.total, step["total"], rtol=tolerance["total_rtol"])
        case.close(where + "grad_norm", norm, step["grad_norm"], rtol=tolerance["grad_norm_rtol"])
        entries = loss_entries(output, targets, losses)
        for key, want in step["losses"].items():
            case.close(where + key, entries[key], want, rtol=tolerance["losses_rtol"], atol=1e-6)

        optimizer.step()
        state = to_released(model.state_dict(), config)
        for key, (total, length) in step["params"].items():
            value = state[key].double()
            case.close(where + f"|{key}|", value.norm(), length, rtol=tolerance["params_L2_rtol"])
            case.close(where + f"sum {key}", value.sum(), total, atol=tolerance["params_sum_abs_over_L2"] * length)


def released_optimizer(model: torch.nn.Module, given: dict) -> torch.optim.Optimizer:
    rates = {
        "rest": given["lr"],
        "backbone": given["lr_backbone"],
        "projection": given["lr"] * given["lr_linear_proj_mult"],
    }
    groups = {name: {"params": [], "lr": rate} for name, rate in rates.items()}
    of_parameter = lr_groups(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[of_parameter[name]]["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=given["lr"], weight_decay=given["weight_decay"], fused=True)


# ---------------------------------------------------------------- post-processing


def postprocess_case(case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
    arrays, tolerance = golden.read_arrays(folder / f"{name}.npz"), manifest["tolerance"]
    predictions = golden.read_predictions(arrays, [""], DTYPES[dtype])
    sizes = torch.from_numpy(arrays["target_sizes"])
    for kind in spec["counts"]:  # topk100, nms07_top300: threshold 0.7, 300 kept
        count = int(kind.split("top")[-1].removeprefix("k"))
        if kind.startswith("nms"):
            detections = nms_postprocess(predictions, sizes, count, float(f"0.{kind[3:].split('_')[0].lstrip('0')}"))
        else:
            detections = postprocess(predictions, sizes, count)
        scores, boxes = ({"atol": tolerance[of]} for of in ("scores", "boxes"))
        compare_detections(case, detections, arrays, kind + "/{}/", scores, boxes)


@dataclass(frozen=True)
class Item:
    """A subdirectory of conformance data: one check for each entry of a section of its manifest and each dtype.

    settings: whether its cases may carry settings of the published command line.
    """

    check: Callable[[Case, Path, dict, str, dict, str], None]
    section: str = "cases"
    dtypes: tuple[str, ...] = tuple(DTYPES)
    settings: bool = False

    def compare(self, case: Case, folder: Path, manifest: dict, name: str, spec: dict, dtype: str) -> None:
        """Runs one check. Raises CannotHonor where the case carries settings that the check does not read."""
        sections = (source.get(section) or {} for source in (manifest, spec) for section in ("config", "flags"))
        if not self.settings and (carried := sorted({name for section in sections for name in section})):
            raise golden.CannotHonor(f"the case carries {', '.join(carried)}, which decides nothing in this comparison")
        self.check(case, folder, manifest, name, spec, dtype)

    def cases(self, folder: Path) -> Iterator[tuple[str, Callable[[Case], None]]]:
        manifest = golden.read_json(folder / "manifest.json")
        for name, spec in manifest[self.section].items():
            for dtype in self.dtypes:
                yield (
                    f"{name} {dtype}",
                    lambda case, n=name, s=spec, d=dtype: self.compare(case, folder, manifest, n, s, d),
                )


ITEMS = {
    "op": Item(op_case),
    "module": Item(module_case),
    "hungarian": Item(hungarian_case),
    "o2m": Item(o2m_case),
    "criterion": Item(criterion_case, settings=True),
    "model": Item(model_case, "variants", settings=True),
    "fullsize": Item(fullsize_case, "variants", ("float64",), settings=True),
    "keys": Item(keys_case, "configs", ("float64",), settings=True),
    "trajectory": Item(trajectory_case, "variants", ("float64",), settings=True),
    "postprocess": Item(postprocess_case),
}


# of each item, its checks by name
CASES: dict[str, Callable[[Path], Iterator[tuple[str, Callable[[Case], None]]]]] = {
    **{name: item.cases for name, item in ITEMS.items()},
    **family.systems(),
}


def run(directory: Path, items: list[str] | None = None) -> tuple[int, int]:
    """Runs every case of a directory, printing a line each; (passed, failed)."""
    passed = failed = 0
    for name, cases in CASES.items():
        if not (directory / name).is_dir() or (items and name not in items):
            continue
        for label, check in cases(directory / name):
            case, start = Case(), time.perf_counter()
            try:
                check(case)
            except golden.CannotHonor as error:
                case.worst, case.report = float("inf"), str(error)
            except Exception:  # noqa: BLE001  (a case that raises has failed; the others go on)
                case.worst, case.report = float("inf"), traceback.format_exc(limit=-3)
            passed, failed = passed + case.passed, failed + (not case.passed)
            verdict = "pass" if case.passed else "FAIL"
            ties = f"; tie in {'; '.join(case.ties)}" if case.ties else ""
            cost = f"({case.count} comparisons, {time.perf_counter() - start:.1f} s)"
            print(f"{verdict}  {name:11} {label:34} {case.report}{ties}  {cost}", flush=True)
    return passed, failed


def main() -> int:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        print(__doc__ if len(sys.argv) < 2 else f"{sys.argv[1]} is not a directory", file=sys.stderr)
        return 2
    passed, failed = run(Path(sys.argv[1]), sys.argv[2:])
    if passed + failed == 0:
        print(f"{sys.argv[1]} holds none of {', '.join(CASES)}", file=sys.stderr)
        return 2
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
