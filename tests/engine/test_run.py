"""The run directory: who holds it, and what is in it after starts that were killed."""

import errno
import fcntl
import json
import os
import shutil
import signal
import time
from functools import partial

import pytest
import tiny

from msdetr.engine import EngineError, RunDirectoryError, Terminated, Trainer, train
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine.distributed import World
from msdetr.engine.run import RunDirectory, mark_failed
from msdetr.errors import ConfigError
from msdetr.lock import FileLock, InUse, LockError


@pytest.mark.fault("F87")
def test_a_forked_child_does_not_hold_the_lock(tmp_path):
    lock = FileLock(tmp_path / "lock")
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        with pytest.raises(InUse, match=f"in use by process {os.getpid()} on "):
            FileLock(tmp_path / "lock", patience=0)
        lock.close()
        FileLock(tmp_path / "lock", patience=1).close()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_lock_that_cannot_be_had_says_why(tmp_path, monkeypatch):
    """A drive without locks, a lock of another user, and a folder that is not there."""
    before = os.umask(0o002)  # as in a folder that a group shares
    FileLock(tmp_path / "lock").close()
    os.umask(before)
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o664, "the group may hold it as well"
    with pytest.raises(LockError, match=r"absent/lock: cannot be locked: No such file or directory"):
        FileLock(tmp_path / "absent" / "lock")

    def fails(number):
        def call(*_):
            raise OSError(number, os.strerror(number))

        return call

    for module, name, number, reason in (
        (os, "open", errno.EACCES, "lock: cannot be locked: Permission denied; it may not be opened"),
        (fcntl, "flock", errno.ENOLCK, "lock: cannot be locked: No locks available; this file system has no locks"),
        (fcntl, "flock", errno.ENOTSUP, "this file system has no locks"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fails(number))
            with pytest.raises(LockError, match=reason):
                FileLock(tmp_path / "lock")
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOLCK))
    with pytest.raises(RunDirectoryError, match=r"run/\.lock: cannot be locked"), RunDirectory(tmp_path / "run"):
        pass


@pytest.mark.fault("F88")
@pytest.mark.parametrize("what", ["deleted", "renamed", "replaced", "unlocked"])
def test_a_directory_that_goes_while_a_run_writes_to_it(tmp_path, shapes, what):
    """The run ends with an error, and nothing of it appears in the directory that took its place."""
    run_dir = tmp_path / "run"

    def meddle(detector, step, epoch):
        if step != 2:
            return
        if what == "deleted":
            shutil.rmtree(run_dir)
        elif what == "unlocked":
            (run_dir / ".lock").unlink()
        else:
            run_dir.rename(tmp_path / "elsewhere")
        if what == "replaced":
            run_dir.mkdir()

    with pytest.raises(RunDirectoryError, match="was deleted, moved or replaced"):
        train(tiny.config(shapes), run_dir, device="cpu", progress=False, on_step=meddle)
    if what == "unlocked":
        assert json.loads((run_dir / "results.json").read_text())["status"] == "running"  # nothing more was written
    else:
        assert not run_dir.exists() or not list(run_dir.iterdir())


@pytest.mark.fault("F93")
def test_leftovers_of_a_start_that_was_killed_are_gone(tmp_path, shapes):
    config = tiny.config(shapes, train__epochs=1)
    (tmp_path / "matching").mkdir()
    (tmp_path / "matching" / "step_00000008.npz").write_bytes(b"")
    (tmp_path / "failed_step_7_rank0.json").write_text("{}")
    (tmp_path / "results.json").write_text('{"status": "running", "metrics": {"AP": 1}, "left": "over"}')
    old = [json.dumps({"kind": "train", "step": step}) + "\n" for step in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(old) + '{"kind": "tra')
    results = train(config, tmp_path, device="cpu", progress=False)
    assert [line["step"] for line in tiny.lines(tmp_path, "train")] == [1, 2, 3, 4]
    assert "left" not in results and not list(tmp_path.glob("*/step_00000008.npz"))
    assert not list(tmp_path.glob("failed_step_*"))


@pytest.mark.fault("F93")
def test_a_torn_line_is_dropped_when_the_run_goes_on(tmp_path, shapes):
    config = tiny.config(shapes, train__epochs=1)
    train(config, tmp_path, device="cpu", progress=False)
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind": "train", "step": 5, "lo\xff')
    train(config.override({"train.epochs": 2}), tmp_path, device="cpu", progress=False)
    assert [line["step"] for line in tiny.lines(tmp_path, "train")] == list(range(1, 9))


