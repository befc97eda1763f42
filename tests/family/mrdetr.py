"""Mr.DETR: the three routes of training, its criterion alone, and evaluation with class scores mixed over layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import golden
import torch
from comparison import Case
from golden import CannotHonor
from published import compare_detections, gradients_of, made_by, on_maps, padded, per_image
from torch import Tensor

from msdetr.config import RunConfig
from msdetr.engine.postprocess import postprocess
from msdetr.losses import Criterion
from msdetr.methods import build_criterion, build_postprocess
from msdetr.methods.mr_detr import mixed_logits
from msdetr.model import Detector, to_released, training_only_names
from msdetr.structures import DetectorOutput, EncoderOutput, GroupOutput, ImageBatch, Predictions, Targets

DTYPE = torch.float64
ROUTES = {"primary": "one_to_one", "ffn": "ffn_route", "instruct": "instruct_route"}  # and the branch of each
ENCODERS = {"encoder": "encoder", "encoder_o2m": "encoder_instruct_route"}
SUFFIXES = {"primary": "", "ffn": "_sep", "instruct": "_group"}  # of loss names
TERMS = {"class": "loss_class", "l1": "loss_bbox", "giou": "loss_giou"}
MATCHERS = {"primary": "hungarian", "ffn": "one_to_many", "instruct": "one_to_many"} | dict.fromkeys(
    ENCODERS, "hungarian_anchors"
)
SINE = "sine, normalised, offset -0.5, temperature 10000"

# ---------------------------------------------------------------- settings

READ = {
    "config": {
        **golden.SIZES,
        "num_classes": "model.num_classes",
        "num_select": "train.max_detections",
    },
    "flags": {"mixed_selection": "two_stage.mixed_selection", "look_forward_twice": "model.look_forward_twice"},
    "fixed": {"points": "model.num_points", "dropout": "model.dropout", "position_embedding": None},
    "published_defaults": {
        "instruction_tokens": "mr_detr.instructions",
        "k": "mr_detr.k",
        "threshold": "mr_detr.threshold",
        "alpha": "mr_detr.alpha",
    },
}


def run_config(manifest: Mapping, spec: Mapping, weights: Mapping | None = None) -> RunConfig:
    """What the manifest, a variant or case of it, and the recorded weights of losses stand for. Raises CannotHonor naming
    a setting that nothing here stands for."""
    changes = {
        "ms_detr": None,
        "model.pretrained": "none",
        "model.reference_eps": 1e-3,
        "loss.giou_eps": 1e-6,
        "loss.class_weight": 2.0,
        "mr_detr.rule": "released",
        "mr_detr.proposals": "own",
        "mr_detr.mix_layers": True,
    }
    for source in (manifest, spec):
        for section, names in READ.items():
            given = dict(source.get(section) or {})
            if section != "published_defaults" and (unknown := sorted(given.keys() - names.keys())):
                raise CannotHonor(f"the case carries {', '.join(unknown)}, which nothing here stands for")
            if given.get("position_embedding", SINE) != SINE:
                raise CannotHonor(
                    f"the case carries position_embedding = {given['position_embedding']!r}; here: {SINE}"
                )
            if section == "fixed" and given.get("dropout"):
                raise CannotHonor(f"the case carries dropout = {given['dropout']}: its random numbers are not recorded")
            changes |= {names[name]: value for name, value in given.items() if names.get(name)}
    for section, suffix in (("loss", ""), ("mr_detr", "_sep_0"), ("two_stage", "_enc")) if weights else ():
        changes |= {f"{section}.{term}_weight": weights[f"{name}{suffix}"] for term, name in TERMS.items()}
    return RunConfig().override(changes)


# ---------------------------------------------------------------- whole models


def load_detector(folder: Path, manifest: Mapping, variant: str, config: RunConfig, maps: list[Tensor]) -> Detector:
    """With the released weights, fed with what the projections made of feature maps."""
    stored, aliases = golden.read_arrays(folder / "weights.npz"), manifest["aliases"]
    names = manifest["variants"][variant]["state_dict_keys"]
    released = {name: torch.from_numpy(stored[aliases.get(name, name)]) for name in names}
    return on_maps(config, maps, released, projected=True)


def read_maps(arrays: Mapping, config: RunConfig) -> list[Tensor]:
    names = [name for name in arrays if name.startswith("features/")]
    if len(names) != config.model.num_levels:
        raise CannotHonor(f"the case carries {config.model.num_levels} feature levels and {len(names)} feature maps")
    return [torch.from_numpy(arrays[f"features/{i}"]).to(DTYPE).requires_grad_() for i in range(len(names))]


class Watched:
    """What passes a detector's parts in one forward: the memory, the output of every decoder layer, and the first
    self-attention's, split into routes."""

    def __init__(self, detector: Detector):
        self.memory, self.states, self.attended = None, [], None
        self.hooks = [
            detector.encoder.register_forward_hook(lambda m, given, made: setattr(self, "memory", made.tokens)),
            detector.decoder.layers[0].self_attention.register_forward_hook(
                lambda m, given, made: setattr(self, "attended", made)
            ),
            *(
                layer.register_forward_hook(lambda m, given, made: self.states.append(made[0]))
                for layer in detector.decoder.layers
            ),
        ]

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def of_route(x: Tensor, route: str, queries: int) -> Tensor:
    """The queries of a route, of [..., Q, C] over all of them."""
    place = list(ROUTES).index(route)
    return x[..., place * queries : (place + 1) * queries, :]


