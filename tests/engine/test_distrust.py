"""Checkpoints that somebody sent: checksums valid, contents not. Each is refused with an error, none crashes the process."""

import copy
import hashlib
import json
import random
import shutil
import struct
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save

import msdetr
from msdetr.engine import CheckpointError, Trainer, train
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine.checkpoint.manifest import to_text
from msdetr.methods import build_detector


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes):
    """A finished run of one epoch: its configuration and its checkpoint's directory."""
    folder = tmp_path_factory.mktemp("sent")
    config = tiny.config(shapes, train__epochs=1, train__checkpoint_every=0)
    train(config, folder / "run", device="cpu", progress=False)
    return config, checkpoints.latest(folder / "run").directory


class Forged:
    """A copy of a checkpoint in which anything can be changed, with checksums that agree afterwards."""

    def __init__(self, source: Path, run_dir: Path):
        self.directory = run_dir / "checkpoints" / source.name
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.copytree(source, self.directory)
        self.manifest = json.loads((self.directory / "manifest.json").read_text())

    def tensors(self, name, change):
        tensors = checkpoints.read(self.directory).tensors(name)
        change(tensors)
        unique = {key: value.contiguous() for key, value in tensors.items()}
        for key in self.manifest["files"][f"{name}.safetensors"]["aliases"]:
            unique.pop(key, None)
        self.put(name, save(unique))

    def put(self, name, data):
        (self.directory / f"{name}.safetensors").write_bytes(data)
        entry = self.manifest["files"][f"{name}.safetensors"]
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.seal()

    def header(self, name, change):
        path = self.directory / f"{name}.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        text = change(data[8 : 8 + length].decode()).encode()
        self.put(name, struct.pack("<Q", len(text)) + text + data[8 + length :])

    def seal(self):
        (self.directory / "manifest.json").write_text(to_text(self.manifest))


def first(tensors, prefix=""):
    return next(key for key in sorted(tensors) if key.startswith(prefix) and (tensors[key].dim() > 1 or "step." in key))


def put(prefix, make):
    def change(tensors):
        key = first(tensors, prefix)
        tensors[key] = make(tensors[key])

    return change


def drop(prefix):
    return lambda tensors: tensors.pop(first(tensors, prefix))


STATE = {
    "moment too short": ("optimizer", put("exp_avg.", lambda t: t.flatten()[:1])),
    "moment empty": ("optimizer", put("exp_avg_sq.", lambda t: t[:0])),
    "moment transposed": ("optimizer", put("exp_avg.", lambda t: t.flatten())),
    "moment of half precision": ("optimizer", put("exp_avg.", lambda t: t.half())),
    "moment of whole numbers": ("optimizer", put("exp_avg_sq.", lambda t: t.to(torch.int64))),
    "moment NaN": ("optimizer", put("exp_avg.", lambda t: t * float("nan"))),
    "mean of squares negative": ("optimizer", put("exp_avg_sq.", lambda t: t - 1)),
    "moment missing": ("optimizer", drop("exp_avg.")),
    "step missing": ("optimizer", drop("step.")),
    "step a list": ("optimizer", put("step.", lambda t: t.repeat(3))),
    "step a whole number": ("optimizer", put("step.", lambda t: t.to(torch.int64))),
    "step negative": ("optimizer", put("step.", lambda t: t - 10)),
    "step NaN": ("optimizer", put("step.", lambda t: t * float("nan"))),
    "step from the future": ("optimizer", put("step.", lambda t: t + 1e6)),
    "moments of no parameter": ("optimizer", lambda t: t.update({f"{m}.nothing": torch.zeros(()) for m in ("exp_avg", "exp_avg_sq", "step")})),
    "another kind of state": ("optimizer", lambda t: t.update({"momentum.x": torch.zeros(3)})),
    "no optimizer state at all": ("optimizer", lambda t: t.clear()),
    "average misshapen": ("ema", put("", lambda t: t[:1])),
    "average of half precision": ("ema", put("", lambda t: t.half())),
    "average incomplete": ("ema", drop("")),
    "average NaN": ("ema", put("", lambda t: t * float("inf"))),
    "weights misshapen": ("model", put("", lambda t: t.flatten())),
    "weights of whole numbers": ("model", put("", lambda t: t.to(torch.int32))),
    "weights NaN": ("model", put("", lambda t: t * float("nan"))),
    "weights missing": ("model", drop("")),
    "generator short": ("rng", lambda t: t.update({"cpu.0": t["cpu.0"][:7]})),
    "generator empty": ("rng", lambda t: t.update({"cpu.0": t["cpu.0"][:0]})),
    "generator of floats": ("rng", lambda t: t.update({"cpu.0": t["cpu.0"].float()})),
    "generator of 255s": ("rng", lambda t: t.update({"cpu.0": torch.full_like(t["cpu.0"], 255)})),
    "generator absent": ("rng", lambda t: t.clear()),
    "generator of no device": ("rng", lambda t: t.update({"tpu.0": t["cpu.0"].clone()})),
    "CUDA generator short": ("rng", lambda t: t.update({"cuda.0": t["cpu.0"][:3].clone()})),
}  # fmt: skip