@pytest.mark.fault("F94")
def test_a_live_run_keeps_its_records(tmp_path):
    with RunDirectory(tmp_path) as run:
        (tmp_path / "config.yaml").touch()
        run.write_results(status="running")
        child = os.fork()  # another process: locks are between processes
        if child == 0:
            mark_failed(tmp_path, "notebook: it was started twice")
            os._exit(0)
        os.waitpid(child, 0)
        assert run.results()["status"] == "running"
    mark_failed(tmp_path, "a cell failed")
    assert RunDirectory(tmp_path).results()["status"] == "failed"


def test_more_epochs_just_go_on(tmp_path, shapes, capsys, monkeypatch):
    monkeypatch.setenv("MSDETR_PROGRESS", "lines")
    config = tiny.config(shapes, train__epochs=1, train__eval_every=1)
    train(config, tmp_path, device="cpu")
    results = train(config.override({"train.epochs": 2}), tmp_path, device="cpu")
    assert results["steps"] == 8 and "goes on from 1 to 2 epochs" in capsys.readouterr().err
    assert [e["step"] for e in results["evaluations"]] == [4, 8]
    assert [line["step"] for line in tiny.lines(tmp_path, "eval")] == [4, 8]
    assert checkpoints.latest(tmp_path).metrics.keys() == results["metrics"].keys()


def test_a_run_sent_back_to_an_earlier_checkpoint_does_not_return_to_the_later_ones(
    tmp_path, shapes, capsys, monkeypatch
):
    """They are kept, as a run of their own, and so is what was written about them."""
    monkeypatch.setenv("MSDETR_PROGRESS", "lines")
    config = tiny.config(shapes, train__epochs=0.75, train__checkpoint_every=0.25)
    train(config, tmp_path, device="cpu", progress=False)
    folders = checkpoints.available(tmp_path)
    assert [folder.name for folder in folders] == ["step_00000002", "step_00000003"]
    abandoned, log = tiny.fingerprint(checkpoints.latest(tmp_path)), (tmp_path / "metrics.jsonl").read_text()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # before it has taken, or saved, a step
        patch.setattr(Trainer, "step", interrupted)
        train(config, tmp_path, device="cpu", resume=folders[0])
    assert [path.name for path in checkpoints.available(tmp_path)] == ["step_00000002"], "where auto goes on from"
    assert train(config, tmp_path, device="cpu", progress=False)["steps"] == 3
    assert not (tmp_path / "abandoned_2").exists(), "there was nothing more to set aside"
    aside = tmp_path / "abandoned_1"
    assert f"goes on from step 2; its checkpoints of step 3, which are not its own any more, are in {aside}" in (
        capsys.readouterr().err
    )
    assert tiny.fingerprint(checkpoints.latest(aside)) == abandoned and (aside / "metrics.jsonl").read_text() == log
    longer = config.override({"train.epochs": 1})
    train(longer, tmp_path, device="cpu", resume=folders[0], progress=False)
    assert checkpoints.latest(tmp_path / "abandoned_2").step == 3
    assert [folder.name for folder in checkpoints.available(tmp_path)] == ["step_00000003", "step_00000004"]


@pytest.mark.parametrize("by", ["link", "dots", "linked run"])
def test_a_runs_own_checkpoint_is_known_by_any_path(tmp_path, shapes, by):
    config, run_dir = tiny.config(shapes, train__epochs=0.5, train__checkpoint_every=0.25), tmp_path / "run"
    train(config, run_dir, device="cpu", progress=False)
    first = checkpoints.available(run_dir)[0]
    (tmp_path / "linked").symlink_to(run_dir)
    named = {
        "link": tmp_path / "linked" / "checkpoints" / first.name,
        "dots": run_dir / "figures" / ".." / "checkpoints",
    }
    if by == "linked run":
        train(config, tmp_path / "linked", device="cpu", resume=first, progress=False)
    else:
        resume = named["link"] if by == "link" else named["dots"] / first.name
        train(config, run_dir, device="cpu", resume=resume, progress=False)
    assert [c.name for c in checkpoints.available(run_dir)] == ["step_00000001", "step_00000002"]
    assert [c.name for c in checkpoints.available(run_dir / "abandoned_1")] == ["step_00000002"]


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_the_results_of_a_finished_run_outlive_its_checkpoints(tmp_path, shapes, resume):
    config = tiny.config(shapes, train__epochs=0.25)
    train(config, tmp_path, device="cpu", progress=False)
    kept = [(tmp_path / name).read_text() for name in ("results.json", "metrics.jsonl", "README.md")]
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(RunDirectoryError, match="is finished, its checkpoints are gone; .*move results.json away"):
        train(config, tmp_path, device="cpu", resume=resume, progress=False)
    assert kept == [(tmp_path / name).read_text() for name in ("results.json", "metrics.jsonl", "README.md")]


