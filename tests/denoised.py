"""What DN-DETR's and DINO's recorded numbers are compared with: whole models, a step of training with the recorded random
numbers, and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import golden
import torch
from comparison import Case
from denoised_queries import compare_queries, read_draws
from golden import CannotHonor
from published import gradients_of, made_by, numbered, on_maps, per_image, recorded_errors
from torch import Tensor

from msdetr.config import RunConfig
from msdetr.engine.postprocess import postprocess
from msdetr.errors import ConfigError
from msdetr.losses import Criterion, Losses, Supervised
from msdetr.methods import build_criterion
from msdetr.model import Detector, Proposals, to_released
from msdetr.structures import DetectorOutput, ImageBatch, Matches, Predictions, Targets


@dataclass(frozen=True)
class Precision:
    """What is computed in, and what the manifests allow for it; full gradients and pixels are compared in float64 alone."""

    dtype: torch.dtype
    logits: Mapping
    boxes: Mapping
    losses: Mapping
    norms: Mapping

    @property
    def exact(self) -> bool:
        return self.dtype == torch.float64


PRECISIONS = {
    "float64": Precision(
        torch.float64, {"atol": 1e-8}, {"atol": 1e-9}, {"rtol": 1e-9, "atol": 1e-12}, {"rtol": 1e-7, "atol": 1e-9}
    ),
    "float32": Precision(
        torch.float32, {"atol": 1e-3}, {"atol": 1e-4}, {"rtol": 1e-4, "atol": 1e-6}, {"rtol": 1e-3, "atol": 1e-5}
    ),
}
GRADIENTS, PIXELS = {"rtol": 1e-6, "atol": 1e-9}, {"atol": 1e-5}
SIZES = torch.tensor([[480, 640], [333, 500]])  # of the images that detections are wanted in, in turn
TERMS = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


@dataclass(frozen=True)
class System:
    """How a published system calls things.

    run_config: the configuration that a variant's entry of the manifest and its settings, with the case's, stand for.
    detections: how many are kept, by variant and settings.   entry: the name of a loss entry, by branch, term and layer
    ("" the last, else "_0", ...).   encoder: what the encoder's matching is called.   others: further logged entries.
    """

    run_config: Callable[[Mapping, Mapping], RunConfig]
    detections: Callable[[Mapping, Mapping], int]
    entry: Callable[[str, str, str], str]
    encoder: str
    others: Callable[[str, Supervised, Matches, int, float], Mapping[str, float]]


# ---------------------------------------------------------------- settings


@dataclass(frozen=True)
class Flags:
    """The published command line: names that decide a number here, with the value that everything else must have, and names
    that decide none. ``read`` gives all of a case."""

    honored: frozenset[str]
    fixed: Mapping[str, tuple]
    without_effect: frozenset[str]

    def read(self, variant: Mapping, spec: Mapping) -> dict:
        """Raises CannotHonor naming a setting that is unknown, missing, or whose value does not exist here."""
        given = {**variant["flags"], **(spec.get("flags") or {}), **(spec.get("flags_changed") or {})}
        if unknown := sorted(given.keys() - self.honored - self.fixed.keys() - self.without_effect):
            raise CannotHonor(f"the case carries {', '.join(unknown)}, which nothing here stands for")
        if missing := sorted(self.honored - given.keys()):
            raise CannotHonor(f"the case does not say {', '.join(missing)}")
        for name, values in self.fixed.items():
            if given.get(name, values[0]) not in values:
                raise CannotHonor(f"the case carries {name} = {given[name]!r}; only {values[0]!r} exists here")
        return given


# what the command lines of both systems have
HONORED = frozenset(
    [
        "enc_layers",
        "dec_layers",
        "dim_feedforward",
        "hidden_dim",
        "dropout",
        "nheads",
        "num_queries",
        "num_feature_levels",
        "enc_n_points",
        "dec_n_points",
        "set_cost_class",
        "set_cost_bbox",
        "set_cost_giou",
        "cls_loss_coef",
        "bbox_loss_coef",
        "giou_loss_coef",
        "focal_alpha",
    ]
)
FIXED = {
    "position_embedding": ("sine",),
    "num_patterns": (0,),
    "random_refpoints_xy": (False,),
    "masks": (False,),
    "aux_loss": (True,),
    "use_dn": (True,),
    "frozen_weights": (None,),
    "dilation": (False,),
}
WITHOUT_EFFECT = frozenset(
    ["device", "lr", "lr_backbone", "weight_decay", "clip_max_norm", "epochs", "lr_drop", "batch_size", "dataset_file"]
)


def overridden(changes: Mapping) -> RunConfig:
    """Raises CannotHonor where a configuration cannot be that."""
    try:
        return RunConfig().override(changes)
    except ConfigError as error:
        raise CannotHonor(f"the case carries what is no configuration here: {error}") from error


def shared_changes(given: Mapping, num_classes: int) -> dict:
    """What the settings of both systems say in the same words."""
    if given["enc_n_points"] != given["dec_n_points"]:
        raise CannotHonor(f"the case carries enc_n_points = {given['enc_n_points']}, another number than dec_n_points")
    if given["dropout"]:
        raise CannotHonor(f"the case carries dropout = {given['dropout']}, whose random numbers are not recorded")
    weights = {
        f"{section}.{ours}": given[f"{name}_loss_coef"]
        for section in ("loss", *(["two_stage"] if given["two_stage"] else []))
        for name, ours in golden.WEIGHTS.items()
    }
    return {
        "ms_detr": None,
        "two_stage": given["two_stage"],
        "model.pretrained": "none",
        "model.num_classes": num_classes,
        **{path: given[name] for name, path in golden.SIZES.items()},
        "model.num_points": given["dec_n_points"],
        "model.reference_eps": 1e-3,
        "loss.focal_alpha": given["focal_alpha"],
        "matching.focal_alpha": given["focal_alpha"],
        **{f"matching.cost_{ours}": given[f"set_cost_{name}"] for name, ours in golden.COSTS.items()},
        **weights,
    }


# ---------------------------------------------------------------- inputs


def with_recorded_ranking(detector: Detector, tokens: Tensor, case: Case, allowed: Mapping) -> None:
    """Makes the encoder's ranking the recorded one, where scores that differ by less than is allowed come in another order."""
    source = detector.query_selection
    propose = source.propose

    def recorded(*given) -> Proposals:
        found = propose(*given)
        logits = found.encoder.predictions.logits[0]
        scores = logits[..., 0] if source.rank_by == "first_class" else logits.amax(-1)
        case.close("scores of topk_tokens", *(scores.gather(1, x) for x in (found.ranking, tokens)), **allowed)
        return replace(found, ranking=tokens)

    source.propose = recorded


