import errno
import json
import math
import os
import resource
import stat
import threading
import time
from pathlib import Path

import pytest

from msdetr import config, files
from msdetr.config import RunConfig
from msdetr.data import read_annotations
from msdetr.engine.run import RunDirectory, read_results
from msdetr.errors import AnnotationError, CheckpointError, ConfigError, FileError, RunError, WriteError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(f"k{i}: &k{i} {{<<: [*{'a' if i == 0 else f'k{i - 1}'}, *{'a' if i == 0 else f'k{i - 1}'}]}}\n" for i in range(40))  # fmt: skip
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 1500))

YAML = {
    "a key given twice": (b"seed: 1\nseed: 2\n", "'seed' is given twice"),
    "a nested key given twice": (b"train:\n  lr: 1.0e-3\n  epochs: 2\n  lr: 1.0e-4\n", "'lr' is given twice"),
    "an empty file": (b"", "is empty"),
    "comments only": (b"# nothing\n", "is empty"),
    "null": (b"null\n", "not a mapping"),
    "a list": (b"- seed\n", "not a mapping"),
    "text": (b"seed", "not a mapping"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "expected a single document"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "encoded as UTF-16"),
    "UTF-32": ("seed: 1\n".encode("utf-32"), "encoded as UTF-32"),
    "a byte order mark": ("seed: 1\n".encode("utf-8-sig"), "byte order mark"),
    "latin-1": ("recipe: größer\n".encode("latin-1"), "is not UTF-8"),
    "a null byte": (b"seed: 1\0\n", "not valid YAML"),
    "an alias bomb": (BOMB.encode(), "stands for more than"),
    "an alias bomb of merges": (MERGE_BOMB.encode(), "stands for more than"),
    "a chain of aliases": (CHAIN.encode(), "stands for more than"),
    "an alias of itself": (b"seed: &a [*a]\n", "contains itself"),
    "a nesting bomb": (b"seed: " + b"[" * 60_000, "nested too deeply"),
    "a nesting bomb of mappings": (b"{a: " * 15_000, "nested too deeply"),
    "a large file": (b"# " + b"x" * 10**6, "more than the"),
    "a long number": (b"seed: " + b"9" * 6000, "not valid YAML"),
    "a number beyond 64 bits": (b"seed: 9223372036854775808\n", "does not fit into 64 bits"),
    "a wrong date": (b"recipe: 2026-99-99\n", "not valid YAML"),
    "a wrong bool": (b"seed: !!bool maybe\n", "not valid YAML"),
    "a wrong timestamp": (b"seed: !!timestamp soon\n", "not valid YAML"),
    "an object": (b"seed: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "a key that is a list": (b"[a]: 1\n", "not valid YAML"),
}


@pytest.mark.fault("F100")
@pytest.mark.parametrize("case", YAML)
def test_yaml_that_means_nothing(tmp_path, case):
    data, message = YAML[case]
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(path)
    assert time.process_time() - start < 20 and str(path) in str(caught.value) and len(str(caught.value)) < 1000


def test_yaml_that_people_write(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("train: {<<: {lr: 1e-3, epochs: 2}, lr: 2e-3}\nseed: 0x10\n")
    loaded = config.load(path)
    assert loaded.train.lr == 2e-3 and loaded.train.epochs == 2 and loaded.seed == 16
    RunConfig().save(path)
    assert config.load(path) == RunConfig()


JSON = {
    "a key given twice": (b'{"images": [1], "images": []}', "'images' is given twice"),
    "a nested key given twice": (b'{"images": [{"id": 1, "id": 2}]}', "'id' is given twice"),
    "an empty file": (b"", "is empty at offset 0"),
    "UTF-16": ("{}".encode("utf-16"), "encoded as UTF-16"),
    "UTF-16 without a mark": ("{}".encode("utf-16-le"), "not valid JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "latin-1": ('{"name": "größer"}'.encode("latin-1"), "is not UTF-8"),
    "a nesting bomb": (b"[" * 10**6, "nested too deeply"),
    "a nesting bomb of objects": (b'{"a":' * 10**6, "nested too deeply"),
    "a long number": (b'{"id": ' + b"9" * 10**5 + b"}", "not usable JSON"),
    "something after it": (b"{} {}", "Extra data"),
}
OWN = {
    "NaN": (b'{"step": NaN}', "not finite"),
    "infinity": (b'{"step": -Infinity}', "not finite"),
    "beyond a float": (b'{"step": 1e400}', "not finite"),
    "beyond 64 bits": (b'{"step": 9223372036854775808}', "does not fit into 64 bits"),
    "half a surrogate pair": (b'{"name": "\\ud800"}', "not usable JSON"),
}


@pytest.mark.fault("F100")
@pytest.mark.parametrize("case", JSON)
def test_json_that_means_nothing(tmp_path, case):
    data, message = JSON[case]
    path = tmp_path / "file.json"
    path.write_bytes(data)
    for read, error in ((files.read_json, FileError), (read_annotations, AnnotationError)):
        start = time.process_time()
        with pytest.raises(error, match=message) as caught:
            read(path)
        assert time.process_time() - start < 20 and str(path) in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.fault("F102")
@pytest.mark.parametrize("case", OWN)
def test_numbers_and_text_that_this_package_never_writes(tmp_path, case):
    data, message = OWN[case]
    (tmp_path / "results.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_results(tmp_path)


@pytest.mark.fault("F102")
@pytest.mark.parametrize(
    "content",
    [
        [],
        {"status": []},
        {"status": "done"},
        {"status": "finished"},
        {"status": "finished", "metrics": [1]},
        {"metrics": {"AP": "0.5"}},
        {"metrics": {"AP": True}},
        {"seconds": "1"},
        {"parameters": 3},
        {"steps": True},
        {"evaluations": {}},
        {"per_class": {"cat": "0.5"}},
        {"best": {}},
        {"data": {}},
        {"data": {"name": "a", "train": {}, "val": {}}},
        {"data": {"name": "a", "train": {"split": "a", "images": 1, "objects": {"cat": "2"}}, "val": {}}},
    ],
    ids=str,
)
def test_results_with_mistyped_parts(tmp_path, content):
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"results.json: .*move this file away"):
        read_results(tmp_path)
    with pytest.raises(CheckpointError), RunDirectory(tmp_path) as run:
        run.write_results(status="running")


@pytest.mark.fault("F102")
@pytest.mark.parametrize(
    "line",
    [b"[1]", b'{"kind": "train", "step": "1"}', b'{"kind": "train", "step": 1e400}', b'{"kind": "train", "loss": {}}',
     b'{"kind": "train", "step": 1, "step": 2}', b"\xff", b'{"kind": "eval", "step": 1, "AP": "x"}'],
)  # fmt: skip
def test_metrics_with_mistyped_parts(tmp_path, line):
    from msdetr.analysis.runs import read_run

    RunConfig().save(tmp_path / "config.yaml")
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"kind": "train", "step": 1}\n' + line + b'\n{"kind": "train", "step": 2}\n'
    )
    with pytest.raises(RunError, match="metrics.jsonl, line 2: "):
        read_run(tmp_path, finished=False)


@pytest.mark.fault("F104")
def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", Path("/dev/zero"), tmp_path, tmp_path / "absent", tmp_path / "null\0byte"):
        with pytest.raises(ConfigError, match="cannot be read"):
            config.load(path)


@pytest.mark.fault("F103")
def test_written_json_never_contains_nan(tmp_path):
    values = {"loss": math.nan, "terms": {"a": [1.0, math.inf, (-math.inf,)]}, "step": 3}
    files.write_json(tmp_path / "results.json", values)
    files.append_json_line(tmp_path / "metrics.jsonl", values)
    for name in ("results.json", "metrics.jsonl"):
        found = files.read_json(tmp_path / name)
        assert found == {"loss": None, "terms": {"a": [1.0, None, [None]]}, "step": 3}


def small_disk(limit):
    """From here on no file of this process grows beyond ``limit`` bytes."""
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


WRITES = {
    "results.json": lambda path: files.write_json(path, {"text": "x" * 5000}),
    "config.yaml": lambda path: RunConfig().save(path),
    "metrics.jsonl": lambda path: files.append_json_line(path, {"text": "x" * 5000}),
    "figure.png": lambda path: files.save_figure(_figure(), path, dpi=100),
}


def _figure():
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    return figure


@pytest.mark.fault("F95")
@pytest.mark.parametrize("name", WRITES)
def test_a_full_disk_leaves_what_was_there(tmp_path, name):
    path = tmp_path / name
    path.write_text("before\n")
    enough = small_disk(1000)
    try:
        with pytest.raises(WriteError, match=rf"{name}: cannot be written: File too large\..*make room"):
            WRITES[name](path)
    finally:
        enough()
    assert path.read_text() == "before\n" and [entry.name for entry in tmp_path.iterdir()] == [name]
    WRITES[name](path)
    assert path.stat().st_size > 1000


@pytest.mark.fault("F95")
def test_a_full_disk_while_the_embedded_data_is_made(tmp_path):
    from msdetr.data import shapes
    from msdetr.errors import ShapesError

    enough = small_disk(1000)
    try:
        with pytest.raises(ShapesError, match=r"data: the data set cannot be written: .*make room"):
            shapes.generate(tmp_path / "data", 2, 1)
    finally:
        enough()
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("F95")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_while_event_files_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    from msdetr.engine.tensorboard import EventFiles

    others = set(threading.enumerate())
    events = EventFiles(tmp_path / "tensorboard", 0)
    enough = small_disk(1000)
    try:
        with pytest.raises(WriteError, match="tensorboard: cannot be written: File too large"):
            for step in range(100):
                events.add("train", step, {"terms": [1.0] * 10})
        events.close("failed")
    finally:
        enough()
    for thread in set(threading.enumerate()) - others:
        thread.join(60)  # TensorBoard's, which ends of the error: here, and not in a later test


@pytest.mark.fault("F95")
def test_a_write_that_fails_elsewhere_names_the_file(tmp_path):
    for path in (tmp_path / "absent" / "file", tmp_path):
        with pytest.raises(WriteError, match="cannot be written"):
            files.write_atomically(path, "x")
    files.write_atomically("/dev/null", "x")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP])
def test_a_drive_that_flushes_no_directories(tmp_path, monkeypatch, number):
    flush = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_json(tmp_path / "x.json", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"] and files.read_json(tmp_path / "x.json") == 1


def test_two_writers_of_one_file_share_no_other(tmp_path):
    """Processes of two containers may have one number, and so have threads."""
    with files.replacing(tmp_path / "x.png") as first, files.replacing(tmp_path / "x.png") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "x.png").read_text() == "first", "it was the last to be done"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_words_of_a_command_line():
    words = {
        "true": True,
        "3": 3,
        "1.5": 1.5,
        "null": None,
        "a b": "a b",
        "[1": "[1",
        "{a: 1}": "{a: 1}",
        "&a [*a]": "&a [*a]",
    }
    assert {word: files.parse_scalar(word) for word in words} == words
    assert files.parse_scalar("2026-99-99") == "2026-99-99"
