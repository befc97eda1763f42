"""What a matcher says of its decisions is what it does, for every matcher and over a batch."""

import pytest
import torch

from msdetr.matching import (
    STATUSES,
    HungarianMatcher,
    IoUMatcher,
    Matcher,
    OneToManyMatcher,
    ReleasedIoUMatcher,
    ReleasedOneToMany,
    SharedMatcher,
    Status,
    merge_matches,
)
from msdetr.structures import Predictions, Targets

MATCHERS = {
    "hungarian": HungarianMatcher(),
    "hungarian in parts": HungarianMatcher(parts=2),
    "exclusive": OneToManyMatcher(threshold=0.2, k=3),
    "literal": OneToManyMatcher(threshold=0.2, k=3, exclusive=False),
    "released": ReleasedOneToMany(k=3),
    "by IoU": IoUMatcher(k=3),
    "released by IoU": ReleasedIoUMatcher(k=3, cap=5),
    "shared by layers": SharedMatcher(IoUMatcher(k=3)),
}


def batch(seed=0, counts=(3, 0, 5), queries=12):
    draw = torch.Generator().manual_seed(seed)
    boxes = [0.2 + 0.5 * torch.rand(n, 4, generator=draw) for n in counts]
    labels = [torch.randint(0, 3, (n,), generator=draw) for n in counts]
    shape = (2, len(counts), queries)
    predicted = 0.2 + 0.5 * torch.rand(*shape, 4, generator=draw)
    return Predictions(torch.randn(*shape, 3, generator=draw), predicted), Targets.from_list(labels, boxes)


@pytest.mark.parametrize("matcher", MATCHERS.values(), ids=MATCHERS)
def test_a_pair_is_matched_or_has_an_obstacle(matcher):
    predictions, targets = batch()
    torch.manual_seed(0)
    decisions = matcher.explain(predictions, targets)
    torch.manual_seed(0)
    matches = matcher(predictions, targets)
    pairs = set(zip(matches.layer.tolist(), matches.target.tolist(), matches.query.tolist(), strict=True))
    assert pairs == {tuple(where) for where in decisions.matched.nonzero().tolist()} and pairs
    blocked = torch.stack(list(decisions.obstacles.values())).any(0)
    assert torch.equal(blocked, ~decisions.matched)
    assert torch.equal(decisions.status == STATUSES.index(Status.MATCHED), decisions.matched)
    for layer, target, query in (decisions.rival >= 0).nonzero().tolist():
        rival = int(decisions.rival[layer, target, query])
        assert rival != target and targets.image[rival] == targets.image[target]
    if not isinstance(matcher, HungarianMatcher):  # the matcher's own pairs stand among the first places
        assert (decisions.place[decisions.matched] <= 3).all()


def test_a_pair_that_gives_way_in_a_merge_is_lost_to_the_later_one():
    predictions, targets = batch(queries=6)
    torch.manual_seed(0)
    released = ReleasedOneToMany(k=3, positive_fraction=1.0).explain(predictions, targets)
    single = HungarianMatcher()(predictions, targets)
    after = released.merged(merge_matches(released.matches, single, 6, targets.num_images), targets)
    gone = released.matched & ~after.matched
    assert gone.any() and (after.status[gone] == STATUSES.index(Status.LOST)).all()
    for layer, target, query in gone.nonzero().tolist():
        rival = int(after.rival[layer, target, query])
        assert after.matched[layer, rival, query] and released.matched[layer, rival, query]
    assert torch.equal(after.added, after.status == STATUSES.index(Status.MERGED))


def test_a_matcher_without_reasons_says_so():
    class First(Matcher):
        def prepare(self, predictions, targets):
            return ()

        def assign(self, host, predictions, targets):
            return OneToManyMatcher()(predictions, targets)

    with pytest.raises(NotImplementedError, match="First does not explain its matches"):
        First().explain(*batch())
