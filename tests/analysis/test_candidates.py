"""Candidate quality against a loop over objects that a reader can check by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msdetr.analysis.candidates import CandidateQuality, measure_candidates
from msdetr.structures import DetectorOutput, ImageBatch, Predictions, Targets

THRESHOLDS = (0.0, 0.25, 0.5, 0.75, 1.0)


def random_case(seed, layers=2, images=3, queries=5, classes=3):
    """Random boxes near random objects, some images without objects; coarse coordinates, so that ties occur."""
    rng = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (images,), generator=rng).tolist()
    objects = [(torch.randint(1, 9, (n, 4), generator=rng) / 10).float() for n in counts]
    labels = [torch.randint(0, classes, (n,), generator=rng) for n in counts]
    boxes = (torch.randint(1, 9, (layers, images, queries, 4), generator=rng) / 10).float()
    logits = torch.randn(layers, images, queries, classes, generator=rng)
    return Predictions(logits, boxes), Targets.from_list(labels, objects)


def loop_iou(a, b):
    """IoU of two cxcywh boxes, in plain Python."""
    overlap = 1.0
    for axis in (0, 1):
        low = max(a[axis] - a[axis + 2] / 2, b[axis] - b[axis + 2] / 2)
        high = min(a[axis] + a[axis + 2] / 2, b[axis] + b[axis + 2] / 2)
        overlap *= max(0.0, high - low)
    union = a[2] * a[3] + b[2] * b[3] - overlap
    return overlap / union if union > 0 else 0.0


def oracle(cases, top, duplicate_iou):
    """Figures 1 and 2 and the gap of the last layer, object by object."""
    mean_iou, above, gaps = [[] for _ in range(top)], [[] for _ in THRESHOLDS], []
    for predictions, targets in cases:
        for label, box, image in zip(targets.labels.tolist(), targets.boxes.double().tolist(), targets.image.tolist()):
            candidates = predictions.boxes[-1, image].double().tolist()
            overlaps = [loop_iou(candidate, box) for candidate in candidates]
            for k in range(1, top + 1):
                if len(overlaps) >= k:
                    mean_iou[k - 1].append(sum(sorted(overlaps, reverse=True)[:k]) / k)
            for i, t in enumerate(THRESHOLDS):
                above[i].append(sum(overlap > t + 1e-12 for overlap in overlaps))
            scores = predictions.logits[-1, image, :, label].double().sigmoid().tolist()
            rivals = sorted((s for s, o in zip(scores, overlaps) if o >= duplicate_iou - 1e-12), reverse=True)
            if len(rivals) > 1:
                gaps.append(rivals[0] - rivals[1])
    return mean_iou, above, gaps


def mean(values):
    return sum(values) / len(values) if values else float("nan")


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), queries=st.integers(1, 6), batches=st.integers(1, 3))
def test_equals_a_loop_over_objects(seed, queries, batches):
    cases = [random_case(seed + i, queries=queries) for i in range(batches)]
    # Thresholds just beside the coarse IoUs: the rounding of an exact tie is not what is tested here.
    quality = CandidateQuality(
        top=4, thresholds=[t + 1e-12 if t < 1 else t for t in THRESHOLDS], duplicate_iou=0.4999999
    )
    for predictions, targets in cases:
        quality.update(predictions, targets)
    table = quality.result()
    mean_iou, above, gaps = oracle(cases, 4, 0.5)
    np.testing.assert_allclose(table.mean_iou[-1], [mean(v) for v in mean_iou], atol=1e-12)
    np.testing.assert_allclose(table.above[-1], [mean(v) for v in above], atol=1e-12)
    np.testing.assert_allclose(table.gap[-1], mean(gaps), atol=1e-12)
    np.testing.assert_array_equal(table.defined, [len(v) for v in mean_iou])
    assert table.several[-1] == len(gaps)
    assert (table.several + table.single + table.none == table.objects).all()


def test_by_hand():
    """One object; candidates with IoU 1, 1/2 and 0."""
    targets = Targets.from_list([torch.tensor([1])], [torch.tensor([[0.5, 0.5, 0.4, 0.4]])])
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.2], [0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]])
    logits = torch.tensor([[0.0, -1.0], [9.0, 1.0], [9.0, 9.0]])
    quality = CandidateQuality(top=4, thresholds=(0.4, 0.75), duplicate_iou=0.4)
    quality.update(Predictions(logits[None, None], boxes[None, None]), targets)
    table = quality.result()
    np.testing.assert_allclose(table.mean_iou[0], [1, 0.75, 0.5, np.nan], atol=1e-6)
    assert table.above.tolist() == [[2, 1]]
    assert table.gap[0] == pytest.approx(torch.sigmoid(torch.tensor(1.0)) - torch.sigmoid(torch.tensor(-1.0)))
    assert table.top(2) == pytest.approx(0.75) and table.over(0.75) == 1
    with pytest.raises(KeyError, match="0.6"):
        table.over(0.6)


@pytest.mark.fault("F82")
def test_undefined_is_counted_never_averaged():
    """A batch with two queries and one with four: k = 3 averages over the objects of the second alone."""
    few, objects = random_case(1, queries=2)
    many, more = random_case(2, queries=4)
    quality = CandidateQuality(top=6)
    quality.update(few, objects)
    quality.update(many, more)
    alone = CandidateQuality(top=6)
    alone.update(many, more)
    table = quality.result()
    assert table.defined.tolist() == [len(objects) + len(more)] * 2 + [len(more)] * 2 + [0, 0]
    np.testing.assert_allclose(table.mean_iou[:, 2], alone.result().mean_iou[:, 2])
    assert np.isnan(table.mean_iou[:, 4:]).all() and np.isfinite(table.mean_iou[:, :4]).all()


@pytest.mark.fault("F82")
@pytest.mark.filterwarnings("error")
def test_no_objects_and_no_queries():
    empty = Targets.from_list([torch.zeros(0)], [torch.zeros(0, 4)])
    predictions, _ = random_case(0, images=1)
    quality = CandidateQuality()
    quality.update(predictions, empty)
    assert quality.result().objects == 0 and np.isnan(quality.result().mean_iou).all()
    assert quality.result().summary()["duplicate gap"] is None
    one = Targets.from_list([torch.tensor([0])], [torch.tensor([[0.5, 0.5, 0.1, 0.1]])])
    quality.update(Predictions(torch.zeros(2, 1, 0, 3), torch.zeros(2, 1, 0, 4)), one)
    table = quality.result()
    assert table.objects == 1 and table.above[-1].tolist() == [0] * len(table.thresholds) and table.none[-1] == 1
    with pytest.raises(ValueError, match="update"):
        CandidateQuality().result()


def test_shards_merge_and_files_round_trip(tmp_path):
    cases = [random_case(seed) for seed in range(4)]
    whole, shards = CandidateQuality(), [CandidateQuality() for _ in range(3)]  # the third sees nothing
    for i, case in enumerate(cases):
        whole.update(*case)
        shards[i % 2].update(*case)
    for i, shard in enumerate(shards[:2]):
        shard.save(tmp_path / f"{i}.json")
    merged = (
        shards[2].merge(CandidateQuality.load(tmp_path / "0.json")).merge(CandidateQuality.load(tmp_path / "1.json"))
    )
    for name, expected in vars(whole.result()).items():
        np.testing.assert_allclose(getattr(merged.result(), name), expected, rtol=1e-12, err_msg=name)
    with pytest.raises(ValueError, match="settings"):
        merged.merge(CandidateQuality(top=3))


@pytest.mark.parametrize("content", ["", "[]", '{"top": 3}', '{"top": 0, "thresholds": [], "duplicate_iou": 0.5}'])
def test_foreign_file_is_named(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="other.json"):
        CandidateQuality.load(path)


@pytest.mark.fault("F76")
@pytest.mark.parametrize("field", ["boxes", "logits"])
def test_not_a_number_is_an_error_that_says_where(field):
    predictions, targets = random_case(0)
    getattr(predictions, field)[1, 2, 3, 0] = float("nan")
    with pytest.raises(ValueError, match="image number 2 of the batch, layer 1, query 3"):
        CandidateQuality().update(predictions, targets)


def test_mismatches_are_errors():
    predictions, targets = random_case(0)
    quality = CandidateQuality()
    with pytest.raises(ValueError, match="3 images"):
        quality.update(Predictions(predictions.logits[:, :2], predictions.boxes[:, :2]), targets)
    quality.update(predictions, targets)
    with pytest.raises(ValueError, match="1 layers"):
        quality.update(predictions.layer(-1), targets)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        CandidateQuality().update(Predictions(predictions.logits[..., :1], predictions.boxes), targets)
    for wrong in ({"top": 0}, {"thresholds": [1.5]}, {"duplicate_iou": float("nan")}):
        with pytest.raises(ValueError):
            CandidateQuality(**wrong)


def test_measure_runs_a_detector_over_a_loader():
    cases = [random_case(seed) for seed in range(2)]
    answers = iter(cases)
    loader = [(ImageBatch(torch.zeros(3, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.bool)), t) for _, t in cases]
    quality = measure_candidates(lambda batch: DetectorOutput(next(answers)[0]), loader, top=3)
    assert quality.images == 6 and quality.objects == sum(len(t) for _, t in cases)
