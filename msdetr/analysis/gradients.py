"""What every kind of supervision pulls at: parameters by part of the detector, and predicted boxes and logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from msdetr.losses import Criterion, Term
from msdetr.structures import DetectorOutput, ImageBatch, Matches, Predictions, Targets

DECODER_PARTS = {
    "self_attention": "self-attention",
    "cross_attention": "cross-attention",
    "ffn": "FFN",
    "class_heads": "class predictor",
    "box_heads": "box predictor",
    "one_to_many.ffns": "one-to-many FFN",
    "one_to_many.class_heads": "one-to-many class predictor",
    "one_to_many.box_heads": "one-to-many box predictor",
}


def part_of(parameter: str) -> str:
    """The part of a detector that a parameter belongs to: 'backbone', 'encoder layer 1', 'layer 2: self-attention'."""
    names = parameter.split(".")
    if names[0] == "sources":
        return f"{names[1].replace('_', ' ')} queries"
    if names[0] == "encoder":
        return f"encoder layer {int(names[2]) + 1}"
    if names[0] == "decoder":
        if names[1] == "layers":
            return f"layer {int(names[2]) + 1}: {DECODER_PARTS.get(names[3], names[3].replace('_', ' '))}"
        number = next((i for i, name in enumerate(names) if name.isdigit()), 2)
        kind = ".".join(names[1:number])
        kind = DECODER_PARTS.get(kind, kind.replace("_", " "))
        return f"layer {int(names[number]) + 1}: {kind}" if names[number].isdigit() else kind
    return {"query_selection": "query selection"}.get(names[0], "backbone" if names[0] == "backbone" else "projections")


def layer_of(parameter: str) -> str:
    """Coarser: 'backbone', 'encoder layer 1', 'query selection', 'decoder layer 2', 'predictors' of all layers, and
    'one-to-many only', what that branch does not share."""
    if parameter.startswith("decoder.one_to_many."):
        return "one-to-many only"
    if parameter.startswith(("decoder.class_heads.", "decoder.box_heads.")):
        return "predictors"
    part = part_of(parameter)
    return f"decoder {part.split(':')[0]}" if ":" in part else part


@dataclass(frozen=True)
class BranchGradients:
    """Gradients of the branches' losses by part. products [P, B, B]: inner product of the gradients of two branches in a
    part; zero where a branch does not reach it."""

    parts: tuple[str, ...]
    branches: tuple[str, ...]
    products: np.ndarray

    @property
    def norms(self) -> np.ndarray:
        """[P, B]: length of each gradient."""
        return np.sqrt(np.einsum("pbb->pb", self.products))

    def norm(self, part: str, branch: str) -> float:
        """Length of one gradient; 0 where the branch does not reach the part."""
        return float(self.norms[self.parts.index(part), self.branches.index(branch)])

    def cosine(self, first: str, second: str) -> np.ndarray:
        """[P]: cosine between the gradients of two branches, 1 where they pull alike, -1 against each other; NaN where
        one of them does not reach."""
        a, b = self.branches.index(first), self.branches.index(second)
        length = self.norms[:, a] * self.norms[:, b]
        return np.divide(self.products[:, a, b], length, out=np.full(len(length), np.nan), where=length > 0)


def branch_gradients(
    detector: nn.Module, batch: ImageBatch, targets: Targets, criterion: Criterion,
    part: Callable[[str], str] = part_of, layer: int | None = None,
) -> BranchGradients:  # fmt: skip
    """The gradient of each branch's weighted loss, by part of the detector. No parameter's ``grad`` is touched.

    layer: supervise this decoder layer's predictions only; None: all, as in training. Part names stand in the order of the
    detector's parameters.
    """
    output = detector(batch, targets, one_to_many=detector.decoder.one_to_many is not None)
    if layer is not None:
        output = output.layer(layer)
    named = [(name, p) for name, p in detector.named_parameters() if p.requires_grad]
    named.sort(key=lambda item: "." not in item[0])  # the detector's own level embedding comes after its modules'
    parts = tuple(dict.fromkeys(part(name) for name, _ in named))
    branches = tuple(criterion.supervised(output, targets))
    flat: list[dict[str, list[torch.Tensor]]] = []
    for name in branches:
        loss = only(criterion, name)(output, targets).total
        gradients = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
        pieces: dict[str, list[torch.Tensor]] = {p: [] for p in parts}
        for (parameter, value), gradient in zip(named, gradients, strict=True):
            pieces[part(parameter)].append(
                (torch.zeros_like(value) if gradient is None else gradient).flatten().double()
            )
        flat.append(pieces)
    products = np.empty((len(parts), len(branches), len(branches)))
    for row, p in enumerate(parts):
        stacked = torch.stack([torch.cat(pieces[p]) for pieces in flat])
        products[row] = (stacked @ stacked.T).cpu().numpy()
    return BranchGradients(parts, branches, products)


def only(criterion: Criterion, name: str) -> Criterion:
    """The same criterion with the weights of all other branches zero; matching, also by merging, stays as it is."""
    return Criterion([b if b.name == name else b.with_weights(dict.fromkeys(b.terms, 0.0)) for b in criterion.branches])


def pulls(
    predictions: Predictions, targets: Targets, matches: Matches, terms: Mapping[str, tuple[float, Term]]
) -> dict[str, Predictions]:
    """What each weighted term would change: term -> minus its gradient, as [K, B, Q, C] for logits and [K, B, Q, 4] for
    boxes. Adding a little of it to the predictions lowers the term. Not divided by the number of objects."""
    found = {}
    for name, (weight, term) in terms.items():
        leaves = [x.detach().clone().requires_grad_() for x in (predictions.logits, predictions.boxes)]
        value = (weight * term(Predictions(*leaves), targets, matches)).sum()
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        found[name] = Predictions(
            *(torch.zeros_like(x) if g is None else -g for x, g in zip(leaves, gradients, strict=True))
        )
    return found


def branch_pulls(
    criterion: Criterion, output: DetectorOutput, targets: Targets, names: Sequence[str] | None = None
) -> dict[str, tuple[Matches, dict[str, Predictions]]]:
    """Branch -> its matches, and what each of its terms pulls at. names: of the branches; None: all that the output has."""
    supervised = criterion.supervised(output, targets)
    matches = criterion.match(supervised)
    return {
        branch.name: (matches[branch.name], pulls(given.predictions, given.targets, matches[branch.name], branch.terms))
        for branch in criterion.branches
        if (names is None or branch.name in names) and (given := supervised.get(branch.name)) is not None
    }