def load_detector(folder: Path, variant: str, manifest: Mapping, config: RunConfig, maps: list[Tensor]) -> Detector:
    """A detector with the released weights of a variant, on recorded feature maps instead of a backbone."""
    stored = golden.read_arrays(folder / f"weights_{variant}.npz")
    released = {name: torch.from_numpy(array) for name, array in stored.items()}
    released |= {alias: released[name] for alias, name in manifest["variants"][variant]["aliases"].items()}
    return on_maps(config, maps, released)


# ---------------------------------------------------------------- cases


def model_cases(system: System, folder: Path, manifest: Mapping) -> Iterator[tuple[str, Callable[[Case], None]]]:
    """Every whole model of a folder, in both precisions."""
    for name in manifest["cases"]:
        for kind, precision in PRECISIONS.items():
            yield (
                f"{name} {kind}",
                lambda case, n=name, p=precision: model_case(system, case, folder, manifest, n, p),
            )


def model_case(system: System, case: Case, folder: Path, manifest: Mapping, name: str, precision: Precision) -> None:
    spec = manifest["cases"][name]
    variant = manifest["variants"][spec["variant"]]
    config = system.run_config(variant, spec)
    arrays = golden.read_arrays(folder / f"{name}.npz")
    dtype = precision.dtype
    maps = [torch.from_numpy(arrays[key]).to(dtype).requires_grad_() for key in numbered(arrays, "features/{}")]
    detector = load_detector(folder, spec["variant"], manifest, config, maps)
    mask = torch.from_numpy(arrays["image_mask"])
    batch = ImageBatch(torch.zeros(len(mask), 3, *mask.shape[1:], dtype=dtype), mask)
    targets = golden.read_targets(arrays, len(mask), dtype)
    source = detector.sources["denoising"]
    draws = read_draws(arrays, spec["dn"]["flat_length"], dtype)
    source.forward = partial(source.forward, draws=draws)
    if not precision.exact and "encoder/topk_tokens" in arrays:
        with_recorded_ranking(detector, torch.from_numpy(arrays["encoder/topk_tokens"]), case, precision.logits)

    detector.train()
    with torch.no_grad():
        memory = detector.encoder(detector.pyramid(batch))
        if "memory" in arrays:
            seen = ~memory.mask
            case.close("memory", memory.tokens[seen], arrays["memory"][seen.numpy()], **precision.logits)
        if precision.exact:
            positions = folder / "positions.npz"
            compare_pyramid(case, detector, batch, arrays, golden.read_arrays(positions) if positions.is_file() else {})
            _, (primary, noised) = detector.query_groups(memory, targets)
            compare_queries(case, source, noised, primary, targets, draws, spec["dn"], arrays, "dn/")

    output, after_last = run_with_last_references(detector, batch, targets)
    compare_output(case, output, after_last, arrays, precision)
    compare_losses(case, system, build_criterion(config), output, targets, spec, precision)
    compare_gradients(case, detector, config, maps, arrays, spec, precision)

    detector.eval()
    with torch.no_grad():
        found = detector(batch).one_to_one
    for layer in range(len(found.logits)):
        if f"eval/{layer}/logits" in arrays:
            compare_predictions(case, f"eval/{layer}", found, layer, arrays, precision)
    if "eval/post/0/scores" in arrays:
        wanted = SIZES[torch.arange(len(mask)) % len(SIZES)]
        kept = postprocess(found.layer(-1), wanted, system.detections(variant, spec))
        for image in range(len(numbered(arrays, "eval/post/{}/scores"))):
            stem, detections = f"eval/post/{image}/", kept[image]
            case.close(stem + "scores", detections.scores, arrays[stem + "scores"], **precision.logits)
            if precision.exact:  # else detections with nearly the same score may change places
                case.equal(stem + "labels", detections.labels.tolist(), arrays[stem + "labels"].tolist())
                case.close(stem + "boxes", detections.boxes, arrays[stem + "boxes"], **PIXELS)


