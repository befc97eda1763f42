import json

import numpy as np
import pytest
import torch
from PIL import Image
from small import SMALL

import msdetr
from msdetr.config import RunConfig
from msdetr.data import image_files
from msdetr.data import shapes as generator
from msdetr.errors import ConfigError, EvaluationError, ImageError, InputError

TINY = (
    SMALL
    | {
        "model.num_queries": 20,
        "data.num_train": 8,
        "data.num_val": 4,
        "train.batch_size": 8,
        "train.micro_batch": 8,
        "train.epochs": 1,
        "train.ema_decay": 0.5,
        "two_stage": None,  # no proposals of an untrained encoder to choose from, which rounding may rank otherwise in a batch
    }
)


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


def test_detections_are_tensors_like_any_other(predictor):
    found = predictor.predict(np.zeros((40, 60, 3), np.uint8))
    assert not any(part.is_inference() for part in (found.scores, found.labels, found.boxes, found.query))
    found.scores.mul_(0.5)
    assert (found.scores * torch.ones(len(found), requires_grad=True)).sum().requires_grad


@pytest.mark.fault("F96")
def test_every_kind_of_image_gives_the_same(predictor, data):
    path = min((data / "val").glob("*.png"))
    image = Image.open(path).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    first, *others = predictor.predict([path, str(path), image, array, tensor, tensor.float() / 255])
    assert len(first) == 100 and first.names[0] in generator.CLASS_NAMES
    assert first.path == path and others[-1].path is None
    for other in others:
        assert torch.equal(first.boxes, other.boxes) and torch.equal(first.scores, other.scores)
    assert len(predictor.predict(path, max_detections=7)) == 7
    least = float(first.scores[9])
    assert len(predictor.predict(path, min_score=least - 1e-6)) == int((first.scores >= least - 1e-6).sum())


def same_detections(one, two):
    assert one.labels.tolist() == two.labels.tolist() and one.query.tolist() == two.query.tolist()
    torch.testing.assert_close(one.scores, two.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.boxes, two.boxes, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_many_at_once_are_as_one_at_a_time(predictor, data, batch_size):
    paths = sorted((data / "train").glob("*.png"))
    images = [np.asarray(Image.open(path)) for path in paths]
    images[1:6:2] = [image[:70, :90] for image in images[1:6:2]]  # another size in between
    alone = [predictor.predict(image) for image in images]
    for found in (
        predictor.predict(images, batch_size=batch_size),
        predictor.predict((image for image in images), batch_size=batch_size),
        list(predictor.stream(images, batch_size=batch_size)),
    ):
        assert len(found) == len(images)
        for one, two in zip(alone, found):
            same_detections(one, two)


def test_a_stream_reads_no_further_than_it_must(predictor):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield np.zeros((16, 16, 3), np.uint8)

    stream = predictor.stream(endless(), batch_size=2)
    assert len(next(stream)) and len(taken) <= 8
    assert predictor.predict(iter([])) == []


def test_a_folder_and_names_of_any_script(predictor, data, tmp_path):
    source = sorted((data / "val").glob("*.png"))
    names = ["b.PNG", "Привет мир.png", "写真.png", "naïve é.png"]
    for name, path in zip(names, source):
        (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "sub").mkdir()
    found = predictor.predict(tmp_path)
    assert [one.path.name for one in found] == sorted(names)
    for one in found:
        same_detections(one, predictor.predict(source[names.index(one.path.name)]))
    with pytest.raises(ImageError, match="no image files in this folder"):
        predictor.predict(tmp_path / "sub")
    with pytest.raises(ImageError, match=r"x: cannot be listed \(File name too long\)"):
        image_files(tmp_path / ("x" * 300))


def test_boxes_are_in_pixels_of_the_image_as_given_and_within_it(predictor):
    wide = np.random.default_rng(0).integers(0, 255, (60, 240, 3), dtype=np.uint8)
    boxes = predictor.predict(wide).boxes
    assert boxes[:, 0::2].max() > 120
    assert boxes.min() >= 0 and boxes[:, 0::2].max() <= 240 and boxes[:, 1::2].max() <= 60
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


@pytest.mark.fault("F97")
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 2), (1, 700), (700, 1), (9, 31)])
def test_images_of_a_few_pixels_are_predicted(predictor, size):
    found = predictor.predict(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    assert len(found) and found.boxes.isfinite().all() and found.scores.isfinite().all()
    assert found.boxes[:, 0::2].max() <= size[1] and found.boxes[:, 1::2].max() <= size[0]


@pytest.mark.fault("F97")
def test_images_of_a_few_pixels_are_trained_on_and_evaluated(tmp_path):
    sizes = [(1, 1), (1, 40), (40, 1), (2, 3), (5, 4), (1, 2), (64, 64), (8, 8)]
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "annotations").mkdir()
    for i, (h, w) in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(tmp_path / "data" / "train" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": h, "width": w})
        annotations.append({"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, w, h], "area": h * w})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dot"}]}
    (tmp_path / "data" / "annotations" / "instances_train.json").write_text(json.dumps(content))
    settings = {
        "data.root": str(tmp_path / "data"), "data.generate": "none", "data.val_split": "train", "model.num_classes": 1,
        "data.num_train": 0, "data.num_val": 0, "train.micro_batch": 1, "train.epochs": 2,
    }  # fmt: skip
    results = msdetr.train("shapes/ms-detr-c", tmp_path / "run", TINY | settings, device="cpu", progress=False)
    assert results["status"] == "finished" and results["steps"] == 2
    assert msdetr.evaluate(tmp_path / "run", device="cpu", progress=False).num_images == len(sizes)


