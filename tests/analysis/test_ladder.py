"""A rung of the ladder says what its modules do: who sees whom, and which query learns from which object."""

import numpy as np
import pytest
import torch
from small import SMALL

from msdetr import recipes
from msdetr.analysis.ladder import WITH_MS_DETR, ladder_recipes, look_at_rung, who_sees_whom
from msdetr.methods import build_criterion, build_detector
from msdetr.modules import Context, Layout
from msdetr.structures import ImageBatch, QueryGroup, Targets
from msdetr.viz.ladder import ladder_figure

FEW = {
    "hybrid": {"hybrid.queries": 8, "hybrid.k": 2},
    "group": {"group.groups": 3},
    "denoising": {"denoising.queries": 6},
}


def look(name: str, image: int = 1, **changes):
    config = recipes.get(name).override(SMALL | {"model.num_queries": 6} | changes)
    for section, values in FEW.items():
        if section in config.methods:
            config = config.override(values)
    torch.manual_seed(0)
    batch = ImageBatch.from_images([torch.randn(3, 64, 64) for _ in range(2)])
    targets = Targets.from_list(
        [torch.tensor([0, 1, 2]), torch.tensor([3, 4])], [torch.rand(n, 4) * 0.3 + 0.3 for n in (3, 2)]
    )
    return look_at_rung(build_detector(config), build_criterion(config), batch, targets, image)


def test_the_baseline_has_one_group_and_one_lesson_per_object():
    rung = look("shapes/baseline")
    assert rung.groups == {"primary": slice(0, 6)} and rung.sees.all() and rung.objects == 2
    assert sorted(target for _, target in rung.lessons["one_to_one"].pairs) == [0, 1] and rung.count() == 2


def test_ms_detr_adds_lessons_for_the_same_queries():
    rung, without = look("shapes/ms-detr-c", **{"ms_detr.threshold": 0.0}), look("shapes/baseline")
    assert np.array_equal(rung.sees, without.sees)
    lesson = rung.lessons["one_to_many"]
    assert lesson.group == "primary" and lesson.inside and rung.count("one_to_many") > rung.count("one_to_one")


def test_hybrid_matching_repeats_objects_in_a_group_apart():
    rung = look("shapes/h-detr")
    assert [target for target in (0, 1) for _ in range(2)] == sorted(t for _, t in rung.lessons["hybrid"].pairs)
    assert {query >= 6 for query, _ in rung.lessons["hybrid"].pairs} == {True}
    assert rung.sees.sum() == 6 * 6 + 8 * 8


def test_groups_see_themselves_alone_and_denoising_queries_the_primary_group_too():
    rung = look("shapes/group-detr")
    assert rung.parts["group"] == 2 and rung.sees.sum() == 3 * 6 * 6 and rung.count("group") == 4
    rung = look("shapes/dino")
    first, noised = rung.groups["primary"], rung.groups["denoising"]
    assert not rung.sees[first, noised].any() and rung.sees[noised, first].all()
    assert set(rung.lessons["denoising"].pairs) == {(6 + target, target) for target in range(2)} | {
        (query, target) for query, target in rung.lessons["denoising"].pairs if query >= 6 + 6
    }


@pytest.mark.parametrize("parts", [1, 2])
def test_the_table_is_what_attention_does(parts):
    """A query's output changes where, and only where, one that it sees is changed."""
    torch.manual_seed(0)
    groups = [
        QueryGroup("primary", *torch.randn(2, 1, 4, 32), torch.rand(1, 4, 4)),
        QueryGroup("other", *torch.randn(2, 1, 6, 32), torch.rand(1, 6, 4), parts=parts, reads=("primary",)),
    ]
    from msdetr.modules import SelfAttention

    layout = Layout.of(groups)
    attention = SelfAttention(32, 4).eval()
    queries = torch.randn(1, 10, 32)
    context = Context(torch.zeros(1, 10, 32), torch.rand(1, 10, 4), None, layout)
    before = attention(queries, context)
    for column in range(10):
        changed = queries.clone()
        changed[0, column] += 1
        differs = (attention(changed, context) - before).abs().amax(-1)[0] > 1e-6
        expected = torch.from_numpy(who_sees_whom(layout)[:, column])
        expected[column] = differs[column]  # its own residual or value
        assert torch.equal(differs, expected)


def test_every_rung_has_a_recipe_and_a_figure_two_panels_each():
    named = ladder_recipes()
    assert named["Deformable DETR++" + WITH_MS_DETR] == "shapes/ms-detr-c" and len(set(named.values())) == len(named)
    assert named["DINO"] == "shapes/dino" and named["DN-DETR" + WITH_MS_DETR] == "shapes/dn-detr-ms-c"
    assert len(named) == 16
    figure = ladder_figure({"a": look("shapes/baseline"), "b": look("shapes/dino-ms-c")}, columns=2)
    assert len(figure.axes) == 4
