"""Stable-DINO's losses and costs as a method: what they replace, alone and beside others, and what inference needs."""

import pytest
import small
import torch

from msdetr import recipes
from msdetr.boxes import cxcywh_to_xyxy
from msdetr.config import ConfigError
from msdetr.losses import position_supervised_loss
from msdetr.matching import HungarianMatcher, OneToManyMatcher, ReleasedModulatedMatcher, modulated_focal_cost
from msdetr.methods import build_criterion, build_detector
from msdetr.methods.denoising_queries import DenoisingQueries, Draws, move_corners

STABLE = {"stable.loss_iou_power": 2.0}
OTHERS = {
    "alone": {},
    "denoising": {"denoising.queries": 10},
    "hybrid": {"hybrid.queries": 8, "hybrid.k": 2},
    "group": {"group.groups": 3},
    "deta": {"deta.k": 2},
}


def run_of(variant="baseline", **changes):
    return small.built(small.config(variant, **STABLE | changes))


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("variant", ["baseline", "c"])
def test_inference_needs_the_fusion_and_no_more(variant, fusion):
    detector, _, images = run_of(variant, **{"stable.memory_fusion": fusion})
    small.evaluated(detector, images)
    needed = {n: p.shape for n, p in detector.named_parameters()}
    plain = {n: p.shape for n, p in build_detector(small.config("baseline")).named_parameters()}
    extra = {n: shape for n, shape in needed.items() if n not in plain}
    assert {n: shape for n, shape in needed.items() if n in plain} == plain
    names = ("projection.weight", "projection.bias", "norm.weight", "norm.bias")
    assert set(extra) == ({f"encoder.fusion.{name}" for name in names} if fusion else set())


def test_a_seed_gives_the_weights_of_the_baseline():
    torch.manual_seed(3)
    plain = build_detector(small.config("baseline")).state_dict()
    torch.manual_seed(3)
    ours = build_detector(small.config("baseline", **STABLE, **{"stable.memory_fusion": True})).state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in plain.items())


def test_fused_memory_depends_on_every_stage():
    detector, _, images = run_of(**{"stable.memory_fusion": True, "model.encoder_layers": 2})
    fusion = detector.encoder.fusion
    memory = detector.encoder(detector.pyramid(images)).tokens
    stages = []
    for stage in range(3):
        with torch.no_grad():
            kept = fusion.projection.weight.clone()
            fusion.projection.weight[:, 32 * stage : 32 * stage + 32] = 0
            stages.append(detector.encoder(detector.pyramid(images)).tokens)
            fusion.projection.weight.copy_(kept)
    assert all(not torch.allclose(memory, other) for other in stages)


@pytest.mark.parametrize("variant", ["baseline", "c"])
@pytest.mark.parametrize("other", OTHERS)
def test_every_class_loss_and_class_cost_is_replaced(variant, other):
    detector, criterion, images = run_of(
        variant, **OTHERS[other], **{"ms_detr.groups": "all"} if variant == "c" else {}
    )
    for branch in criterion.branches:
        assert branch.terms["class"][1].func is position_supervised_loss, branch.name
        if isinstance(branch.matcher, HungarianMatcher) and branch.matcher.costs["class"][0]:
            assert branch.matcher.costs["class"][1].func is modulated_focal_cost, branch.name
        assert branch.name != "one_to_many" or isinstance(branch.matcher, OneToManyMatcher)
    targets = small.objects(2, 1)
    losses = criterion(detector.train()(images, targets), targets)
    losses.total.backward()
    assert losses.total.isfinite() and len(losses.matches["one_to_one"])
    weights = build_criterion(small.config(variant, **OTHERS[other])).branches[0].weights
    assert criterion.branches[0].weights == weights  # the run's


