"""Runs in MLflow: what metrics.jsonl says, once, whatever becomes of the server. MLflow itself is a stand-in here."""

import importlib.machinery
import shutil
import sys
import types
from collections import defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import tiny

from msdetr.config import flatten
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine import train
from msdetr.engine.run import RunDirectory
from msdetr.errors import ConfigError


@dataclass
class Server:
    """What a tracking server holds, by the address that clients ask for."""

    runs: dict = field(default_factory=dict)
    experiments: list = field(default_factory=list)
    address: str = ""
    fails_after: float = float("inf")  # metrics

    def client(self, address):
        if "nowhere" in address:
            raise OSError("no route to host\nand more")
        self.address = address
        return self

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments.append(name)
        return name

    def create_run(self, experiment_id, run_name):
        number = str(len(self.runs))
        self.runs[number] = SimpleNamespace(name=run_name, params={}, metrics=defaultdict(list), status="RUNNING")
        return SimpleNamespace(info=SimpleNamespace(run_id=number))

    def update_run(self, run_id, status):
        self.runs[run_id].status = status

    def set_terminated(self, run_id, status):
        self.runs[run_id].status = status

    def get_metric_history(self, run_id, key):
        return [SimpleNamespace(step=step) for step, _ in self.runs[run_id].metrics[key]]

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(metrics) <= 1000 and len(params) <= 100
        if sum(map(len, self.runs[run_id].metrics.values())) + len(metrics) > self.fails_after:
            raise OSError("connection reset")
        self.runs[run_id].params |= dict(params)
        for key, value, _, step in metrics:
            self.runs[run_id].metrics[key].append((step, value))


@pytest.fixture
def server(monkeypatch):
    server = Server()
    mlflow, entities = types.ModuleType("mlflow"), types.ModuleType("mlflow.entities")
    mlflow.__spec__ = importlib.machinery.ModuleSpec("mlflow", None)
    mlflow.MlflowClient = server.client
    entities.Metric, entities.Param = lambda *values: values, lambda *values: values
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return server


def test_mlflow_says_what_metrics_say_and_once(tmp_path, shapes, server):
    """Also after a resume: steps that are done again do not appear twice."""
    config = tiny.config(shapes, train__mlflow=True, train__eval_every=1)
    train(config, tmp_path / "mine", device="cpu", progress=False)
    assert server.address == f"sqlite:///{tmp_path / 'mlflow.db'}" and server.experiments == ["msdetr"]
    shutil.rmtree(checkpoints.available(tmp_path / "mine")[-1])  # as if the run had stopped before its last checkpoint
    RunDirectory(tmp_path / "mine").write_results(status="running")
    train(config, tmp_path / "mine", device="cpu", progress=False)
    (run,) = server.runs.values()
    assert run.name == "mine" and run.status == "FINISHED"
    assert run.params["train.lr"] == "0.001" and len(run.params) == sum(v is not None for v in flatten(config).values())
    for kind, name in (("train", "loss"), ("train", "grad_norm"), ("eval", "AP50")):
        assert run.metrics[f"{kind}/{name}"] == [
            (line["step"], line[name]) for line in tiny.lines(tmp_path / "mine", kind)
        ]
    assert len(run.metrics["train/terms/one_to_many/giou/layer_2"]) == 12


@pytest.mark.fault("F135")
def test_a_server_that_fails_does_not_end_the_training(tmp_path, shapes, server):
    server.fails_after = 100
    with pytest.warns(UserWarning, match="MLflow: sqlite.*OSError: connection reset. Training goes on without it"):
        results = train(tiny.config(shapes, train__mlflow=True), tmp_path / "mine", device="cpu", progress=False)
    assert results["status"] == "finished" and len(tiny.lines(tmp_path / "mine", "train")) == 12


@pytest.mark.fault("F135")
def test_a_server_that_cannot_be_reached_is_an_error_before_the_first_step(tmp_path, shapes, server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://nowhere")
    with pytest.raises(
        ConfigError, match="train.mlflow: http://nowhere cannot be used: OSError: no route to host; set"
    ):
        train(tiny.config(shapes, train__mlflow=True), tmp_path / "mine", device="cpu", progress=False)
    assert not (tmp_path / "mine" / "metrics.jsonl").exists()


def test_mlflow_has_to_be_installed(tmp_path, shapes, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="train.mlflow: MLflow is not installed; pip install mlflow"):
        train(tiny.config(shapes, train__mlflow=True), tmp_path / "run", device="cpu", progress=False)
