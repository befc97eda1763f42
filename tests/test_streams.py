"""Output that nothing can stop: closed streams, broken pipes, letters that an encoding lacks."""

import io
import os
import subprocess
import sys
import threading
import time

import pytest

from msdetr.engine.progress import Progress
from msdetr.streams import Forgiving, forgiving_output


@pytest.mark.fault("F91")
def test_letters_that_an_encoding_lacks_are_escaped():
    raw = io.BytesIO()
    stream = Forgiving(io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    stream.write("caf\u00e9 \U0001f600\n")
    stream.flush()
    assert raw.getvalue() == b"caf\\xe9 \\U0001f600\n"


@pytest.mark.fault("F91")
def test_a_stream_that_is_closed_broken_or_missing(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    broken = open(writer, "w")  # noqa: SIM115 (closed below)
    closed = io.StringIO()
    closed.close()
    for stream in (broken, closed, None):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(sys, "stdout", stream)
        for style in ("bar", "lines"):
            monkeypatch.setenv("MSDETR_PROGRESS", style)
            bar = Progress(2, title="train \u00e9")
            bar.advance(2, "loss")
            bar.say("evaluated")
            bar.close()
        with forgiving_output():
            print("said to nobody")
    broken.close()


@pytest.mark.fault("F91")
@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "| head -c 1"])
def test_a_command_succeeds_whoever_listens(redirection):
    command = f"set -o pipefail; {sys.executable} -m msdetr recipes shapes/baseline {redirection}"
    done = subprocess.run(
        ["bash", "-c", command], check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"}, stderr=subprocess.PIPE
    )
    assert done.returncode == 0 and b"Error" not in done.stderr


def test_a_full_disk_is_said_and_fails_the_command():
    command = f"{sys.executable} -m msdetr recipes shapes/baseline > /dev/full"
    done = subprocess.run(["bash", "-c", command], check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "msdetr: not all that was printed could be written: No space left on device\n"


@pytest.mark.parametrize("buffering", [1, -1], ids=["lines", "blocks"])
def test_a_pipe_that_takes_no_more_at_once_is_waited_for(buffering):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    lines = [f"line {number} \u00e9\n" for number in range(20_000)]  # several times what a pipe holds

    def write():
        with open(writer, "w", buffering=buffering, encoding="utf-8") as file:
            stream = Forgiving(file)
            for line in lines:
                stream.write(line)
            stream.flush()
            assert stream.error is None

    thread = threading.Thread(target=write)
    thread.start()
    with open(reader, encoding="utf-8") as file:
        time.sleep(0.1)  # until the pipe is full
        assert file.readlines() == lines
    thread.join()