def test_the_class_loss_of_some_pairs_is_replaced_too():
    """DN-DETR's released negatives: copies of the objects have no class to learn."""
    changes = OTHERS["denoising"] | {"denoising.style": "released_contrastive"}
    detector, criterion, images = run_of(**changes)
    targets = small.objects(2, 1)
    output = detector.train()(images, targets)
    losses, plain = (c(output, targets) for c in (criterion, build_criterion(small.config("baseline", **changes))))
    given = criterion.supervised(output, targets)["denoising"]
    matches = losses.matches["denoising"]
    objects = matches.select(given.targets.labels[matches.target] < 8)
    assert 0 < len(objects) < len(matches)
    expected = position_supervised_loss(given.predictions, given.targets, objects) / (len(targets) * given.divisor)
    torch.testing.assert_close(losses.terms["denoising/class"], expected.detach())
    assert not torch.allclose(losses.terms["denoising/class"], plain.terms["denoising/class"])
    torch.testing.assert_close(losses.terms["denoising/l1"], plain.terms["denoising/l1"])
    losses.total.backward()
    assert losses.total.isfinite()


def test_focal_parameters_are_those_of_the_run():
    _, criterion, _ = run_of(**{"loss.focal_alpha": 0.4, "loss.focal_gamma": 1.5, "stable.transform": "exp"})
    term = criterion.branches[0].terms["class"][1]
    assert term.keywords == {
        "alpha": 0.4, "gamma": 1.5, "iou_power": 2.0, "probability_power": 0.0, "transform": "exp"
    }  # fmt: skip


def test_the_released_cost_and_none():
    _, criterion, _ = run_of(**{"stable.cost": "released", "stable.cost_power": 1.0})
    assert criterion.branches[0].matcher == ReleasedModulatedMatcher(criterion.branches[0].matcher.costs, power=1.0)
    _, plain, _ = run_of(**{"stable.cost_power": 0.0})
    expected = build_criterion(small.config("baseline")).branches[0].matcher
    assert repr(plain.branches[0].matcher) == repr(expected)


@pytest.mark.fault("F44")
@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_images_without_objects(counts):
    detector, criterion, images = run_of("c", **OTHERS["denoising"])
    targets = small.objects(*counts)
    losses = criterion(detector.train()(images, targets), targets)
    losses.total.backward()
    assert losses.total.isfinite() and losses.terms["one_to_one/class"].min() > 0


@pytest.mark.parametrize(
    "path, value",
    [
        ("stable.loss_iou_power", -1),
        ("stable.loss_probability_power", -0.1),
        ("stable.cost_power", -0.5),
        ("stable.transform", "cos"),
        ("stable.cost", "batch"),
    ],
)
def test_numbers_out_of_range(path, value):
    with pytest.raises(ConfigError, match=path):
        small.config("c", **{path: value})


def test_a_target_that_is_always_1_is_refused():
    with pytest.raises(ConfigError, match="^stable.loss_iou_power: .*stable=null"):
        small.config("c", **{"stable.loss_iou_power": 0.0})


def test_no_encoder_to_fuse():
    with pytest.raises(ConfigError, match="^stable.memory_fusion: .*encoder_layers=0"):
        small.config("c", **{"stable.memory_fusion": True, "model.encoder_layers": 0})


def test_another_class_loss_than_the_focal_one_is_refused():
    """Beside LW-DETR, which has losses of its own, its loss would be in no branch."""
    lw_detr = {"two_stage": None, "lw_detr.groups": 3, "model.query_positions": "references"}
    with pytest.raises(ConfigError, match="^stable: .*class_loss=iou_aware is .*lw_detr.class_loss=focal.*stable=null"):
        small.config("baseline", **STABLE, **lw_detr)
    criterion = build_criterion(small.config("baseline", **STABLE, **lw_detr, **{"lw_detr.class_loss": "focal"}))
    assert all(branch.terms["class"][1].func is position_supervised_loss for branch in criterion.branches)