def test_a_start_that_is_refused_changes_nothing(tmp_path, shapes):
    config = tiny.config(shapes, train__epochs=0.25)
    train(config, tmp_path / "run", device="cpu", progress=False)
    kept = checkpoints.latest(tmp_path / "run")
    alone = {name: value for name, value in kept.manifest.items() if name not in ("files", "format")} | {"training": {}}
    checkpoints.write(tmp_path / "weights", {"model": kept.tensors("model")}, alone)
    before = (tmp_path / "run" / "results.json").read_text()
    for resume, message in (("never", "already has checkpoints"), (tmp_path / "weights", "holds weights alone")):
        with pytest.raises(EngineError, match=message):
            train(config, tmp_path / "run", device="cpu", resume=resume, progress=False)
        assert (tmp_path / "run" / "results.json").read_text() == before
        assert checkpoints.latest(tmp_path / "run").step == 1


def test_a_run_that_goes_on_from_another_runs_checkpoint_leaves_its_own(tmp_path, shapes):
    config = tiny.config(shapes, train__epochs=0.25)
    for name in ("one", "two"):
        train(config, tmp_path / name, device="cpu", progress=False)
    theirs = checkpoints.latest(tmp_path / "one").directory
    train(config.override({"train.epochs": 0.5}), tmp_path / "two", device="cpu", resume=theirs, progress=False)
    assert [c.name for c in checkpoints.available(tmp_path / "two")] == ["step_00000002"]
    assert checkpoints.latest(tmp_path / "two" / "abandoned_1").step == 1


def test_a_restart_after_a_rank_died_goes_on_from_the_last_checkpoint(tmp_path, shapes, monkeypatch):
    """torchrun gives the new ranks the arguments of the first ones, the checkpoint to go on from among them."""
    config = tiny.config(shapes, train__epochs=0.5, train__checkpoint_every=0.25)
    train(config, tmp_path, device="cpu", progress=False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    first = checkpoints.available(tmp_path)[0]
    train(config.override({"train.epochs": 0.75}), tmp_path, device="cpu", resume=first, progress=False)
    assert not (tmp_path / "abandoned_1").exists() and checkpoints.latest(tmp_path).step == 3


def test_matching_is_recorded(tmp_path, shapes):
    from msdetr.analysis.stability import MatchRecorder, load_history

    three = partial(MatchRecorder.of_run, images=3)

    train(tiny.config(shapes, train__epochs=1), tmp_path, device="cpu", progress=False, recorder=three)
    history = load_history(tmp_path)
    assert history.targets.num_images == 3 and history.steps[0] == 0


def test_a_recorded_run_is_the_same_run_stopped_or_not(tmp_path, shapes):
    """Also where methods build queries of their own and noise objects: recording uses up none of the run's random numbers."""
    from msdetr.analysis.stability import MatchRecorder

    changes = {"two_stage": {}, "denoising": {"queries": 10}, "hybrid": {"queries": 20, "k": 2}}
    config = tiny.config(shapes, train__epochs=1, train__ema_decay=0, **changes)
    recording = {"recorder": partial(MatchRecorder.of_run, images=3)}
    train(config, tmp_path / "plain", device="cpu", progress=False)
    train(config, tmp_path / "recorded", device="cpu", progress=False, **recording)

    def stop(detector, step, epoch):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated):
        train(config, tmp_path / "stopped", device="cpu", progress=False, on_step=stop, **recording)
    train(config, tmp_path / "stopped", device="cpu", progress=False, **recording)
    prints = [tiny.fingerprint(checkpoints.latest(tmp_path / name)) for name in ("plain", "recorded", "stopped")]
    assert prints[0] == prints[1] == prints[2]


def test_a_start_that_is_refused_leaves_the_records_as_they_are(tmp_path, shapes):
    """The recorder is made once the run is held and its settings are those of its checkpoint."""
    from msdetr.analysis.stability import MatchRecorder

    recording = {"recorder": partial(MatchRecorder.of_run, images=3), "device": "cpu", "progress": False}
    config = tiny.config(shapes, train__epochs=0.25)
    train(config, tmp_path, **recording)
    before = {path.name: path.read_bytes() for path in (tmp_path / "matching").iterdir()}
    with pytest.raises(ConfigError, match="another configuration"):
        train(config.override({"matching.cost_class": 7.0}), tmp_path, **recording)
    with RunDirectory(tmp_path):
        child = os.fork()  # another process: locks are between processes
        if child == 0:
            try:
                train(config.override({"train.epochs": 0.5}), tmp_path, **recording)
            except RunDirectoryError:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "matching").iterdir()} == before


def test_only_the_first_rank_reads_and_writes_the_results(tmp_path):
    """It may be removing them at that moment."""
    (tmp_path / "results.json").write_text("{")
    RunDirectory(tmp_path, World(rank=1, size=2)).write_results(status="running")
    assert (tmp_path / "results.json").read_text() == "{"
    with pytest.raises(EngineError, match="results.json"):
        RunDirectory(tmp_path).write_results(status="running")
