import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time

import pytest
import tiny
import torch
from torch import nn

from msdetr.config import TrainConfig
from msdetr.data import ImageError, build_dataset, collate
from msdetr.engine import (
    CheckpointError,
    NonFiniteError,
    OutOfMemoryError,
    RunDirectoryError,
    StepError,
    Terminated,
    Trainer,
    TrainingError,
    evaluate,
    train,
)
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine.run import RunDirectory
from msdetr.engine.window import Window
from msdetr.errors import ConfigError
from msdetr.methods import build_criterion, build_detector


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shapes):
    """A finished run of 12 steps, evaluated after every epoch."""
    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    config = tiny.config(shapes, train__eval_every=1)
    return run_dir, config, train(config, run_dir, device="cpu", progress=False)


def trainer_for(config, seed=0):
    torch.manual_seed(seed)
    return Trainer(build_detector(config), build_criterion(config), config.train, total_steps=12, steps_per_epoch=4)


def test_a_run_leaves_everything_in_its_directory(finished):
    run_dir, _, results = finished
    assert json.loads((run_dir / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["status"] == "finished" and results["steps"] == 12 and len(results["evaluations"]) == 3
    assert set(results["metrics"]) >= {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert results["protocol"]["max_detections"] == 100
    steps = tiny.lines(run_dir, "train")
    assert [line["step"] for line in steps] == list(range(1, 13))
    for line in steps:
        assert line["lr"] == {"rest": 1e-3, "backbone": 2e-5, "projection": pytest.approx(1e-4)}
        assert len(line["terms"]["one_to_many/giou"]) == 2 and line["grad_norm"] > 0
        assert line["positives_per_object"]["one_to_one"] == 1
    assert [line["step"] for line in tiny.lines(run_dir, "eval")] == [4, 8, 12]
    assert [path.name for path in checkpoints.available(run_dir)][-2:] == ["step_00000008", "step_00000012"]


def test_every_step_is_in_a_line_whose_time_is_without_evaluations(tmp_path, shapes, monkeypatch):
    """Also where lines and evaluations do not keep step."""
    module, taken = sys.modules["msdetr.engine.training"], []

    def slowly(*arguments, **options):
        now[0] += 1_000_000
        return evaluate(*arguments, **options)

    class Counted(Window):
        def summary(self):
            taken.append(len(self.steps))
            return super().summary()

    def clock():
        now[0] += 1
        return now[0]

    now = [0]  # a look at the clock takes a second, whatever the machine has to do
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(module, "evaluate", slowly)
    monkeypatch.setattr(module, "Window", Counted)
    config = tiny.config(shapes, train__eval_every=1, train__log_every=6)
    train(config, tmp_path, device="cpu", progress=False)
    lines = tiny.lines(tmp_path, "train")
    assert [line["step"] for line in lines] == [6, 12] and taken == [6, 6]
    assert all(0 < line["seconds_per_step"] < 1000 for line in lines)


@pytest.mark.fault("F59")
@pytest.mark.fault("F92")
@pytest.mark.parametrize("number", [2, 3], ids=["between", "last"])
def test_sigterm_during_an_evaluation(finished, tmp_path, monkeypatch, number):
    """The weights are saved, the run is not called finished, and a resumed one makes up for the evaluation."""
    module, calls = sys.modules["msdetr.engine.training"], []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(module, "evaluate", interrupted)
    _, config, expected = finished
    with pytest.raises(Terminated, match=f"stopped after step {4 * number} and saved"):
        train(config, tmp_path, device="cpu", progress=False)
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "terminated"
    assert checkpoints.latest(tmp_path).step == 4 * number
    results = train(config, tmp_path, device="cpu", progress=False)
    assert results["status"] == "finished" and results["metrics"] == expected["metrics"]
    assert [e["step"] for e in results["evaluations"]] == [4, 8, 12]
    assert [line["step"] for line in tiny.lines(tmp_path, "eval")] == [4, 8, 12]


def test_event_files_say_what_metrics_say(tmp_path, shapes):
    """Also after a resume: steps that are done again do not appear twice."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny.config(shapes, train__tensorboard=True, train__eval_every=1)
    train(config, tmp_path / "run", device="cpu", progress=False)
    for path in checkpoints.available(tmp_path / "run")[-1:]:
        shutil.rmtree(path)  # as if the run had stopped before its last checkpoint
    RunDirectory(tmp_path / "run").write_results(status="running")
    train(config, tmp_path / "run", device="cpu", progress=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    for kind, name in (("train", "loss"), ("train", "grad_norm"), ("eval", "AP50")):
        expected = [(line["step"], pytest.approx(line[name])) for line in tiny.lines(tmp_path / "run", kind)]
        assert [(e.step, e.value) for e in events.Scalars(f"{kind}/{name}")] == expected
    assert len(events.Scalars("train/terms/one_to_many/giou/layer_2")) == 12


def test_event_files_need_tensorboard(tmp_path, shapes, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        train(tiny.config(shapes, train__tensorboard=True), tmp_path / "run", device="cpu", progress=False)


@pytest.mark.fault("F22")
@pytest.mark.filterwarnings("ignore::msdetr.data.DataWarning")
def test_unreadable_training_images_are_skipped_up_to_a_budget(tmp_path, shapes):
    shutil.copytree(shapes, tmp_path / "data")
    for path in sorted((tmp_path / "data" / "train").iterdir())[:2]:
        path.write_bytes(b"no picture")
    config = tiny.config(tmp_path / "data", data__generate="none", train__epochs=1)
    with pytest.raises(ImageError, match="not a readable image.*data.skip_images"):
        train(config.override({"data.skip_images": 1}), tmp_path / "one", device="cpu", progress=False)
    results = train(config.override({"data.skip_images": 2}), tmp_path / "two", device="cpu", progress=False)
    assert results["status"] == "finished" and results["steps"] == 4
    assert results["image_remarks"] == ["2 × image unreadable and left out, image 1, 2"]


def test_category_ids_as_classes_reach_the_checkpoint(shapes, tmp_path):
    """The recipes for COCO use its ids as they are, and no category has the id 0."""
    config = tiny.config(shapes, data__raw_category_ids=True, model__num_classes=9, train__epochs=0.25)
    results = train(config, tmp_path / "raw", device="cpu", progress=False)
    assert results["steps"] == 1 and len(results["per_class"]) == 8
    assert checkpoints.find(tmp_path / "raw").category_ids == [None, 1, 2, 3, 4, 5, 6, 7, 8]


def test_a_finished_run_is_returned_as_it_is(finished):
    run_dir, config, results = finished
    before = (run_dir / "metrics.jsonl").read_text()
    assert train(config, run_dir, device="cpu", progress=False) == json.loads(json.dumps(results))
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_accumulation_equals_one_batch(shapes):
    config = tiny.config(shapes, model__dropout=0.0)
    dataset = build_dataset(config, "train")
    samples = [dataset[(0, index)] for index in range(4)]
    whole, parts = trainer_for(config), trainer_for(config)
    one = whole.step([collate(samples)])
    two = parts.step([collate(samples[:1]), collate(samples[1:])])
    torch.testing.assert_close(one.loss, two.loss)
    torch.testing.assert_close(one.grad_norm, two.grad_norm)
    for a, b in zip(whole.detector.parameters(), parts.detector.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-3)


def test_two_ranks_equal_one(tmp_path, shapes):
    config = tiny.config(shapes, model__dropout=0.0, train__micro_batch=1, train__epochs=1, train__eval_every=1)
    assert tiny.train_in_processes(tmp_path / "two", config, ranks=2) == [0, 0]
    assert tiny.train_in_processes(tmp_path / "one", config) == [0]
    one, two = tiny.lines(tmp_path / "one", "train"), tiny.lines(tmp_path / "two", "train")
    assert one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-5)
    assert one[0]["grad_norm"] == pytest.approx(two[0]["grad_norm"], rel=1e-4)
    assert one[-1]["loss"] == pytest.approx(two[-1]["loss"], rel=1e-3)
    assert one[-1]["objects_per_image"] == two[-1]["objects_per_image"]
    together = [tiny.samples(tmp_path / "two", rank) for rank in (0, 1)]
    alone = tiny.samples(tmp_path / "one")
    assert {step: together[0][step] + together[1][step] for step in alone} == alone
    assert tiny.lines(tmp_path / "two", "eval")[0]["AP"] is not None


@pytest.mark.fault("F61")
def test_resume_on_another_number_of_ranks_sees_the_same_images(tmp_path, shapes):
    config = tiny.config(shapes, model__dropout=0.0)
    assert tiny.train_in_processes(tmp_path / "whole", config) == [0]
    short = tmp_path / "short"
    half = tiny.config(shapes, model__dropout=0.0, train__epochs=1)
    assert tiny.train_in_processes(short, half) == [0]
    assert tiny.train_in_processes(short, config, ranks=2, allow_config_change=True) == [0, 0]
    first, second = tiny.samples(short, 0), tiny.samples(short, 1)
    whole = tiny.samples(tmp_path / "whole")
    assert {s: first[s] + second.get(s, []) for s in whole} == whole


def test_workers_do_not_change_a_run(tmp_path, shapes):
    prints = []
    for workers in (0, 2):
        run_dir = tmp_path / str(workers)
        assert tiny.train_in_processes(run_dir, tiny.config(shapes, data__workers=workers, train__epochs=2)) == [0]
        prints.append((tiny.fingerprint(checkpoints.latest(run_dir)), tiny.samples(run_dir)))
    assert prints[0] == prints[1]


@pytest.mark.fault("F44")
def test_images_without_objects_give_a_finite_step(shapes):
    config = tiny.config(shapes)
    dataset = build_dataset(config, "train")
    batch, targets = collate([dataset[0], dataset[1]])
    from msdetr.structures import Targets

    empty = Targets.from_list([torch.zeros(0)] * 2, [torch.zeros(0, 4)] * 2, targets.image_ids, targets.sizes)
    trainer = trainer_for(config)
    for micro_batches in ([(batch, empty)], [(batch, targets), (batch, empty)]):
        assert trainer.step(micro_batches).loss.isfinite()


@pytest.mark.fault("F53")
def test_fewer_images_than_a_batch(tmp_path, shapes):
    with pytest.raises(ConfigError, match=r"train.batch_size: 32 images per step, but the training set has 16"):
        train(tiny.config(shapes, train__batch_size=32), tmp_path, device="cpu", progress=False)


@pytest.mark.fault("F54")
def test_a_nan_gradient_on_one_rank_stops_all_before_the_step(tmp_path, shapes):
    config = tiny.config(shapes)
    processes = tiny.start_training(tmp_path, config, ranks=2, environment={"POISON": "1:6"})
    assert tiny.finish(processes) == [1, 1]
    assert "NonFiniteError: step 6" in (tmp_path / "error_0.txt").read_text()
    dumps = [json.loads((tmp_path / f"failed_step_6_rank{rank}.json").read_text()) for rank in (0, 1)]
    assert all(len(dump["image_ids"]) == 2 for dump in dumps)
    assert checkpoints.latest(tmp_path).step == 4
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "failed"


@pytest.mark.fault("F54")
def test_a_nan_gradient_changes_no_weight(shapes):
    config = tiny.config(shapes)
    dataset, trainer = build_dataset(config, "train"), trainer_for(config)
    trainer.step([collate([dataset[0], dataset[1]])])
    before = {name: value.clone() for name, value in trainer.detector.state_dict().items()}
    trainer.detector.level_embedding.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="step 1: .*gradient norm") as caught:
        trainer.step([collate([dataset[2], dataset[3]])])
    assert caught.value.image_ids == tuple(dataset.image_ids[2:4])
    assert all(torch.equal(value, before[name]) for name, value in trainer.detector.state_dict().items())


@pytest.mark.fault("F48")
def test_nan_predictions_are_named(shapes):
    config = tiny.config(shapes)
    dataset, trainer = build_dataset(config, "train"), trainer_for(config)
    with torch.no_grad():
        trainer.detector.level_embedding.fill_(float("nan"))
    with pytest.raises(StepError, match=r"step 0: .*query"):
        trainer.step([collate([dataset[0], dataset[1]])])


@pytest.mark.fault("F55")
def test_out_of_memory_names_the_batch_and_what_to_change(shapes):
    config = tiny.config(shapes)
    dataset, trainer = build_dataset(config, "train"), trainer_for(config)

    class Greedy(nn.Module):
        def forward(self, batch, targets):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    trainer.detector.forward = Greedy().forward
    with pytest.raises(
        OutOfMemoryError, match=r"2 images padded to \(128, 128\) pixels.*train.micro_batch=1.*gradient_checkp"
    ):
        trainer.step([collate([dataset[0], dataset[1]])])


@pytest.mark.fault("F56")
def test_a_killed_data_worker_is_an_error(tmp_path, shapes, monkeypatch):
    step = Trainer.step

    def kills(self, *arguments):
        for child in multiprocessing.active_children():
            if child.daemon:
                os.kill(child.pid, signal.SIGKILL)
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "step", kills)
    with pytest.raises(TrainingError, match="a data worker died"):
        train(tiny.config(shapes, data__workers=1), tmp_path, device="cpu", progress=False)


@pytest.mark.fault("F62")
def test_resume_with_a_changed_configuration(tmp_path, shapes):
    config = tiny.config(shapes, train__epochs=0.5)
    train(config, tmp_path, device="cpu", progress=False)
    longer = config.override({"train.epochs": 1, "train.lr": 5e-4})
    with pytest.raises(
        ConfigError, match=r"(?s)train.epochs: 0.5 in the checkpoint, 1.0 now.*train.lr: 0.001.*0.0005 now"
    ):
        train(longer, tmp_path, device="cpu", progress=False)
    assert train(longer, tmp_path, device="cpu", progress=False, allow_config_change=True)["steps"] == 4
    faster = longer.override({"data.workers": 0, "train.log_every": 2})
    assert train(faster, tmp_path, device="cpu", progress=False)["steps"] == 4


@pytest.mark.fault("F63")
def test_two_runs_in_one_directory(tmp_path, shapes):
    with RunDirectory(tmp_path), pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()}"):
        train(tiny.config(shapes), tmp_path, device="cpu", progress=False)


def test_resume_never_insists_on_a_fresh_directory(finished):
    run_dir, config, _ = finished
    with pytest.raises(RunDirectoryError, match="already has checkpoints"):
        train(config, run_dir, device="cpu", resume="never", progress=False)


@pytest.mark.fault("F72")
def test_output_that_cannot_be_written(tmp_path, shapes, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("msdetr.data.build_datasets", lambda config: pytest.fail("computed before checking the output"))
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        train(tiny.config(shapes), tmp_path / "file" / "run", device="cpu", progress=False)


@pytest.mark.fault("F67")
def test_wrong_number_of_classes(tmp_path, shapes, finished):
    with pytest.raises(ConfigError, match="has 8 classes; set model.num_classes=8"):
        train(tiny.config(shapes, model__num_classes=5), tmp_path, device="cpu", progress=False)


@pytest.mark.fault("F66")
def test_init_from_reports_what_it_took_over(tmp_path, shapes, finished):
    run_dir, config, _ = finished
    same = train(
        config.override({"train.epochs": 0}), tmp_path / "same", device="cpu", progress=False, init_from=run_dir
    )
    assert not same["init_from"]["missing"] and not same["init_from"]["misshapen"]
    weights = checkpoints.latest(tmp_path / "same").tensors("model")
    source = checkpoints.best(run_dir).weights()
    assert all(torch.equal(value, source[name]) for name, value in weights.items())
    deeper = config.override({"model.decoder_layers": 3, "train.epochs": 0})
    with pytest.raises(CheckpointError, match=r"do not fit the model: \d+ missing: decoder"):
        train(deeper, tmp_path / "deeper", device="cpu", progress=False, init_from=run_dir)
    partial = train(deeper, tmp_path / "partial", device="cpu", progress=False, init_from=run_dir, init_partial=True)
    assert partial["init_from"]["missing"] and "missing" in partial["init_from"]["report"]


@pytest.mark.fault("F68")
def test_resume_without_optimizer_moving_average_or_generators(tmp_path, shapes, finished):
    run_dir, config, _ = finished
    good = checkpoints.latest(run_dir)
    for missing in ("optimizer", "ema", "rng"):
        files = {name: good.tensors(name) for name in ("model", "optimizer", "ema", "rng") if name != missing}
        kept = {key: value for key, value in good.manifest.items() if key not in ("files", "sha256", "format")}
        bare = tmp_path / missing / "step_00000012"
        checkpoints.write(bare, files, kept)
        with pytest.raises(CheckpointError, match=f"has no {missing}.safetensors"):
            train(config, tmp_path / f"run_{missing}", device="cpu", progress=False, resume=bare)
        zero = config.override({"train.epochs": 0})
        train(zero, tmp_path / f"init_{missing}", device="cpu", progress=False, init_from=bare)


def test_resume_falls_back_from_a_damaged_checkpoint(tmp_path, shapes):
    config = tiny.config(shapes, train__epochs=2)
    train(config, tmp_path, device="cpu", progress=False)
    expected = tiny.fingerprint(checkpoints.latest(tmp_path))
    (tmp_path / "results.json").unlink()
    newest = checkpoints.available(tmp_path)[-1]
    (newest / "model.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged .*Falling back to .*step_00000004"):
        train(config, tmp_path, device="cpu", progress=False)
    assert tiny.fingerprint(checkpoints.latest(tmp_path)) == expected
    assert [line["step"] for line in tiny.lines(tmp_path, "train")] == list(range(1, 9))


def test_training_works_outside_the_main_thread(tmp_path, shapes):
    config = tiny.config(shapes, train__epochs=0.25)
    results = []
    thread = threading.Thread(target=lambda: results.append(train(config, tmp_path, device="cpu", progress=False)))
    thread.start()
    thread.join(60)
    assert results[0]["steps"] == 1


def test_gradient_checkpointing_and_bf16_are_used(tmp_path, shapes):
    config = tiny.config(shapes, train__epochs=0.5, train__precision="bf16", train__gradient_checkpointing=True)
    assert train(config, tmp_path, device="cpu", progress=False)["steps"] == 2
    assert all(line["loss"] > 0 for line in tiny.lines(tmp_path, "train"))
    trainer = Trainer(build_detector(config), None, TrainConfig(gradient_checkpointing=True), 1, 1)
    assert trainer.detector.gradient_checkpointing is True
