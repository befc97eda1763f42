import numpy as np
import pytest
import torch
from PIL import Image

import msdetr
from msdetr.config import RunConfig
from msdetr.data import shapes as generator
from msdetr.errors import ConfigError

TINY = {
    "model.hidden_dim": 32,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.ffn_dim": 32,
    "model.num_queries": 20,
    "data.num_train": 8,
    "data.num_val": 4,
    "train.batch_size": 8,
    "train.micro_batch": 8,
    "train.epochs": 1,
    "train.ema_decay": 0.5,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return generator.generate(tmp_path_factory.mktemp("data") / "shapes", 8, 4)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("runs") / "run"
    msdetr.train("shapes/ms-detr-c", folder, TINY | {"data.root": str(data)}, device="cpu", progress=False)
    return folder


@pytest.fixture(scope="module")
def predictor(run_dir):
    return msdetr.load(run_dir, device="cpu")


def test_every_kind_of_image_gives_the_same(predictor, data):
    path = min((data / "val").glob("*.png"))
    image = Image.open(path).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    first, *others = predictor.predict([path, str(path), image, array, tensor, tensor.float() / 255])
    assert len(first) == 100 and first.names[0] in generator.CLASS_NAMES
    for other in others:
        assert torch.equal(first.boxes, other.boxes) and torch.equal(first.scores, other.scores)
    assert len(predictor.predict(path, max_detections=7)) == 7
    least = float(first.scores[9])
    assert len(predictor.predict(path, min_score=least)) == int((first.scores >= least).sum())


def test_boxes_are_in_pixels_of_the_image_as_given(predictor):
    wide = np.random.default_rng(0).integers(0, 255, (60, 240, 3), dtype=np.uint8)
    boxes = predictor.predict(wide).boxes
    assert boxes[:, 0::2].max() > 120 and boxes[:, 1::2].max() < 120


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 4), np.uint8), r"array must be uint8 \[h, w, 3\]"),
        (np.zeros((4, 4, 3), np.float32), "array must be uint8"),
        (torch.zeros(1, 4, 4), r"tensor must be \[3, h, w\]"),
        (torch.full((3, 4, 4), 2.0), r"float in \[0, 1\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "uint8, or float"),
    ],
)
def test_other_arrays_are_refused(predictor, image, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(image)


def test_other_types_are_refused(predictor):
    with pytest.raises(TypeError, match="expected a path, PIL image, array or tensor, got dict"):
        predictor.predict({})


def test_the_moving_average_is_what_predicts(run_dir, predictor):
    raw = msdetr.load(run_dir, device="cpu", ema=False)
    one, two = predictor.detector.state_dict(), raw.detector.state_dict()
    assert one.keys() == two.keys() and any(not torch.equal(one[name], two[name]) for name in one)


def test_evaluate_gives_what_training_gave(run_dir, predictor, data):
    import json

    result = msdetr.evaluate(predictor, progress=False)
    trained = json.loads((run_dir / "results.json").read_text())
    assert result.metrics == pytest.approx(trained["metrics"], abs=1e-9)
    other = msdetr.evaluate(run_dir, data, "train", limit=3, device="cpu", progress=False)
    assert other.num_images == 3


def test_other_classes_are_an_error(predictor, data, tmp_path):
    import json

    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").symlink_to(data / "val")
    content = json.loads((data / "annotations" / "instances_val.json").read_text())
    content["categories"][2]["name"] = "moon"
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="2: 'half-disc' / 'moon'"):
        msdetr.evaluate(predictor, tmp_path, "val", progress=False)


def test_build_from_a_name_a_config_a_mapping_or_a_file(tmp_path):
    config = msdetr.resolve("shapes/ms-detr-c", TINY)
    config.save(tmp_path / "config.yaml")
    shapes = {name: tuple(p.shape) for name, p in msdetr.build(config).named_parameters()}
    for source in (tmp_path / "config.yaml", config.to_dict()):
        assert {name: tuple(p.shape) for name, p in msdetr.build(source).named_parameters()} == shapes
    assert isinstance(msdetr.resolve("shapes/baseline"), RunConfig)