@pytest.mark.parametrize("changes", [{"stable.cost": "released"}, {"stable.cost_power": 1.0}], ids=str)
def test_a_cost_where_nothing_is_matched_with_costs_is_refused(changes):
    with pytest.raises(
        ConfigError, match="^stable.cost, stable.cost_power: .*deta.encoder=false or deta.decoder=false"
    ):
        small.config("baseline", **changes, **OTHERS["deta"])
    for other in ({"deta.encoder": False}, OTHERS["deta"] | OTHERS["hybrid"], OTHERS["deta"] | OTHERS["group"]):
        small.config("baseline", **changes, **other)


@pytest.mark.parametrize("name", ["stable-dino-4scale-r50", "stable-dino-4scale-r50-ms-c"])
def test_the_recipe_has_the_dino_of_the_published_code(name):
    """That of detrex: heads for every layer, Deformable DETR's positions of maps, the stem alone frozen."""
    model = recipes.get(f"coco/{name}").model
    assert (model.shared_heads, model.position_temperature, model.position_offset) == (False, 10000, -0.5)
    assert (model.trainable_layers, model.num_classes, model.num_queries) == (4, 80, 900)


@pytest.mark.parametrize(
    "name", [name for name in recipes.names() if "stable" in recipes.get(name).methods and "small-gpu" not in name]
)
def test_recipes_build(name):
    config = recipes.get(name)
    with torch.device("meta"):
        build_detector(config.override({"model.pretrained": "none"}))
    weights = {branch.name: branch.weights["class"] for branch in build_criterion(config).branches}
    denoising = weights.pop("denoising", None)
    assert set(weights.values()) == {6.0}
    assert denoising == (1.0 if name.startswith("coco/") else None)


# ---------------------------------------------------------------- its denoising


def test_negatives_of_several_kinds():
    """Each kind of them moves by a step further; those of a step of 0 as little as positives."""
    targets = small.objects(3, 1)
    for negatives, step in ((1, 0.0), (3, 0.5)):
        changes = {"denoising.negatives": negatives, "denoising.negative_step": step, "denoising.queries": 9}
        config = small.config("baseline", **changes, **{"denoising.box_noise": 0.1}).denoising
        source = DenoisingQueries(32, 8, config)
        slots = source.slots(targets, 3)
        assert slots.size == 3 * (1 + negatives) and len(slots.slot) == 3 * (1 + negatives) * 4
        assert slots.kind.bincount().tolist() == [12] * (1 + negatives)
        assert torch.equal(slots.negative, slots.kind > 0) and not slots.negative[slots.positive].any()
        assert len(set(zip(targets.image[slots.object].tolist(), slots.slot.tolist()))) == len(slots.slot)
        draws = Draws.of(len(slots.slot), 8, targets.boxes)
        _, boxes = source.noised(targets, slots, draws)
        true = targets.boxes[slots.object]
        moved = (cxcywh_to_xyxy(boxes) - cxcywh_to_xyxy(true)).abs() / (true[:, 2:].repeat(1, 2) / 2) / 0.1
        torch.testing.assert_close(moved, draws.box + slots.kind[:, None] * step)


def test_sizes_below_0_become_0():
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2]], dtype=torch.float64)
    inward = Draws(torch.zeros(1), torch.zeros(1), torch.full((1, 4), 0.9), torch.tensor([[1.0, 1.0, -1.0, -1.0]]))
    further = torch.ones(1)
    assert (move_corners(boxes, inward, 1.0, further)[:, 2:] < 0).all()
    assert torch.equal(move_corners(boxes, inward, 1.0, further, clamp_sizes=True)[:, 2:], torch.zeros(1, 2).double())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"denoising.negatives": 0}, "denoising.negatives"),
        ({"denoising.negative_step": -1}, "denoising.negative_step"),
        ({"denoising.class_weight": -1}, "denoising.class_weight"),
        ({"denoising.contrastive": False, "denoising.negatives": 2}, "denoising.negatives.*contrastive=true"),
        ({"denoising.contrastive": False, "denoising.noise": "clamped_corners"}, "denoising.noise: clamped_corners"),
    ],
    ids=str,
)
def test_denoising_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        small.config("baseline", **changes)
