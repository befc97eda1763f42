import json

import pytest
from PIL import Image

from msdetr.data import check
from msdetr.viz.suspicions import suspicion_figure


@pytest.fixture
def folder(tmp_path):
    """A data set with a hair-thin box, an elongated one, and an annotation given twice, in a $-named class."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val").mkdir()
    Image.new("RGB", (200, 150), (90, 120, 160)).save(tmp_path / "val" / "one.png")
    boxes = [(20, 20, 1, 60), (10, 100, 150, 5), (60, 30, 40, 40), (60, 30, 40, 40)]
    content = {
        "images": [{"id": 7, "file_name": "one.png", "width": 200, "height": 150}],
        "categories": [{"id": 1, "name": "$x^2$<b>"}],
        "annotations": [
            {"id": i + 1, "image_id": 7, "category_id": 1, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
    }
    (tmp_path / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.fault("F83")
def test_the_worst_of_every_kind_is_drawn(folder, tmp_path):
    [report] = check(folder).splits
    figure = suspicion_figure(report)
    titles = [ax.get_title() for ax in figure.axes if ax.images]
    assert len(titles) == len(report.suspicions) == 3
    assert any("hardly visible" in title for title in titles) and any("elongated" in title for title in titles)
    figure.savefig(tmp_path / "suspicions.png")


def test_an_unreadable_image_is_said_in_its_place(folder):
    [report] = check(folder).splits
    (folder / "val" / "one.png").write_bytes(b"spoilt")
    figure = suspicion_figure(report, count=1)
    assert "not a readable image" in figure.axes[0].texts[0].get_text().replace("\n", " ")


def test_nothing_suspicious_is_nothing_to_draw(folder):
    [report] = check(folder).splits
    report.suspicions.clear()
    with pytest.raises(ValueError, match="nothing is suspicious"):
        suspicion_figure(report)
