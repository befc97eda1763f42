"""Gradients by branch and part: against plain backward passes, and of terms against finite steps."""

import numpy as np
import pytest
import small
import torch

from msdetr import recipes
from msdetr.analysis.algorithm import toy_scene
from msdetr.analysis.gradients import branch_gradients, branch_pulls, layer_of, only, part_of
from msdetr.analysis.look import both_branches
from msdetr.methods import build_criterion, build_detector
from msdetr.structures import DetectorOutput, ImageBatch, Predictions, Targets


def scene(variant, **changes):
    """A detector, a batch, objects close to what it predicts, and its criterion."""
    config = small.config(variant, **changes)
    detector, batch = build_detector(config), ImageBatch.from_images([torch.randn(3, 64, 64)])
    boxes = both_branches(detector, batch).one_to_one.boxes[-1, 0, :2] - 0.002
    return detector, batch, Targets.from_list([torch.tensor([0, 1])], [boxes]), build_criterion(config)


@pytest.mark.parametrize("variant", "abcd")
@pytest.mark.parametrize("changes", [{}, {"ms_detr.heads": "separate", "ms_detr.candidate_ffn": "with"}])
def test_every_parameter_has_a_part(variant, changes):
    for name, _ in scene(variant, **changes)[0].named_parameters():
        part, layer = part_of(name), layer_of(name)
        assert layer in (part, f"decoder {part.split(':')[0]}", "predictors", "one-to-many only")
        assert ("one-to-many" in part) == (layer == "one-to-many only") == name.startswith("decoder.one_to_many")


def test_the_gradients_of_the_branches_are_those_of_plain_backward_passes():
    detector, batch, targets, criterion = scene("c")
    found = branch_gradients(detector, batch, targets, criterion)
    assert all(p.grad is None for p in detector.parameters())
    assert found.branches == ("one_to_one", "one_to_many", "encoder")
    vectors = {}
    for name in ("one_to_one", "one_to_many"):
        detector.zero_grad()
        only(criterion, name)(detector(batch, one_to_many=True), targets).total.backward()
        self_attention = detector.decoder.layers[0].self_attention
        vectors[name] = torch.cat([p.grad.flatten().double() for p in self_attention.parameters()])
        assert found.norm("layer 1: self-attention", name) == pytest.approx(vectors[name].norm().item(), rel=1e-4)
    cosine = torch.cosine_similarity(*vectors.values(), dim=0).item()
    row = found.parts.index("layer 1: self-attention")
    assert found.cosine("one_to_one", "one_to_many")[row] == pytest.approx(cosine, abs=1e-4)


def test_the_losses_of_the_branches_add_up():
    detector, batch, targets, criterion = scene("c")
    output = both_branches(detector, batch)
    parts = [only(criterion, b.name)(output, targets).total for b in criterion.branches]
    torch.testing.assert_close(sum(parts), criterion(output, targets).total)


@pytest.mark.parametrize(("variant", "free"), [("a", ()), ("b", ()), ("c", ("self-attention", "FFN")), ("d", ("cross-attention", "FFN"))])  # fmt: skip
def test_one_to_many_spares_what_comes_after_its_candidates(variant, free):
    found = branch_gradients(*scene(variant), layer=-1)
    for part in ("self-attention", "cross-attention", "FFN"):
        assert (found.norm(f"layer 2: {part}", "one_to_many") == 0) == (part in free)
        assert found.norm(f"layer 2: {part}", "one_to_one") > 0
    unreached = np.isnan(found.cosine("one_to_one", "one_to_many"))
    assert all(unreached[found.parts.index(f"layer 2: {part}")] for part in free)


def test_a_small_step_along_a_pull_lowers_the_loss():
    predictions, targets = toy_scene()
    criterion = build_criterion(recipes.get("shapes/ms-detr-c"))
    before = criterion(DetectorOutput(predictions, predictions), targets)
    found = branch_pulls(criterion, DetectorOutput(predictions, predictions), targets)
    assert set(found) == {"one_to_one", "one_to_many"}
    for name, (_, terms) in found.items():
        for term, pull in terms.items():
            moved = Predictions(predictions.logits + 1e-3 * pull.logits, predictions.boxes + 1e-4 * pull.boxes)
            after = criterion(DetectorOutput(moved, moved), targets)
            assert after.terms[f"{name}/{term}"] < before.terms[f"{name}/{term}"]