def train_case(case: Case, folder: Path, manifest: Mapping, name: str) -> None:
    spec = manifest["cases"][name]
    variant = spec["variant"]
    config = run_config(manifest, manifest["variants"][variant] | spec, spec["weights"])
    inputs, tolerance = golden.read_arrays(folder / "inputs.npz"), manifest["tolerance"]["float64"]
    maps, batch = read_maps(inputs, config), padded(inputs, DTYPE)
    detector = load_detector(folder, manifest, variant, config, maps).train()
    targets = golden.read_targets(inputs, len(batch), DTYPE, f"targets/{spec['targets']}/{{}}")
    case.equal("counts", targets.counts.tolist(), spec["counts"])
    watched = Watched(detector)
    output = detector(batch, targets)
    watched.remove()
    arrays = golden.read_arrays(folder / f"train_{variant}.npz")
    close = partial(case.close, **tolerance["predictions"])
    if spec["targets"] == "objects":  # predictions do not depend on the objects
        compare_pyramid(case, detector, batch, inputs)
        compare_encoder(close, case, output, watched, arrays)
        compare_routes(close, output, watched, arrays, config)
    criterion = build_criterion(config)
    compare_losses(case, criterion, output, targets, spec, tolerance)
    compare_gradients(case, detector, config, maps, arrays if spec["targets"] == "objects" else {}, spec, tolerance)


def compare_pyramid(case: Case, detector: Detector, batch: ImageBatch, inputs: Mapping) -> None:
    pyramid = detector.pyramid(batch)
    sizes = [h * w for h, w in pyramid.shapes]
    for level, (mask, shape) in enumerate(zip(pyramid.mask.split(sizes, 1), pyramid.shapes)):
        case.equal(f"masks/{level}", mask.unflatten(1, shape).tolist(), inputs[f"masks/{level}"].tolist())


def compare_encoder(close: Callable, case: Case, output: DetectorOutput, watched: Watched, arrays: Mapping) -> None:
    instruct = output.groups["instruct_route"]
    found = {"encoder": (output.encoder, output.selected), "encoder_o2m": (instruct.encoder, instruct.selected)}
    for name, (encoder, selected) in found.items():
        case.equal(f"topk/{name}", selected.tolist(), arrays[f"topk/{name}"].tolist())
        if f"{name}/pred_logits" in arrays:
            close(f"{name}/pred_logits", encoder.predictions.logits[0], arrays[f"{name}/pred_logits"])
            close(f"{name}/pred_boxes", encoder.predictions.boxes[0], arrays[f"{name}/pred_boxes"])
    if "encoder_memory" in arrays:
        close("encoder_memory", watched.memory, arrays["encoder_memory"])
        close("encoder/anchors", output.encoder.anchors, arrays["encoder/anchors"])


def compare_routes(
    close: Callable, output: DetectorOutput, watched: Watched, arrays: Mapping, config: RunConfig
) -> None:
    queries = config.model.num_queries
    for route, branch in ROUTES.items():
        group = output.groups.get(branch)
        predictions = output.one_to_one if group is None else group.predictions
        references = output.references if group is None else group.references
        close(f"{route}/init_reference", references[0], arrays[f"{route}/init_reference"])
        after = torch.cat([references[1:], predictions.boxes[-1:]])  # what every layer leaves to the next
        close(f"{route}/references", after, arrays[f"{route}/references"])
        states = of_route(torch.stack(watched.states), route, queries)
        close(f"{route}/hidden_states", states, arrays[f"{route}/hidden_states"])
        attended = of_route(watched.attended, route, queries)
        close(f"{route}/after_self_attention_0", attended, arrays[f"{route}/after_self_attention_0"])
        for layer in range(config.model.decoder_layers):
            stem = f"{route}/predictions/{layer}/"
            close(f"{stem}pred_logits", predictions.logits[layer], arrays[f"{stem}pred_logits"])
            close(f"{stem}pred_boxes", predictions.boxes[layer], arrays[f"{stem}pred_boxes"])


