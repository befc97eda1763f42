"""Mr.DETR as a method: its routes are separate passes, and nothing of them is left afterwards."""

from dataclasses import replace

import pytest
import small
import torch

from msdetr import recipes
from msdetr.config import ConfigError
from msdetr.errors import InputError
from msdetr.losses import Supervised
from msdetr.matching import IoUMatcher, ReleasedMrDETR, ReleasedOneToMany
from msdetr.methods import Method, build_criterion, build_detector, build_postprocess, register
from msdetr.methods.mr_detr import mixed_logits
from msdetr.model import training_only_names
from msdetr.modules import Baseline, Context
from msdetr.structures import Predictions, Targets

ROUTES = ("ffn_route", "instruct_route")


def run_of(variant="baseline", **changes):
    return small.built(small.config(variant, **{"mr_detr.k": 4, "mr_detr.threshold": 0.0} | changes))


def groups_of(detector, images):
    memory = detector.encoder(detector.pyramid(images))
    _, groups = detector.query_groups(memory, small.objects(2, 1))
    return memory, {group.name: group for group in groups}


@pytest.mark.parametrize("proposals", ["shared", "own"])
@pytest.mark.parametrize("variant", ["baseline", "c"])
def test_routes_side_by_side_are_separate_passes(variant, proposals):
    detector, _, images = run_of(variant, **{"mr_detr.proposals": proposals})
    with torch.no_grad():
        memory, groups = groups_of(detector, images)
        together = detector.decoder(list(groups.values()), memory)
        for name, group in groups.items():
            alone = detector.decoder([group], memory)[name]
            torch.testing.assert_close(together[name].predictions.logits, alone.predictions.logits)
            torch.testing.assert_close(together[name].predictions.boxes, alone.predictions.boxes)
    assert list(groups) == ["primary", *ROUTES]


def test_each_route_differs_in_one_sub_layer():
    """The first layer, written out."""
    detector, _, images = run_of()
    layer = detector.decoder.layers[0]
    with torch.no_grad():
        memory, groups = groups_of(detector, images)
        context = Context.of(groups["primary"], memory)
        queries = groups["primary"].contents
        attended = layer.cross_attention(layer.self_attention(queries, context), context)
        own = layer.ffn.routes["ffn_route"].ffn
        ffn = layer.ffn.norm(attended + own.linear2(own.linear1(attended).relu()))

        told = layer.self_attention.routes["instruct_route"]
        batch, placed = len(queries), queries + context.positions
        query = torch.cat([(told.contents + told.positions).repeat(batch, 1, 1), placed], 1)
        value = torch.cat([told.contents.repeat(batch, 1, 1), queries], 1)
        mixed = layer.self_attention.inner.attention(query, query, value)[0][:, 10:]
        instructed = layer.ffn(layer.cross_attention(told.norm(queries + mixed), context), context)
        for name, want in (("ffn_route", ffn), ("instruct_route", instructed)):
            found, _ = layer(queries, Context.of(groups[name], memory))
            torch.testing.assert_close(found, want)


@pytest.mark.parametrize("proposals", ["shared", "own"])
@pytest.mark.parametrize("variant", ["baseline", "a", "c", "d"])
def test_nothing_is_left_at_inference(variant, proposals):
    detector, _, images = run_of(variant, **{"mr_detr.proposals": proposals})
    detector.eval()
    with torch.no_grad():
        beside = detector(images, small.objects(2, 1)).one_to_one
    names = training_only_names(detector)
    assert any("routes.instruct_route" in name for name in names) and any("routes.ffn_route" in n for n in names)
    torch.testing.assert_close(beside.boxes, small.evaluated(detector, images).boxes, rtol=1e-12, atol=1e-12)
    plain = build_detector(small.config("baseline"))
    assert {n: p.shape for n, p in detector.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}


