"""check-data: counts, what would stop a run, and what is suspicious."""

import pytest
from PIL import Image

from msdetr.data import check


def test_counts(folder):
    images_dir, file = folder()
    report = check(file, images_dir)
    (split,) = report.splits
    assert report.ok and not split.errors and not split.suspicions
    assert (split.images, split.empty_images, split.objects, split.crowds) == (3, 1, 3, 1)
    assert split.class_counts == {"person": 1, "airplane": 1, "toothbrush": 1}
    assert split.size_counts == {"small": 3, "medium": 0, "large": 0}
    assert "ready to train on" in str(report) and "3, and 1 crowds" in str(report)


def test_errors_of_annotations_and_images_are_all_listed(folder, content):
    content["annotations"][0]["bbox"][2] = float("nan")
    images_dir, file = folder(content)
    Image.new("RGB", (5, 5)).save(images_dir / "a.png")
    (images_dir / "b.png").write_bytes(b"nothing")
    (images_dir / "empty.png").unlink()
    report = check(file, images_dir)
    text = str(report)
    assert not report.ok and len(report.splits[0].errors) == 4 and "NOT usable" in text
    for words in (
        "annotation 11",
        "5 × 5 pixels upright, annotated as 40 × 30",
        "b.png: not a readable",
        "empty.png (image 9)",
    ):
        assert words in text
    assert report.splits[0].objects == 2  # the rest is still described


def test_suspicions_name_image_and_annotation(folder, content):
    extra = [
        {"id": 20, "image_id": 7, "category_id": 1, "bbox": [3, 3, 30, 1.5], "area": 40, "iscrowd": 0},
        {"id": 21, "image_id": 7, "category_id": 5, "bbox": [1, 2, 10, 12.5], "area": 100, "iscrowd": 0},
        {"id": 22, "image_id": 3, "category_id": 1, "bbox": [2, 2, 6, 6], "area": 90, "iscrowd": 0},
        {"id": 23, "image_id": 3, "category_id": 1, "bbox": [9, 2, 6, 6], "area": 0, "iscrowd": 0},
    ]
    content["annotations"] += extra
    images_dir, file = folder(content)
    report = check(file, images_dir)
    found = {(s.image_id, s.annotation_id): s.reason for s in report.splits[0].suspicions}
    assert set(found) == {(7, 20), (7, 21), (3, 22), (3, 23)}
    assert "hardly visible" in found[7, 20] and "annotation 11" in found[7, 21]
    assert "exceeds that of its box" in found[3, 22] and "area 0" in found[3, 23]
    assert report.ok


def test_decoding_finds_what_the_header_hides(folder):
    images_dir, file = folder()
    path = images_dir / "a.png"
    path.write_bytes(path.read_bytes()[:-600])
    assert check(file, images_dir).ok
    assert "image 7" in check(file, images_dir, decode=True).splits[0].errors[0]


def test_nothing_to_check(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no data set in a layout that is known"):
        check(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        check(tmp_path / "x.json")
    (tmp_path / "bad.json").write_text("{")
    assert "not valid JSON" in str(check(tmp_path / "bad.json"))
