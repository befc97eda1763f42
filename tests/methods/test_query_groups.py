"""H-DETR and Group DETR as methods: what they add to training, and that nothing of it is left afterwards."""

import warnings
from dataclasses import replace

import pytest
import small
import torch

from msdetr import recipes
from msdetr.config import ConfigError
from msdetr.losses import focal_loss
from msdetr.matching import HungarianMatcher, OneToManyMatcher, PartwiseMatcher
from msdetr.methods import build_criterion, build_detector
from msdetr.model import from_released, to_released, training_only_names
from msdetr.structures import Matches, Predictions

HYBRID = {"hybrid.queries": 8, "hybrid.k": 3, "hybrid.weight": 0.5}
GROUP = {"group.groups": 3}
LW_DETR = {"two_stage": None, "lw_detr.groups": 3, "model.query_positions": "references"}
METHODS = {"hybrid": HYBRID, "group": GROUP}


def run_of(method, variant="baseline", **changes):
    """Detector, criterion, images of 64 x 64 pixels: 84 tokens, in float64."""
    return small.built(small.config(variant, **METHODS[method], **changes))


def same_pairs(found: Matches, expected: Matches):
    """The same pairs in any order."""
    columns = [sorted(zip(*(getattr(m, x).tolist() for x in ("layer", "image", "query", "target")))) for m in
               (found, expected)]  # fmt: skip
    assert columns[0] == columns[1]


# ---------------------------------------------------------------- training only


