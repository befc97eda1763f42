import json
import os
import pickle
import threading
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn

from msdetr.engine import CheckpointError
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine.checkpoint import storage
from msdetr.engine.checkpoint.manifest import to_text as manifest_text
from msdetr.methods import build_detector

MANIFEST = {
    "epoch": 0.0,
    "config": {"model": {"num_classes": 1}},
    "class_names": ["a"],
    "category_ids": [3],
    "metrics": {},
    "training": {},
}


def save(run_dir, step, metrics=None, size=50):
    return checkpoints.write(
        run_dir / "checkpoints" / f"step_{step:08d}",
        {"model": {"weight": torch.full((size,), float(step))}},
        MANIFEST | {"step": step, "metrics": metrics or {}},
    )


def test_what_is_written_is_read(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    files = {
        "model": {
            "a": shared,
            "alias": shared,
            "turned": shared.T,
            "half": torch.ones(3, dtype=torch.bfloat16),
            "count": torch.tensor(7),
        },
        "rng": {"cpu.0": torch.get_rng_state()},
    }
    checkpoints.write(tmp_path / "step_00000003", files, MANIFEST | {"step": 3})
    found = checkpoints.verify(tmp_path / "step_00000003")
    assert found.step == 3 and found.class_names == ["a"] and found.category_ids == [3]
    for name, tensors in files.items():
        read = found.tensors(name)
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in tensors.items())
    assert (tmp_path / "step_00000003" / "model.safetensors").stat().st_size < 500 + 2 * shared.numel() * 4


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    writer = checkpoints.Writer(tmp_path)
    for step, score in enumerate([0.1, 0.5, 0.5, 0.2, 0.3, None], start=1):
        writer.save(step, {"model": {"w": torch.zeros(3)}}, MANIFEST | {"metrics": {"AP": score}})
    writer.wait()
    assert [path.name[-1] for path in checkpoints.available(tmp_path)] == ["3", "5", "6"]
    assert checkpoints.best(tmp_path).step == 3 and checkpoints.latest(tmp_path).step == 6
    assert checkpoints.find(tmp_path).step == 3
    assert checkpoints.find(tmp_path / "checkpoints" / "step_00000005").step == 5


def test_saving_copies_before_it_returns(tmp_path):
    writer, weight = checkpoints.Writer(tmp_path), torch.zeros(200_000)
    writer.save(1, {"model": {"weight": weight, "alias": weight}}, MANIFEST)
    weight.fill_(1.0)
    writer.wait()
    read = checkpoints.latest(tmp_path).tensors("model")
    assert float(read["weight"].sum()) == 0 and torch.equal(read["weight"], read["alias"])


def test_saving_copies_the_manifest_too(tmp_path, monkeypatch):
    """A run adds its next evaluation to the list that it has saved, maybe before a slow disk has taken the file."""
    free, evaluations = threading.Event(), [{"step": 1, "epoch": 1.0, "AP": 0.1}]

    def slowly(*arguments):
        free.wait()
        return storage.write(*arguments)

    monkeypatch.setattr("msdetr.engine.checkpoint.writer.write", slowly)
    writer = checkpoints.Writer(tmp_path)
    training = {"optimizer": [], "world_size": 1, "seconds": 0.0, "evaluations": evaluations}
    writer.save(2, {"model": {"w": torch.zeros(3)}}, MANIFEST | {"training": training})
    evaluations.append({"step": 2, "epoch": 2.0, "AP": 0.2})
    free.set()
    writer.wait()
    saved = checkpoints.read(tmp_path / "checkpoints" / "step_00000002").manifest["training"]["evaluations"]
    assert saved == [{"step": 1, "epoch": 1.0, "AP": 0.1}]


def test_leftovers_of_a_killed_save_are_cleared(tmp_path):
    save(tmp_path, 1)
    leftover = tmp_path / "checkpoints" / ".step_00000002.123.tmp"
    leftover.mkdir()
    assert checkpoints.latest(tmp_path).step == 1
    checkpoints.Writer(tmp_path)
    assert not leftover.exists()


@pytest.mark.fault("F65")
def test_a_damaged_checkpoint_falls_back_with_a_warning(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    path = tmp_path / "checkpoints" / "step_00000003" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (tmp_path / "checkpoints" / "step_00000002" / "manifest.json").unlink()
    with pytest.warns(UserWarning) as caught:
        assert checkpoints.latest(tmp_path).step == 1
    assert len(caught) == 2 and "step_00000003" in str(caught[0].message) and "is damaged" in str(caught[0].message)
    (tmp_path / "checkpoints" / "step_00000001" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)no checkpoint of the run can be used:.*step_00000001"):
        checkpoints.latest(tmp_path)


@pytest.mark.fault("F57")
def test_an_error_of_the_background_reaches_the_run(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    writer = checkpoints.Writer(tmp_path)
    writer.save(1, {"model": {"w": torch.zeros(3)}}, MANIFEST)
    writer.wait()
    monkeypatch.setattr(storage, "write_durably", full)
    writer.save(2, {"model": {"w": torch.zeros(3)}}, MANIFEST)
    with pytest.raises(CheckpointError, match="step_00000002: cannot be written: No space left on device"):
        writer.wait()
    assert checkpoints.latest(tmp_path).step == 1 and len(os.listdir(tmp_path / "checkpoints")) == 1


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Bomb.target),)


@pytest.mark.fault("F64")
@pytest.mark.parametrize("disguise", ["model.safetensors", "manifest.json", "step_00000001"])
def test_pickles_are_never_executed(tmp_path, disguise):
    Bomb.target = tmp_path / "executed"
    found = save(tmp_path, 1)
    target = found.directory / disguise if disguise != "step_00000001" else tmp_path / disguise
    target.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        checkpoints.find(found.directory if target.parent == found.directory else target)
    assert not Bomb.target.exists()


