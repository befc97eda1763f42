"""transformers' ``DeformableDetrForObjectDetection``: folders are read as its numbers say, and written as it writes them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import golden
import torch
from comparison import Case
from golden import CannotHonor
from published import Maps
from safetensors.torch import save_file
from torch import Tensor

import msdetr
from msdetr.config import RunConfig
from msdetr.losses import Criterion
from msdetr.methods import build_criterion, build_detector
from msdetr.model import Detector, build_projections
from msdetr.model.convert_transformers import (
    config_from_transformers,
    config_to_transformers,
    from_transformers,
    to_transformers,
)
from msdetr.structures import DetectorOutput, ImageBatch, Targets

DTYPES = {"float64": torch.float64, "float32": torch.float32}
READ = {
    "d": ("d_model",),
    "heads": ("encoder_attention_heads", "decoder_attention_heads"),
    "ffn": ("encoder_ffn_dim", "decoder_ffn_dim"),
    "Q": ("num_queries", "two_stage_num_proposals"),
    "C": ("num_labels",),
    "points": ("encoder_n_points", "decoder_n_points"),
    **{name: (name,) for name in ("encoder_layers", "decoder_layers", "dropout", "with_box_refine", "two_stage")},
    **{name: (name,) for name in ("num_feature_levels", "dilation")},
}
LOSS_NAMES = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}
WITHOUT_EFFECT = {"meaning"}

# ---------------------------------------------------------------- inputs


def folder_settings(manifest: Mapping, variant: Mapping) -> dict:
    """The ``config.json`` of a variant. Raises CannotHonor naming a setting that nothing here stands for."""
    given = {**manifest["config"], **variant["flags"]}
    if given.pop("auxiliary_loss", True) is not True:
        raise CannotHonor("the case carries auxiliary_loss = False; all layers are supervised here")
    if unknown := sorted(given.keys() - READ.keys() - WITHOUT_EFFECT):
        raise CannotHonor(f"the case carries {', '.join(unknown)}, which nothing here stands for")
    if variant.get("loading"):
        raise CannotHonor(f"the case carries loading = {variant['loading']!r}, which nothing here stands for")
    values = {name: value for key, value in given.items() for name in READ.get(key, ())}
    return {"model_type": "deformable_detr", **values}


def stored_tensors(folder: Path, manifest: Mapping, variant: str) -> dict[str, Tensor]:
    """What is on disk, by its names there; as float16 holds it."""
    described = golden.read_json(folder / "tensors.json.gz")
    weights, found = golden.read_arrays(folder / "weights.npz"), {}
    recipes = described["recipes"]
    for key, entry in described["variants"][variant]["on_disk"].items():
        name = entry.get("tensor", entry["released"])
        if name in recipes:
            array = golden.recipe_array(manifest["seed"], name.removesuffix("@1"), recipes[name])
        else:
            array = weights[name]
        start, stop = entry.get("rows", (0, len(array) if array.ndim else None))
        found[key] = torch.from_numpy(array[start:stop] if array.ndim else array)
    return found


def read_inputs(folder: Path, dtype: torch.dtype) -> tuple[ImageBatch, Targets]:
    arrays = golden.read_arrays(folder / "inputs.npz")
    names = sorted(name for name in arrays if name.startswith("u8/"))
    return golden.read_images(arrays, names, dtype), golden.read_targets(arrays, len(names), dtype)


# ---------------------------------------------------------------- outputs


def compare_output(
    case: Case, detector: Detector, batch: ImageBatch, arrays: Mapping, allowed: Mapping
) -> DetectorOutput:
    """All that transformers returns, by its names; references per layer are [B, K, ...] there."""
    kept: dict[str, list[Tensor]] = {"memory": [], "states": []}
    hooks = [detector.encoder.register_forward_hook(lambda m, given, made: kept["memory"].append(made.tokens))]
    hooks += [
        layer.register_forward_hook(lambda m, given, made: kept["states"].append(made[0]))
        for layer in detector.decoder.layers
    ]
    output = detector(batch)
    for hook in hooks:
        hook.remove()
    found = output.one_to_one
    last = len(found.logits) - 1
    for layer in range(last + 1):
        stem = "" if layer == last else f"auxiliary_outputs/{layer}/"
        case.close(f"{stem}logits", found.logits[layer], arrays[f"{stem}logits"], **allowed["logits"])
        case.close(f"{stem}pred_boxes", found.boxes[layer], arrays[f"{stem}pred_boxes"], **allowed["boxes"])
    want = arrays["init_reference_points"]
    case.close("init_reference_points", output.references[0, ..., : want.shape[-1]], want, **allowed["boxes"])
    want = arrays["intermediate_reference_points"]
    after = torch.cat([output.references[1:], found.boxes[-1:]]) if want.shape[-1] == 4 else output.references[..., :2]
    case.close("intermediate_reference_points", after.transpose(0, 1), want, **allowed["boxes"])
    states = torch.stack(kept["states"], 1)
    case.close("intermediate_hidden_states", states, arrays["intermediate_hidden_states"], **allowed["logits"])
    memory, want = kept["memory"][0], torch.from_numpy(arrays["encoder_last_hidden_state"])
    if memory.dtype == torch.float32:  # on padding, where positions are divided by next to nothing, it is all rounding
        seen = ~detector.pyramid(batch).mask
        memory, want = memory[seen], want[seen]
    case.close("encoder_last_hidden_state", memory, want, **allowed["logits"])
    if output.encoder is not None:
        proposed = output.encoder.predictions
        case.close("enc_outputs_class", proposed.logits[0], arrays["enc_outputs_class"], **allowed["logits"])
        want = torch.from_numpy(arrays["enc_outputs_coord_logits"]).sigmoid()  # infinite on unusable tokens
        case.close("enc_outputs_coord_logits", proposed.boxes[0], want, **allowed["boxes"])
        if "topk" in arrays:
            case.equal("topk", output.selected.tolist(), arrays["topk"].tolist())
    return output


def compare_losses(
    case: Case, criterion: Criterion, output: DetectorOutput, targets: Targets, spec: Mapping, rtol: float
) -> None:
    losses = criterion(output, targets)
    depth = len(output.one_to_one.logits)
    entries = {}
    for layer in range(depth):
        suffix = "" if layer == depth - 1 else f"_{layer}"
        for term, name in LOSS_NAMES.items():
            entries[name + suffix] = losses.terms[f"one_to_one/{term}"][layer].item()
        sure = (output.one_to_one.logits[layer].sigmoid().amax(-1) > 0.5).sum(1)
        entries[f"cardinality_error{suffix}"] = (sure - targets.counts).abs().double().mean().item()
    case.equal("losses", sorted(entries), sorted(spec["loss_dict"]))
    for name, want in spec["loss_dict"].items():
        case.close(name, entries.get(name, float("nan")), want, rtol=rtol, atol=1e-12)
    case.close("loss", losses.total, spec["loss"], rtol=rtol)


def tolerance(manifest: Mapping, dtype: str, two_stage: bool) -> tuple[dict, float]:
    """For logits and boxes, and the relative one for losses."""
    given = manifest["tolerance"][dtype]
    if dtype == "float32":
        return {"logits": {"atol": given["logits atol"]}, "boxes": {"atol": given["pred_boxes atol"]}}, 1e-4
    allowed = given["two-stage" if two_stage else "one-stage"]
    losses = given["losses"]
    return {"logits": allowed, "boxes": allowed}, losses["two-stage rtol" if two_stage else "rtol"]


# ---------------------------------------------------------------- cases


def folder_case(case: Case, folder: Path, manifest: Mapping, name: str, dtype: str) -> None:
    spec, kind = manifest["variants"][name], DTYPES[dtype]
    values = folder_settings(manifest, spec)
    config = config_from_transformers(values)
    on_disk = stored_tensors(folder, manifest, name)
    allowed, rtol = tolerance(manifest, dtype, values["two_stage"])
    batch, targets = read_inputs(folder, kind)
    if dtype == "float32":  # as a person has it
        with tempfile.TemporaryDirectory() as place:
            save_file(
                {key: tensor.float().contiguous() for key, tensor in on_disk.items()}, f"{place}/model.safetensors"
            )
            Path(place, "config.json").write_text(json.dumps(values))
            detector = msdetr.load(place, device="cpu").detector
    else:
        detector = build_detector(config).to(kind).eval()
        detector.load_state_dict(from_transformers({key: t.to(kind) for key, t in on_disk.items()}, config))
        compare_names(case, detector, config, on_disk, golden.read_json(folder / "tensors.json.gz")["variants"][name])
        case.equal("parameters", sum(p.numel() for p in detector.parameters()), spec["parameters"])
    with torch.no_grad():
        output = compare_output(case, detector, batch, golden.read_arrays(folder / spec["file"]), allowed)
    compare_losses(case, build_criterion(config), output, targets, spec, rtol)


def compare_names(
    case: Case, detector: Detector, config: RunConfig, on_disk: Mapping[str, Tensor], names: Mapping
) -> None:
    """Writing gives what was read, tensor by tensor; the names of memory, repetitions and all, are read, too."""
    written = to_transformers(detector.state_dict(), config)
    case.equal("written names", sorted(written), sorted(on_disk))
    wrong = [key for key in on_disk if key in written and not torch.equal(written[key], on_disk[key].to(written[key]))]
    case.equal("written tensors that differ", wrong, [])
    in_memory = {names["in_memory_renamed"].get(key, key): tensor for key, tensor in written.items()}
    for alias in names["in_memory_only"]:  # top-level heads that repeat those of the decoder, or the first ones
        head, number, rest = alias.split(".", 2)
        first = [f"model.decoder.{alias}", f"{head}.{0}.{rest}", f"model.decoder.{head}.{number}.{rest}"]
        repeated = [in_memory[key] for key in first if key in in_memory]
        in_memory[alias] = repeated[0] if repeated else in_memory[alias.removeprefix("model.decoder.")]
    again = from_transformers(in_memory, config)
    state = detector.state_dict()
    case.equal("names from memory", sorted(again), sorted(state))
    case.equal("tensors from memory that differ", [key for key in again if not torch.equal(again[key], state[key])], [])
    labels = tuple(f"class {i}" for i in range(config.model.num_classes))
    case.equal(
        "configuration, written and read", config_from_transformers(config_to_transformers(config, labels)), config
    )


def own_backbone_case(case: Case, folder: Path, manifest: Mapping, name: str) -> None:
    """A backbone that does not exist here: its maps are recorded, the rest of the model is read and written."""
    spec = manifest["variants"][name]
    values = folder_settings(manifest, spec)
    config = config_from_transformers(values)
    arrays = golden.read_arrays(folder / spec["file"])
    allowed, rtol = tolerance(manifest, "float64", values["two_stage"])
    batch, targets = read_inputs(folder, torch.float64)
    maps = [
        torch.from_numpy(arrays[f"backbone/{i}"]) for i in range(sum(key.startswith("backbone/") for key in arrays))
    ]
    weights = {
        key.removeprefix("weights/"): torch.from_numpy(array).double()
        for key, array in arrays.items()
        if key.startswith("weights/") and not key.startswith("weights/model.backbone.")
    }
    detector = build_detector(config)
    detector.backbone = Maps(maps)
    detector.projections = build_projections(
        detector.backbone.channels, config.model.hidden_dim, config.model.num_levels
    )
    detector.double().eval()
    detector.load_state_dict(from_transformers(weights, config))
    names = golden.read_json(folder / "tensors.json.gz")["variants"][name]["on_disk_keys"]
    written = to_transformers(detector.state_dict(), config)
    case.equal("written names", sorted(written), sorted(n for n in names if not n.startswith("model.backbone.")))
    sizes = [x.shape[-2:] for x in maps]
    ours = detector.pyramid(batch).mask.split([h * w for h, w in detector.pyramid(batch).shapes], 1)
    for level, shape in enumerate(sizes):
        case.equal(f"masks/{level}", (~ours[level]).unflatten(1, shape).tolist(), arrays[f"masks/{level}"].tolist())
    with torch.no_grad():
        output = compare_output(case, detector, batch, arrays, allowed)
    compare_losses(case, build_criterion(config), output, targets, spec, rtol)


def cases(folder: Path) -> Iterator[tuple[str, Callable[[Case], None]]]:
    manifest = golden.read_json(folder / "manifest.json")
    for name, spec in manifest["variants"].items():
        if "backbone_config" in spec:
            yield f"{name} float64", partial(own_backbone_case, folder=folder, manifest=manifest, name=name)
            continue
        for dtype in DTYPES:
            yield f"{name} {dtype}", partial(folder_case, folder=folder, manifest=manifest, name=name, dtype=dtype)