# ---------------------------------------------------------------- objective


def loss_name(branch: str, term: str, layer: int, last: int) -> str:
    if branch in ENCODERS.values():
        return TERMS[term] + {"encoder": "_enc", "encoder_instruct_route": "_enc_o2m"}[branch]
    route = next(route for route, name in ROUTES.items() if name == branch)
    depth = "" if route == "primary" and layer == last else f"_{layer}"
    return TERMS[term] + SUFFIXES[route] + depth


def compare_losses(
    case: Case, criterion: Criterion, output: DetectorOutput, targets: Targets, spec: Mapping, tolerance: Mapping
) -> None:
    """Matchings, every loss and its weight, what it is divided by, and the total; runs backward."""
    supervised = criterion.supervised(output, targets)
    losses = criterion(output, targets)
    compare_matchings(case, supervised, losses.matches, targets, spec)
    entries, weights = {}, {}
    for branch in criterion.branches:
        depth = len(supervised[branch.name].predictions.logits)
        for term, weight in branch.weights.items():
            for layer in range(depth):
                name = loss_name(branch.name, term, layer, depth - 1)
                entries[name] = losses.terms[f"{branch.name}/{term}"][layer].item()
                weights[name] = weight
        divisor = criterion.divisor(len(targets), supervised[branch.name])
        case.close(f"num_boxes of {branch.name}", divisor, spec["num_boxes"], rtol=1e-12)
    case.equal("losses", sorted(entries), sorted(spec["losses"]))
    for name, want in spec["losses"].items():
        case.close(name, entries.get(name, float("nan")), want, **tolerance["losses"])
        case.close(f"weight of {name}", weights.get(name, float("nan")), spec["weights"][name], rtol=1e-12)
    case.close("total", losses.total, spec["total"], **tolerance["losses"])
    losses.total.backward()


def compare_matchings(case: Case, supervised: Mapping, matches: Mapping, targets: Targets, spec: Mapping) -> None:
    branches = ROUTES | ENCODERS
    twice = 0
    for entry in spec["matchings"]:
        route, layer = entry["route"], entry.get("layer", 0)
        case.equal(f"matcher of {route}", entry["matcher"], MATCHERS[route])
        given = supervised[branches[route]]
        found = per_image(matches[branches[route]], targets, layer)
        case.equal(f"images of {route} {layer}", len(found), len(entry["pairs"]))
        for image, (ours, want) in enumerate(zip(found, entry["pairs"])):
            made = made_by(given.match_on or given.predictions, 0 if given.match_on else layer, image)
            case.pairs(f"matching {route} {layer} image {image}", ours, [tuple(pair) for pair in want], made)
            twice += len(ours) - len({query for query, _ in ours})
        if f"{route}/{layer}" in spec.get("positives", {}):
            case.equal(f"positives {route} {layer}", [len(x) for x in found], spec["positives"][f"{route}/{layer}"])
    case.equal("matchings", len(spec["matchings"]), sum(len(s.predictions.logits) for s in supervised.values()))
    if "queries_with_two_objects" in spec:
        case.equal("queries with two objects", twice, spec["queries_with_two_objects"])


def compare_gradients(
    case: Case,
    detector: Detector,
    config: RunConfig,
    maps: list[Tensor],
    arrays: Mapping,
    spec: Mapping,
    tolerance: Mapping,
) -> None:
    none = [name for name, parameter in detector.named_parameters() if parameter.grad is None]
    gradients = gradients_of(detector)
    case.equal("no gradient", none, list(spec["no_gradient"]))
    released = to_released(gradients, config)
    for name, want in spec["gradient_norms"].items():
        case.close(f"|grad {name}|", released[name].norm(), want, **tolerance["gradient_norms"])
    for name in (name for name in arrays if name.startswith("gradients/")):
        case.close(name, released[name.removeprefix("gradients/")], arrays[name], **tolerance["gradients"])
    for level, (x, want) in enumerate(zip(maps, spec["feature_gradient_norms"], strict=True)):
        case.close(f"|grad features/{level}|", x.grad.norm(), want, **tolerance["gradient_norms"])


