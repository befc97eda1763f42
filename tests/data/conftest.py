"""What the tests of the data share: a small valid data set to spoil, and the real photographs where they are at hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

VALID = Path(__file__).parent / "valid.json"


@pytest.fixture
def content():
    """A valid COCO content, free to be changed."""
    return json.loads(VALID.read_text())


@pytest.fixture
def folder(tmp_path):
    """``folder(content)`` writes images and annotations, and returns (images_dir, annotation_file)."""

    def write(content=None, images=True):
        content = content or json.loads(VALID.read_text())
        images_dir = tmp_path / "images"
        images_dir.mkdir(exist_ok=True)
        if images:
            rng = np.random.default_rng(0)
            for image in content["images"]:
                pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images_dir / image["file_name"])
        file = tmp_path / "instances.json"
        file.write_text(json.dumps(content))
        return images_dir, file

    return write


@pytest.fixture(scope="session")
def coco_tiny():
    """Folder with real COCO photographs: $MSDETR_COCO_TINY, or shared/coco_tiny beside the repository."""
    default = Path(__file__).parents[3] / "shared" / "coco_tiny"
    root = Path(os.environ.get("MSDETR_COCO_TINY", default))
    if not (root / "annotations").is_dir():
        pytest.skip(f"no real photographs at {root}; set MSDETR_COCO_TINY")
    return root


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A small generated data set: 12 + 5 images."""
    from msdetr.data import shapes

    return shapes.generate(tmp_path_factory.mktemp("data") / "shapes", 12, 5, seed=0)


@pytest.fixture
def pipelines():
    """Every transform that a configuration can name."""
    from msdetr.config import DataConfig
    from msdetr.data import eval_transform, train_transform

    training = [train_transform(DataConfig(augment=name)) for name in ("detr", "flip", "none")]
    return [*training, eval_transform(DataConfig()), eval_transform(DataConfig(test_size=0))]