@pytest.mark.parametrize("candidates", ["primary", "all"])
@pytest.mark.parametrize("proposals", ["shared", "own"])
def test_every_parameter_learns_and_every_branch_is_supervised(proposals, candidates):
    detector, criterion, images = run_of("c", **{"mr_detr.proposals": proposals, "ms_detr.groups": candidates})
    targets = small.objects(2, 1)
    losses = criterion(detector.train()(images, targets), targets)
    losses.total.backward()
    assert not [name for name, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    branches = {key.split("/")[0] for key in losses.terms}
    want = {"one_to_one", "one_to_many", "encoder", *ROUTES}
    want |= {f"one_to_many_{name}" for name in ROUTES} if candidates == "all" else set()
    want |= {"encoder_instruct_route"} if proposals == "own" else set()
    assert branches == want
    assert all(len(losses.matches[name]) > 2 * len(targets) for name in ROUTES)  # 2 layers


@pytest.mark.parametrize("match_on", ["anchors", "boxes"])
@pytest.mark.parametrize("supervise", ["tokens", "queries"])
def test_proposals_of_its_own_are_supervised_as_the_encoders_are(match_on, supervise):
    changes = {"two_stage.match_on": match_on, "two_stage.supervise": supervise, "two_stage.rank_by": "best_class"}
    detector, criterion, images = run_of(**{"mr_detr.proposals": "own"} | changes)
    targets = small.objects(2, 1)
    with torch.no_grad():
        output = detector.train()(images, targets)
        found, losses = criterion.supervised(output, targets), criterion(output, targets)
    group = output.groups["instruct_route"]
    of_primary = replace(output, encoder=group.encoder, selected=group.selected)  # as if these were the encoder's
    expected = criterion.supervised(of_primary, targets)["encoder"]
    given = found["encoder_instruct_route"]
    assert (given.match_on is None) == (match_on == "boxes")
    assert torch.equal(given.predictions.boxes, expected.predictions.boxes)
    assert torch.equal(given.targets.labels, expected.targets.labels)
    assert given.predictions.boxes.shape[2] == (5 if supervise == "queries" else 84)
    matches = criterion.match({"encoder": expected})["encoder"]
    assert torch.equal(losses.matches["encoder_instruct_route"].query, matches.query)


def test_deta_assigns_proposals_of_its_own_too():
    _, criterion, _ = run_of(**{"mr_detr.proposals": "own", "deta.k": 2})
    encoders = [branch.matcher for branch in criterion.branches if branch.name.startswith("encoder")]
    assert len(encoders) == 2 and encoders[0] == encoders[1] and isinstance(encoders[0], IoUMatcher)


def test_the_same_seed_gives_the_rest_the_weights_it_has_without():
    plain, routed = (
        (torch.manual_seed(1), build_detector(small.config("c", **changes)))[1] for changes in ({}, {"mr_detr": True})
    )
    found = dict(routed.named_parameters())
    assert all(torch.equal(parameter, found[name]) for name, parameter in plain.named_parameters())


def test_one_route_alone():
    detector, criterion, images = run_of(**{"mr_detr.routes": "instruct"})
    targets = small.objects(2, 1)
    output = detector.train()(images, targets)
    assert list(output.groups) == ["instruct_route"]
    assert "instruct_route" in criterion(output, targets).matches
    assert list(run_of(**{"mr_detr.routes": "ffn"})[0].sources) == ["ffn_route"]


def test_a_one_stage_model_has_routes_too():
    detector, criterion, images = run_of("c", two_stage=None)
    targets = small.objects(2, 1)
    assert criterion(detector.train()(images, targets), targets).total.isfinite()


def test_beside_other_groups():
    detector, criterion, images = run_of("c", **{"group.groups": 3, "denoising.queries": 6, "ms_detr.groups": "all"})
    targets = small.objects(2, 1)
    output = detector.train()(images, targets)
    assert set(output.groups) == {"group", "denoising", *ROUTES}
    assert criterion(output, targets).total.isfinite()


def test_a_batch_without_objects():
    detector, criterion, images = run_of("c", **{"mr_detr.proposals": "own"})
    detector.train()
    none, some = (criterion(detector(images, t), t) for t in (small.objects(0, 0), small.objects(2, 1)))
    assert {k: v.shape for k, v in none.terms.items()} == {k: v.shape for k, v in some.terms.items()}
    assert none.total.isfinite() and not len(none.matches["ffn_route"])


# ---------------------------------------------------------------- detections, released rule


def test_class_scores_are_mixed_over_layers():
    probability = torch.tensor([0.2, 0.9, 0.4], dtype=torch.float64)
    found = mixed_logits(torch.logit(probability)[:, None, None, None]).sigmoid().flatten().tolist()
    want = [0.2]
    for p in probability[1:].tolist():
        want.append(((p**2.001 + want[-1] ** 1.853) / 2) ** 0.5)
    assert found == pytest.approx(want)


def test_detections_are_the_best_by_mixed_scores():
    config = small.config("baseline", **{"mr_detr.mix_layers": True})
    torch.manual_seed(0)
    predictions = Predictions(torch.randn(2, 1, 5, 8), torch.rand(2, 1, 5, 4))
    (found,) = build_postprocess(config)(predictions, torch.tensor([[64, 64]]), 7)
    want = mixed_logits(predictions.logits)[-1, 0].sigmoid().flatten().topk(7)
    torch.testing.assert_close(found.scores, want.values)
    assert (found.query * 8 + found.labels).tolist() == want.indices.tolist()
    assert build_postprocess(small.config("baseline", mr_detr=True)) is None


def test_of_two_objects_the_later_one_gives_the_class_as_released():
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.5, 0.5]])
    targets = Targets.from_list([torch.tensor([0, 1])], [boxes])
    logits = torch.tensor([[3.0, 0.0], [-3.0, -2.0]])
    predicted = torch.tensor(
        [[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.6, 0.6]]
    )  # the second votes for object 1, the first wins it
    predictions = Predictions(logits[None, None], predicted[None, None])
    settings = {"threshold": 0.0, "k": 2}
    for matcher, last in ((ReleasedMrDETR(**settings), 1), (ReleasedOneToMany(**settings, positive_fraction=1.0), 0)):
        matches = matcher(predictions, targets)
        assert matches.target[matches.query == 0].tolist()[-1] == last
        assert sorted(zip(matches.query.tolist(), matches.target.tolist())) == [(0, 0), (0, 1)]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mr_detr.instructions": 0}, "mr_detr.instructions"),
        ({"mr_detr.k": 0}, "mr_detr.k"),
        ({"mr_detr.proposals": "own", "two_stage": None}, "^mr_detr.proposals: .*two_stage=true"),
        ({"mr_detr.proposals": "own", "mr_detr.routes": "ffn"}, "^mr_detr.proposals: .*mr_detr.routes=both"),
    ],
)
def test_settings_that_cannot_be_meant(changes, message):
    with pytest.raises(ConfigError, match=message):
        small.config("c", **changes)


