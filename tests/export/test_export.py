"""Exported detectors: the same predictions from files, for any batch and image size; errors that say what to do."""

import importlib.util
import json
import re
import resource
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small import config
from torchvision import tv_tensors

import msdetr
from msdetr.config import DataConfig, RunConfig
from msdetr.data import eval_transform
from msdetr.engine import checkpoint as checkpoints
from msdetr.errors import ConfigError, FileError, WriteError
from msdetr.export import Graph, compare, export, read_metadata
from msdetr.export.check import onnx_function, program_function
from msdetr.methods import build_detector
from msdetr.predictor import Predictor

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
NAMES = tuple(f"class {i}" for i in range(8))


def trained_like(settings: RunConfig) -> torch.nn.Module:
    """A detector whose every weight matters: fresh ones predict the same box offsets everywhere."""
    torch.manual_seed(0)
    detector = build_detector(settings)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return detector


def write_run(folder, status="finished", **changes):
    """A run directory as training leaves it: results and one checkpoint."""
    settings = config("c", **changes)
    detector = trained_like(settings)
    manifest = {
        "step": 1, "epoch": 1.0, "config": settings.to_dict(), "class_names": list(NAMES), "category_ids": list(range(8)),
        "metrics": {"AP": 0.5}, "training": {},
    }  # fmt: skip
    checkpoints.write(folder / "checkpoints" / "step_00000001", {"model": detector.state_dict()}, manifest)
    (folder / "results.json").write_text(json.dumps({"status": status}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run")


def test_the_graph_predicts_what_the_predictor_does(run):
    predictor = msdetr.load(run, "cpu")
    pixels = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = predictor.predict(pixels)
    scores, labels, boxes = Graph(predictor)(
        pixels[None], torch.zeros(1, 128, 128, dtype=torch.bool), torch.tensor([[128, 128]])
    )
    torch.testing.assert_close(scores[0], expected.scores)
    torch.testing.assert_close(boxes[0], expected.boxes)
    assert torch.equal(labels[0], expected.labels)


def test_what_lies_on_padding_does_not_matter(run):
    graph = Graph(msdetr.load(run, "cpu"))
    mask = torch.zeros(1, 96, 128, dtype=torch.bool)
    mask[..., 100:] = True
    images = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    other = images.clone()
    other[..., 100:] = 7
    for a, b in zip(graph(images, mask, torch.tensor([[96, 100]])), graph(other, mask, torch.tensor([[96, 100]]))):
        assert torch.equal(a, b)


def test_slim_weights_predict_the_same_and_hold_nothing_else(run, tmp_path):
    slim = export(run, "weights", tmp_path / "slim")
    predictor, original = msdetr.load(slim, "cpu"), msdetr.load(run, "cpu")
    pixels = np.full((90, 120, 3), 100, np.uint8)
    assert torch.equal(predictor.predict(pixels).boxes, original.predict(pixels).boxes)
    assert predictor.class_names == NAMES
    assert sorted(path.name for path in slim.iterdir()) == ["manifest.json", "model.safetensors"]
    stored = checkpoints.find(slim).tensors("model")
    assert stored.keys() == original.detector.state_dict().keys()
    assert not any("one_to_many" in name for name in stored)


def test_the_best_checkpoint_of_a_run_is_exported(tmp_path):
    folder = write_run(tmp_path / "run")
    best = checkpoints.find(folder)
    later = {name: torch.zeros_like(tensor) for name, tensor in best.tensors("model").items()}
    worse = {"step": 2, "metrics": {"AP": 0.4}}
    manifest = {name: best.manifest[name] for name in ("epoch", "config", "class_names", "category_ids", "training")}
    checkpoints.write(folder / "checkpoints" / "step_00000002", {"model": later}, manifest | worse)
    assert checkpoints.find(export(folder, "weights", tmp_path / "slim")).manifest["step"] == 1


@pytest.mark.fault("F130")
def test_a_run_that_is_not_finished_is_refused_and_its_checkpoint_is_not(tmp_path):
    folder = write_run(tmp_path / "run", "interrupted")
    with pytest.raises(
        ConfigError, match=r"not finished \(status: interrupted\); resume it, or export one of its checkpoi"
    ):
        export(folder, "weights", tmp_path / "slim")
    export(folder / "checkpoints" / "step_00000001", "weights", tmp_path / "slim")


@pytest.mark.fault("F131")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"to": "onnx", "opset": 9}, "opset: 9 is not supported; use one from 18 to"),
        ({"to": "coreml"}, "to: 'coreml' is none of onnx, pt2, weights"),
        ({"to": "pt2", "operator": "native"}, "operator: 'native' is none of gather, grid-sample"),
        ({"to": "pt2", "max_detections": 0}, "max_detections"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(changes, message, run, tmp_path):
    with pytest.raises(msdetr.MSDETRError, match=message):
        export(run, output=tmp_path / "file", **changes)
    assert not (tmp_path / "file").exists()


@pytest.mark.fault("F131")
def test_nothing_is_overwritten_unasked(run, tmp_path):
    (tmp_path / "mine.pt2").write_text("precious")
    with pytest.raises(ConfigError, match="is there already"):
        export(run, "pt2", tmp_path / "mine.pt2")
    assert (tmp_path / "mine.pt2").read_text() == "precious"


@pytest.mark.fault("F131")
def test_only_exported_weights_give_way_to_others(run, tmp_path, monkeypatch):
    """Not a run, not its checkpoint, and not a folder in which somebody has put something."""
    mine = write_run(tmp_path / "run")
    [checkpoint] = (mine / "checkpoints").iterdir()
    kept = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    monkeypatch.chdir(mine)
    for place in (mine, checkpoint, "."):
        with pytest.raises(ConfigError, match="is a folder with other things in it; name a new one"):
            export(run, "weights", place, overwrite=True)
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        export(run, "pt2", mine, overwrite=True)
    assert kept == {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    empty = tmp_path / "empty"
    empty.mkdir()
    for overwrite in (False, True):
        assert msdetr.load(export(run, "weights", empty, overwrite=overwrite), "cpu").class_names == NAMES
    with pytest.raises(ConfigError, match="is there already"):
        export(run, "weights", empty)
    (empty / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="other things in it"):
        export(run, "weights", empty, overwrite=True)


@pytest.mark.fault("F95")
def test_a_full_disk_leaves_what_was_there(run, tmp_path, monkeypatch):
    """With a small program in place of the detector's, which takes longer to make."""
    program = torch.export.export(torch.nn.Linear(40, 40), (torch.zeros(1, 40),))
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: program)
    target = tmp_path / "mine.pt2"
    target.write_text("before")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(WriteError, match=r"mine\.pt2: cannot be written: File too large"):
            export(run, "pt2", target, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert target.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["mine.pt2"]


def test_images_are_resized_as_documented(tmp_path, monkeypatch):
    """The example in docs/export.md, on images of several sizes, against what a predictor does with them."""
    [example] = re.findall(r"^```python\n(import numpy.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    fed = {}
    session = SimpleNamespace(run=lambda _, inputs: fed.update(inputs) or (None, None, None))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=lambda _: session))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for shortest, longest in ((0, 0), (320, 640), (100, 133)):
        resize = {"shortest_side": shortest, "longest_side": longest}
        monkeypatch.setattr(msdetr.export, "read_metadata", lambda _, resize=resize: {"resize": resize})
        transform = eval_transform(DataConfig(test_size=shortest, max_size=longest or 1333))
        for width, height in ((96, 64), (333, 211), (211, 333), (427, 640), (640, 427), (1000, 30), (7, 501)):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save("photo.jpg")
            runpy.run_path("example.py")
            wanted = transform(tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)))
            assert fed["images"].shape == (1, *wanted.shape) and fed["mask"].shape == (1, *wanted.shape[1:])
            assert fed["sizes"].tolist() == [[height, width]]