@pytest.mark.fault("F64")
def test_a_pickle_with_a_right_checksum_is_still_not_executed(tmp_path):
    """Whoever can write the manifest can write matching checksums; the file is read as safetensors all the same."""
    import hashlib

    Bomb.target = tmp_path / "executed"
    found = save(tmp_path, 1)
    data = pickle.dumps(Bomb())
    (found.directory / "model.safetensors").write_bytes(data)
    manifest = json.loads((found.directory / "manifest.json").read_text())
    manifest["files"]["model.safetensors"] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "aliases": {},
    }
    (found.directory / "manifest.json").write_text(manifest_text(manifest))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoints.verify(found.directory)
    assert not Bomb.target.exists()


def test_files_outside_the_checkpoint_are_not_read(tmp_path):
    found = save(tmp_path, 1)
    manifest = json.loads((found.directory / "manifest.json").read_text())
    manifest["files"]["../../secret.safetensors"] = manifest["files"]["model.safetensors"]
    (found.directory / "manifest.json").write_text(manifest_text(manifest))
    with pytest.raises(CheckpointError, match="files is .*; it must be names of files in it"):
        checkpoints.verify(found.directory)


@pytest.mark.fault("F66")
def test_weights_that_do_not_fit_are_listed():
    class Two(nn.Module):
        def __init__(self, width, **names):
            super().__init__()
            for name in names or {"a": 1, "b": 1}:
                setattr(self, name, nn.Linear(3, width))

    with pytest.raises(CheckpointError, match=r"2 missing: b.bias, b.weight; 2 unexpected: c.bias, c.weight"):
        checkpoints.load_weights(Two(2), Two(2, a=1, c=1).state_dict())
    with pytest.raises(CheckpointError, match=r"4 misshapen: a.bias: \[5\], here \[2\]"):
        checkpoints.load_weights(Two(2), Two(5).state_dict())
    with pytest.raises(CheckpointError, match="not one tensor"):
        checkpoints.load_weights(Two(2), {"x": torch.zeros(1)}, partial=True)


@pytest.mark.fault("F67")
def test_another_number_of_classes(tmp_path):
    config = tiny.config(tmp_path)
    eight, five = build_detector(config), build_detector(config.override({"model.num_classes": 5}))
    with pytest.raises(CheckpointError, match="the model has 5 classes, the weights 8: give reset_class_head"):
        checkpoints.load_weights(five, eight.state_dict())
    before = {name: value.clone() for name, value in five.state_dict().items()}
    taken = checkpoints.load_weights(five, eight.state_dict(), reset_class_head=True)
    assert taken.misshapen and not taken.missing and not taken.unexpected and "misshapen" in taken.report()
    for name, value in five.state_dict().items():
        expected = before[name] if value.shape != eight.state_dict()[name].shape else eight.state_dict()[name]
        assert torch.equal(value, expected), name


def test_as_many_other_classes(tmp_path):
    config = tiny.config(tmp_path)
    old, new = build_detector(config), build_detector(config)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    taken = checkpoints.load_weights(new, old.state_dict(), reset_class_head=True)
    assert taken.anew and "started anew: decoder.class_heads" in taken.report()
    for name, value in new.state_dict().items():
        assert torch.equal(value, (before if name in taken.anew else old.state_dict())[name]), name
        assert ("class_head" in name) == (name in taken.anew), name


@pytest.mark.fault("F67")
@pytest.mark.parametrize("style", ["plain", "indicated"])
@pytest.mark.parametrize("classes", [3, 8, 12])
def test_the_label_embedding_of_denoising_starts_anew_with_the_class_heads(classes, style, tmp_path):
    config = tiny.config(tmp_path, denoising__contrastive=False, denoising__style=style)
    old, new = build_detector(config), build_detector(config.override({"model.num_classes": classes}))
    name = "sources.denoising.label_embedding.weight"
    before = new.state_dict()[name].clone()
    taken = checkpoints.load_weights(new, old.state_dict(), reset_class_head=True)
    assert name not in taken.taken and name in taken.report() and torch.equal(new.state_dict()[name], before)
    assert (name in taken.anew) == (classes == 8)
    assert len(taken.taken) == sum("class_head" not in n for n in old.state_dict()) - 1


@pytest.mark.fault("F66")
def test_resetting_class_heads_does_not_cover_another_architecture(tmp_path):
    config = tiny.config(tmp_path)
    wide = build_detector(config.override({"model.ffn_dim": 32}))
    with pytest.raises(CheckpointError, match="misshapen: .*ffn"):
        checkpoints.load_weights(wide, build_detector(config).state_dict(), reset_class_head=True)


def test_a_path_that_is_no_checkpoint(tmp_path):
    (tmp_path / "file.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is a file; .*msdetr convert"):
        checkpoints.find(tmp_path / "file.pth")
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="neither a checkpoint nor a run directory"):
            checkpoints.find(path)
    assert checkpoints.latest(tmp_path) is None


def test_another_format_is_named(tmp_path):
    found = save(tmp_path, 1)
    manifest = json.loads((found.directory / "manifest.json").read_text())
    (found.directory / "manifest.json").write_text(manifest_text(manifest | {"format": "msdetr-checkpoint/9"}))
    with pytest.raises(CheckpointError, match="has format 'msdetr-checkpoint/9'"):
        checkpoints.read(found.directory)
    assert Path(found.directory).exists()