def test_a_group_may_not_read_one_on_another_path():
    detector, _, images = run_of()
    with torch.no_grad():
        memory, groups = groups_of(detector, images)
        groups["other"] = replace(groups["primary"], name="other", reads=("instruct_route",))
        with pytest.raises(InputError, match="group other: reads instruct_route"):
            detector.decoder(list(groups.values()), memory)


def test_two_methods_with_a_decoder_layer_each():
    from msdetr.config import unregister_section
    from msdetr.methods import MrDETRConfig

    class Layered(Method):
        name, Config = "layered", type("LayeredConfig", (MrDETRConfig,), {})

        def layer(self):
            return Baseline

    register(Layered)
    try:
        with pytest.raises(ConfigError, match="ms_detr and layered: each brings its own decoder layer; .*layered=null"):
            build_detector(small.config("c", layered=True))
    finally:
        unregister_section("layered")


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "name", [name for name in recipes.names() if "mr_detr" in recipes.get(name).methods and "small-gpu" not in name]
)
def test_recipes_build(name):
    config = recipes.get(name)
    with torch.device("meta"):
        detector = build_detector(config.override({"model.pretrained": "none"}))
    assert list(detector.sources) == list(ROUTES)
    assert {"one_to_one", *ROUTES} <= {branch.name for branch in build_criterion(config).branches}


def test_supervised_is_what_the_route_predicts():
    detector, criterion, images = run_of()
    targets = small.objects(2, 1)
    output = detector.train()(images, targets)
    found = criterion.supervised(output, targets)["ffn_route"]
    assert isinstance(found, Supervised) and found.divisor == 1
    torch.testing.assert_close(found.predictions.boxes, output.groups["ffn_route"].predictions.boxes)
