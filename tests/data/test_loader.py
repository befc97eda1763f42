"""The order of the images: pure in (seed, epoch), the same for any ranks, micro-batches and workers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msdetr.config import RunConfig
from msdetr.data import EpochSampler, build_datasets, build_eval_loader, build_train_loader


@given(
    num_images=st.integers(1, 60), batch_size=st.integers(1, 20), world_size=st.integers(1, 5),
    seed=st.integers(0, 2**40), epoch=st.integers(0, 3), data=st.data(),
)  # fmt: skip
def test_ranks_share_the_same_global_batches(num_images, batch_size, world_size, seed, epoch, data):
    batch_size = min(num_images, max(batch_size, world_size))
    world_size = min(world_size, batch_size)
    whole = list(EpochSampler(num_images, batch_size, seed, epoch))
    assert len(whole) == num_images // batch_size and all(len(batch) == batch_size for batch in whole)
    seen = [key for batch in whole for key in batch]
    assert len(set(seen)) == len(seen) and {e for e, _ in seen} <= {epoch}
    start = data.draw(st.integers(0, len(whole)))
    shares = [EpochSampler(num_images, batch_size, seed, epoch, rank, world_size, start) for rank in range(world_size)]
    assert [len(share) for share in shares] == [len(whole) - start] * world_size
    assert [[key for part in parts for key in part] for parts in zip(*shares)] == whole[start:]
    assert all(abs(len(part) - batch_size / world_size) < 1 for share in shares for part in share)


def test_epochs_differ_and_follow_on():
    first, second = (list(EpochSampler(32, 8, seed=5, epoch=epoch)) for epoch in (0, 1))
    indices = [[index for batch in batches for _, index in batch] for batches in (first, second)]
    assert indices[0] != indices[1] and sorted(indices[0]) == sorted(indices[1]) == list(range(32))
    sampler = EpochSampler(32, 8, seed=5, epoch=0, start=3, epochs=2)
    assert list(sampler) == first[3:] + second and len(sampler) == 5
    assert list(EpochSampler(32, 8, seed=6)) != first
    assert [i for batch in EpochSampler(5, 2, shuffle=False) for _, i in batch] == [0, 1, 2, 3]


@pytest.mark.fault("F53")
def test_fewer_images_than_a_batch(folder):
    with pytest.raises(ValueError, match="7 images are fewer than one batch of 8.*train.batch_size"):
        EpochSampler(7, 8)
    with pytest.raises(ValueError, match="cannot be shared by 4 ranks"):
        EpochSampler(9, 3, world_size=4)
    with pytest.raises(ValueError, match="not within world size"):
        EpochSampler(9, 3, rank=1)
    with pytest.raises(ValueError, match="start 4"):
        EpochSampler(9, 3, start=4)


@pytest.fixture
def config(shapes_root):
    return RunConfig().override(
        {
            "seed": 1, "data.root": str(shapes_root), "data.train_split": "train", "data.val_split": "val",
            "data.num_train": 12, "data.num_val": 5, "data.generate": "shapes", "data.augment": "flip",
            "data.test_size": 0, "data.workers": 0, "data.cache": True, "train.batch_size": 4, "train.micro_batch": 3,
        }
    )  # fmt: skip


def flat(steps):
    """Every tensor of a sequence of steps, each step's micro-batches joined."""
    for step in steps:
        yield torch.cat([batch.images for batch, _ in step])
        yield torch.cat([targets.boxes for _, targets in step])
        yield torch.cat([targets.labels for _, targets in step])
        yield torch.tensor([image_id for _, targets in step for image_id in targets.image_ids])


@pytest.mark.parametrize(
    "change", [{"data.workers": 1}, {"data.workers": 2}, {"train.micro_batch": 1}, {"data.cache": False}]
)
def test_training_batches_do_not_depend_on(config, change):
    train, _ = build_datasets(config)
    other_config = config.override(change)
    other, _ = build_datasets(other_config)
    before = torch.get_rng_state()
    expected = list(flat(build_train_loader(train, config, epochs=2)))
    found = list(flat(build_train_loader(other, other_config, epochs=2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert len(expected) == len(found) == 4 * 6 and all(map(torch.equal, expected, found))


def test_training_batches_resume_and_are_shared(config):
    train, _ = build_datasets(config)
    sizes = [[len(batch) for batch, _ in step] for step in build_train_loader(train, config)]
    assert sizes == [[3, 1]] * 3
    expected = list(flat(build_train_loader(train, config, epoch=1)))
    resumed = list(flat(build_train_loader(train, config, epoch=1, start_step=2)))
    assert len(resumed) == 4 and all(map(torch.equal, expected[8:], resumed))
    ranks = [build_train_loader(train, config, rank, 2, epoch=1) for rank in range(2)]
    shared = list(flat(first + second for first, second in zip(*ranks)))
    assert all(map(torch.equal, expected, shared))


@pytest.mark.fault("F81")
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_evaluation_sees_each_image_once(config, world_size, batch_size):
    _, val = build_datasets(config)
    loaders = [build_eval_loader(val, batch_size, rank, world_size) for rank in range(world_size)]
    seen = [image_id for loader in loaders for _, targets in loader for image_id in targets.image_ids]
    assert sorted(seen) == val.image_ids and len(val) == 5
