"""Recording matches during training, and the flip rates, against sets counted by hand."""

import itertools

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msdetr import recipes
from msdetr.analysis.ladder import look_at_rung
from msdetr.analysis.look import both_branches, sampling_points, training_output
from msdetr.analysis.matching import explain
from msdetr.analysis.specimen import recorded
from msdetr.analysis.stability import (
    BranchHistory,
    MatchHistory,
    MatchRecorder,
    NoisedObject,
    flip_rates,
    load_history,
)
from msdetr.config import RunConfig
from msdetr.data import Sample
from msdetr.errors import InputError, RunError
from msdetr.matching import MatchingRules
from msdetr.methods import build_criterion, build_detector, build_postprocess
from msdetr.structures import ImageBatch, Targets


def config(**changes):
    return small.config("c", **{
        "model.num_classes": 3, "model.num_queries": 12, "model.num_points": 2, "model.dropout": 0.1, "ms_detr.k": 6,
        "ms_detr.threshold": 0.1, **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(config())


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(1)
    batch = ImageBatch.from_images([torch.randn(3, 64, 64, generator=rng), torch.randn(3, 48, 64, generator=rng)])
    targets = Targets.from_list(
        [torch.tensor([0, 1]), torch.tensor([2])],
        [torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.4, 0.4]]), torch.tensor([[0.5, 0.5, 0.5, 0.5]])],
        image_ids=(7, 9),
    )
    return batch, targets


def history_of(one_to_one, one_to_many=None, layers=1, objects=2):
    def rows(sets):
        return np.array([(k, t, q) for (k, t), qs in sets.items() for q in qs], dtype=np.int32).reshape(-1, 3)

    labels = torch.zeros(objects, dtype=torch.long)
    targets = Targets(labels, torch.zeros(objects, 4), labels, num_images=1)
    recorded = {"one_to_one": one_to_one, "one_to_many": one_to_many}
    branches = {
        name: BranchHistory([rows(s) for s in sets], layers, False, {}) for name, sets in recorded.items() if sets
    }
    number = len(one_to_one)
    return MatchHistory(np.arange(number) * 10, np.arange(number) / 2, targets, MatchingRules(), branches, [], [], ())


def test_flip_rates_by_hand():
    one = [{(0, 0): {4}, (0, 1): {5}}, {(0, 0): {4}, (0, 1): {6}}, {(0, 0): {5}, (0, 1): {4}}]
    many = [{(0, 0): {1, 2, 3}}, {(0, 0): {2, 3, 4}}, {}]
    rates = flip_rates(history_of(one, many))
    assert rates.rates["one_to_one"].tolist() == [[0.5], [1.0]]
    np.testing.assert_allclose(
        rates.rates["one_to_many"], [[0.5], [1.0]]
    )  # 1 - 2/4 and 1 - 0/3; the other object never counts
    assert rates.counted["one_to_many"].tolist() == [[1], [1]] and rates.several == {"one_to_many"}
    assert flip_rates(history_of(many)).several == {"one_to_one"}, "DETA's has this name, too"
    assert rates.per_epoch()[0].tolist() == [1] and rates.per_epoch()[1].tolist() == [[0.75]]
    with pytest.raises(ValueError, match="needs two"):
        flip_rates(history_of(one[:1]))


RECORD = st.dictionaries(
    st.tuples(st.integers(0, 1), st.integers(0, 2)), st.sets(st.integers(0, 5), min_size=1, max_size=4), max_size=6
)


@settings(max_examples=60, deadline=None)
@given(st.lists(RECORD, min_size=2, max_size=4))
def test_flip_rates_are_jaccard_distances(records):
    rates = flip_rates(history_of(records, records, layers=2, objects=3))
    for i, (before, after) in enumerate(itertools.pairwise(records)):
        for layer in range(2):
            distances = []
            for t in range(3):
                a, b = before.get((layer, t), set()), after.get((layer, t), set())
                if a | b:
                    distances.append(1 - len(a & b) / len(a | b))
            assert rates.counted["one_to_many"][i, layer] == len(distances)
            expected = np.mean(distances) if distances else np.nan
            np.testing.assert_allclose(rates.rates["one_to_many"][i, layer], expected)


