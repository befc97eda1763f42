"""Early stopping: a run ends where evaluations bring nothing better, wherever it was interrupted before."""

import json

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from msdetr.engine import checkpoint as checkpoints
from msdetr.engine import train
from msdetr.engine.metric import EvalResult
from msdetr.engine.patience import best_evaluation, out_of_patience, since_better
from msdetr.engine.training import Training
from msdetr.errors import ConfigError


def records(scores):
    return [{"step": step, "epoch": step / 4, "AP": score} for step, score in enumerate(scores, start=1)]


@given(st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.2, 0.3])), max_size=8), st.integers(0, 4))
def test_patience_counts_evaluations_that_are_not_better_than_all_before(scores, patience):
    since, best = 0, None
    for score in scores:
        better = score is not None and (best is None or score > best)
        since, best = (0, score) if better else (since + (best is not None), best)
    assert since_better(records(scores)) == since
    assert out_of_patience(records(scores), patience) == (patience > 0 and since >= patience)


def test_of_equal_evaluations_the_latest_is_the_best():
    assert best_evaluation(records([0.1, 0.3, 0.3, None]))["step"] == 3
    assert best_evaluation(records([None])) is None


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations find one AP after another; the steps at which there was one."""
    seen = []

    def script(*scores):
        def evaluate(detector, dataset, **options):
            step = (seen[-1] if seen else 0) + 4
            seen.append(step)
            return EvalResult({"AP": scores[step // 4 - 1]}, {}, {"max_detections": 100}, 6, 0)

        monkeypatch.setattr("msdetr.engine.training.evaluate", evaluate)
        seen.clear()
        return seen

    return script


def config(shapes, **changes):
    """Evaluated after each of six epochs of four steps."""
    return tiny.config(shapes, train__epochs=6, train__eval_every=1, **changes)


def test_a_run_ends_early_keeps_its_best_checkpoint_and_says_so(tmp_path, shapes, scripted, capfd, monkeypatch):
    monkeypatch.setenv("MSDETR_PROGRESS", "lines")
    steps = scripted(0.1, 0.3, 0.2, 0.25, 0.9, 0.9)
    wanted = config(shapes, train__patience=2, train__log_every=3)
    results = train(wanted, tmp_path, device="cpu")
    assert steps == [4, 8, 12, 16] and results["status"] == "finished" and results["steps"] == 16
    assert results["metrics"]["AP"] == 0.25 and results["best"]["step"] == 8
    assert results["stopped_early"]["step"] == 16 and results["stopped_early"]["patience"] == 2
    text = "stopped early after epoch 4.00: no AP above 0.300 in the last 2 evaluations (train.patience=2)"
    assert json.loads((tmp_path / "results.json").read_text())["stopped_early"]["text"] == text
    assert text in capfd.readouterr().err
    assert checkpoints.best(tmp_path).step == 8
    assert [line["step"] for line in tiny.lines(tmp_path, "train")] == [3, 6, 9, 12, 15, 16]
    assert train(wanted, tmp_path, device="cpu", progress=False)["steps"] == 16  # as it is

    steps = scripted(0.1, 0.3, 0.2, 0.25, 0.9, 0.8)
    steps.append(16)
    patient = train(config(shapes, train__patience=3), tmp_path, device="cpu", progress=False)
    assert patient["steps"] == 24 and patient["stopped_early"] is None and patient["best"]["step"] == 20
    assert [record["step"] for record in patient["evaluations"]] == [4, 8, 12, 16, 20, 24]


@pytest.mark.fault("F134")
def test_a_run_that_was_killed_before_it_could_say_so_ends_at_the_same_step(tmp_path, shapes, scripted, monkeypatch):
    steps = scripted(0.3, 0.2, 0.9)
    wanted = config(shapes, train__patience=1)
    with monkeypatch.context() as patched:
        patched.setattr(Training, "finish", lambda self: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception):
            train(wanted, tmp_path, device="cpu", progress=False)
    steps.pop()  # the last one is repeated: its numbers were not kept
    results = train(wanted, tmp_path, device="cpu", progress=False)
    assert results["steps"] == 8 and [record["step"] for record in results["evaluations"]] == [4, 8]
    assert results["stopped_early"]["step"] == 8
    assert [line["step"] for line in tiny.lines(tmp_path, "eval")] == [4, 8]


def test_patience_needs_evaluations(shapes):
    with pytest.raises(ConfigError, match=r"train.patience: counts evaluations.*set train.eval_every=1"):
        tiny.config(shapes, train__patience=1, train__eval_every=0)