def compare_pyramid(case: Case, detector: Detector, batch: ImageBatch, arrays: Mapping, positions: Mapping) -> None:
    pyramid = detector.pyramid(batch)
    sizes = [height * width for height, width in pyramid.shapes]
    tokens, places, masks = (x.split(sizes, 1) for x in (pyramid.tokens, pyramid.positions, pyramid.mask))
    for level, shape in enumerate(pyramid.shapes):
        mask = masks[level].unflatten(1, shape)
        case.equal(f"levels/{level}/mask", mask.tolist(), arrays[f"levels/{level}/mask"].tolist())
        seen = ~masks[level]
        place = places[level] - detector.level_embedding[level]
        for name, ours, want in (
            (f"position/{level}", place, positions.get(f"position/{level}")),
            (f"levels/{level}/projected", tokens[level], arrays.get(f"levels/{level}/projected")),
        ):
            if want is not None:
                want = torch.from_numpy(want).flatten(2).transpose(1, 2)
                case.close(name, ours[seen], want[seen], **PRECISIONS["float64"].logits)


def run_with_last_references(detector: Detector, batch: ImageBatch, targets: Targets) -> tuple[DetectorOutput, Tensor]:
    """What a detector returns, and the boxes [B, Q, 4] that a further layer would start from; the primary group first."""
    seen = []
    hook = detector.decoder.layers[-1].register_forward_hook(lambda layer, given, made: seen.append((given, made)))
    output = detector(batch, targets)
    hook.remove()
    ((_, context), (queries, _)) = seen[0]
    step = detector.decoder.box_heads[-1](queries)
    return output, detector.decoder.coding(context.references, step).detach()