@pytest.mark.parametrize("variant", ["baseline", "c"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_at_inference(method, variant):
    detector, _, images = run_of(method, variant)
    detector.eval()
    with torch.no_grad():
        beside = detector(images, small.objects(2, 1)).one_to_one
    assert any(name.startswith(f"sources.{method}") for name in training_only_names(detector))
    whole = small.evaluated(detector, images)
    torch.testing.assert_close(beside.boxes, whole.boxes, rtol=1e-12, atol=1e-12)  # the primary group reads no other
    plain = build_detector(small.config("baseline"))
    assert {n: p.shape for n, p in detector.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}


@pytest.mark.parametrize("method", METHODS)
def test_off_by_default(method):
    assert method not in recipes.get("shapes/ms-detr-c").methods
    assert method not in {branch.name for branch in build_criterion(small.config("c")).branches}


@pytest.mark.parametrize("variant", ["baseline", "c"])
@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_of_the_group_learns(method, variant):
    detector, criterion, images = run_of(method, variant)
    targets = small.objects(2, 1)
    criterion(detector.train()(images, targets), targets).total.backward()
    gradient = detector.sources[method].contents.weight.grad
    assert (gradient.abs().sum(1) > 0).all()


# ---------------------------------------------------------------- H-DETR


def test_hybrid_takes_the_next_proposals_and_repeats_objects():
    detector, criterion, images = run_of("hybrid")
    targets = small.objects(2, 1)
    with torch.no_grad():
        output = detector.train()(images, targets)
        losses = criterion(output, targets)
    scores = output.encoder.predictions.logits[0, ..., 0]
    both = torch.cat([output.selected, output.groups["hybrid"].selected], 1)
    assert torch.equal(scores.gather(1, both), scores.topk(5 + 8).values)

    matches = losses.matches["hybrid"]
    per_object = torch.bincount(matches.target, minlength=9)
    assert per_object.tolist() == [2] * 9  # 3 objects, 3 copies, 2 layers
    slots = (matches.layer * 2 + matches.image) * 8 + matches.query
    assert len(slots.unique()) == len(slots)

    branch = next(b for b in criterion.branches if b.name == "hybrid")
    repeated, group = targets.repeated(3), output.groups["hybrid"].predictions
    for name, (weight, term) in branch.terms.items():
        torch.testing.assert_close(losses.terms[f"hybrid/{name}"], term(group, repeated, matches) / 9)
        assert weight == 0.5 * criterion.branches[0].weights[name]


def test_hybrid_contents_come_from_proposals_without_mixed_selection():
    detector, _, images = run_of("hybrid", **{"two_stage.mixed_selection": False})
    assert detector.sources["hybrid"].contents is None
    memory = detector.encoder(detector.pyramid(images))
    proposals, (_, group) = detector.query_groups(memory, small.objects(1, 1))
    positions, contents = proposals.embed(proposals.references(group.selected))
    assert torch.equal(group.positions, positions) and torch.equal(group.contents, contents)


# ---------------------------------------------------------------- Group DETR


@pytest.mark.parametrize("candidates", ["primary", "all"])
def test_groups_equal_separate_passes(candidates):
    """Attention and losses are those of G passes with one group each, averaged."""
    detector, criterion, images = run_of("group", "c", **{"ms_detr.groups": candidates})
    targets = small.objects(2, 1)
    detector.train()
    with torch.no_grad():
        output = detector(images, targets)
        losses = criterion(output, targets)
        memory = detector.encoder(detector.pyramid(images))
        _, (primary, further) = detector.query_groups(memory, targets)
        alone, one_to_one, one_to_many = [], criterion.branches[0], criterion.branches[1]
        assert (one_to_one.name, one_to_many.name) == ("one_to_one", "one_to_many")
        matchers = {"predictions": one_to_one, "candidates": one_to_many}
        sums = {"predictions": [], "candidates": []}
        for contents in (primary.contents, *further.contents.chunk(2, 1)):
            result = detector.decoder([replace(primary, contents=contents)], memory, True)["primary"]
            alone.append(result)
            for kind, branch in matchers.items():
                predictions = getattr(result, kind)
                matches = branch.matcher(predictions, targets)
                terms = [w * term(predictions, targets, matches).sum() for w, term in branch.terms.values()]
                sums[kind].append(sum(terms) / 3)  # objects

    whole = output.groups["group"]
    for i, expected in enumerate(alone[1:]):
        where = slice(5 * i, 5 * i + 5)
        torch.testing.assert_close(whole.predictions.logits[:, :, where], expected.predictions.logits)
        torch.testing.assert_close(whole.predictions.boxes[:, :, where], expected.predictions.boxes)
        torch.testing.assert_close(whole.candidates.boxes[:, :, where], expected.candidates.boxes)
    torch.testing.assert_close(output.one_to_one.boxes, alone[0].predictions.boxes)

    encoder = next(b for b in criterion.branches if b.name == "encoder")
    rest = sum(w * losses.terms[f"encoder/{name}"].sum() for name, w in encoder.weights.items())
    many = sums["candidates"]
    expected = sum(sums["predictions"]) / 3 + (sum(many) / 3 if candidates == "all" else many[0]) + rest
    torch.testing.assert_close(losses.total, expected)


def test_groups_start_from_the_same_proposals_with_contents_of_their_own():
    detector, _, images = run_of("group")
    memory = detector.encoder(detector.pyramid(images))
    _, (primary, further) = detector.query_groups(memory, small.objects(1, 1))
    assert further.parts == 2
    assert torch.equal(further.references, primary.references.repeat(1, 2, 1))
    assert torch.equal(further.positions, primary.positions.repeat(1, 2, 1))
    assert torch.equal(further.contents[0], detector.sources["group"].contents.weight)


def test_matching_in_parts_is_matching_each_part():
    torch.manual_seed(0)
    targets = small.objects(3, 0, 2)
    predictions = Predictions(torch.randn(2, 3, 12, 8).double(), torch.rand(2, 3, 12, 4).double() * 0.3 + 0.3)
    matcher = OneToManyMatcher(threshold=0.1, k=2)
    found = PartwiseMatcher(matcher, 3)(predictions, targets)
    parts = []
    for i in range(3):
        where = slice(4 * i, 4 * i + 4)
        part = matcher(Predictions(predictions.logits[:, :, where], predictions.boxes[:, :, where]), targets)
        parts.append(replace(part, query=part.query + 4 * i))
    columns = ("layer", "image", "query", "target")
    same_pairs(found, Matches(*(torch.cat([getattr(part, x) for part in parts]) for x in columns)))
    assert len(found) > len(matcher(predictions, targets))
    same_pairs(
        PartwiseMatcher(HungarianMatcher(), 3)(predictions, targets), HungarianMatcher(parts=3)(predictions, targets)
    )


# ---------------------------------------------------------------- with MS-DETR


@pytest.mark.parametrize("candidates", ["primary", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_candidates_of_the_primary_group_or_of_all(method, candidates):
    detector, criterion, images = run_of(
        method, "c", **{"ms_detr.groups": candidates, "ms_detr.threshold": 0.1, "ms_detr.k": 2}
    )
    targets = small.objects(2, 1)
    with torch.no_grad():
        output = detector.train()(images, targets)
        losses = criterion(output, targets)
    name = f"one_to_many_{method}"
    assert (name in losses.matches) == (candidates == "all")
    if candidates == "all" and method == "hybrid":  # the objects as they are
        expected = OneToManyMatcher(threshold=0.1, k=2)(output.groups["hybrid"].candidates, targets)
        same_pairs(losses.matches[name], expected)
        l1 = next(b for b in criterion.branches if b.name == name).terms["l1"][1]
        divided = l1(output.groups["hybrid"].candidates, targets, losses.matches[name]) / 3
        torch.testing.assert_close(losses.terms[f"{name}/l1"], divided)


def test_candidates_of_a_group_with_known_pairs_are_not_matched():
    """A denoising query's object is given: there is nothing for one-to-many matching to choose."""
    detector, criterion, images = run_of("hybrid", "c", **{"ms_detr.groups": "all", "denoising.queries": 4})
    targets = small.objects(2, 1)
    output = detector.train()(images, targets)
    losses = criterion(output, targets)
    assert output.groups["denoising"].candidates is not None and len(losses.matches["denoising"]) > 0
    assert {
        "one_to_many",
        "one_to_many_hybrid",
    } <= losses.matches.keys() and "one_to_many_denoising" not in losses.matches
    losses.total.backward()
    assert detector.sources["denoising"].label_embedding.weight.grad.any(), (
        "denoising learns as it does without MS-DETR"
    )


def test_both_methods_at_once():
    """Nothing in them excludes the other: the primary group, the hybrid one and the further groups share the decoder."""
    config = small.config("c", **HYBRID, **GROUP, **{"ms_detr.groups": "all"})
    torch.manual_seed(0)
    targets = small.objects(2, 1).to(torch.float32)
    output = build_detector(config).train()(torch.randn(2, 3, 64, 64), targets)
    assert {name: g.predictions.boxes.shape[2] for name, g in output.groups.items()} == {"hybrid": 8, "group": 10}
    assert build_criterion(config)(output, targets).total.isfinite()


def test_hybrid_queries_of_a_one_stage_model_are_learned():
    detector, criterion, images = run_of("hybrid", two_stage=None)
    targets = small.objects(2, 1)
    output = detector.train()(images, targets)
    group = output.groups["hybrid"]
    assert group.predictions.boxes.shape[2] == 8 and len(group.targets) == 3 * 3 and group.selected is None
    criterion(output, targets).total.backward()
    assert detector.sources["hybrid"].embedding.weight.grad.abs().sum(1).gt(0).all()
    detector.eval()
    with torch.no_grad():
        beside, alone = detector(images, targets).one_to_one, detector(images).one_to_one
    torch.testing.assert_close(beside.boxes, alone.boxes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [{}, {"two_stage": None}])
def test_released_names_of_h_detr_and_back(changes):
    """There all learned queries are one tensor, those of the primary group first."""
    config = small.config("baseline", **HYBRID, **{"model.backbone": "resnet18"}, **changes)
    state = build_detector(config).state_dict()
    released = to_released(state, config)
    assert len(released["query_embed.weight"]) == 5 + 8
    back = from_released(released, config)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("floor, divisor", [("objects", 3), ("product", 1)])
def test_what_a_batch_without_objects_is_divided_by(floor, divisor):
    """One object times its three repetitions; or 1, as published."""
    detector, criterion, images = run_of("hybrid", **{"loss.floor": floor})
    targets = small.objects(0, 0)
    with torch.no_grad():
        output = detector.train()(images, targets)
        losses = criterion(output, targets)
    undivided = focal_loss(output.groups["hybrid"].predictions, targets, losses.matches["hybrid"])
    torch.testing.assert_close(losses.terms["hybrid/class"], undivided / divisor)


def test_the_encoder_is_matched_on_its_boxes_where_asked_for():
    """Then with the class cost of the only class there is, as every other branch."""
    detector, criterion, images = run_of("hybrid", **{"two_stage.match_on": "boxes"})
    targets = small.objects(2, 1)
    with torch.no_grad():
        output = detector.train()(images, targets)
        found = criterion(output, targets).matches["encoder"]
    expected = HungarianMatcher()(output.encoder.predictions, targets.class_agnostic())
    assert torch.equal(found.query, expected.query) and torch.equal(found.target, expected.target)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "path, value",
    [("hybrid.queries", 0), ("hybrid.k", 0), ("hybrid.weight", -1), ("group.groups", 0), ("group.groups", 1)],
)
def test_numbers_out_of_range(path, value):
    with pytest.raises(ConfigError, match=path):
        small.config("c", **{path: value})


def test_groups_of_a_one_stage_model_are_refused():
    with pytest.raises(ConfigError, match="^group: .*two_stage=true.*group=null"):
        small.config("c", **GROUP, two_stage=None)


def test_groups_need_contents_to_differ_in():
    with pytest.raises(ConfigError, match="^group: .*mixed_selection=true"):
        small.config("c", **GROUP, **{"two_stage.mixed_selection": False})


@pytest.mark.parametrize("rule", ["exclusive", "literal"])
@pytest.mark.parametrize("other", [GROUP, LW_DETR])
def test_every_group_is_merged_with_its_own_one_to_one_pairs(other, rule):
    """No pair scores above 1, so that a merge leaves the one-to-one pairs alone, in every group."""
    changes = {"ms_detr.merge": True, "ms_detr.groups": "all", "ms_detr.threshold": 1.0, "ms_detr.rule": rule}
    detector, criterion, images = small.built(small.config("c", **other, **changes))
    targets = small.objects(2, 1)
    with torch.no_grad():
        matches = criterion(detector.train()(images, targets), targets).matches
    name = "lw_detr" if "lw_detr.groups" in other else "group"
    for many, one in (("one_to_many", "one_to_one"), (f"one_to_many_{name}", name)):
        pairs = (
            sorted(zip(*(getattr(matches[b], x).tolist() for x in ("layer", "query", "target")))) for b in (many, one)
        )
        assert next(pairs) == next(pairs)
    assert len(matches[name]) == 2 * len(matches["one_to_one"]) > 0


@pytest.mark.parametrize("other", ["hybrid", "mr_detr"])
def test_groups_without_one_to_one_pairs_of_their_own_are_not_merged(other):
    changes = {other: True, "ms_detr.merge": True}
    with pytest.raises(ConfigError, match=f"^ms_detr.merge: .*{other} has none .*ms_detr.groups=primary"):
        small.config("c", **changes, **{"ms_detr.groups": "all"})
    small.config("c", **changes)
    small.config("c", **changes | {"ms_detr.merge": False, "ms_detr.groups": "all"})


def test_queries_of_all_classes_are_not_chosen_by_the_first():
    with pytest.raises(ConfigError, match="^two_stage.supervise: .*two_stage.rank_by=best_class"):
        small.config("c", **{"two_stage.supervise": "queries"})


@pytest.mark.fault("F45")
@pytest.mark.parametrize("method, count, unmatched", [("hybrid", 5, 15 - 8), ("group", 7, 2)])
def test_more_objects_than_the_group_has_queries(method, count, unmatched):
    detector, criterion, images = run_of(method)
    targets = small.objects(count, 1)
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = criterion(detector.train()(images, targets), targets)
    assert any(f"{unmatched} objects of this batch stay unmatched" in str(w.message) for w in caught)
    assert losses.total.isfinite()
    if method == "group":
        assert torch.bincount(losses.matches["group"].image).tolist() == [2 * 2 * 5, 2 * 2]  # layers, groups, pairs


@pytest.mark.parametrize("candidates", ["primary", "all"])
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_without_objects(method, candidates):
    detector, criterion, images = run_of(method, "c", **{"ms_detr.groups": candidates})
    detector.train()
    with torch.no_grad():
        none, some = (
            criterion(detector(images, targets), targets) for targets in (small.objects(0, 0), small.objects(2, 1))
        )
    assert {k: v.shape for k, v in none.terms.items()} == {k: v.shape for k, v in some.terms.items()}
    assert none.total.isfinite() and none.terms[f"{method}/class"].sum() > 0
    assert len(none.matches[method]) == 0


@pytest.mark.parametrize("method", METHODS)
def test_an_image_of_fewer_tokens_than_queries(method):
    """16 x 16 pixels: the groups are as small as the image, in the worst case empty."""
    detector, criterion, _ = run_of(method, **{"model.num_queries": 30})
    targets = small.objects(1, 1)
    images = torch.randn(2, 3, 16, 16).double()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = detector.train()(images, targets)
        losses = criterion(output, targets)
    size = output.one_to_one.boxes.shape[2]
    assert size < 30
    assert output.groups[method].predictions.boxes.shape[2] == {"hybrid": 0, "group": 2 * size}[method]
    assert losses.total.isfinite()


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "name", [name for name in recipes.names() if {"hybrid", "group"} & set(recipes.get(name).methods)]
)
def test_recipes_build(name):
    config = recipes.get(name)
    with torch.device("meta"):
        detector = build_detector(config.override({"model.pretrained": "none"}))
    (source,) = detector.sources.values()
    if "hybrid" in config.methods:
        assert len(source.contents.weight) == config.hybrid.queries
    else:
        assert len(source.contents.weight) == (config.group.groups - 1) * config.model.num_queries
    build_criterion(config)


def test_recipes_as_published():
    hybrid, group = recipes.get("coco/h-detr-300"), recipes.get("coco/group-detr-300")
    assert (hybrid.hybrid.queries, hybrid.hybrid.k, hybrid.hybrid.weight, hybrid.ms_detr) == (1500, 6, 1.0, None)
    assert (group.group.groups, group.model.num_queries, group.ms_detr) == (11, 300, None)
    for config in (hybrid, group):
        assert config.two_stage.mixed_selection and config.model.look_forward_twice and not config.model.dropout
        assert config.loss.class_weight == 2.0
