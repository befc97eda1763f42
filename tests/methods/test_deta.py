"""DETA as a method: what it assigns, selects and suppresses, and that it adds no parameters."""

import pytest
import small
import torch
from torchvision.ops import box_iou

from msdetr import recipes
from msdetr.boxes import cxcywh_to_xyxy
from msdetr.config import ConfigError
from msdetr.losses import focal_loss, giou_loss, l1_loss
from msdetr.matching import IoUMatcher, ReleasedIoUMatcher, SharedMatcher
from msdetr.methods import build_criterion, build_detector, build_postprocess

DETA = {"deta.k": 3, "deta.decoder_threshold": 0.3, "deta.encoder_threshold": 0.4}


def run_of(variant="baseline", **changes):
    """Detector, criterion, images of 64 x 64 pixels: 84 tokens, in float64."""
    return small.built(small.config(variant, **DETA | changes))


@pytest.mark.parametrize("variant", ["baseline", "c"])
def test_inference_needs_what_the_baseline_needs(variant):
    detector, _, images = run_of(variant)
    small.evaluated(detector, images)
    plain = build_detector(small.config("baseline"))
    assert {n: p.shape for n, p in detector.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}


def test_a_seed_gives_the_weights_of_the_baseline():
    torch.manual_seed(3)
    plain = build_detector(small.config("baseline")).state_dict()
    torch.manual_seed(3)
    ours = build_detector(small.config("baseline", **DETA)).state_dict()
    assert all(torch.equal(plain[name], value) for name, value in ours.items())


def test_queries_are_spread_over_levels_and_no_duplicates():
    detector, _, images = run_of(**{"model.num_queries": 12, "deta.proposal_nms": 0.5})
    with torch.no_grad():
        output = detector.train()(images)
    level = torch.arange(3).repeat_interleave(torch.tensor([64, 16, 4]))
    boxes = cxcywh_to_xyxy(output.encoder.predictions.boxes[0]).clamp(0, 1)
    for image, tokens in enumerate(output.selected):
        assert len(tokens) == 12 and (torch.bincount(level[tokens], minlength=3) >= 4).sum() >= 2
        same = level[tokens][:, None] == level[tokens]
        overlap = box_iou(boxes[image][tokens], boxes[image][tokens]).masked_fill(~same, 0).fill_diagonal_(0)
        assert overlap.max() <= 0.5


def test_assigned_by_anchor_in_the_encoder_and_by_reference_in_the_decoder():
    detector, criterion, images = run_of(**{"model.num_queries": 20})
    targets = small.objects(3, 1)
    with torch.no_grad():
        output = detector.train()(images, targets)
        losses = criterion(output, targets)
    matches = losses.matches["one_to_one"]
    assert len(matches) and len(matches) == 2 * (matches.layer == 0).sum()
    first = matches.select(matches.layer == 0)
    start = cxcywh_to_xyxy(output.references[0])
    true = cxcywh_to_xyxy(targets.boxes)
    for image, query, target in zip(first.image.tolist(), first.query.tolist(), first.target.tolist()):
        overlap = box_iou(start[image], true)
        own = overlap[query] * (targets.image == image)
        assert own.argmax() == target
        assert (
            own[target] >= 0.3
            or own[target] == overlap[overlap.masked_fill(targets.image != image, -1).argmax(1) == target, target].max()
        )
    anchors = IoUMatcher(0.4, 3)
    proposals = output.encoder.predictions
    from_anchors = anchors(type(proposals)(proposals.logits, output.encoder.anchors[None]), targets.class_agnostic())
    assert torch.equal(losses.matches["encoder"].query, from_anchors.query) and len(from_anchors)

    # every sum is divided by the number of objects, not of pairs
    for branch, predictions, own in (
        ("one_to_one", output.one_to_one, targets),
        ("encoder", proposals, targets.class_agnostic()),
    ):
        for name, term in {"class": focal_loss, "l1": l1_loss, "giou": giou_loss}.items():
            expected = term(predictions, own, losses.matches[branch]) / 4
            torch.testing.assert_close(losses.terms[f"{branch}/{name}"], expected)


def test_detections_are_suppressed():
    config = small.config("baseline", **DETA, **{"deta.detection_nms": 0.2})
    detector, _, images = run_of()
    with torch.no_grad():
        last = detector.eval()(images).one_to_one.layer(-1)
    found = build_postprocess(config)(last, torch.tensor([[64, 64], [64, 64]]), 100)
    for detections in found:
        overlap = box_iou(detections.boxes, detections.boxes).fill_diagonal_(0)
        same = detections.labels[:, None] == detections.labels
        assert len(detections) and overlap[same].max() <= 0.2
    assert build_postprocess(small.config("baseline", **{"deta.decoder": False})) is None


@pytest.mark.parametrize("encoder, decoder", [(True, False), (False, True)])
def test_each_stage_alone(encoder, decoder):
    detector, criterion, _ = run_of(**{"deta.encoder": encoder, "deta.decoder": decoder})
    matchers = {branch.name: branch.matcher for branch in criterion.branches}
    assert isinstance(matchers["encoder"], IoUMatcher) == encoder
    assert isinstance(matchers["one_to_one"], SharedMatcher) == decoder
    ranked = detector.query_selection.ranking(torch.rand(1, 84), torch.rand(1, 84, 4), ((8, 8), (4, 4), (2, 2)), 7)
    assert ranked.shape == (1, 7)