def test_recording_leaves_the_run_as_it_was_and_comes_back(tmp_path, detector, images):
    batch, targets = images
    detector.train()
    recorder = MatchRecorder(tmp_path, batch, targets, config(), every=2, class_names=["a", "b", "c"])
    before, weights = torch.random.get_rng_state(), {k: v.clone() for k, v in detector.state_dict().items()}
    assert [recorder(detector, step, step / 4) for step in range(5)] == [True, False, True, False, True]
    assert detector.training and torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(weights[k], v) for k, v in detector.state_dict().items())
    assert recorder.seconds > 0

    history = load_history(tmp_path)
    assert history.steps.tolist() == [0, 2, 4] and history.class_names == ("a", "b", "c")
    assert {name: b.num_layers for name, b in history.branches.items()} == {
        "one_to_one": 2, "one_to_many": 2, "encoder": 1
    }  # fmt: skip
    found = flip_rates(history)
    for name, rates in found.rates.items():
        assert (rates[:, found.counted[name][0] > 0] == 0).all(), "the weights did not move, so nothing flips"
    output = both_branches(detector, batch)
    torch.testing.assert_close(history.states[1].one_to_many.boxes, output.one_to_many.boxes)
    assert [p.shape for p in history.pictures] == [(64, 64, 3), (48, 64, 3)]
    assert len(history.kept_targets()) == 3 and history.matching.threshold == 0.1
    tokens = output.selected[history.targets.image]  # [T, Q]
    for _, target, identity in history.branches["one_to_one"].rows[0]:
        assert identity in tokens[target], "in a two-stage detector a query is known by its token"


@pytest.mark.parametrize("what", ["criterion", "recorder", "record", "microscope", "rung"])
def test_a_look_uses_up_no_random_numbers_of_the_run(tmp_path, images, monkeypatch, what):
    """Neither the processor's nor those of a GPU, which torch.manual_seed seeds, too."""
    batch, targets = images
    own = config(**{"denoising.queries": 4, "hybrid.queries": 20, "hybrid.k": 2, "ms_detr.rule": "released"})
    detector, criterion = build_detector(own), build_criterion(own)
    recorder = MatchRecorder(tmp_path, batch, targets, own, every=1)
    output = training_output(detector, batch, targets)
    looks = {
        "criterion": lambda: build_criterion(own),
        "recorder": lambda: MatchRecorder(tmp_path, batch, targets, own),
        "record": lambda: recorder(detector, 0, 0.0),
        "microscope": lambda: explain(output, targets, criterion=criterion),
        "rung": lambda: look_at_rung(detector, criterion, batch, targets),
    }
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPU's generator was touched"))
    before = torch.get_rng_state()
    looks[what]()
    assert torch.equal(torch.get_rng_state(), before)


def test_budget_leaves_records_out(tmp_path, detector, images):
    recorder = MatchRecorder(tmp_path, *images, config(), every=1, budget=0.001)
    assert [recorder(detector, step, step) for step in range(4)] == [True, False, False, False]


def test_recorder_of_a_run_watches_small_data_only(tmp_path, detector):
    class Dataset:
        class_names = ("a", "b", "c")

        def __init__(self, length):
            self.length = length

        def __len__(self):
            return self.length

        def __getitem__(self, index):
            return Sample(
                torch.zeros(3, 32, 32),
                torch.tensor([1]),
                torch.tensor([[0.5, 0.5, 0.5, 0.5]]),
                index,
                (32, 32),
            )

    recorder = MatchRecorder.of_run(tmp_path, Dataset(20), RunConfig(), total_steps=4000)
    assert recorder.every == 100 and len(recorder.targets) == 16 and recorder.budget == 0.03
    assert recorder(detector, 0, 0.0) and len(load_history(tmp_path).steps) == 1
    assert MatchRecorder.of_run(tmp_path, Dataset(5001), RunConfig(), total_steps=4000) is None


