"""What comparisons with published systems share: pairs as they are recorded, logged errors, gradients, detections, and
feature maps instead of a backbone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from comparison import Case
from golden import CannotHonor
from torch import Tensor, nn

from msdetr.config import RunConfig
from msdetr.methods import build_detector
from msdetr.model import Detector, build_projections, from_released, to_released
from msdetr.modules import Layout
from msdetr.structures import Detections, ImageBatch, Matches, Predictions, Targets

DTYPES = {"float64": torch.float64, "float32": torch.float32}
WORDS = {  # settings that a sentence of a manifest has, by what stands around their number
    "model.hidden_dim": r"hidden_dim (\d+)",
    "model.num_heads": r"(\d+) heads",
    "model.encoder_layers": r"(\d+) encoder",
    "model.decoder_layers": r"(\d+) decoder",
    "model.num_levels": r"(\d+)(?: \(or \d+\))? levels",
    "model.num_points": r"(\d+) points",
    "model.dropout": r"dropout ([\d.]+)",
}


def described(manifest: Mapping) -> dict[str, float]:
    """What a manifest says of all its models, in numbers and in a sentence."""
    found = {"model.num_classes": manifest["sizes"]["classes"], "model.ffn_dim": manifest["sizes"]["ffn"]}
    return found | {name: number(pattern, manifest["config"]) for name, pattern in WORDS.items()}


def number(pattern: str, text: str) -> float | int:
    """The number in the group of a pattern. Raises CannotHonor where a sentence does not have it."""
    if (found := re.search(pattern, text)) is None:
        raise CannotHonor(f"the manifest does not say {pattern!r}: {text}")
    return float(found[1]) if re.search("[.e]", found[1]) else int(found[1])


def numbered(arrays: Mapping, pattern: str) -> list[str]:
    """The names with the numbers from 0 on that a pattern has among the arrays."""
    names: list[str] = []
    while (name := pattern.format(len(names))) in arrays:
        names.append(name)
    return names


def per_image(matches: Matches, targets: Targets, layer: int = 0) -> list[list[tuple[int, int]]]:
    """(query, object of the image) pairs of each image, sorted."""
    starts = np.cumsum([0, *targets.counts.tolist()])
    pairs = [[] for _ in range(targets.num_images)]
    for k, image, query, target in zip(
        *(x.tolist() for x in (matches.layer, matches.image, matches.query, matches.target))
    ):
        if k == layer:
            pairs[image].append((query, target - int(starts[image])))
    return [sorted(p) for p in pairs]


def as_pairs(array: np.ndarray) -> list[tuple[int, int]]:
    return sorted(tuple(row) for row in array.tolist())


def made_by(predictions: Predictions, layer: int, image: int) -> Tensor:
    """[Q, C + 4]: what each query of a layer and image predicts."""
    return torch.cat([predictions.logits[layer, image], predictions.boxes[layer, image]], -1)


def of_image(matches: Matches, targets: Targets, layer: int, image: int) -> list[tuple[int, int]]:
    """(query, object of the image) pairs of one image and layer, sorted."""
    return per_image(matches, targets, layer)[image]


def dense_mask(layout: Layout) -> Tensor:
    """[Q, Q] bool: True where a query (row) does not attend to another (column)."""
    size = max(where.stop for where in layout.groups.values())
    hidden = torch.ones(size, size, dtype=torch.bool)
    for block in layout.blocks:
        for start in range(block.start, block.stop, block.size):
            own = slice(start, start + block.size)
            hidden[own, own] = False if block.mask is None else block.mask
            for where in block.reads:
                hidden[own, where] = False
    return hidden


def recorded_errors(predictions: Predictions, matches: Matches, targets: Targets) -> dict[str, list[float]]:
    """What published criteria log besides losses, per layer: the share of matched queries whose best class is wrong, in
    percent, and how far the number of queries whose best class is not the last one is from that of the objects."""
    errors: dict[str, list[float]] = {"class_error": [], "cardinality_error": []}
    for layer, logits in enumerate(predictions.logits):
        pairs = matches.select(matches.layer == layer)
        hit = logits[pairs.image, pairs.query].argmax(-1) == targets.labels[pairs.target]
        errors["class_error"].append(100 - 100 * hit.double().mean().item() if len(hit) else 100.0)
        named = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
        errors["cardinality_error"].append((named - targets.counts).abs().double().mean().item())
    return errors


class Maps(nn.Module):
    """Stands in for a backbone: gives recorded feature maps, whatever the image."""

    def __init__(self, maps: Sequence[Tensor]):
        super().__init__()
        self.maps = list(maps)
        self.channels = tuple(x.shape[1] for x in maps)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.maps


def on_maps(
    config: RunConfig, maps: Sequence[Tensor], state: Mapping[str, Tensor], projected: bool = False
) -> Detector:
    """A detector with weights of published names, which reads recorded feature maps, whatever the image, in their dtype.

    projected: the maps are what the projections made of others, of which nothing is recorded.
    """
    detector, model = build_detector(config), config.model
    detector.backbone = Maps(maps)
    if projected:
        detector.projections = nn.ModuleList(nn.Identity() for _ in maps)
    else:
        detector.projections = build_projections(detector.backbone.channels, model.hidden_dim, model.num_levels)
    detector.to(maps[0].dtype).load_state_dict(from_released(dict(state), config))
    return detector


def padded(arrays: Mapping, dtype: torch.dtype) -> ImageBatch:
    """Empty images with the recorded sizes, padded to the recorded one."""
    height, width = arrays["padded_size"].tolist()
    sizes = arrays["image_sizes"].tolist()
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for image, (h, w) in enumerate(sizes):
        mask[image, :h, :w] = False
    return ImageBatch(torch.zeros(len(sizes), 3, height, width, dtype=dtype), mask)


def sizes_in(text: str) -> Tensor:
    """[B, 2]: the pairs of numbers in parentheses that a sentence has."""
    return torch.tensor([[int(n) for n in size] for size in re.findall(r"\((\d+), (\d+)\)", text)])


def compare_detections(
    case: Case, detections: Sequence[Detections], arrays: Mapping, stem: str, scores: Mapping, boxes: Mapping
) -> None:
    """Detections of every image.   stem: of the names, with {} for the image.   scores, boxes: what is allowed."""
    for image, found in enumerate(detections):
        name = stem.format(image)
        case.equal(f"{name}labels", found.labels.tolist(), arrays[f"{name}labels"].tolist())
        case.close(f"{name}scores", found.scores, arrays[f"{name}scores"], **scores)
        case.close(f"{name}boxes", found.boxes, arrays[f"{name}boxes"], **boxes)


# ---------------------------------------------------------------- gradients


def gradients_of(detector: Detector) -> dict[str, Tensor]:
    """The gradient of every parameter; zeros where it has none."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in detector.named_parameters()}


