"""Denoising queries: the published numbers, who sees whom, what is supervised, and what the rest of the detector notices."""

import json
from pathlib import Path

import pytest
import small
import torch
from denoised_queries import read_draws
from golden import read_arrays, read_targets
from published import dense_mask

from msdetr import recipes
from msdetr.boxes import cxcywh_to_xyxy, logit
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine.trainer import Trainer
from msdetr.errors import ConfigError, InputError
from msdetr.methods import DenoisingConfig, build_criterion, build_detector
from msdetr.methods.denoising_queries import (
    DenoisingQueries,
    Draws,
    Slots,
    move_centers_and_sizes,
    move_corners,
    move_corners_both_ways,
    noised_labels,
    number_of_groups,
)
from msdetr.model import Proposals, training_only_names
from msdetr.modules import Layout
from msdetr.structures import ImageBatch, QueryGroup, Targets

GOLDEN = Path(__file__).parent.parent / "golden_small" / "denoising"
CASES = json.loads((GOLDEN / "manifest.json").read_text())["cases"]
BY_OBJECTS = [n for n, c in CASES.items() if number_of_groups(c["queries"], max(c["objects"])) == c["groups"]]

# ---------------------------------------------------------------- the published numbers


def recorded(name):
    case, arrays = CASES[name], read_arrays(GOLDEN / f"{name}.npz")
    targets = read_targets(arrays, len(case["objects"]), torch.float64)
    draws = read_draws(arrays, len(arrays["noised_labels"]))
    return case, {key: torch.from_numpy(value) for key, value in arrays.items()}, targets, draws


@pytest.mark.parametrize("name", CASES)
def test_noise_and_slots_are_those_of_the_published_code(name):
    case, arrays, targets, draws = recorded(name)
    slots = Slots.of(targets, case["groups"], case["contrastive"])
    assert slots.groups * slots.size == case["padded"]
    for key, ours in (("flat_slot", slots.slot), ("flat_image", targets.image[slots.object])):
        if key in arrays and not case["contrastive"]:
            assert torch.equal(ours, arrays[key])
    labels = noised_labels(targets.labels[slots.object], draws, case["label_share"])
    assert torch.equal(labels, arrays["noised_labels"])

    boxes = targets.boxes[slots.object]
    if not case["corners"]:
        boxes = move_centers_and_sizes(boxes, draws, case["box_scale"])
    elif case["contrastive"]:
        boxes = move_corners(boxes, draws, case["box_scale"], slots.negative)
    else:  # DN-DETR's two-stage model: corners, both ways at once
        boxes = move_corners_both_ways(boxes, draws, case["box_scale"])
    torch.testing.assert_close(boxes, arrays["noised_boxes"], rtol=0, atol=1e-12)

    logits = torch.zeros(len(case["objects"]), case["padded"], 4, dtype=torch.float64)
    logits[targets.image[slots.object], slots.slot] = logit(boxes, eps=1e-3)
    torch.testing.assert_close(logits, arrays["query_box_logit"][:, : case["padded"]], rtol=0, atol=1e-11)


def queries_of(name):
    """The source itself, given recorded numbers."""
    case, arrays, targets, draws = recorded(name)
    dim = arrays["label_enc"].shape[1]
    config = DenoisingConfig(
        max(case["queries"], 1), case["contrastive"], case["label_share"], case["box_scale"] or 0.0
    )
    source = DenoisingQueries(dim, case["num_classes"], config).double()
    with torch.no_grad():
        source.label_embedding.weight.copy_(arrays["label_enc"][: case["num_classes"]])
    return arrays, targets, source(PROPOSALS, targets, primary(torch.zeros(1, 1, 4, dtype=torch.float64)), draws)


PROPOSALS = Proposals(None, embed=lambda references: (references, None))


def primary(references):
    return {"primary": QueryGroup("primary", references, references, references)}


@pytest.mark.parametrize("name", [n for n in BY_OBJECTS if n.startswith("dino")])
def test_the_group_is_the_published_one(name):
    arrays, targets, group = queries_of(name)
    torch.testing.assert_close(group.contents, arrays["query_label"], rtol=0, atol=1e-12)
    torch.testing.assert_close(logit(group.references), arrays["query_box_logit"], rtol=0, atol=1e-11)
    assert group.divisor == CASES[name]["groups"] and len(group.pairs) == group.divisor * len(targets)

    blocked = arrays["attention_mask"]
    padded = group.contents.shape[1]
    own = torch.zeros(1, len(blocked) - padded, 1)
    layout = Layout.of([QueryGroup("primary", own, own, own), group])
    assert torch.equal(torch.roll(dense_mask(layout), (padded, padded), (0, 1)), blocked)