def test_every_branch_is_recorded_and_a_denoising_query_knows_its_object(tmp_path, images):
    torch.manual_seed(0)
    own = config(
        **{"denoising.queries": 4, "hybrid.queries": 20, "hybrid.k": 2, "group.groups": 3, "ms_detr.groups": "all"}
    )
    detector = build_detector(own)
    recorder = MatchRecorder(tmp_path, *images, own, every=1)
    for step in (0, 1):
        assert recorder(detector, step, step)
        with torch.no_grad():
            detector.sources["denoising"].label_embedding.weight += 1  # moves denoising queries alone
    history = load_history(tmp_path)
    names = [branch.name for branch in recorder.criterion.branches]
    assert list(history.branches) == [name for name in names if name != "one_to_many_denoising"]  # its pairs are known
    assert set(history.branches) >= {"one_to_many_hybrid", "one_to_many_group", "encoder", "denoising"}

    denoising = history.branches["denoising"]
    assert (
        denoising.known and len(denoising.noised) == 2 * (2 + 1) * 2
    )  # 2 copies of 3 objects and of as many negatives
    assert (denoising.rows[0] == denoising.rows[1]).all(), "the same noised objects at every look"
    positives = {key: found for key, found in denoising.noised.items() if found.positive}
    assert sorted((n.object, n.copy) for n in positives.values()) == [(t, c) for t in range(3) for c in range(2)]
    for _, target, query in denoising.rows[0]:
        image = int(history.targets.image[target])
        assert denoising.noised[image, query] == NoisedObject(target, denoising.noised[image, query].copy, True)

    hybrid = history.branches["hybrid"].rows[0]
    assert np.bincount(hybrid[:, 1]).tolist() == [4, 4, 4], "copies count as the object: 2 layers x 2 copies each"
    group = history.branches["group"].rows[0]
    assert np.bincount(group[:, 1]).tolist() == [4, 4, 4] and set(group[:, 2] % 2) == {0, 1}, "both parts, told apart"
    rates = flip_rates(history)
    assert "denoising" not in rates.rates and all((r == 0).all() for n, r in rates.rates.items() if "many" not in n)


def test_records_of_version_0_1_are_read(tmp_path, detector, images):
    """They have two branches, without their names, and one number of layers."""
    recorder = MatchRecorder(tmp_path, *images, config(), every=1)
    for step in (0, 1):
        recorder(detector, step, step)
    expected = load_history(tmp_path)
    for path in tmp_path.glob("step_*.npz"):
        with np.load(path) as file:
            arrays = dict(file)
        old = {k: v for k, v in arrays.items() if "." not in k and k not in ("branches", "encoder")}
        np.savez_compressed(path, layers=arrays["one_to_one.layers"], **old)
    history = load_history(tmp_path)
    assert list(history.branches) == ["one_to_one", "one_to_many"] and len(history.states) == 2
    for name, branch in history.branches.items():
        assert branch.num_layers == 2 and not branch.known
        assert all((a == b).all() for a, b in zip(branch.rows, expected.branches[name].rows, strict=True))


def test_no_records_or_damaged_ones_are_errors(tmp_path, detector, images):
    with pytest.raises(FileNotFoundError, match="recording"):
        load_history(tmp_path)
    MatchRecorder(tmp_path, *images, config(), every=1)(detector, 0, 0)
    path = tmp_path / "step_00000000.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="step_00000000.npz: is damaged"):
        load_history(tmp_path)


def test_records_of_other_images_are_not_gone_on_with(tmp_path, detector, images):
    batch, targets = images
    MatchRecorder(tmp_path, batch, targets, config(), every=1)(detector, 0, 0)
    MatchRecorder(tmp_path, batch, targets, config(), every=1)(detector, 1, 1)
    one = ImageBatch.from_images([batch.images[0]])
    with pytest.raises(InputError, match=f"{tmp_path}: has records of 2 images .*--record-matching 2"):
        MatchRecorder(tmp_path, one, targets.of_image(0), config(), every=1)
    assert len(load_history(tmp_path).targets) == 3, "and nothing is lost"


