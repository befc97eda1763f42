"""The generated data set: the same bytes everywhere, true annotations, and a folder that is whole or not there."""

import errno
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msdetr.data import CocoDetection, check, shapes
from msdetr.data.shapes import folder
from msdetr.data.shapes.raster import ONE, Dice
from msdetr.data.shapes.scene import render_scene
from msdetr.errors import ShapesError

DIGESTS = {  # of the fixture: 12 + 5 images, seed 0, generator version 2
    "train": "957035be884ba78217edc0a1a67950ef9ff1daf52ae23588652f14523892cbea",
    "val": "2bbc5c0b8a2e1c9bf865fdfff7561cb6c20f84d7244ee3320e22b07c6f06c16c",
}


def digest(root, split):
    """SHA-256 of the annotation file and of all decoded pixels."""
    sums = hashlib.sha256((root / "annotations" / f"instances_{split}.json").read_bytes())
    for path in sorted((root / split).iterdir()):
        with Image.open(path) as image:
            assert image.mode == "RGB" and image.size == (128, 128)
            sums.update(image.tobytes())
    return sums.hexdigest()


@pytest.mark.parametrize("split", ["train", "val"])
def test_same_bytes_everywhere(shapes_root, split):
    assert digest(shapes_root, split) == DIGESTS[split]


def test_sines_are_far_from_a_rounding_limit():
    """So that no mathematical library can round one of them otherwise."""
    exact = [ONE * math.sin(math.radians(degree)) for degree in range(360)]
    assert min(abs(value % 1 - 0.5) for value in exact) > 1e-6


def test_splits_and_seeds_are_disjoint_and_prefixes_agree(tmp_path, shapes_root):
    def pixels(root, split):
        return [hashlib.sha256(Image.open(p).tobytes()).hexdigest() for p in sorted((root / split).iterdir())]

    more = shapes.generate(tmp_path / "more", 14, 1, seed=0)
    other = shapes.generate(tmp_path / "other", 12, 0, seed=1)
    train, val = pixels(shapes_root, "train"), pixels(shapes_root, "val")
    assert pixels(more, "train")[:12] == train
    assert len({*train, *val, *pixels(other, "train")}) == 12 + 5 + 12


def test_annotations_are_what_is_visible():
    """Box and area of every object against the sub-sampled mask that it was painted from."""
    labels, overlaps = set(), 0
    for index in range(40):
        image, annotations = shapes.render(0, "train", index)
        _, objects = render_scene(Dice(0, 0, index))
        assert image.shape == (128, 128, 3) and 1 <= len(annotations) <= 6
        for (label, visible), annotation in zip(objects, annotations, strict=True):
            labels.add(label)
            assert annotation["category_id"] == label + 1 and annotation["iscrowd"] == 0
            rows, columns = np.nonzero(visible)
            x, y, w, h = annotation["bbox"]
            assert [x, y, x + w, y + h] == [
                columns.min() / 4,
                rows.min() / 4,
                (columns.max() + 1) / 4,
                (rows.max() + 1) / 4,
            ]
            assert annotation["area"] == visible.sum() / 16 >= 32
            assert 0 <= x and x + w <= 128 and 0 <= y and y + h <= 128
        boxes = np.array([a["bbox"] for a in annotations])
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        cross = np.minimum(corners[:, None, 2:], corners[None, :, 2:]) - np.maximum(
            corners[:, None, :2], corners[None, :, :2]
        )
        overlaps += int(((cross > 0).all(axis=2).sum(axis=1) > 1).sum())
    assert labels == set(range(8)) and overlaps > 20


def test_a_folder_is_reused_or_refused(tmp_path):
    made = []
    root = shapes.generate(tmp_path / "set", 3, 2, seed=4, on_image=lambda done, total: made.append((done, total)))
    assert made == [(i, 5) for i in range(1, 6)]
    written = (root / "manifest.json").stat().st_mtime_ns
    assert shapes.generate(root, 3, 2, seed=4) == root and shapes.generate(root, 2, 2, seed=4) == root
    assert (root / "manifest.json").stat().st_mtime_ns == written
    assert [p.name for p in tmp_path.iterdir()] == ["set"]
    with pytest.raises(ShapesError, match=r"seed 4, wanted 5; choose another folder \(data.root\), or delete"):
        shapes.generate(root, 3, 2, seed=5)
    with pytest.raises(ShapesError, match="3 train images, wanted 9"):
        shapes.generate(root, 9, 2, seed=4)
    file = root / "annotations" / "instances_val.json"
    intact = file.read_text()
    file.write_text(intact.replace("ring", "rinG"))
    with pytest.raises(ShapesError, match="val split was changed"):
        shapes.generate(root, 3, 2, seed=4)
    file.write_text(intact)
    (root / "train" / "000000000002.png").unlink()
    with pytest.raises(ShapesError, match="train split was changed or is incomplete"):
        shapes.generate(root, 3, 2, seed=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ShapesError, match="not a complete generated data set"):
        shapes.generate(tmp_path / "mine", 1, 1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_an_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "render", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shapes.generate(tmp_path / "set", 3, 2)
    assert not list(tmp_path.iterdir())


def test_two_generations_at_once_share_nothing(tmp_path):
    """Those of two containers may have one process number, as these two have."""
    inner = []

    def begin_another(done, total):
        if done == 1:
            inner.append(shapes.generate(tmp_path / "set", 2, 1))

    assert [shapes.generate(tmp_path / "set", 2, 1, on_image=begin_another)] == inner == [tmp_path / "set"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_empty_folder_a_link_and_the_usual_permissions(tmp_path):
    (tmp_path / "ordinary").mkdir()
    usual = (tmp_path / "ordinary").stat().st_mode
    for folder_there in (tmp_path / "disk" / "empty", tmp_path / "ordinary"):
        folder_there.mkdir(parents=True, exist_ok=True)
    (tmp_path / "linked").symlink_to(tmp_path / "disk" / "empty")
    assert shapes.generate(tmp_path / "linked", 1, 1) == tmp_path / "linked" and (tmp_path / "linked").is_symlink()
    assert shapes.generate(tmp_path / "ordinary", 1, 1).stat().st_mode == usual
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["empty"]


def test_a_folder_that_must_stay_is_known_before_images_are_made(tmp_path, monkeypatch):
    def rmdir(path):
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(Path, "rmdir", rmdir)
    made = []
    with pytest.raises(ShapesError, match=r"cannot be replaced by the data set: .*busy; choose a folder in it"):
        shapes.generate(tmp_path / "volume", 1, 1, on_image=lambda *_: made.append(1))
    assert not made and (tmp_path / "volume").is_dir()


def test_it_is_an_ordinary_coco_folder(shapes_root):
    dataset = CocoDetection(shapes_root / "val", shapes_root / "annotations" / "instances_val.json")
    assert dataset.class_names == list(shapes.CLASS_NAMES) and not dataset.report
    report = check(shapes_root, decode=True)
    assert report.ok and report.splits[0].images == 12 and not report.splits[0].suspicions
    content = json.loads((shapes_root / "annotations" / "instances_val.json").read_text())
    assert set(content) == {"info", "images", "annotations", "categories"}


def test_the_committed_samples_are_what_the_generator_makes():
    samples = Path(__file__).parents[2] / "data" / "samples"
    assert shapes.generate(samples, 4, 4, seed=0) == samples  # verifies seed, version and annotations
    for split in ("train", "val"):
        for index in range(4):
            with Image.open(samples / split / f"{index + 1:012d}.png") as image:
                assert np.array_equal(np.array(image), shapes.render(0, split, index)[0])