def test_enough_published_cases_are_compared():
    assert len(CASES) == 17 and {"dino_n50", "dino_n100", "dino_many", "dino_large_noise", "dino_none"} <= {*BY_OBJECTS}


@pytest.mark.parametrize(("queries", "most", "groups"), [(100, 7, 14), (100, 100, 1), (100, 120, 1), (1, 5, 1), (9, 0, 1)])  # fmt: skip
def test_number_of_groups(queries, most, groups):
    assert number_of_groups(queries, most) == groups


# ---------------------------------------------------------------- in a detector


def config(recipe="dino", **changes):
    return recipes.get(f"shapes/{recipe}").override(small.SMALL | {"denoising.queries": 6} | changes)


def batch(*counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = ImageBatch.from_images([torch.randn(3, 64, 64, generator=generator) for _ in counts])
    return images, Targets.from_list(
        [torch.randint(8, (n,), generator=generator) for n in counts],
        [torch.rand(n, 4, generator=generator) * 0.3 + 0.3 for n in counts],
    )


def losses(detector, criterion, data):
    return criterion(detector(*data), data[1])


@pytest.mark.parametrize("recipe", ["dn-detr", "dino", "dn-detr-ms-c", "dino-ms-c"])
def test_it_learns_strips_and_predicts_the_same(recipe):
    settings = config(recipe)
    torch.manual_seed(0)
    detector, criterion = build_detector(settings), build_criterion(settings)
    found = losses(detector, criterion, batch(1, 3))
    found.total.backward()
    assert {"denoising/class", "denoising/l1", "denoising/giou"} <= set(found.terms)
    assert ("one_to_many/class" in found.terms) == recipe.endswith("ms-c")
    assert len(found.matches["denoising"]) == 2 * 2 * 4  # layers, groups, objects
    assert detector.sources["denoising"].label_embedding.weight.grad.abs().sum() > 0

    images, plain = batch(1, 3)[0], build_detector(settings.override({"denoising": None, "ms_detr": None}))
    assert "sources.denoising." in training_only_names(detector)
    small.evaluated(detector, images)
    assert [n for n, _ in detector.named_parameters()] == [n for n, _ in plain.named_parameters()]


def test_the_rungs_differ_in_one_thing_only():
    """Off, the configuration and the first weights are those of the baseline."""
    settings, baseline = config(), recipes.get("shapes/baseline").override(small.SMALL)
    assert settings.override({"denoising": None, "recipe": baseline.recipe}) == baseline
    drawn = []
    for each in (settings, baseline):
        torch.manual_seed(3)
        drawn.append(build_detector(each).strip().state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[1])


def test_the_primary_group_does_not_notice_the_noise():
    detector, data = build_detector(config()), batch(2, 3)
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outputs.append(detector(*data))
    first, second = outputs
    torch.testing.assert_close(first.one_to_one.boxes, second.one_to_one.boxes)
    torch.testing.assert_close(first.one_to_one.logits, second.one_to_one.logits)
    own = [output.groups["denoising"].predictions.boxes for output in outputs]
    assert (own[0] - own[1]).abs().max() > 0.01
    weight = detector.sources["denoising"].label_embedding.weight
    (slope,) = torch.autograd.grad(first.one_to_one.logits.sum() + first.one_to_one.boxes.sum(), weight, allow_unused=True)  # fmt: skip
    assert slope is None or not slope.any()


def test_groups_do_not_see_each_other():
    """Other noise in one group leaves the predictions of the other as they are; within a group it is felt."""
    detector, (images, targets) = build_detector(config("dn-detr")).eval(), batch(3)
    detector = detector.double()
    images = ImageBatch(images.images.double(), images.mask)
    memory = detector.encoder(detector.pyramid(images))
    _, groups = detector.query_groups(memory, targets)
    denoising = groups[1]
    assert denoising.parts == 2
    contents = denoising.contents.clone()
    contents[:, 0] += 1
    changed = QueryGroup(**{**denoising.__dict__, "contents": contents})
    before, after = (detector.decoder([groups[0], g], memory)["denoising"].predictions.logits for g in (denoising, changed))  # fmt: skip
    moved = (before - after).abs().amax((0, 1, 3))
    assert (moved[:3] > 1e-9).all() and (moved[3:] < 1e-12).all()


def test_negatives_and_padding_are_background():
    settings, data = config(), batch(1, 3)
    detector, criterion = build_detector(settings), build_criterion(settings)
    output = detector(*data)
    group, found = output.groups["denoising"], criterion(output, data[1])
    assert group.predictions.boxes.shape[2] == 2 * 2 * 3 and group.parts == group.divisor == 2
    pairs = zip(*(getattr(group.pairs, name).tolist() for name in ("image", "query", "target")))
    assert sorted(pairs) == [(0, 0, 0), (0, 6, 0), (1, 0, 1), (1, 1, 2), (1, 2, 3), (1, 6, 1), (1, 7, 2), (1, 8, 3)]

    logits = group.predictions.logits
    truth = torch.zeros_like(logits)
    truth[:, group.pairs.image, group.pairs.query, data[1].labels[group.pairs.target]] = 1
    p = logits.sigmoid()
    focal = torch.where(truth == 1, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    expected = focal.sum((1, 2, 3)) / (4 * 2)  # objects times groups
    torch.testing.assert_close(found.terms["denoising/class"], expected.detach(), rtol=1e-4, atol=1e-6)


def test_positives_stay_nearer_than_negatives():
    boxes, half = torch.tensor([[0.5, 0.5, 0.2, 0.2]]).repeat(500, 1), 0.1
    negative = torch.arange(500) % 2 == 1
    torch.manual_seed(0)
    moved = move_corners(boxes, Draws.of(500, 8, boxes), 0.4, negative)
    distance = (cxcywh_to_xyxy(moved) - cxcywh_to_xyxy(boxes)).abs() / half / 0.4
    assert distance[~negative].max() <= 1 + 1e-4 and distance[negative].min() >= 1 - 1e-4
    labels = noised_labels(torch.full((500,), 9), Draws.of(500, 8, boxes), 0.25)
    assert 0.15 < (labels != 9).float().mean() < 0.35


# ---------------------------------------------------------------- batches of every kind


@pytest.mark.fault("F44")
@pytest.mark.fault("F45")
@pytest.mark.parametrize("recipe", ["dn-detr", "dino-ms-c"])
@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (9, 1), (0,)])
@pytest.mark.filterwarnings("ignore:.*stay unmatched")
def test_every_batch_gives_the_same_terms(recipe, counts):
    changes = {"ms_detr.groups": "all"} if "ms" in recipe else {}
    settings = config(recipe, **changes)
    detector, criterion = build_detector(settings), build_criterion(settings)
    usual = losses(detector, criterion, batch(1, 2)).terms
    found = losses(detector, criterion, batch(*counts))
    assert set(found.terms) == set(usual) and found.total.isfinite()
    found.total.backward()
    gradients = {name: p.grad for name, p in detector.named_parameters()}
    assert gradients["sources.denoising.label_embedding.weight"] is not None
    assert all(g is None or g.isfinite().all() for g in gradients.values())
    most = max(counts) if any(counts) else 0
    kinds = 1 if recipe == "dn-detr" else 2
    assert detector(*batch(*counts)).groups["denoising"].predictions.boxes.shape[2] == kinds * most * max(6 // max(most, 1), 1)  # fmt: skip


@pytest.mark.parametrize("recipe", ["dn-detr", "dino"])
@pytest.mark.parametrize(("counts", "groups"), [((1, 3), None), ((3, 3), None), ((3, 0), 4), ((9, 2), None)])
def test_padding_follows_the_image_with_most_objects(recipe, counts, groups):
    """Every image has as many queries as the one with most objects needs, and no more; those beyond its own are empty."""
    detector, data = build_detector(config(recipe, **{"denoising.groups": groups})).eval(), batch(*counts)
    _, (_, group) = detector.query_groups(detector.encoder(detector.pyramid(data[0])), data[1])
    kinds, times = 2 if recipe == "dino" else 1, groups or max(6 // max(counts), 1)
    assert group.contents.shape[1] == times * kinds * max(counts) and group.parts == times
    assert (group.objects >= 0).sum(1).tolist() == [times * kinds * count for count in counts]
    filling = group.objects < 0
    assert not group.contents[filling].any() and (group.references[filling] == 0.5).all()


def test_what_fills_up_is_not_supervised_in_dn_detr():
    """A loss on it in the plain style, none and no gradient in DN-DETR's."""
    data = batch(1, 3)
    for style in ("plain", "indicated"):
        settings = config("dn-detr", **{"denoising.style": style})
        detector, criterion = build_detector(settings), build_criterion(settings)
        output = detector(*data)
        logits = output.groups["denoising"].predictions.logits
        filling = output.groups["denoising"].objects < 0
        supervised = criterion.supervised(output, data[1])["denoising"]
        branch = next(branch for branch in criterion.branches if branch.name == "denoising")
        loss = branch.terms["class"][1](supervised.predictions, supervised.targets, supervised.pairs)
        (slope,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all() and filling.any()
        assert slope[:, filling].any() == (style == "plain") and slope[:, ~filling].any()


@pytest.mark.parametrize("style", ["indicated", "released_contrastive"])
@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (9, 1)])
@pytest.mark.parametrize("candidates", [{}, {"ms_detr.groups": "all"}])
@pytest.mark.filterwarnings("ignore:.*stay unmatched", "ignore:one-to-many matching. k")
def test_every_batch_can_be_learned_from_in_dn_detrs_styles(style, counts, candidates):
    settings = config(**{"denoising.style": style}, **candidates)
    detector, criterion = build_detector(settings), build_criterion(settings)
    found = losses(detector, criterion, batch(*counts))
    found.total.backward()
    assert found.total.isfinite()
    assert detector.sources["denoising"].label_embedding.weight.grad is not None


def test_the_strongest_noise_is_finite():
    settings = config(**{"denoising.box_noise": 2.0, "denoising.label_noise": 1.0})
    found = losses(build_detector(settings), build_criterion(settings), batch(4, 2))
    found.total.backward()
    assert found.total.isfinite()


def test_a_label_that_is_no_class_is_named():
    images, targets = batch(1, 1)
    wrong = Targets(targets.labels + 100, targets.boxes, targets.image, 2, image_ids=(7, 8))
    with pytest.raises(InputError, match=r"image id 7 .*outside \[0, 8\)"):
        build_detector(config())(images, wrong)


@pytest.mark.fault("F101")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoising.label_noise": 1.5}, "denoising.label_noise: must be at most 1"),
        ({"denoising.label_noise": -0.1}, "denoising.label_noise: must be at least 0"),
        ({"denoising.box_noise": 2.5}, "denoising.box_noise: must be at most 2"),
        ({"denoising.box_noise": float("nan")}, "denoising.box_noise: expected a finite number"),
        ({"denoising.box_noise": 1.5, "denoising.contrastive": False}, "denoising.box_noise: 1.5 would make sizes"),
        ({"denoising.queries": 0}, "denoising.queries: must be at least 1"),
        ({"denoising.groups": 0}, "denoising.groups: must be at least 1"),
        ({"denoising.noise": "centers"}, "denoising.noise: negatives are made by moving corners"),
        ({"denoising.style": "indicator"}, "denoising.style: 'indicator' is not one of plain, indicated"),
        (
            {"denoising.style": "released_contrastive", "denoising.contrastive": False},
            "denoising.style: .*contrastive=true",
        ),
        (
            {"model.query_positions": "references", "two_stage": None, "denoising": None},
            "model.query_positions: .*points",
        ),
        ({"dab": True, "two_stage": None}, "dab: .*model.query_positions=scaled_references"),
        (
            {"model.shared_heads": True, "model.box_refine": False, "model.look_forward_twice": False},
            "model.shared_heads",
        ),
        ({"denoising.weight": -1.0}, "denoising.weight: must be at least 0"),
        ({"two_stage": None}, "denoising: .*two_stage is off; switch it on"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_nothing_waits_for_the_device():
    """Its numbers are never read back: tensors without any stand for those of a device."""
    source = DenoisingQueries(8, 8, DenoisingConfig(queries=6)).to("meta")
    group = source(PROPOSALS, batch(1, 3)[1].to("meta"), primary(torch.zeros(1, 1, 4, device="meta")))
    assert group.contents.shape == (2, 12, 8) and group.contents.device.type == "meta"
    assert len(group.pairs) == 8


# ---------------------------------------------------------------- random numbers


def trainer(settings):
    torch.manual_seed(0)
    return Trainer(build_detector(settings), build_criterion(settings), settings.train, total_steps=4, steps_per_epoch=2)  # fmt: skip


def test_the_same_seed_gives_the_same_step():
    settings, data = config("dino-ms-c"), batch(1, 3)
    first, second = (trainer(settings).step([data]) for _ in range(2))
    torch.testing.assert_close(first.loss, second.loss, rtol=0, atol=0)


def test_a_resumed_run_draws_the_same_noise(tmp_path):
    settings, data = config(), batch(1, 3)
    first = trainer(settings)
    first.step([data])
    files, training = first.files()
    manifest = {"step": 1, "epoch": 0.5, "config": settings.to_dict(), "class_names": list("abcdefgh"),
                "category_ids": list(range(8)), "metrics": {}, "training": training | {"seconds": 1.0, "evaluations": []}}  # fmt: skip
    written = checkpoints.write(tmp_path / "checkpoints" / "step_00000001", files, manifest)
    state = torch.get_rng_state()
    expected = first.step([data])
    second = trainer(written.config)
    torch.rand(10)
    second.restore(written)
    if not torch.equal(torch.get_rng_state(), state):
        pytest.fail("the generator of the run is not restored")
    again = second.step([data])
    torch.testing.assert_close(expected.loss, again.loss, rtol=0, atol=0)
