import json
import os
import signal
from pathlib import Path

import pytest
import tiny
import torch

from msdetr.engine import TrainingError
from msdetr.engine.distributed import World, join, leave, pick_device
from msdetr.engine.launch import is_reason, launch


def _talk(folder: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    world = join("cpu")
    result = {
        "sum": world.sum([world.rank + 1, 10]),
        "gather": world.gather({"rank": world.rank}),
        "mean": world.mean_(torch.tensor([float(world.rank)])).tolist(),
        "main": world.on_main(lambda: f"from {world.rank}"),
    }
    try:
        world.on_main(lambda: 1 / 0)
    except (ZeroDivisionError, TrainingError) as error:
        result["error"] = f"{type(error).__name__}: {error}"
    Path(folder, f"{world.rank}.json").write_text(json.dumps(result))
    leave()


def test_what_ranks_say_to_each_other(tmp_path):
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": tiny.free_port(), "WORLD_SIZE": "2"}
    ranks = [tiny.start(_talk, str(tmp_path), shared | {"RANK": str(rank)}) for rank in range(2)]
    assert tiny.finish(ranks) == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first.pop("error") == "ZeroDivisionError: division by zero"
    assert second.pop("error").startswith("TrainingError: rank 0 failed: ZeroDivisionError")
    assert first == second == {"sum": [3, 20], "gather": [{"rank": 0}, {"rank": 1}], "mean": [0.5], "main": "from 0"}


def test_alone_is_a_world_of_one():
    world = World()
    assert world.main and world.sum([2]) == [2.0] and world.gather("x") == ["x"] and world.on_main(lambda: 5) == 5


def test_a_device_that_is_not_there():
    with pytest.raises(TrainingError, match="device 'gpu'.*use auto, cpu, cuda"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="no CUDA device is visible"):
            pick_device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.slow
def test_ranks_started_from_python_report_back(tmp_path, shapes):
    shown = []
    config = tiny.config(shapes, train__epochs=1)
    results = launch(config, tmp_path / "run", nproc=2, device="cpu", show=shown.append)
    assert results["status"] == "finished" and results["world_size"] == 2
    assert any("step 4/4" in line for line in shown)
    again = launch(
        config, tmp_path / "from", 2, "cpu", show=shown.append, arguments=["--init-from", str(tmp_path / "run")]
    )
    assert again["init_from"]["path"] == str(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"(?s)failed with exit status 1.*train.batch_size"):
        launch(config.override({"train.batch_size": 64}), tmp_path / "bad", nproc=2, device="cpu", show=shown.append)


@pytest.mark.fault("F59")
def test_sigterm_stops_all_ranks_at_the_same_step(tmp_path, shapes):
    from msdetr.engine import checkpoint as checkpoints

    config = tiny.config(shapes, train__epochs=50, train__checkpoint_every=0)
    processes = tiny.start_training(tmp_path, config, ranks=2, environment={"PAUSE": "0.02"})
    tiny.wait_for_step(tmp_path, 5)
    os.kill(processes[1].pid, signal.SIGTERM)  # it is enough that one is told
    assert tiny.finish(processes)[1] == 143
    done = {rank: len(tiny.samples(tmp_path, rank)) for rank in (0, 1)}
    assert done[0] == done[1] == checkpoints.latest(tmp_path).step


@pytest.mark.slow
@pytest.mark.fault("F60")
def test_torchrun_starts_all_ranks_again_from_the_last_checkpoint(tmp_path, shapes):
    """Elastic restart: rank 0 is killed, the run is finished all the same, by ranks that resumed."""
    run_dir = tmp_path / "run"
    killed = []

    def kill_once(line):
        if (
            "step" in line
            and not killed
            and (run_dir / "checkpoints").exists()
            and list(run_dir.glob("checkpoints/step_*"))
        ):
            killed.append(int((run_dir / ".lock").read_text().split()[1]))
            os.kill(killed[0], signal.SIGKILL)

    config = tiny.config(shapes, train__epochs=6, train__eval_every=1)
    results = launch(config, run_dir, nproc=2, device="cpu", show=kill_once, max_restarts=1)
    assert killed and results["status"] == "finished" and results["steps"] == 24
    assert [line["step"] for line in tiny.lines(run_dir, "train")] == list(range(1, 25))


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_a_device_of_another_kind(device):
    with pytest.raises(TrainingError, match=f"device '{device}'.*use auto, cpu, cuda"):
        pick_device(device)


def test_a_warning_is_not_the_reason_of_a_failure():
    assert is_reason("msdetr: train.batch_size: too large") and not is_reason("msdetr: warning: a file is damaged")