def test_the_released_rule():
    _, criterion, _ = run_of(**{"deta.rule": "released", "model.num_queries": 30})
    matchers = {branch.name: branch.matcher for branch in criterion.branches}
    assert matchers["encoder"] == ReleasedIoUMatcher(0.4, 3, cap=128)
    assert matchers["one_to_one"] == SharedMatcher(ReleasedIoUMatcher(0.3, 3, cap=7))


def test_contents_from_tokens():
    """As published: contents are what the box's position gives and what the token's feature adds, without its gradient."""
    own = {"deta.token_contents": True, "two_stage.mixed_selection": False}
    detector, criterion, images = run_of(**own)
    plain = build_detector(small.config("baseline", **{"two_stage.mixed_selection": False}))
    extra = set(dict(detector.named_parameters())) - set(dict(plain.named_parameters()))
    assert {name.removeprefix("query_selection.token_contents.") for name in extra} == {
        "projection.weight", "projection.bias", "norm.weight", "norm.bias"
    }  # fmt: skip
    memory = detector.encoder(detector.pyramid(images))
    proposals, (group,) = detector.query_groups(memory)
    positions, without = proposals.embed(group.references)
    added, source = group.contents - without, detector.query_selection
    features = source.memory_norm(
        source.memory_projection(memory.tokens.masked_fill(~source.anchors(memory)[1][..., None], 0))
    )
    chosen = features.gather(1, group.selected[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(added, source.token_contents(chosen))
    assert torch.equal(group.positions, positions)
    (gradient,) = torch.autograd.grad(added.sum(), source.memory_projection.weight, allow_unused=True)
    assert gradient is None or not gradient.any()
    targets = small.objects(2, 1)
    criterion(detector.train()(images, targets), targets).total.backward()
    assert all(parameter.grad.any() for parameter in source.token_contents.parameters())


@pytest.mark.parametrize(
    "changes", [{}, {"two_stage.mixed_selection": False, "model.query_positions": "references"}], ids=["mixed", "dino"]
)
def test_contents_that_are_not_made_from_proposals(changes):
    with pytest.raises(ConfigError, match="^deta.token_contents: .*mixed_selection=false"):
        small.config("baseline", **{"deta.token_contents": True}, **changes)


@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
@pytest.mark.parametrize("variant", ["baseline", "c"])
def test_images_without_objects(variant, counts):
    detector, criterion, images = run_of(variant)
    targets = small.objects(*counts)
    losses = criterion(detector.train()(images, targets), targets)
    losses.total.backward()
    assert losses.total.isfinite() and losses.terms["one_to_one/class"].min() > 0
    assert all((matches.image == 1).all() for matches in losses.matches.values())


def test_fewer_tokens_than_queries():
    detector, criterion, _ = run_of(**{"model.num_queries": 30})
    targets = small.objects(1, 1)
    output = detector.train()(torch.randn(2, 3, 16, 16).double(), targets)
    assert output.one_to_one.boxes.shape[2] == len(output.encoder.anchors[0]) < 30
    assert criterion(output, targets).total.isfinite()


# ---------------------------------------------------------------- bad input and conflicts


@pytest.mark.parametrize(
    "path, value",
    [
        ("deta.k", 0),
        ("deta.encoder_threshold", 1.1),
        ("deta.decoder_threshold", -0.1),
        ("deta.proposal_nms", 2),
        ("deta.detection_nms", -1),
        ("deta.proposals_per_level", 0),
        ("deta.rule", "hungarian"),
    ],
)
def test_numbers_out_of_range(path, value):
    with pytest.raises(ConfigError, match=path):
        small.config("c", **{path: value})


def test_a_one_stage_model_is_refused():
    with pytest.raises(ConfigError, match="^deta: .*two_stage=true.*deta=null"):
        small.config("c", **DETA, two_stage=None)


@pytest.mark.parametrize(
    "changes",
    [{"two_stage.match_on": "boxes"}, {"two_stage.supervise": "queries", "two_stage.rank_by": "best_class"}],
)
def test_an_encoder_that_is_to_be_supervised_otherwise_is_refused(changes):
    with pytest.raises(ConfigError, match="^deta.encoder: .*two_stage.match_on=anchors.*deta.encoder=false"):
        small.config("c", **DETA, **changes)
    small.config("c", **DETA | changes | {"deta.encoder": False})


def test_nothing_to_do_is_refused():
    with pytest.raises(ConfigError, match="deta=null"):
        small.config("baseline", **{"deta.encoder": False, "deta.decoder": False})


def test_no_one_to_one_pairs_to_merge():
    with pytest.raises(ConfigError, match="ms_detr.merge=false or deta.decoder=false"):
        small.config("c", **DETA, **{"ms_detr.merge": True})
    small.config("c", **{"deta.decoder": False, "ms_detr.merge": True})


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    "name", [name for name in recipes.names() if "deta" in recipes.get(name).methods and "small-gpu" not in name]
)
def test_recipes_build(name):
    config = recipes.get(name)
    with torch.device("meta"):
        build_detector(config.override({"model.pretrained": "none"}))
    build_criterion(config)
    assert build_postprocess(config) is not None


def test_recipe_as_published():
    config = recipes.get("coco/deta-900")
    assert (config.model.num_queries, config.model.num_levels, config.train.drop_epoch) == (900, 5, 10)
    assert not config.two_stage.mixed_selection and not config.model.look_forward_twice and not config.model.dropout
    assert config.loss.class_weight == config.two_stage.class_weight == 1.0
    assert config.deta.rule == "released" and config.ms_detr is None