def compare_predictions(
    case: Case, stem: str, found: Predictions, layer: int, arrays: Mapping, precision: Precision
) -> None:
    case.close(f"{stem}/logits", found.logits[layer], arrays[f"{stem}/logits"], **precision.logits)
    case.close(f"{stem}/boxes", found.boxes[layer], arrays[f"{stem}/boxes"], **precision.boxes)


def compare_output(
    case: Case, output: DetectorOutput, after_last: Tensor, arrays: Mapping, precision: Precision
) -> None:
    noised = output.groups["denoising"]
    queries = output.one_to_one.logits.shape[2]
    for layer in range(len(output.one_to_one.logits)):
        compare_predictions(case, f"matching/{layer}", output.one_to_one, layer, arrays, precision)
        if f"denoising/{layer}/logits" in arrays:
            compare_predictions(case, f"denoising/{layer}", noised.predictions, layer, arrays, precision)
    references = torch.cat([noised.references, output.references], 2)
    references = torch.cat([references, after_last.roll(-queries, 1)[None]])
    names = numbered(arrays, "decoder/reference/{}")
    if names:
        case.equal("decoder/reference", len(names), len(references))
    for ours, name in zip(references, names):
        case.close(name, ours, arrays[name], **precision.boxes)

    if output.encoder is None:
        return
    case.equal("encoder/topk_tokens", output.selected.tolist(), arrays["encoder/topk_tokens"].tolist())
    found = output.encoder.predictions
    for name, ours, allowed in (
        ("logits", found.logits[0], precision.logits),
        ("logits_class0", found.logits[0, ..., 0], precision.logits),
        ("boxes", found.boxes[0], precision.boxes),
        ("proposals", output.encoder.anchors, precision.boxes),
    ):
        want = arrays.get(f"encoder/{name}")
        if want is not None:
            if want.shape[1] != ours.shape[1]:  # of the chosen tokens
                ours = torch.stack([x[rows] for x, rows in zip(ours, output.selected)])
            case.close(f"encoder/{name}", ours, want, **allowed)


# ---------------------------------------------------------------- objective


def compare_losses(
    case: Case,
    system: System,
    criterion: Criterion,
    output: DetectorOutput,
    targets: Targets,
    spec: Mapping,
    precision: Precision,
) -> None:
    """Matchings, every entry of the loss dictionary, its weight, what it is divided by, and the total; runs backward."""
    losses: Losses = criterion(output, targets)
    supervised = criterion.supervised(output, targets)
    divisors = {name: criterion.divisor(len(targets), given) for name, given in supervised.items()}
    compare_matchings(case, system, supervised, losses, targets, spec)
    entries, weights = {}, {}
    for branch in criterion.branches:
        given, matches = supervised[branch.name], losses.matches[branch.name]
        depth = len(given.predictions.logits)
        for layer in range(depth):
            suffix = "" if layer == depth - 1 else f"_{layer}"
            for term, weight in branch.weights.items():
                name = system.entry(branch.name, TERMS[term], suffix)
                entries[name] = losses.terms[f"{branch.name}/{term}"][layer].item()
                weights[name] = weight
            others = system.others(branch.name, given, matches, layer, divisors[branch.name])
            entries |= {system.entry(branch.name, name, suffix): value for name, value in others.items()}
    for name, want in spec["losses"].items():
        if "error" not in name:
            case.close(name, entries.get(name, float("nan")), want, **precision.losses)
        elif precision.exact:  # errors are logged in float32, and a class among equals may win otherwise in it
            case.close(name, entries.get(name, float("nan")), want, rtol=1e-6, atol=1e-9)
    for name, want in spec["weights_used"].items():
        case.close(f"weight of {name}", weights.get(name, float("nan")), want, rtol=1e-12)
    case.close("total", losses.total, spec["total"], **precision.losses)
    parts = {"last": "one_to_one", "aux": "one_to_one", system.encoder: "encoder", "dn": "denoising"}
    for name, want in spec["normaliser"].items():
        if name == "dn_boxes_rows":
            case.equal(name, learning_boxes(supervised["denoising"], criterion), want)
        else:
            case.close(f"normaliser {name}", divisors[parts[name.split("_")[0]]], want, rtol=1e-12)
    losses.total.backward()


