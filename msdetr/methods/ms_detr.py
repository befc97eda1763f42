"""MS-DETR: one-to-many supervision of the candidates inside each decoder layer (Zhao et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch, Supervised, candidates, of_group
from ..matching import MatchingRules
from ..modules import FFN, VARIANTS, BoxHead, DecoderLayer, Residual, class_head
from ..structures import DetectorOutput, Targets
from .base import Method, weighted_terms

READS_OUTPUT = frozenset("ab")  # variants whose one-to-many predictors read the layer output
UNMERGED = {  # methods whose groups have no pair of a query for each object, and why
    "hybrid": "it pairs every object with several queries",
    "mr_detr": "its routes are matched one-to-many",
}


@dataclass(frozen=True)
class MSDETRConfig:
    """One-to-many supervision: where it is applied (Figure 4), by which rule (Algorithm 1), and how much it weighs."""

    variant: Literal["a", "b", "c", "d"] = "c"  # decoder layer, Figure 4 of the paper
    heads: Literal["auto", "shared", "separate"] = "auto"  # auto: (a), (b) separate class heads, (c), (d) shared
    candidate_ffn: Literal["auto", "with", "without"] = (
        "auto"  # additional FFN before the predictors; auto: (c) and (d)
    )
    rule: Literal["exclusive", "literal", "released"] = "exclusive"  # one-to-many assignment
    alpha: Annotated[float, Range(0, 1)] = 0.3  # score = alpha * class probability + (1 - alpha) * IoU
    threshold: Annotated[float, Range(0, 1)] = 0.4  # tau: pairs with score <= tau are dropped
    k: Annotated[int, Range(1)] = 6  # queries per object at most
    merge: bool = False  # add one-to-one pairs that one-to-many matching missed; groups=all: each group its own
    class_weight: Annotated[float, Range(0)] = 2.0
    l1_weight: Annotated[float, Range(0)] = 5.0
    giou_weight: Annotated[float, Range(0)] = 2.0
    fade: Annotated[float, Range(0, 1)] = 0.0  # last part of the training over which the three weights fall to 0
    groups: Literal["primary", "all"] = "primary"  # whose candidates: of the detector's own queries, or of all groups
    # that are matched (denoising queries are not, their objects are known)

    @property
    def reads_output(self) -> bool:
        """Whether the predictors read the layer output, as in (a) and (b), rather than candidates inside the layer."""
        return self.variant in READS_OUTPUT

    @property
    def with_ffn(self) -> bool:
        """Whether the candidates pass an additional FFN (Eq. 3)."""
        return {"auto": not self.reads_output, "with": True, "without": False}[self.candidate_ffn]

    @property
    def separate_heads(self) -> bool:
        """Whether the one-to-many branch has predictors of its own: a class head, and in (c) and (d) a box head, too."""
        return {"auto": self.reads_output, "separate": True, "shared": False}[self.heads]

    def check(self, run: RunConfig) -> None:
        if self.reads_output and self.heads == "shared" and not self.with_ffn:
            raise ConfigError(
                f"ms_detr.heads: variant ({self.variant}) reads the layer output; with shared heads and no candidate_ffn "
                "both branches would be the same predictions"
            )
        if self.merge and self.groups == "all" and (others := UNMERGED.keys() & run.methods.keys()):
            raise ConfigError(
                f"ms_detr.merge: with ms_detr.groups=all every group is merged with its own one-to-one pairs, and {min(others)} "
                f"has none ({UNMERGED[min(others)]}); set ms_detr.groups=primary or ms_detr.merge=false"
            )


def variant_of(run: RunConfig) -> str:
    """ "a" to "d", or "baseline" where MS-DETR is off."""
    own = run.ms_detr
    return "baseline" if own is None else own.variant


def matching_rules(run: RunConfig) -> MatchingRules:
    """Both matchings of a run as plain numbers; the default one-to-many rule where the run has none."""
    costs, own = run.matching, run.methods.get("ms_detr", MSDETRConfig())
    return MatchingRules(
        costs.cost_class, costs.cost_l1, costs.cost_giou, own.rule, own.alpha, own.threshold, own.k, own.merge
    )


class CandidateHeads(nn.Module):
    """Predicts classes and boxes from the candidates of each layer, Eq. 3 and 4; all of it is training-only.

    ffns: the additional FFN of Eq. 3, one per layer.   class_heads, box_heads: where they are not shared with the
    one-to-one branch: one per layer, or, as the one-to-one heads, one for all layers of a model without box refinement.
    Each is None where the branch does without.
    same_boxes: the candidates are the layer's output and its box head is shared, so its boxes are the branch's, too.
    """

    training_only = True

    def __init__(self, config: MSDETRConfig, run: RunConfig):
        super().__init__()
        model = run.model
        layers, dim = range(model.decoder_layers), model.hidden_dim
        heads = layers if model.box_refine else range(1)
        self.same_boxes = config.reads_output and not config.with_ffn
        self.ffns = self.class_heads = self.box_heads = None
        if config.with_ffn:
            self.ffns = nn.ModuleList(
                Residual(FFN(dim, model.ffn_dim, model.dropout), dim, model.dropout) for _ in layers
            )
        if config.separate_heads:
            self.class_heads = nn.ModuleList(class_head(dim, model.num_classes) for _ in heads)
        if config.separate_heads and not config.reads_output:
            self.box_heads = nn.ModuleList(BoxHead(dim) for _ in heads)

    def forward(
        self, layer: int, candidates: Tensor, offsets: Tensor, class_head: nn.Module, box_head: nn.Module
    ) -> tuple[Tensor, Tensor]:
        """Class logits [B, Q, C] and box offsets [B, Q, 4]. offsets, class_head, box_head: of the one-to-one branch."""
        if self.ffns is not None:
            candidates = self.ffns[layer](candidates)
        if self.class_heads is not None:
            class_head = self.class_heads[min(layer, len(self.class_heads) - 1)]
        if self.box_heads is not None:
            box_head = self.box_heads[min(layer, len(self.box_heads) - 1)]
        return class_head(candidates), offsets if self.same_boxes else box_head(candidates)


class MSDETR(Method):
    """One-to-many supervision of the candidates of the detector's own queries, or (``groups=all``) of every query group that
    is matched. A group with known pairs has none: Algorithm 1 chooses an object's queries by how well they predict it, and a
    denoising query's object is given, so there is nothing to choose.

    Paper: silent on further query groups.
    """

    name = "ms_detr"
    Config = MSDETRConfig

    def layer(self) -> type[DecoderLayer]:
        return VARIANTS[self.config.variant]

    def candidate_heads(self) -> CandidateHeads:
        return CandidateHeads(self.config, self.run)

    def branches(self, groups: Sequence[str]) -> Sequence[Branch]:
        own = self.config
        terms = weighted_terms(own, self.run)
        merge_from, exclusive = "one_to_one" if own.merge else None, own.rule != "literal"
        matcher = matching_rules(self.run).one_to_many()
        branches = [Branch("one_to_many", candidates, matcher, terms, merge_from, exclusive, own.fade)]
        for group in groups if own.groups == "all" else ():
            name, select = f"one_to_many_{group}", _to_be_matched(group)
            branches.append(Branch(name, select, matcher, terms, merge_exclusive=exclusive, fade=own.fade))
        return branches


def _to_be_matched(group: str) -> Callable[[DetectorOutput, Targets], Supervised | None]:
    """Selects the candidates of a query group, unless its pairs are known."""
    candidates_of_group = of_group(group, candidates=True)

    def select(output: DetectorOutput, targets: Targets) -> Supervised | None:
        found = output.groups.get(group)
        return None if found is None or found.pairs is not None else candidates_of_group(output, targets)

    return select