@pytest.mark.fault("F85")
@pytest.mark.parametrize("case", STATE)
def test_state_that_does_not_fit_is_refused_before_any_step(run, tmp_path, case):
    config, source = run
    name, change = STATE[case]
    forged = Forged(source, tmp_path / "run")
    forged.tensors(name, change)
    config = config.override({"train.epochs": 2})
    with pytest.raises(CheckpointError):
        checkpoints.verify(forged.directory)
    with pytest.raises(CheckpointError, match="^no checkpoint of the run can be used"):
        train(config, tmp_path / "run", device="cpu", progress=False, allow_config_change=True)
    trainer = Trainer(build_detector(config), None, config.train, 8, 4)  # and on its own, without the search
    with pytest.raises(CheckpointError, match="^the weights" if name in ("model", "ema") else f"/{name}.safetensors: "):
        trainer.restore(checkpoints.read(forged.directory))


@pytest.mark.fault("F85")
@pytest.mark.parametrize("older", [False, True], ids=["told", "not told"])
def test_a_state_is_missed_where_a_step_left_one(older):
    """Not before the first step, nor of a parameter that no gradient has reached."""
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([{"params": [used, unused], "names": ["used", "unused"]}])

    def saved():
        tensors, [group] = checkpoints.optimizer_files(optimizer)
        if older:  # such a checkpoint does not say what is untouched
            group.pop("untouched")
        return tensors, [group]

    checkpoints.restore_optimizer(optimizer, *saved(), 0)
    used.grad = torch.ones(3)
    optimizer.step()
    checkpoints.restore_optimizer(optimizer, *saved(), 1)
    with pytest.raises(CheckpointError, match="lacks .* parameters: .*used.*--init-from"):
        checkpoints.restore_optimizer(optimizer, {}, saved()[1], 1)


@pytest.mark.fault("F85")
@pytest.mark.parametrize(
    "change",
    [
        lambda groups: groups.pop(),
        lambda groups: groups[0]["names"].pop(),
        lambda groups: groups[0]["names"].append("nothing"),
        lambda groups: groups[1]["names"].append(groups[0]["names"].pop()),
        lambda groups: groups[0].pop("names"),
        lambda groups: groups[0].update(names="abc"),
        lambda groups: groups.append(3),
    ],
)
def test_other_parameter_groups_are_refused(run, tmp_path, change):
    config, source = run
    forged = Forged(source, tmp_path / "run")
    change(forged.manifest["training"]["optimizer"])
    forged.seal()
    trainer = Trainer(build_detector(config), None, config.train, 8, 4)
    with pytest.raises(CheckpointError):
        trainer.restore(checkpoints.read(forged.directory))


ODD = (None, True, -1, 2**62, 0.5, 1e300, "", "x", [], [None], ["a", 1], {}, {"a": None}, {"names": 3})


def paths(value, prefix=()):
    """Every place in nested values."""
    if prefix:
        yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*prefix, key))


@pytest.mark.fault("F102")
def test_manifests_with_anything_anywhere(run, tmp_path):
    """Each place of the manifest is removed, and given values of other types: read as it is, or refused."""
    _, source = run
    forged = Forged(source, tmp_path / "run")
    intact = copy.deepcopy(forged.manifest)
    chance, refused, tried = random.Random(0), 0, 0
    required = {"step", "epoch", "config", "class_names", "category_ids", "metrics", "training", "files", "format"}
    for path in paths(intact):
        values = ("remove", *(ODD if len(path) == 1 else chance.sample(ODD, 2)))
        for value in values:
            forged.manifest = copy.deepcopy(intact)
            level = forged.manifest
            for key in path[:-1]:
                level = level[key]
            if value == "remove":
                del level[path[-1]]
            else:
                level[path[-1]] = value
            forged.seal()
            tried += 1
            try:
                found = checkpoints.read(forged.directory)
                assert found.config and len(found.class_names) == len(found.category_ids) and found.bytes >= 0
                assert not (len(path) == 1 and path[0] in required and value == "remove"), path
            except CheckpointError as error:
                refused += 1
                assert len(str(error)) < 3000
    assert tried > 300 and refused > tried / 2