@pytest.mark.fault("F98")
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_below_one_are_refused(predictor, data, value):
    image = np.zeros((8, 8, 3), np.uint8)
    for name in ("max_detections", "batch_size"):
        with pytest.raises(InputError, match=f"{name}: must be a whole number, at least 1"):
            predictor.predict(image, **{name: value})
    for name in ("max_detections", "limit"):
        with pytest.raises(InputError, match=f"{name}: must be"):
            msdetr.evaluate(predictor, progress=False, **{name: value})
    with pytest.raises(InputError, match="workers: must be"):
        msdetr.evaluate(predictor, progress=False, workers=-1)


@pytest.mark.fault("F101")
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.5", None])
def test_a_score_outside_its_range_is_refused(predictor, value):
    with pytest.raises(InputError, match="min_score: must be a number between 0 and 1"):
        predictor.predict(np.zeros((8, 8, 3), np.uint8), min_score=value)


@pytest.mark.fault("F103")
def test_weights_that_are_not_finite_are_an_error_not_an_empty_answer(run_dir):
    spoilt = msdetr.load(run_dir, device="cpu")
    with torch.no_grad():
        spoilt.detector.level_embedding[:] = float("nan")
    with pytest.raises(EvaluationError, match=r"image 0: the detector predicts a NaN or infinite box or score"):
        spoilt.predict(np.zeros((32, 32, 3), np.uint8), min_score=0.3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 9, 8), np.uint8), r"array.transpose\(1, 2, 0\)"),
        (np.zeros((4, 4, 5), np.uint8), r"an array must be \[h, w\] or \[h, w, 1 to 4 channels\]"),
        (np.full((4, 4, 3), 2.0, np.float32), r"floats must lie in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), "found nan"),
        (np.zeros((4, 4), np.int64), "got int64"),
        (np.zeros((4, 4), object), "got object"),
        (np.zeros((0, 4, 3), np.uint8), "an image needs pixels; got one of 4 × 0"),
        (torch.zeros(9, 8, 3), r"tensor.permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 8, 8), r"list\(tensor\)"),
        (torch.full((3, 4, 4), 2.0), r"floats must lie in \[0, 1\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "a tensor must be uint8, uint16, bool, or float"),
    ],
)
def test_other_arrays_are_refused(predictor, image, message):
    with pytest.raises(InputError, match=message):
        predictor.predict(image)


def test_other_types_are_refused(predictor):
    for wrong in ({}, 3, b"abc", [3]):
        with pytest.raises(TypeError, match="expected a path, PIL image, array or tensor, got"):
            predictor.predict(wrong)


def test_the_moving_average_is_what_predicts(run_dir, predictor):
    raw = msdetr.load(run_dir, device="cpu", ema=False)
    one, two = predictor.detector.state_dict(), raw.detector.state_dict()
    assert one.keys() == two.keys() and any(not torch.equal(one[name], two[name]) for name in one)


def test_evaluate_gives_what_training_gave(run_dir, predictor, data):
    result = msdetr.evaluate(predictor, progress=False)
    trained = json.loads((run_dir / "results.json").read_text())
    assert result.metrics == pytest.approx(trained["metrics"], abs=1e-9)
    other = msdetr.evaluate(run_dir, data, "train", limit=3, device="cpu", progress=False)
    assert other.num_images == 3


@pytest.mark.parametrize("split", ["test", "all"])
def test_evaluation_on_another_folder_asks_which_split(run_dir, data, tmp_path, split):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / f"instances_{split}.json").symlink_to(data / "annotations" / "instances_val.json")
    (tmp_path / split).symlink_to(data / "val")
    predictor = msdetr.load(run_dir, device="cpu")
    predictor.config = predictor.config.override({"data.train_split": "auto", "data.val_split": "auto"})
    with pytest.raises(ConfigError, match=f"no split of it is for validation; name the one.*--split {split}"):
        msdetr.evaluate(predictor, tmp_path, progress=False)
    whole = msdetr.evaluate(predictor, tmp_path, split, progress=False).num_images
    assert whole == msdetr.evaluate(predictor, data, "val", progress=False).num_images
    if split == "all":  # what training there would hold out
        assert msdetr.evaluate(predictor, tmp_path, "auto", progress=False).num_images < whole


def test_other_classes_are_an_error(predictor, data, tmp_path):
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
