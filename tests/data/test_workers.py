"""Data workers that die, do not answer, or outlive the process that trains."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from msdetr.data import ImageError
from msdetr.data.workers import Reader, start_worker
from msdetr.engine.signals import StopRequest, StopRequested
from msdetr.errors import WorkerError


class Items(Dataset):
    """Items that are numbers, or whatever ``make`` does for them."""

    def __init__(self, make=lambda index: index):
        self.make = make

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.make(index)


def reader(make=lambda index: index, timeout=30, **options):
    loader = DataLoader(
        Items(make), num_workers=2, timeout=timeout, worker_init_fn=start_worker, batch_size=None,
        multiprocessing_context="fork",  # what the tests make of items is local to them and cannot be pickled
    )  # fmt: skip
    return Reader(loader, **options)


def raises(error):
    def make(index):
        raise error

    return make


def no_workers_are_left(batches):
    return len(batches.workers) == 2 and not any(worker.is_alive() for worker in batches.workers)


@pytest.mark.fault("F86")
def test_a_worker_that_does_not_answer_is_an_error_after_a_while():
    with (
        pytest.raises(WorkerError, match=r"no data worker answered for 2 s .*shm-size.*data.workers"),
        reader(lambda index: time.sleep(100) if index else 0, timeout=2) as batches,
    ):
        assert next(batches) == 0
        next(batches)
    assert no_workers_are_left(batches)


@pytest.mark.fault("F86")
def test_a_worker_that_stops_while_it_hands_over_a_batch_is_an_error_as_well():
    """The batch is announced, but its memory has yet to be asked for from the worker."""

    def stops(index):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGSTOP)).start()
        return torch.zeros(8)

    with pytest.raises(WorkerError, match="no data worker answered for 2 s"), reader(stops, timeout=2) as batches:
        wait_for(lambda: all(state(worker.pid) == "T" for worker in batches.workers))
        list(batches)
    assert no_workers_are_left(batches)


@pytest.fixture
def hangup():
    """SIGHUP is not ignored, as it is in all that nohup starts; the test may say otherwise."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.fault("F91")
@pytest.mark.parametrize("ignored", [False, True], ids=["heeded", "ignored"])
def test_a_hangup_stops_only_what_does_not_ignore_it(hangup, ignored):
    handler = signal.SIG_IGN if ignored else signal.SIG_DFL
    signal.signal(signal.SIGHUP, handler)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGHUP)
        assert stop.requested == (not ignored)
    assert signal.getsignal(signal.SIGHUP) == handler


@pytest.mark.fault("F86")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_wait_for_a_stopped_worker(hangup, number):
    start = time.monotonic()
    with StopRequest() as stop, pytest.raises(StopRequested), reader(timeout=900, waiting=stop.interrupting) as batches:
        for worker in batches.workers:
            os.kill(worker.pid, signal.SIGSTOP)
        os.system(f"(sleep 0.5; kill -{int(number)} {os.getpid()}) &")
        list(batches)
    assert time.monotonic() - start < 300 and no_workers_are_left(batches)  # not after the 900 s
    assert stop.signal == number


@pytest.mark.fault("F86")
@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "unable to write to file </torch_12_34>: No space left on device (28)",
            "shared memory.*is too small.*shm-size",
        ),
        ("received 0 items of ancdata", "too many open files.*ulimit"),
    ],
)
def test_what_is_short_is_named_with_a_remedy(message, said):
    with pytest.raises(WorkerError, match=said), reader(raises(RuntimeError(message))) as batches:
        list(batches)


@pytest.mark.fault("F56")
def test_a_worker_that_was_killed_is_reported_at_the_next_wait():
    with pytest.raises(WorkerError, match="a data worker died .*signal 9"), reader() as batches:
        next(batches)
        batches.workers[0].kill()
        batches.workers[0].join()  # nothing is raised here, in the middle of other work
        next(batches)


def dies_at_the_third(index):
    if index == 2:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    return index