def released_gradients(detector: Detector, config: RunConfig) -> dict[str, Tensor | None]:
    """The gradient of every parameter by its published name; None where it has none."""
    gradients = gradients_of(detector)
    silent = {id(gradients[name]) for name, p in detector.named_parameters() if p.grad is None}
    return {name: None if id(g) in silent else g for name, g in to_released(gradients, config).items()}


def compare_gradients(
    case: Case,
    detector: Detector,
    config: RunConfig,
    maps: Sequence[Tensor],
    manifest: Mapping,
    spec: Mapping,
    recorded,
) -> None:
    """L2 norm, sum, and sum of g_i cos(i) of the gradient of every parameter and feature map; which parameters have none;
    and the norm of all. recorded: [names, 3], in the order of the manifest's list of parameters, then the maps."""
    allowed = manifest["tolerance"]["float64"]["grads"]
    of_norm, of_sum, absolute = (
        number(word + r"\D*?([\d.]+(?:e-?\d+)?)", allowed) for word in ("norm: rtol", "sum:", "absolute")
    )
    names = manifest["parameter_lists"][spec["parameters"]]
    released = released_gradients(detector, config)
    found = released | {f"input/feat/{i}": feature.grad for i, feature in enumerate(maps)}
    case.equal("gradients", len(names) + len(maps), len(recorded))
    for name, (norm, total, cosine) in zip([*names, *(f"input/feat/{i}" for i in range(len(maps)))], recorded):
        if (gradient := found[name]) is None or np.isnan(norm):
            case.equal(f"{name} has a gradient", gradient is not None, not np.isnan(norm))
            continue
        flat = gradient.flatten()
        wave = torch.arange(len(flat), dtype=flat.dtype).cos()
        case.close(f"|{name}|", flat.norm(), norm, rtol=of_norm, atol=absolute)
        case.close(f"sum of {name}", flat.sum(), total, atol=of_sum * norm + absolute)
        case.close(f"cosine sum of {name}", (flat * wave).sum(), cosine, atol=of_sum * norm + absolute)
    norm = torch.nn.utils.get_total_norm([p.grad for p in detector.parameters() if p.grad is not None])
    case.close("total_grad_norm", norm, spec["total_grad_norm"], rtol=of_norm)
    silent = sorted(name for name, gradient in released.items() if gradient is None)
    case.equal("parameters_without_gradient", silent, sorted(spec["parameters_without_gradient"]))