HEADERS = {
    "a tensor twice": lambda text: twice(text),
    "overlap": lambda text: text.replace('"data_offsets":[0,', '"data_offsets":[4,', 1),
    "negative": lambda text: text.replace('"data_offsets":[0,', '"data_offsets":[-4,', 1),
    "a gap": lambda text: text.replace('"data_offsets":[', '"data_offsets":[99999999,', 1),
    "a shape of floats": lambda text: text.replace('"shape":[', '"shape":[1.5,', 1),
    "a huge shape": lambda text: text.replace('"shape":[', '"shape":[4611686018427387904,', 1),
    "a shape beyond 64 bits": lambda text: text.replace('"shape":[', '"shape":[99999999999999999999,', 1),
    "an unknown dtype": lambda text: text.replace('"F32"', '"F8_E4M3"', 1),
    "another dtype": lambda text: text.replace('"F32"', '"F64"', 1),
    "nesting": lambda text: "[" * 100_000,
    "nothing": lambda text: "",
    "a list": lambda text: "[]",
    "no shape": lambda text: text.replace('"shape"', '"form"', 1),
}


def twice(text):
    entry = json.dumps(dict([next(iter(json.loads(text.strip()).items()))]))[1:-1]
    return "{" + entry + ", " + text.strip()[1:]


@pytest.mark.fault("F102")
@pytest.mark.parametrize("case", HEADERS)
def test_headers_are_checked_before_anything_else_sees_them(run, tmp_path, case):
    _, source = run
    forged = Forged(source, tmp_path / "run")
    forged.header("model", HEADERS[case])
    with pytest.raises(CheckpointError):
        checkpoints.verify(forged.directory)
    with pytest.raises(CheckpointError):
        checkpoints.read(forged.directory).tensors("model")