@pytest.mark.fault("F132")
@pytest.mark.parametrize("name", ["a.onnx", "a.pt2", "a.txt"])
def test_metadata_of_a_foreign_file(name, tmp_path):
    with pytest.raises(FileError, match="there is no such file"):
        read_metadata(tmp_path / name)
    (tmp_path / name).write_bytes(b"no such thing")
    if name == "a.onnx" and importlib.util.find_spec("onnx") is None:
        with pytest.raises(ConfigError, match="needs onnx; pip install"):
            read_metadata(tmp_path / name)
        return
    with pytest.raises(FileError, match="no file that `msdetr export` wrote"):
        read_metadata(tmp_path / name)


def test_the_comparison_finds_a_wrong_export(run):
    """Shifted boxes, a lost detection, and another order are different; equal ones are the same."""
    graph = Graph(msdetr.load(run, "cpu")).eval()

    def shifted(*given):
        scores, labels, boxes = graph(*given)
        return scores, labels, boxes + 0.5

    def reordered(*given):
        return tuple(x.flip(1) for x in graph(*given))

    def shorter(*given):
        return tuple(x[:, :-1] for x in graph(*given))

    assert compare(graph, graph, 4, 96).passed
    for wrong in (shifted, reordered, shorter):
        result = compare(graph, wrong, 4, 96)
        assert result.different + result.undecided == 4 and not result.passed


@pytest.mark.slow
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_files_hold_for_any_batch_and_size(kind, raw, run, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = export(run, kind, tmp_path / f"detector.{kind}", raw=raw)
    graph = Graph(msdetr.load(run, "cpu"), raw).eval()
    function = onnx_function(path) if kind == "onnx" else program_function(path)
    result = compare(graph, function, 50, 100)
    assert result.passed, str(result)
    described = read_metadata(path)
    assert described["class_names"] == list(NAMES) and described["outputs"] == list(graph.outputs)


@pytest.mark.slow
def test_the_whole_detector_compiles_without_a_break(run):
    graph = Graph(Predictor(trained_like(config("c")).strip(), config("c"), device="cpu")).eval()
    compiled = torch.compile(graph, fullgraph=True, backend="aot_eager")
    result = compare(graph, compiled, 4, 96)
    assert result.same == 4, str(result)