@pytest.mark.fault("F56")
def test_a_worker_that_dies_inside_another_reading_is_reported_at_once():
    """As in an evaluation during training, whose own workers wait."""
    before = time.monotonic()
    with reader() as outer:
        next(outer)
        with pytest.raises(WorkerError, match="a data worker died"), reader(dies_at_the_third, timeout=300) as inner:
            list(inner)
        assert len(list(outer)) == 7
    assert time.monotonic() - before < 200  # not after the 300 s


@pytest.mark.fault("F56")
def test_a_worker_that_died_before_the_wait_was_given_up_is_the_reason():
    """The other worker answers, so PyTorch goes on waiting; in a thread nothing else tells of a death."""
    found = []

    def read():
        slow = lambda index: time.sleep(index / 2) or dies_at_the_third(index)
        try:
            with reader(slow, timeout=3) as batches:
                list(batches)
        except WorkerError as error:
            found.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert found and found[0].startswith("a data worker died (process ") and "killed by signal 9" in found[0]


def test_an_error_of_a_worker_says_what_it_would_say_without():
    with (
        pytest.raises(ImageError, match="^image 3: no picture$"),
        reader(raises(ImageError("image 3: no picture"))) as batches,
    ):
        list(batches)
    text = "a.png: not readable (UnidentifiedImageError: cannot identify it); supported: PNG"
    with pytest.raises(ImageError, match=f"^{re.escape(text)}$"), reader(raises(ImageError(text))) as batches:
        list(batches)


ORPHANS = """
import os, signal, sys, time
from torch.utils.data import DataLoader
from msdetr.data.workers import Reader, start_worker
class Slow:
    def __len__(self): return 9
    def __getitem__(self, index):
        os.write(1, f"{os.getpid()}\\n".encode())  # in one piece: two workers write
        time.sleep(900)
loader = DataLoader(Slow(), num_workers=2, batch_size=None, worker_init_fn=start_worker, multiprocessing_context=sys.argv[1])
if __name__ == "__main__":
    with Reader(loader) as batches:
        next(batches)
"""


@pytest.mark.fault("F87")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_do_not_outlive_a_process_that_is_killed(tmp_path, start):
    script = tmp_path / "script.py"
    script.write_text(ORPHANS)
    process = subprocess.Popen([sys.executable, str(script), start], stdout=subprocess.PIPE, text=True)
    workers = [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.wait()
    wait_for(lambda: all(state(pid) == "Z" for pid in workers))


def wait_for(condition, timeout=300):
    """A limit against hanging, far beyond what a busy machine takes."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)


def state(pid):
    """R, S, T (stopped) or another letter of the kernel's; Z where it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2]
    except OSError:
        return "Z"


@pytest.mark.fault("F99")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_what_workers_left_out_is_counted_however_they_start(tmp_path, start):
    from msdetr.data import CocoDetection, shapes

    root = shapes.generate(tmp_path / "shapes", 4, 1)
    next(iter(sorted((root / "train").iterdir()))).write_bytes(b"no picture")
    dataset = CocoDetection(root / "train", root / "annotations" / "instances_train.json", skip_images=1)
    loader = DataLoader(
        dataset, num_workers=1, batch_size=None, collate_fn=_nothing, worker_init_fn=start_worker,
        multiprocessing_context=start,
    )  # fmt: skip
    assert len(list(loader)) == 4
    assert dataset.skipped == 1 and "1 × image unreadable and left out" in str(dataset.remarks())


def _nothing(sample):
    return 0


@pytest.mark.fault("F87")
def test_python_exits_while_a_loader_is_being_read():
    """Its workers, which ignore SIGTERM, are not waited for."""
    code = """
from msdetr.data.workers import WorkerLoader, start_worker
batches = iter(WorkerLoader(range(1000), num_workers=1, worker_init_fn=start_worker))
print(next(batches))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tensor([0])\n", "")
