"""A criterion waits for the device once, whatever its branches: to copy what matching on the host needs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import small
import torch
from pretend_cuda import DEVICE, Waits, fetch, pretend_cuda, put

from msdetr.losses import Branch, Criterion, Supervised, detection_terms, focal_loss, giou_loss, l1_loss, of_group
from msdetr.matching import (
    HungarianMatcher,
    IoUMatcher,
    OneToManyMatcher,
    ReleasedIoUMatcher,
    ReleasedOneToMany,
    SharedMatcher,
    match_all,
)
from msdetr.matching.base import all_finite
from msdetr.methods import build_criterion
from msdetr.structures import DetectorOutput, EncoderOutput, GroupOutput, Matches, Predictions, Targets

K, B, Q, C = 2, 3, 12, 4
MATCHERS = {
    "hungarian": HungarianMatcher(),
    "parts": HungarianMatcher(parts=3),
    "exclusive": OneToManyMatcher(threshold=0.1),
    "literal": OneToManyMatcher(threshold=0.1, exclusive=False),
    "released": ReleasedOneToMany(threshold=0.1),
    "iou": IoUMatcher(),
    "released_iou": ReleasedIoUMatcher(cap=20),
    "shared": SharedMatcher(IoUMatcher()),
}
TERMS = {"class": focal_loss, "l1": l1_loss, "giou": giou_loss}


def make_boxes(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, 4) * 0.4 + 0.2


def make_predictions(layers: int = K, queries: int = Q) -> Predictions:
    return Predictions(torch.randn(layers, B, queries, C), make_boxes(layers, B, queries))


def make_targets(counts=(2, 0, 3)) -> Targets:
    labels, boxes = [torch.randint(0, C, (n,)) for n in counts], [make_boxes(n) for n in counts]
    return Targets.from_list(labels, boxes, image_ids=(7, 8, 9), sizes=torch.full((B, 2), 64))


def make_output() -> DetectorOutput:
    zeros = torch.zeros(2, dtype=torch.long)
    pairs = Matches(zeros, zeros, torch.tensor([3, 5]), torch.tensor([0, 1]))
    known = GroupOutput(make_predictions(), make_predictions(), make_boxes(K, B, Q), pairs=pairs)
    encoder = EncoderOutput(make_predictions(1, 30), make_boxes(B, 30))
    return DetectorOutput(make_predictions(), make_predictions(), encoder, groups={"known": known})


def there(value):
    """A copy on the device."""
    if isinstance(value, Predictions):
        return Predictions(put(value.logits), put(value.boxes))
    if isinstance(value, Matches):
        return Matches(*(put(getattr(value, name)) for name in ("layer", "image", "query", "target")))
    encoder, known = value.encoder, value.groups["known"]
    group = replace(
        known,
        predictions=there(known.predictions),
        candidates=there(known.candidates),
        references=put(known.references),
        pairs=there(known.pairs),
    )
    return DetectorOutput(
        there(value.one_to_one),
        there(value.one_to_many),
        EncoderOutput(there(encoder.predictions), put(encoder.anchors)),
        groups={"known": group},
    )


def sent(targets: Targets) -> Targets:
    """As a training step sends them."""
    return targets.pin_memory().to(DEVICE, non_blocking=True)


def columns(matches: Matches) -> list[torch.Tensor]:
    return [fetch(getattr(matches, name)) for name in ("layer", "image", "query", "target")]


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("counts", [(2, 0, 3), (0, 0, 0)])
def test_matchers_prepare_without_waiting(name, counts):
    matcher, predictions, targets = MATCHERS[name], make_predictions(), make_targets(counts)
    with pretend_cuda() as device:
        matcher.prepare(there(predictions), sent(targets))
        all_finite(there(predictions), sent(targets))
    assert device.waits == device.to_host == 0


@pytest.mark.parametrize("name", MATCHERS)
def test_matchers_wait_once_and_find_the_same(name):
    matcher, predictions, targets = MATCHERS[name], make_predictions(), make_targets()
    torch.manual_seed(0)  # the released rule draws which votes count
    want = matcher(predictions, targets)
    torch.manual_seed(0)
    with pretend_cuda() as device:
        found = matcher(there(predictions), sent(targets))
    assert device.waits == 1 and len(want) > 0
    assert all(torch.equal(a, b) for a, b in zip(columns(found), columns(want)))


def test_many_problems_wait_once():
    predictions, targets = make_predictions(queries=30), make_targets()
    with pretend_cuda() as device:
        own = sent(targets)
        changed = [own, own.repeated(2), own.class_agnostic(), own.class_agnostic().repeated(3)]
        match_all([(matcher, there(predictions), t) for matcher in MATCHERS.values() for t in changed])
    assert device.waits == 1


@pytest.mark.parametrize("name", TERMS)
def test_terms_do_not_wait(name):
    predictions, targets = make_predictions(), make_targets()
    matches = MATCHERS["literal"](predictions, targets)
    want = TERMS[name](predictions, targets, matches)
    with pretend_cuda() as device:
        found = TERMS[name](there(predictions), sent(targets), there(matches))
    assert device.waits == device.to_host == 0
    torch.testing.assert_close(fetch(found), want)


@pytest.mark.parametrize("rule", ["exclusive", "literal", "released"])
def test_a_criterion_waits_once(rule):
    """One-to-one, one-to-many with merged pairs, the encoder's proposals, repeated targets, and known pairs."""
    config = small.config("c", **{"ms_detr.rule": rule, "ms_detr.threshold": 0.1, "ms_detr.merge": True})
    terms = detection_terms(1.0, 5.0, 2.0)
    hybrid = Branch("hybrid", lambda o, t: Supervised(o.one_to_one, t.repeated(3)), HungarianMatcher(), terms)
    known = Branch("known", of_group("known"), None, terms)
    candidates = Branch("candidates", of_group("known", candidates=True), MATCHERS["exclusive"], terms)
    criterion = Criterion([*build_criterion(config).branches, hybrid, known, candidates])
    output, targets = make_output(), make_targets()
    torch.manual_seed(0)
    want = criterion(output, targets)
    assert set(want.matches) == {"one_to_one", "one_to_many", "encoder", "hybrid", "known", "candidates"}
    torch.manual_seed(0)
    with pretend_cuda() as device:
        found = criterion(there(output), sent(targets))
    assert device.waits == 1
    torch.testing.assert_close(fetch(found.total), want.total)
    for name, matches in want.matches.items():
        assert all(torch.equal(a, b) for a, b in zip(columns(found.matches[name]), columns(matches))), name


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 0.0)[(x > 0).any(1)],
        lambda x: x.unique(),
        lambda x: x.cpu(),
        lambda x: x + torch.ones(3, 3),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x.__setitem__((torch.zeros_like(x[0]).long(), torch.zeros_like(x[0]).long()), 1.0),
        lambda x: torch.arange(3, device=x.device).repeat_interleave(torch.arange(3, device=x.device)),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.ones(3).to(x.device, non_blocking=True),
        lambda x: torch.ones(3).pin_memory().to(x.device),
    ],
)
def test_the_pretended_device_notices_who_waits(act):
    with pytest.raises(Waits), pretend_cuda():
        act(put(torch.randn(3, 3)))


def test_what_was_copied_is_read_after_the_wait_only():
    with pretend_cuda() as device:
        copy = put(torch.ones(3)).to("cpu", non_blocking=True)
        assert copy.isnan().all()
        torch.cuda.current_stream().synchronize()
        assert copy.sum() == 3 and device.waits == device.to_host == 1
