"""CocoDetection: the mapping of classes, crowds, purity of augmentation, boxes that follow their objects."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from msdetr.boxes import cxcywh_to_xyxy
from msdetr.config import DataConfig
from msdetr.data import AnnotationError, CocoDetection, ImageError, check, collate, eval_transform, train_transform
from msdetr.data.transforms import IMAGE_MEAN, IMAGE_STD, resized


def same(a, b):
    assert (a.image_id, a.size) == (b.image_id, b.size)
    assert torch.equal(a.image, b.image) and torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels)


def test_a_sample(folder):
    dataset = CocoDetection(*folder())
    assert len(dataset) == 3 and dataset.image_ids == [3, 7, 9]
    sample = dataset[1]
    assert sample.image_id == 7 and sample.size == (30, 40) and sample.image.shape == (3, 30, 40)
    assert sample.labels.tolist() == [1, 2] and sample.labels.dtype == torch.int64
    assert torch.allclose(
        sample.boxes, torch.tensor([[6 / 40, 8.25 / 30, 10 / 40, 12.5 / 30], [27.5 / 40, 17.5 / 30, 0.375, 0.5]])
    )
    pixels = torch.from_numpy(np.array(Image.open(dataset.path(1)))).permute(2, 0, 1) / 255
    mean, std = torch.tensor(IMAGE_MEAN)[:, None, None], torch.tensor(IMAGE_STD)[:, None, None]
    assert torch.allclose(sample.image, (pixels - mean) / std, atol=1e-6)
    same(dataset[-2], sample)
    with pytest.raises(IndexError):
        dataset[3]


@pytest.mark.fault("F11")
def test_classes_map_to_categories_and_back(folder):
    dataset = CocoDetection(*folder())
    assert dataset.class_names == ["person", "airplane", "toothbrush"]
    assert dataset.categories.category_ids == (1, 5, 90)
    assert [dataset.categories.to_class(i) for i in dataset.categories.category_ids] == [0, 1, 2]
    with pytest.raises(KeyError, match="category id 2 is unknown"):
        dataset.categories.to_class(2)


@pytest.mark.fault("F11")
def test_raw_category_ids(folder, content):
    dataset = CocoDetection(*folder(), raw_category_ids=True)
    assert len(dataset.class_names) == 91 and dataset.class_names[90] == "toothbrush"
    assert dataset[1].labels.tolist() == [5, 90]
    used = [c for c, i in enumerate(dataset.categories.category_ids) if i is not None]
    assert used == [1, 5, 90] and all(dataset.categories.to_class(c) == c for c in used)
    content["categories"][0]["id"] = content["annotations"][1]["category_id"] = 10**6
    with pytest.raises(AnnotationError, match="raw_category_ids"):
        CocoDetection(*folder(content), raw_category_ids=True)


@pytest.mark.fault("F17")
def test_crowds_are_kept_for_evaluation_only(folder):
    dataset = CocoDetection(*folder())
    assert dataset[0].labels.tolist() == [0]  # of a crowd of airplanes and a person
    api = dataset.coco_api()
    assert {a["id"] for a in api.anns.values() if a["iscrowd"]} == {13} and len(api.anns) == 4


@pytest.mark.fault("F18")
def test_image_without_objects(folder):
    dataset = CocoDetection(*folder())
    empty = dataset[2]
    assert empty.labels.shape == (0,) and empty.boxes.shape == (0, 4)
    batch, targets = collate([dataset[0], empty, dataset[1]])
    assert batch.images.shape == (3, 3, 30, 40) and targets.counts.tolist() == [1, 0, 2]
    assert targets.image_ids == (3, 9, 7) and targets.sizes.tolist() == [[20, 20], [12, 16], [30, 40]]
    assert (~batch.mask).sum(dim=(1, 2)).tolist() == [20 * 20, 12 * 16, 30 * 40]
    assert not batch.images[batch.mask[:, None].expand_as(batch.images)].any()
    assert len(collate([empty])[1]) == 0


def test_limit_keeps_the_first_images(folder):
    dataset = CocoDetection(*folder(), limit=1)
    assert dataset.image_ids == [3] and sorted(dataset.coco_api().anns) == [13, 14]
    assert len(dataset.class_names) == 3


@pytest.mark.parametrize("augment", ["detr", "flip", "none"])
def test_augmentation_is_a_function_of_seed_epoch_and_index(folder, augment, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPU's generator was touched"))
    paths, transform = folder(), train_transform(DataConfig(augment=augment))
    dataset, again = (CocoDetection(*paths, transform, seed=3) for _ in range(2))
    before = torch.get_rng_state()
    samples = {(epoch, i): dataset[epoch, i] for epoch in range(3) for i in range(3)}
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's random numbers change
    torch.default_generator.manual_seed(99)
    for key in reversed(samples):
        same(again[key], samples[key])
    same(dataset[1], samples[0, 1])
    other = CocoDetection(*paths, transform, seed=4)
    changed = [
        not (a.image.shape == b.image.shape and torch.equal(a.image, b.image))
        for a, b in ((samples[key], other[key]) for key in samples)
    ]
    assert any(changed) == (augment != "none")
    assert any(not torch.equal(samples[0, i].boxes, samples[epoch, i].boxes) for i in range(2) for epoch in (1, 2)) == (
        augment != "none"
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_do_not_matter(folder, workers):
    dataset = CocoDetection(*folder(), train_transform(DataConfig()), cache=True)
    keys = [(epoch, index) for epoch in range(3) for index in (2, 0, 1)]
    loader = DataLoader(dataset, batch_size=None, sampler=keys, num_workers=workers)
    for key, sample in zip(keys, loader, strict=True):
        same(sample, dataset[key])


def test_cache_changes_nothing_and_saves_the_reading(folder):
    images_dir, file = folder()
    plain, cached = CocoDetection(images_dir, file), CocoDetection(images_dir, file, cache=True)
    for i in range(3):
        same(cached[i], plain[i])
    (images_dir / "a.png").unlink()
    same(cached[1], cached[1])
    with pytest.raises(ImageError):
        plain[1]
    copy = pickle.loads(pickle.dumps(cached))  # as for a spawned worker: an empty cache
    same(copy[0], cached[0])


@given(
    seed=st.integers(0, 2**32),
    box=st.tuples(*[st.integers(0, 80)] * 2, *[st.integers(12, 40)] * 2),
    augment=st.sampled_from(["detr", "flip", "none"]),
)
def test_boxes_follow_their_object(tmp_path_factory, seed, box, augment):
    """A white rectangle on black is found where the moved box says, whatever the augmentation."""
    from torchvision import tv_tensors

    x, y, w, h = box
    pixels = torch.zeros(3, 130, 170, dtype=torch.uint8)
    pixels[:, y : y + h, x : x + w] = 255
    boxes = tv_tensors.BoundingBoxes([[x, y, x + w, y + h]], format="XYXY", canvas_size=(130, 170), dtype=torch.float32)
    torch.manual_seed(seed)
    transform = train_transform(DataConfig(augment=augment, train_sizes=(120, 200), test_size=170, max_size=260))
    image, moved = transform(tv_tensors.Image(pixels), boxes)
    white = image[0] > 0
    rows, columns = white.any(dim=1).nonzero(), white.any(dim=0).nonzero()
    x0, y0, x1, y1 = moved[0].tolist()
    if x1 <= x0 or y1 <= y0:
        assert not white.any()
    elif min(x1 - x0, y1 - y0) > 4:  # thinner slivers may blur away
        found = [columns[0].item(), rows[0].item(), columns[-1].item() + 1, rows[-1].item() + 1]
        scale = 1 + 5 * (augment == "detr")  # the crop at 400-600 pixels is scaled down again
        assert np.abs(np.array(found) - [x0, y0, x1, y1]).max() <= scale


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),
        ((640, 480), (1066, 800)),
        ((427, 640), (800, 1199)),
        ((300, 640), (625, 1333)),
        ((500, 500), (800, 800)),
    ],
)
def test_resizing_keeps_the_aspect(size, expected):
    assert resized(*size, 800, 1333) == expected
    low, high = min(expected), max(expected)
    assert abs(low / high - min(size) / max(size)) < 2e-3


def test_real_photographs(coco_tiny):
    paths = coco_tiny / "val2017", coco_tiny / "annotations" / "instances_val2017.json"
    dataset = CocoDetection(*paths, eval_transform(DataConfig()))
    assert len(dataset) == 80 and len(dataset.class_names) == 80 and not dataset.report
    assert CocoDetection(*paths, raw_category_ids=True).class_names[90] == "toothbrush"
    api = dataset.coco_api()
    assert sum(a["iscrowd"] for a in api.anns.values()) == 11
    for i in range(0, 80, 8):
        sample = dataset[i]
        truth = [a for a in api.imgToAnns[sample.image_id] if not a["iscrowd"]]
        assert [dataset.categories.category_ids[c] for c in sample.labels] == [a["category_id"] for a in truth]
        height, width = sample.size
        pixels = cxcywh_to_xyxy(sample.boxes) * torch.tensor([width, height, width, height])
        x, y, w, h = torch.tensor([a["bbox"] for a in truth]).T
        assert torch.allclose(pixels, torch.stack([x, y, x + w, y + h], dim=1), atol=0.05)
        short, long = sorted(sample.image.shape[1:])
        assert (short == 800 and long <= 1333) or long in (1332, 1333)
    assert check(coco_tiny).ok