def learning_boxes(given: Supervised, criterion: Criterion) -> int:
    """How many denoising queries of a layer learn a box: those for which the term of the boxes is not 0."""
    (branch,) = (branch for branch in criterion.branches if branch.name == "denoising")
    detached = Predictions(given.predictions.logits.detach(), given.predictions.boxes.detach().clone().requires_grad_())
    branch.terms["l1"][1](detached, given.targets, given.pairs)[0].backward()
    return int(detached.boxes.grad[0].any(-1).sum())


def compare_matchings(
    case: Case, system: System, supervised: Mapping[str, Supervised], losses: Losses, targets: Targets, spec: Mapping
) -> None:
    depth = len(supervised["one_to_one"].predictions.logits)
    for part, images in spec["matchings"].items():
        branch = "encoder" if part == system.encoder else "one_to_one"
        layer = 0 if branch == "encoder" else depth - 1 if part == "last" else int(part.removeprefix("aux_"))
        given, pairs = supervised[branch], per_image(losses.matches[branch], targets, layer)
        case.equal(f"matching {part}: images", len(pairs), len(images))
        for image, want in enumerate(images):
            made = made_by(given.predictions, layer, image)
            case.pairs(f"matching {part} image {image}", pairs[image], [tuple(pair) for pair in want], made)
    if spec.get("denoising_pairs") is not None:
        for layer in range(depth):
            found = per_image(losses.matches["denoising"], targets, layer)
            case.equal(
                f"denoising pairs {layer}", found, [sorted(map(tuple, image)) for image in spec["denoising_pairs"]]
            )


def compare_gradients(
    case: Case,
    detector: Detector,
    config: RunConfig,
    maps: list[Tensor],
    arrays: Mapping,
    spec: Mapping,
    precision: Precision,
) -> None:
    gradients = gradients_of(detector)
    total = torch.stack([x.norm() for x in gradients.values()]).norm()
    case.close("gradient_norm_total", total, spec["gradient_norm_total"], **precision.norms)
    released = to_released(gradients, config)
    allowed = dict(precision.norms)
    if (
        not precision.exact
    ):  # rounding where samples lie between cells is of the size of the whole, not of a parameter's part
        allowed["atol"] = 1e-5 * spec["gradient_norm_total"]
    for name, want in spec["gradient_norm"].items():
        case.close(f"|grad {name}|", released[name].norm(), want, **allowed)
    if not precision.exact:
        return
    for name, want in spec.get("gradient_sum", {}).items():
        case.close(f"sum of grad {name}", released[name].sum(), want, rtol=1e-6, atol=1e-8)
    for name in (name for name in arrays if name.startswith("grad/")):
        gradient = released[name.removeprefix("grad/")]
        unused = len(arrays[name]) - len(gradient)  # rows of a label embedding for classes that do not exist
        gradient = torch.cat([gradient, gradient.new_zeros(max(unused, 0), *gradient.shape[1:])])
        case.close(name, gradient, arrays[name], **GRADIENTS)
    for level, name in enumerate(numbered(arrays, "grad_features/{}")):
        case.close(name, maps[level].grad, arrays[name], **GRADIENTS)


def logged(predictions: Predictions, matches: Matches, targets: Targets, layer: int) -> dict[str, float]:
    """``class_error`` and ``cardinality_error`` of a layer."""
    return {name: values[layer] for name, values in recorded_errors(predictions, matches, targets).items()}
