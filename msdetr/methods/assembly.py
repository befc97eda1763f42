"""From a configuration to a detector and its objective: the base, and what each method that is on contributes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import nn

from ..config import RunConfig
from ..errors import ConfigError
from ..losses import Branch, Criterion, answer
from ..model import (
    Decoder,
    Detector,
    Encoder,
    EncoderLayer,
    LearnedBoxQueries,
    LearnedQueries,
    LogitBoxes,
    OffsetQueries,
    build_backbone,
    build_projections,
)
from ..modules import QUERY_POSITIONS, Baseline, MapPositions
from .base import Method, Postprocess, hungarian, weighted_terms
from .registry import registered_methods

Contribution = TypeVar("Contribution")


def methods_of(run: RunConfig) -> list[Method]:
    """The methods whose sections are on, in the order in which they were registered."""
    return [method(run.methods[name], run) for name, method in registered_methods().items() if name in run.methods]


def build_detector(run: RunConfig) -> Detector:
    """A detector with freshly drawn weights (from torch's global generator). Raises ConfigError where methods exclude
    each other."""
    model, methods = run.model, methods_of(run)
    query_selection = _only_one(methods, "query_selection", lambda m: m.query_selection())
    layer = _only_one(methods, "decoder layer", lambda m: m.layer()) or Baseline
    shape = (model.hidden_dim, model.num_heads, model.num_levels, model.num_points, model.ffn_dim, model.dropout)
    backbone = build_backbone(model)
    projections = build_projections(backbone.channels, model.hidden_dim, model.num_levels)
    encoder = Encoder([EncoderLayer(*shape) for _ in range(model.encoder_layers)])
    if query_selection is None:
        query_selection = LearnedQueries(model.hidden_dim, model.num_queries)
    query_positions = QUERY_POSITIONS[model.query_positions]
    coding = _only_one(methods, "box coding", lambda m: m.coding()) or LogitBoxes(model.reference_eps)
    decoder = Decoder(
        [layer(*shape, model.cross_heads) for _ in range(model.decoder_layers)],
        model.hidden_dim,
        model.num_classes,
        model.box_refine,
        model.look_forward_twice,
        # a one-stage model starts from points without a size, or boxes of any, so its first boxes are given one
        first_size_bias=-2.0 if isinstance(query_selection, (LearnedQueries, LearnedBoxQueries)) else 0.0,
        one_to_many=_only_one(methods, "candidate predictors", lambda m: m.candidate_heads()),
        query_positions=query_positions and query_positions(model.hidden_dim),
        output_norm=nn.LayerNorm(model.hidden_dim) if model.output_norm else None,
        shared_heads=model.shared_heads,
        coding=coding,
        learned_start=isinstance(query_selection, OffsetQueries),
    )
    map_positions = MapPositions(model.position_temperature, model.position_offset)
    detector = Detector(backbone, projections, encoder, query_selection, decoder, map_positions=map_positions)
    # last: a seed gives everything else the weights it has without them
    detector.sources.update(_sources(methods))
    for method in methods:
        method.extend(detector)
    return detector


def build_criterion(run: RunConfig) -> Criterion:
    """The objective of a run: one-to-one supervision of the detector's answer, and the branches of its methods. Torch's
    global generator is left as it was."""
    methods = methods_of(run)
    branches = [Branch("one_to_one", answer, hungarian(run), weighted_terms(run.loss, run))]
    with torch.random.fork_rng(devices=[]):  # built for their names alone: a run's random numbers are not used up
        groups = list(_sources(methods))
    for method in methods:
        branches += method.branches(groups)
    for method in methods:
        branches = list(method.revised(branches))
    names = [branch.name for branch in branches]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"methods: two branches are called {', '.join(sorted(repeated))}")
    return Criterion(branches, run.loss.floor)


def build_postprocess(run: RunConfig) -> Postprocess | None:
    """How the last layer's predictions become detections; None: the usual selection of the best."""
    return _only_one(methods_of(run), "post-processing", lambda m: m.postprocess())


def _sources(methods: Iterable[Method]) -> dict:
    found = {}
    for method in methods:
        for name, source in method.sources().items():
            if name in found:
                raise ConfigError(f"{method.name}: another method has a query group called {name}, too")
            found[name] = source
    return found


def _only_one(
    methods: Iterable[Method], what: str, contribution: Callable[[Method], Contribution | None]
) -> Contribution | None:
    given = {method.name: found for method in methods if (found := contribution(method)) is not None}
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)}: each brings its own {what}; switch one of them off (e.g. {list(given)[-1]}=null)"
        )
    return next(iter(given.values()), None)