@pytest.mark.parametrize(
    "change", [lambda rows: rows + [0, 3, 0], lambda rows: rows - [1, 0, 0], lambda rows: rows[:, :2]]
)
def test_a_record_of_other_objects_is_an_error(tmp_path, detector, images, change):
    MatchRecorder(tmp_path, *images, config(), every=1)(detector, 0, 0)
    [path] = tmp_path.glob("step_*.npz")
    with np.load(path) as file:
        arrays = dict(file)
    np.savez_compressed(path, **arrays | {"one_to_one": change(arrays["one_to_one"])})
    with pytest.raises(RunError, match="step_00000000.npz: one_to_one: is not of the 3 objects of 2 images"):
        load_history(tmp_path)


def test_sampling_points_reproduce_the_attention(detector, images):
    """Sampling the values at the reported points with the reported weights is what the cross-attention computes."""
    batch, _ = images
    seen = {}
    attention = detector.decoder.layers[1].cross_attention.inner
    hook = attention.register_forward_hook(lambda module, inputs, output: seen.update(inputs=inputs, output=output))
    points = sampling_points(detector, batch, image=1)
    hook.remove()
    assert len(points) == 2 and points[0].locations.shape == (12, 4, 3, 2, 2)
    np.testing.assert_allclose(points[1].weights.sum((-1, -2)), 1, atol=1e-5)
    memory = seen["inputs"][1].memory
    locations = torch.from_numpy(points[1].locations) * memory.valid_ratios[1, None, None, :, None]
    with torch.no_grad():
        values = attention.value_proj(memory.tokens).masked_fill(memory.mask[..., None], 0)[1]
        start, sampled = 0, 0
        for level, (height, width) in enumerate(memory.shapes):
            grid = values[start : start + height * width].T.reshape(4, 8, height, width)  # heads as a batch
            start += height * width
            at = locations[:, :, level].transpose(0, 1) * 2 - 1  # [M, Q, P, 2]
            found = torch.nn.functional.grid_sample(grid, at, align_corners=False)  # [M, 8, Q, P]
            sampled = sampled + (found * torch.from_numpy(points[1].weights)[:, :, level].transpose(0, 1)[:, None]).sum(
                -1
            )
        expected = attention.output_proj(sampled.permute(2, 0, 1).flatten(1))
    torch.testing.assert_close(seen["output"][1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recipe", ["ms-detr-c", "stable-dino-ms-c", "deta-ms-c", "mr-detr", "dino", "group-detr-ms-c"])
def test_a_recorded_image_is_explained_as_the_run_matched_it(tmp_path, images, recipe):
    """By the matchers and costs of its method, and its answer by the method's post-processing."""
    torch.manual_seed(0)
    run = recipes.get(f"shapes/{recipe}").override(small.SMALL | {"model.num_queries": 20, "model.dropout": 0.0})
    batch, targets = images
    detector = build_detector(run)
    MatchRecorder(tmp_path, batch, targets, run, every=1)(detector, 0, 0.0)
    output = training_output(detector, batch, targets)
    wanted = explain(output, targets, criterion=build_criterion(run), postprocess=build_postprocess(run))
    found = recorded(load_history(tmp_path), 0, 0).explain()
    for name in {"one_to_one", "one_to_many"} & set(wanted.branches):
        for table in ("matched", "status", "cost", "score"):
            expected, got = (getattr(e.branches[name], table) for e in (wanted, found))
            np.testing.assert_allclose(got, expected, atol=1e-4, err_msg=f"{name}.{table}")
    answers = [e.answer() for e in (wanted, found)]
    assert (answers[0] is None) == (answers[1] is None)
    if answers[0] is not None:
        assert answers[0].query.tolist() == answers[1].query.tolist()