@pytest.mark.fault("F85")
@pytest.mark.parametrize("count", [50, pytest.param(400, marks=pytest.mark.slow)])
def test_random_mutations(run, tmp_path, count):
    """Shapes, dtypes, values, names, bytes of any file: resuming and loading succeed or raise CheckpointError."""
    config, source = run
    chance, outcomes = random.Random(count), {"accepted": 0, "refused": 0}
    trainer = Trainer(build_detector(config), None, config.train, 8, 4)
    dtypes = (torch.float16, torch.float64, torch.int8, torch.int64, torch.uint8, torch.bool)
    shapes = ((), (0,), (1,), (3,), (1, 1), (2, 0, 3), (64, 64), (1, 1, 1, 1, 1))
    forged = Forged(source, tmp_path / "run")
    intact = copy.deepcopy(forged.manifest)
    files = {name: (source / f"{name}.safetensors").read_bytes() for name in ("model", "ema", "optimizer", "rng")}
    tensors = {name: checkpoints.read(source).tensors(name) for name in files}
    for _ in range(count):
        name = chance.choice(list(files))
        forged.manifest = copy.deepcopy(intact)
        for file, data in files.items():
            path = forged.directory / f"{file}.safetensors"
            if path.read_bytes() != data:
                path.write_bytes(data)
        if chance.random() < 0.3:
            data = bytearray(files[name])
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(min(len(data), 2000))] ^= 1 << chance.randrange(8)
            forged.put(name, bytes(data[: chance.choice([len(data), chance.randrange(len(data))])]))
        else:
            changed = {key: value.contiguous() for key, value in tensors[name].items()
                       if key not in intact["files"][f"{name}.safetensors"]["aliases"]}  # fmt: skip
            key = chance.choice(list(changed))
            kind = chance.randrange(4)
            if kind == 0:
                changed[key] = torch.zeros(chance.choice(shapes), dtype=changed[key].dtype)
            elif kind == 1:
                changed[key] = changed[key].to(chance.choice(dtypes))
            elif kind == 2:
                changed[chance.choice([key + "x", "", "exp_avg.", "step", "cpu.9999999999", "é"])] = changed.pop(key)
            else:
                changed[key] = torch.randint(0, 255, changed[key].shape).to(changed[key].dtype)
            forged.put(name, save(changed))
        try:
            checkpoints.verify(forged.directory)
            trainer.restore(checkpoints.read(forged.directory))
            outcomes["accepted"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > count / 2, outcomes


@pytest.mark.fault("F102")
def test_verify_says_which_part_it_is(run, tmp_path, capsys):
    from msdetr.cli import main

    _, source = run
    forged = Forged(source, tmp_path / "run")
    forged.manifest["class_names"] = 3
    forged.seal()
    assert main(["verify", str(tmp_path / "run")]) == 1
    assert "DAMAGED" in (out := capsys.readouterr().out) and "class_names is 3" in out
    forged = Forged(source, tmp_path / "run")
    forged.tensors("rng", lambda tensors: tensors.clear())
    assert main(["verify", str(tmp_path / "run")]) == 1
    assert "lacks 1 states: cpu.0" in (out := capsys.readouterr().out) and "its weights alone are intact" in out
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(source, tmp_path / "run" / "checkpoints" / source.name)
    (tmp_path / "run" / "results.json").write_text('{"status": 3}')
    assert main(["verify", str(tmp_path / "run")]) == 1
    assert "results.json: DAMAGED" in capsys.readouterr().out


def test_predicting_needs_manifest_and_weights_alone(run, tmp_path):
    _, source = run
    image = torch.rand(3, 64, 64)
    expected = msdetr.load(source, "cpu").predict(image)
    forged = Forged(source, tmp_path / "run")
    for name in ("optimizer", "rng", "model"):
        (forged.directory / f"{name}.safetensors").unlink()
    assert torch.equal(msdetr.load(tmp_path / "run", "cpu").predict(image).scores, expected.scores)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.find(forged.directory)
    forged = Forged(source, tmp_path / "run")
    (forged.directory / "ema.safetensors").unlink()
    with pytest.warns(UserWarning, match="the moving average, is gone"):
        found = msdetr.load(forged.directory, "cpu").predict(image)
    plain = msdetr.load(source, "cpu", ema=False).predict(image)
    assert torch.equal(found.scores, plain.scores)


@pytest.mark.fault("F103")
def test_weights_that_are_not_finite(run, tmp_path):
    _, source = run
    forged = Forged(source, tmp_path / "run")
    forged.tensors("ema", put("", lambda tensor: tensor * float("nan")))
    for use in (msdetr.load, checkpoints.verify, checkpoints.find):
        with pytest.raises(CheckpointError, match="with NaN or infinite numbers"):
            use(forged.directory)


@pytest.mark.fault("F104")
def test_files_that_lead_out_of_the_checkpoint(run, tmp_path):
    _, source = run
    for name in ("model.safetensors", "manifest.json"):
        forged = Forged(source, tmp_path / "run")
        (forged.directory / name).unlink()
        (forged.directory / name).symlink_to(source / name)
        with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
            checkpoints.verify(forged.directory)


def others(folder: Path):
    """Things that are no checkpoint."""
    (folder / "empty").mkdir()
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text('{"model_type": "detr"}')
    (folder / "hub" / "model.safetensors").write_bytes(save({"a": torch.zeros(3)}))
    (folder / "step_00000001").mkdir()
    shutil.make_archive(str(folder / "archive"), "zip", folder / "hub")
    (folder / "random.pth").write_bytes(random.Random(0).randbytes(5000))
    (folder / "empty.pth").write_bytes(b"")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(folder / "script.pt"))
    torch.save([1, 2], folder / "list.pth")
    torch.save({"model": {"a": 3}}, folder / "numbers.pth")
    torch.save({"model": {1: torch.zeros(2)}}, folder / "keys.pth")
    torch.save({"model": {"a": torch.zeros(2, 2).to_sparse()}}, folder / "sparse.pth")
    torch.save({"model": {"a": torch.zeros(2, device="meta")}}, folder / "meta.pth")
    return [*sorted(folder.iterdir()), folder / "hub" / "model.safetensors", folder / "absent", Path("/dev/zero")]


@pytest.mark.fault("F104")
def test_what_is_no_checkpoint(run, tmp_path, capsys):
    from msdetr.cli import main

    config, _ = run
    for path in others(tmp_path):
        with pytest.raises(CheckpointError):
            msdetr.load(path)
        assert main(["verify", str(path)]) == 1, path
        assert main(["convert", str(path), str(tmp_path / "out")]) == 1, path
    for number, name in enumerate(("hub", "archive.zip", "absent")):
        for option in ("resume", "init_from"):
            with pytest.raises(CheckpointError):
                train(
                    config, tmp_path / f"new{number}{option}", device="cpu", progress=False, **{option: tmp_path / name}
                )
    assert "Traceback" not in capsys.readouterr().err