def criterion_case(case: Case, folder: Path, manifest: Mapping, name: str) -> None:
    spec, tolerance = manifest["cases"][name], manifest["tolerance"]["float64"]
    arrays = golden.read_arrays(folder / spec["file"])
    targets = golden.read_targets(arrays, len(spec["counts"]), DTYPE)
    case.equal("counts", targets.counts.tolist(), spec["counts"])

    def leaves(*stems: str) -> Predictions:
        read = golden.read_predictions(arrays, [f"{stem}/" for stem in stems], DTYPE)
        return Predictions(read.logits.requires_grad_(), read.boxes.requires_grad_())

    layers = len([key for key in arrays if key.startswith("primary/") and key.endswith("/pred_logits")])
    routes = {route: leaves(*(f"{route}/{layer}" for layer in range(layers))) for route in ROUTES}
    encoders = {
        name: EncoderOutput(leaves(name), torch.from_numpy(arrays[f"{name}/anchors"]).to(DTYPE)) for name in ENCODERS
    }
    given = {route: GroupOutput(predictions, None, predictions.boxes) for route, predictions in routes.items()}
    instruct = GroupOutput(routes["instruct"], None, routes["instruct"].boxes, encoder=encoders["encoder_o2m"])
    output = DetectorOutput(
        routes["primary"],
        encoder=encoders["encoder"],
        groups={"ffn_route": given["ffn"], "instruct_route": instruct},
    )
    classes = routes["primary"].logits.shape[-1]
    config = run_config(manifest, spec, spec["weights"]).override({"model.num_classes": classes})
    compare_losses(case, build_criterion(config), output, targets, spec, tolerance)
    found = {f"{route}/{layer}": (p, layer) for route, p in routes.items() for layer in range(layers)}
    found |= {name: (encoder.predictions, 0) for name, encoder in encoders.items()}
    for key in (key for key in arrays if key.startswith("gradients/")):
        predictions, layer = found[key.removeprefix("gradients/").rpartition("/")[0]]
        leaf = predictions.logits if key.endswith("logits") else predictions.boxes
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        case.close(key, gradient[layer], arrays[key], **tolerance["gradients"])


# ---------------------------------------------------------------- evaluation


def evaluation_case(case: Case, folder: Path, manifest: Mapping, variant: str) -> None:
    spec, tolerance = manifest["variants"][variant], manifest["tolerance"]["float64"]
    config = run_config(manifest, spec)
    inputs, arrays = golden.read_arrays(folder / "inputs.npz"), golden.read_arrays(folder / f"eval_{variant}.npz")
    detector = load_detector(folder, manifest, variant, config, read_maps(inputs, config)).eval()
    dropped = {name for name in detector.state_dict() if name.startswith(training_only_names(detector))}
    empty = {name: detector.state_dict()[name] for name in dropped}
    case.equal("dropped_at_inference", sorted(to_released(empty, config)), sorted(spec["dropped_at_inference"]))
    detector.strip()
    masked = padded(inputs, DTYPE)
    batches = {"masked": masked, "published": ImageBatch(masked.images, torch.zeros_like(masked.mask))}
    close = partial(case.close, **tolerance["predictions"])
    sizes = torch.from_numpy(inputs["image_sizes"])
    for kind, batch in batches.items():
        watched = Watched(detector)
        with torch.no_grad():
            found = detector(batch).one_to_one
        watched.remove()
        close(f"{kind}/hidden_states", torch.stack(watched.states), arrays[f"{kind}/hidden_states"])
        close(f"{kind}/raw_logits", found.logits, arrays[f"{kind}/raw_logits"])
        close(f"{kind}/pred_logits", mixed_logits(found.logits), arrays[f"{kind}/pred_logits"])
        close(f"{kind}/pred_boxes", found.boxes, arrays[f"{kind}/pred_boxes"])
        detections = (build_postprocess(config) or postprocess)(found, sizes, config.train.max_detections)
        compare_detections(
            case, detections, arrays, kind + "/detections/{}/", tolerance["predictions"], tolerance["predictions"]
        )


def cases(folder: Path) -> Iterator[tuple[str, Callable[[Case], None]]]:
    manifest = golden.read_json(folder / "manifest.json")
    for name, spec in manifest["cases"].items():
        check = criterion_case if "file" in spec else train_case
        yield name, partial(check, folder=folder, manifest=manifest, name=name)
    for name in manifest["variants"]:
        yield f"evaluation {name}", partial(evaluation_case, folder=folder, manifest=manifest, variant=name)
