"""A finished step is on the disk before anything that can fail is done with it."""

import json
import re
import signal
import sys

import pytest
import tiny

from msdetr.data import CocoDetection, ImageError
from msdetr.engine import CheckpointError, TrainingError, train
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine.checkpoint import storage
from msdetr.engine.run import RunDirectory
from msdetr.engine.trainer import Trainer

train_module = sys.modules["msdetr.engine.training"]


def fails_at(monkeypatch, owner, name, when, error):
    """Replaces a function by one that raises when ``when(arguments)``."""
    original = getattr(owner, name)

    def failing(*arguments, **options):
        if when(*arguments, **options):
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.fault("F89")
@pytest.mark.parametrize("what", ["observer", "log", "evaluation", "reading", "step", "recording"])
def test_what_fails_after_a_step_does_not_lose_it(tmp_path, shapes, monkeypatch, what):
    config = tiny.config(shapes, train__checkpoint_every=0, train__eval_every=0.5, train__ema_decay=0)
    options, kind, where, saved = {}, OSError, "", 3
    if what == "observer":
        observer = lambda detector, step, epoch: step < 3 or json.loads("no JSON")
        options, kind, where = {"on_step": observer}, json.JSONDecodeError, r"\(on_step, after step 3\)"
    elif what == "log":
        when = lambda run, kind, **values: kind == "train" and values["step"] == 3
        fails_at(monkeypatch, RunDirectory, "log", when, OSError("disk"))
        where = r"\(writing the log, after step 3\)"
    elif what == "evaluation":
        fails_at(monkeypatch, train_module, "evaluate", lambda *_, **__: True, KeyError("metric"))
        kind, where, saved = KeyError, r"\(in the evaluation after step 2, which is saved\)", 2
    elif what == "recording":
        fails_at(monkeypatch, checkpoints.Writer, "record", lambda *_: True, OSError("disk"))
        where, saved = r"\(recording the evaluation, after step 2\)", 2
    elif what == "reading":
        trained = []
        fails_at(monkeypatch, CocoDetection, "__getitem__", lambda *_: len(trained) == 3, ImageError("it vanished"))
        options = {"on_step": lambda detector, step, epoch: trained.append(step) if step else None}
        kind, where = ImageError, r"\(reading the next images, after step 3\)"
    elif what == "step":
        fails_at(monkeypatch, Trainer, "_accumulate", lambda self, *_: self.steps_done == 3, RuntimeError("step"))
        kind, where = RuntimeError, "step 3 is saved"
    with pytest.raises(kind) as caught:
        train(config, tmp_path, device="cpu", progress=False, **options)
    assert re.search(where, "\n".join(caught.value.__notes__))
    assert checkpoints.latest(tmp_path).step == saved
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["status"] == "failed" and f"step {saved}" in results["error"]
    monkeypatch.undo()
    whole = train(config, tmp_path, device="cpu", progress=False)
    assert whole["steps"] == 12 and [e["step"] for e in whole["evaluations"]] == [2, 4, 6, 8, 10, 12]


@pytest.mark.fault("F89")
def test_a_failed_step_leaves_everything_as_it_was(tmp_path, shapes, monkeypatch):
    """Going on after a failure in the middle of a step gives what never failing gives, bit for bit."""
    config = tiny.config(shapes, train__checkpoint_every=0)
    train(config, tmp_path / "whole", device="cpu", progress=False)
    fails_at(monkeypatch, Trainer, "check", lambda self: self.steps_done == 5, RuntimeError("after the backward pass"))
    with pytest.raises(RuntimeError, match="after the backward pass"):
        train(config, tmp_path / "parts", device="cpu", progress=False)
    monkeypatch.undo()
    train(config, tmp_path / "parts", device="cpu", progress=False)
    prints = [tiny.fingerprint(checkpoints.latest(tmp_path / name)) for name in ("whole", "parts")]
    assert prints[0] == prints[1]


@pytest.mark.fault("F89")
def test_an_error_in_a_step_keeps_its_kind(tmp_path, shapes, monkeypatch):
    """Only what is expected to happen to a step is called a StepError; a mistake in the code stays one."""
    fails_at(monkeypatch, Trainer, "_accumulate", lambda *_: True, ValueError("a mistake"))
    with pytest.raises(ValueError, match="a mistake") as caught:
        train(tiny.config(shapes), tmp_path, device="cpu", progress=False)
    assert not isinstance(caught.value, TrainingError)
    assert checkpoints.available(tmp_path) == []


@pytest.mark.fault("F57")
@pytest.mark.fault("F89")
@pytest.mark.parametrize("disk", ["stays full", "has room again"])
@pytest.mark.parametrize("noticed", ["when stopping", "after an evaluation", "in an evaluation"])
def test_a_step_is_called_saved_only_where_it_is(tmp_path, shapes, monkeypatch, disk, noticed):
    """The background write of step 2 fails; what ends the run tries once more."""
    config = tiny.config(
        shapes, train__epochs=1, train__checkpoint_every=0.25, train__eval_every=0.5 if "eval" in noticed else 0
    )
    tries = []

    def fails(path, data):
        if "step_00000002" not in str(path):
            return False
        tries.append(path)
        return disk == "stays full" or len(tries) == 1

    fails_at(monkeypatch, storage, "write_durably", fails, OSError(28, "No space left on device"))
    kind = CheckpointError
    if noticed == "in an evaluation":
        fails_at(monkeypatch, train_module, "evaluate", lambda *_, **__: True, KeyError("metric"))
        kind = KeyError
    stop = lambda detector, step, epoch: signal.raise_signal(signal.SIGTERM) if step == 2 else None
    options = {"on_step": stop} if noticed == "when stopping" else {}
    with pytest.raises(kind) as caught:
        train(config, tmp_path, device="cpu", progress=False, **options)
    notes = "\n".join(caught.value.__notes__)
    assert "which is saved" not in notes
    if disk == "stays full":
        assert "(step 2 could not be saved" in notes and "is saved" not in notes
    else:
        assert "(step 2 is saved; start again to go on from it)" in notes
    assert checkpoints.latest(tmp_path).step == (1 if disk == "stays full" else 2)
    monkeypatch.undo()
    results = train(config, tmp_path, device="cpu", progress=False)
    evaluated = [2, 4] if "eval" in noticed else [4]
    assert [e["step"] for e in results["evaluations"]] == evaluated
    assert [line["step"] for line in tiny.lines(tmp_path, "eval")] == evaluated


@pytest.mark.fault("F93")
@pytest.mark.parametrize(("owner", "name"), [(RunDirectory, "log"), (checkpoints.Writer, "record")])
def test_an_evaluation_is_in_the_log_once_wherever_the_run_ends(tmp_path, shapes, monkeypatch, owner, name):
    """Before the log has it or before the checkpoint has it: it is made up for."""
    config = tiny.config(shapes, train__epochs=1, train__eval_every=0.5)
    when = lambda _, first, *rest, **values: (first, values.get("step")) in (("eval", 2), (2, None))
    fails_at(monkeypatch, owner, name, when, KeyboardInterrupt())  # nothing in between takes note of it
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, device="cpu", progress=False)
    monkeypatch.undo()
    results = train(config, tmp_path, device="cpu", progress=False)
    for evaluations in (results["evaluations"], tiny.lines(tmp_path, "eval")):
        assert [evaluation["step"] for evaluation in evaluations] == [2, 4]
