import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small import SMALL

from msdetr import cli
from msdetr.cli.output import require_file, write
from msdetr.data import shapes as generator
from msdetr.errors import AnnotationError, ConfigError
from msdetr.results import image_ids


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return generator.generate(tmp_path_factory.mktemp("data") / "shapes", 16, 6)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, data):
    """A run made from the command line."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert cli.main(["train", "shapes/ms-detr-c", "--run-dir", str(folder), "--data", str(data), "--quiet", *TINY]) == 0
    return folder


TINY = ["--epochs", "1", "--seed", "1", "--device", "cpu", "--set"]
TINY += [f"{name}={value}" for name, value in (SMALL | {"model.num_queries": 20}).items()]
TINY += ["data.num_train=16", "data.num_val=6", "train.batch_size=8", "train.micro_batch=8"]


def run(capsys, *arguments):
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_train_leaves_a_run(run_dir):
    results = json.loads((run_dir / "results.json").read_text())
    assert results["status"] == "finished" and sum(results["data"]["val"]["objects"].values()) > 0
    card = (run_dir / "README.md").read_text()
    assert f"# {run_dir.name}" in card and "![Candidate quality](figures/candidates.png)" in card
    assert (run_dir / "figures" / "candidates.png").stat().st_size > 10_000


def test_a_model_card_needs_a_finished_run(capsys, run_dir, tmp_path):
    status, out, _ = run(capsys, "card", str(run_dir), "--images", "2")
    assert (
        status == 0
        and "| images | 2 |" in (run_dir / "README.md").read_text()
        and out.strip() == str(run_dir / "README.md")
    )
    status, _, err = run(capsys, "card", str(tmp_path))
    assert status == 1 and "is no run that this version finished" in err


def test_training_again_returns_at_once(capsys, run_dir, data):
    status, out, _ = run(
        capsys, "train", "shapes/ms-detr-c", "--run-dir", str(run_dir), "--data", str(data), "--quiet", *TINY
    )
    assert status == 0 and "AP" in out and str(run_dir) in out


def test_eval_prints_numbers_protocol_and_classes(capsys, run_dir, data, tmp_path):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    numbers, found = tmp_path / "numbers.json", tmp_path / "found.json"
    status, out, _ = run(
        capsys, "eval", str(run_dir), "--device", "cpu", "--output", str(numbers), "--detections", str(found)
    )
    assert status == 0 and "AR1" in out and "max_detections 100" in out and "half-disc" in out
    written = json.loads(numbers.read_text())
    assert written["num_images"] == 6 and len(json.loads(found.read_text())) == written["num_detections"]
    truth = COCO(str(data / "annotations" / "instances_val.json"))
    again = COCOeval(truth, truth.loadRes(str(found)), "bbox")
    again.evaluate(), again.accumulate(), again.summarize()
    assert again.stats[0] == pytest.approx(written["metrics"]["AP"], abs=1e-9)


def test_predict_prints_a_line_per_object(capsys, run_dir, data, tmp_path):
    image = str(min((data / "val").glob("*.png")))
    status, out, _ = run(capsys, "predict", str(run_dir), image, "--min-score", "0", "--device", "cpu")
    assert status == 0 and len(out.splitlines()) == 101
    output = tmp_path / "found.json"
    assert (
        run(
            capsys, "predict", str(run_dir), image, "--max-detections", "3", "--min-score", "0", "--output", str(output)
        )[0]
        == 0
    )
    assert len(json.loads(output.read_text())[image]) == 3


def test_candidates_draws_the_figures(capsys, run_dir, tmp_path):
    status, out, _ = run(capsys, "candidates", str(run_dir), "--device", "cpu", "--output", str(tmp_path))
    assert status == 0 and "mean IoU of the top 5" in out
    assert (tmp_path / "candidates.png").stat().st_size > 5000 and (tmp_path / "first.json").exists()


def test_candidates_of_the_folder_where_one_stands(capsys, run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(run_dir)
    given = ["candidates", ".", "checkpoints/..", "--limit", "1", "--device", "cpu"]
    status, out, _ = run(capsys, *given, "--output", str(tmp_path))
    assert status == 0 and out.startswith("first\n")
    assert {path.name for path in tmp_path.iterdir()} >= {"first.json", "candidates.png"}
    assert not list(tmp_path.glob(".*"))


def test_verify_finds_damage(capsys, run_dir, tmp_path):
    import shutil

    status, out, _ = run(capsys, "verify", str(run_dir))
    assert status == 0 and "finished" in out and "verified" in out and "shapes/ms-detr-c" in out
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    next((copy / "checkpoints").glob("*/model.safetensors")).write_bytes(b"short")
    status, out, _ = run(capsys, "verify", str(copy))
    assert status == 1 and "DAMAGED" in out


def test_inspect_explains_an_image(capsys, run_dir, tmp_path):
    status, out, err = run(
        capsys, "inspect", str(run_dir), "--object", "0", "--query", "1", "--out", str(tmp_path), "--device", "cpu"
    )
    assert status == 0 and "query 1" in out, err
    assert list(tmp_path.glob("*.png"))


def test_inspect_says_where_ap_went(capsys, run_dir, tmp_path):
    status, out, _ = run(capsys, "inspect", str(run_dir), "--device", "cpu", "--json", str(tmp_path / "budget.json"))
    assert status == 0 and "WORST IMAGES" in out and "suppression at IoU 0.5" in out
    budget = json.loads((tmp_path / "budget.json").read_text())
    _, _, _ = run(capsys, "eval", str(run_dir), "--device", "cpu", "--output", str(tmp_path / "eval.json"))
    measured = json.loads((tmp_path / "eval.json").read_text())
    assert budget["ap"] == pytest.approx(100 * measured["metrics"]["AP"], abs=1e-9)
    for name, ap in measured["per_class"].items():
        ours = next(one["ap"] for one in budget["by_class"] if one["name"] == name)
        assert ours == (None if ap is None else pytest.approx(100 * ap, abs=1e-9))
    assert budget["ap"] + sum(one["share"] for one in budget["causes"]) == pytest.approx(100, abs=1e-6)
    assert len(budget["by_layer"]) == 2 and len(budget["images"]) == 6
    unknown = {one["id"] for one in budget["causes"] if not one["available"]}
    assert unknown == {"rarely", "switched"} and budget["recorded_images"] == 0  # training was not recorded
    bases = {one["change"]: one["basis"] for one in budget["doctor"]["remedies"]}
    assert list(bases.values()).count("exact") == 5
    assert bases["longer training"] == bases["a higher k"] == "measured"  # in the study that comes along


def test_failures_of_a_cause_and_class_are_listed_and_drawn(capsys, run_dir, tmp_path):
    picture, given = tmp_path / "shown.png", ["failures", str(run_dir), "--device", "cpu"]
    status, out, _ = run(
        capsys, *given, "--cause", "background", "--category", "ring", "--top", "3", "--picture", str(picture)
    )
    lines = out.splitlines()
    assert status == 0 and "3 shown" in lines[0] and picture.stat().st_size > 1000
    assert all("background taken for an object: Detection" in line and "(ring " in line for line in lines[1:4])
    for option, wrong in (("--cause", "weather"), ("--category", "cow"), ("--size", "huge"), ("--image", "99")):
        status, _, err = run(capsys, *given, option, wrong)
        assert status == 1 and err.startswith(f"msdetr: {option}: ") and "is none of" in err


def test_inspect_compares_two_runs(capsys, run_dir, tmp_path):
    status, out, _ = run(
        capsys,
        "inspect",
        str(run_dir),
        str(run_dir),
        "--device",
        "cpu",
        "--limit",
        "2",
        "--json",
        str(tmp_path / "both.json"),
    )
    both = json.loads((tmp_path / "both.json").read_text())
    assert status == 0 and "B wins" in out and both["objects"] == [] and both["first"] == both["second"]


@pytest.mark.parametrize(
    "more, message",
    [
        (["RUN", "RUN"], "runs: 3 are given"),
        (["RUN", "--object", "0"], "--object: is about one run"),
        (["--image", "3", "--json", "x.json"], "--json: is about the budget"),
        (["--study", "nowhere"], "--study: nowhere has no finished cells"),
    ],
)
def test_inspect_names_what_does_not_go_together(capsys, monkeypatch, tmp_path, more, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "inspect", "RUN", *more)
    assert status == 1 and err.startswith(f"msdetr: {message}")


def test_recipes_and_doctor(capsys):
    status, out, _ = run(capsys, "recipes")
    assert status == 0 and "coco/ms-detr-pp-900" in out and "50.0 AP" in out
    status, out, _ = run(capsys, "recipes", "coco/ms-detr-pp-900")
    assert status == 0 and "num_queries: 900" in out
    status, out, _ = run(capsys, "doctor")
    assert status == 0 and "self-test passed" in out and "deformable attention" in out


def test_check_data_reports_and_fails_on_errors(capsys, data, tmp_path):
    status, out, _ = run(capsys, "check-data", str(data))
    assert status == 0 and "ready to train on" in out
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text("{")
    assert run(capsys, "check-data", str(tmp_path))[0] == 1


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A run directory of a small detector that the released code could have, with untrained weights."""
    import msdetr
    from msdetr.engine import checkpoint as checkpoints

    small = SMALL | {"model.pretrained": "none", "model.num_queries": 20}
    config = msdetr.resolve("coco/ms-detr-pp-300", small)
    folder = tmp_path_factory.mktemp("runs") / "released"
    manifest = {"step": 0, "epoch": 0.0, "config": config.to_dict(), "class_names": ["x"] * 91}
    manifest["category_ids"] = list(range(91))
    files = {"model": msdetr.build(config).state_dict()}
    checkpoints.write(folder / "checkpoints" / "step_00000000", files, manifest | {"metrics": {}, "training": {}})
    config.save(folder / "config.yaml")
    return folder


def test_convert_there_and_back(capsys, released, tmp_path):
    import torch

    from msdetr.engine import checkpoint as checkpoints

    file, config = tmp_path / "released.pth", str(released / "config.yaml")
    assert run(capsys, "convert", str(released), str(file), "--to-released")[0] == 0
    assert "transformer.level_embed" in torch.load(file, weights_only=True)["model"]
    status, out, _ = run(capsys, "convert", str(file), str(tmp_path / "back"), "--recipe", config)
    assert status == 0 and "tensors taken over" in out
    one, two = checkpoints.find(released).weights(), checkpoints.find(tmp_path / "back").weights()
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.fault("F95")
def test_a_full_disk_under_released_weights(released, tmp_path):
    """In a process of its own, which a writer in C++ may end."""
    target = tmp_path / "mine.pth"
    target.write_text("before")
    command = f"ulimit -f 8; exec {sys.executable} -m msdetr convert {released} {target} --to-released"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"msdetr: {target}: cannot be written: File too large")
    assert target.read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["mine.pth"]


def test_convert_with_the_names_of_a_file_whose_ids_have_gaps(capsys, released, tmp_path):
    from msdetr.engine import checkpoint as checkpoints

    content = {"images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}], "annotations": []}
    content["categories"] = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    run(capsys, "convert", str(released), str(tmp_path / "released.pth"), "--to-released")
    options = ["--recipe", str(released / "config.yaml"), "--annotations", str(tmp_path / "annotations.json")]
    assert run(capsys, "convert", str(tmp_path / "released.pth"), str(tmp_path / "back"), *options)[0] == 0
    back = checkpoints.find(tmp_path / "back")
    assert back.category_ids == [None, 1] + [None] * 88 + [90]
    assert back.class_names[1] == "person" and back.class_names[90] == "toothbrush"


def test_convert_what_the_released_code_cannot_have(capsys, run_dir, tmp_path):
    status, _, err = run(capsys, "convert", str(run_dir), str(tmp_path / "x.pth"), "--to-released")
    assert status == 1 and "no counterpart" in err


@pytest.mark.fault("F64")
def test_convert_executes_nothing(capsys, tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "bomb.pth").write_bytes(pickle.dumps({"model": Bomb()}))
    status, _, err = run(capsys, "convert", str(tmp_path / "bomb.pth"), str(tmp_path / "out"))
    assert status == 1 and "bomb.pth" in err and not (tmp_path / "executed").exists()


@pytest.mark.parametrize("option", [["--set", "seed=3", "--set", "train.epochs=two"], ["--set", "train.epochs=two", "seed=3"],
                                    ["--set", "train.epochs=two", "--set", "seed=3"]])  # fmt: skip
def test_an_option_given_twice_adds_to_the_first(capsys, option):
    status, _, err = run(capsys, "train", "shapes/ms-detr-c", *option)
    assert status == 1 and "train.epochs" in err


def test_parameters_of_a_notebook_add_up(capsys, monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr("msdetr.cli.notebooks.run_notebook", lambda path, output, values, **_: given.append(values))
    status, *_ = run(capsys, "notebook", "05", "-p", "seed=3", "epochs=1", "-p", "device=cpu")
    assert status == 0 and given == [{"seed": 3, "epochs": 1, "device": "cpu"}]


@pytest.mark.fault("F69")
def test_unknown_names_suggest_the_nearest(capsys):
    status, _, err = run(capsys, "train", "shapes/ms-detr-c", "--set", "model.num_querys=5")
    assert status == 1 and "model.num_querys: unknown parameter; did you mean 'model.num_queries'?" in err
    status, _, err = run(capsys, "train", "shapes/ms-detr-c", "--epoch", "5")
    assert status == 2 and "--epochs" in err


@pytest.mark.fault("F70")
def test_values_out_of_range(capsys):
    status, _, err = run(capsys, "train", "shapes/ms-detr-c", "--set", "ms_detr.k=0")
    assert status == 1 and "ms_detr.k: must be at least 1" in err


@pytest.mark.fault("F71")
def test_unknown_recipe(capsys):
    status, _, err = run(capsys, "train", "coco/ms-detr")
    assert status == 1 and "unknown recipe 'coco/ms-detr'" in err and "small-gpu/ms-detr-300" in err


@pytest.mark.fault("F72")
def test_output_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = run(
        capsys, "train", "shapes/ms-detr-c", "--run-dir", str(tmp_path / "file" / "run"), "--device", "cpu"
    )
    assert status == 1 and "cannot be written" in err and "Traceback" not in err


def test_errors_are_one_message_unless_debugging(capsys, tmp_path):
    from msdetr.engine import CheckpointError

    status, _, err = run(capsys, "eval", str(tmp_path))
    assert status == 1 and err.startswith("msdetr: ") and len(err.splitlines()) == 1
    with pytest.raises(CheckpointError):
        cli.main(["eval", str(tmp_path), "--debug"])


@pytest.mark.parametrize(
    "command",
    ["train", "eval", "predict", "candidates", "recipes", "check-data", "convert", "inspect", "verify", "card"],
)
def test_help_teaches(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0 and "usage: msdetr" in out and len(out.splitlines()) > 8


def test_importing_the_package_does_not_load_torch():
    code = "import sys, msdetr, msdetr.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.fault("F98")
@pytest.mark.fault("F101")
@pytest.mark.parametrize(
    "arguments, field",
    [
        (["eval", "run", "--limit", "-1"], "--limit"),
        (["eval", "run", "--limit", "0"], "--limit"),
        (["eval", "run", "--max-detections", "0"], "--max-detections"),
        (["train", "shapes/baseline", "--nproc", "0"], "--nproc"),
        (["train", "shapes/baseline", "--epochs", "nan"], "train.epochs"),
        (["train", "shapes/baseline", "--seed", "-1"], "seed"),
        (["train", "shapes/baseline", "--epochs", "3", "--set", "train.epochs=4"], "train.epochs: given twice"),
        (["train", "shapes/baseline", "--set", "train.lr=1", "train.lr=2"], "train.lr: given twice"),
        (["predict", "run", "a.png", "--min-score", "nan"], "--min-score"),
        (["predict", "run", "a.png", "--min-score", "1.5"], "--min-score"),
        (["predict", "run"], "images"),
        (["candidates", "run", "--limit", "-3"], "--limit"),
        (["candidates"], "runs"),
        (["inspect", "run", "--k", "0"], "--k"),
        (["inspect", "run", "--alpha", "-1"], "--alpha"),
        (["inspect", "run", "--layer", "-1"], "--layer"),
    ],
)
def test_arguments_outside_their_domain_name_the_option(capsys, tmp_path, monkeypatch, arguments, field):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *arguments)
    assert status == 1 and err.startswith(f"msdetr: {field}") and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("F105")
@pytest.mark.parametrize(
    "arguments, option",
    [
        (["eval", "RUN", "--output"], "--output"),
        (["predict", "RUN", "a.png", "--output"], "--output"),
        (["candidates", "RUN", "--output"], "--output"),
        (["inspect", "RUN", "--out"], "--out"),
        (["inspect", "RUN", "--json"], "--json"),
        (["failures", "RUN", "--picture"], "--picture"),
        (["check-data", "RUN", "--thumbnails"], "--thumbnails"),
        (["convert", "RUN"], "target"),
        (["convert", "RUN", "--to-released"], "target"),
        (["export", "RUN", "--to", "pt2", "--output"], "--output"),
        (["notebook", "a.ipynb", "--output"], "--output"),
    ],
)
def test_an_output_that_cannot_be_written_is_said_before_anything_is_read(capsys, tmp_path, arguments, option):
    """The model named here does not exist: it would be the error if anything had begun."""
    (tmp_path / "file").write_text("")
    status, _, err = run(capsys, *arguments, str(tmp_path / "file" / "inside"))
    assert status == 1 and err.startswith(f"msdetr: {option}: ") and "cannot be written" in err


@pytest.mark.fault("F105")
@pytest.mark.parametrize(
    "arguments, option",
    [
        (["predict", "RUN"], "images"),
        (["eval"], "model"),
        (["eval", "RUN", "--data"], "--data"),
        (["eval", "RUN", "--output"], "--output"),
        (["verify"], "path"),
        (["sweep"], "study"),
    ],
)
def test_a_path_that_is_too_long_is_named(capsys, arguments, option):
    status, _, err = run(capsys, *arguments, "x" * 300)
    assert status == 1 and err.startswith(f"msdetr: {option}: xxx") and "(File name too long)" in err


@pytest.mark.fault("F105")
def test_an_output_file_that_is_a_folder(capsys, tmp_path):
    status, _, err = run(capsys, "eval", "RUN", "--output", str(tmp_path))
    assert status == 1 and "is a folder" in err


@pytest.mark.fault("F105")
def test_an_output_that_is_a_pipe_is_written_where_it_is(tmp_path):
    reader, writer = os.pipe()
    require_file(Path(f"/dev/fd/{writer}"), "--output")
    write(Path(f"/dev/fd/{writer}"), "found")
    assert os.read(reader, 100) == b"found"
    os.close(reader), os.close(writer)
    with (
        open(tmp_path / "file", "w") as file,
        pytest.raises(ConfigError, match="file, to which the output is redirected"),
    ):
        require_file(Path(f"/dev/fd/{file.fileno()}"), "--output")


@pytest.mark.parametrize("content", [None, b"no weights", b""])
def test_backbone_weights_that_cannot_be_had(capsys, data, tmp_path, content):
    file = tmp_path / "weights.pth"
    if content is not None:
        file.write_bytes(content)
    settings = ["model.backbone=resnet18", f"model.pretrained={file}"]
    status, _, err = run(
        capsys, "train", "shapes/baseline", "--run-dir", str(tmp_path / "run"), "--data", str(data), *TINY, *settings
    )
    assert status == 1 and err.splitlines()[-1].startswith("msdetr: model.pretrained: ") and str(file) in err


def test_starting_from_a_detector_asks_for_no_other_weights(capsys, data, tmp_path):
    def train(name, *arguments):
        where = ["--run-dir", str(tmp_path / name), "--data", str(data), "--quiet"]
        return run(
            capsys,
            "train",
            "shapes/ms-detr-c",
            *where,
            "--epochs",
            "0",
            *TINY[2:],
            "model.backbone=resnet18",
            *arguments,
        )

    few = ["model.num_levels=1"]
    assert train("first", "model.pretrained=none", *few)[0] == 0
    absent = ["model.pretrained=/absent.pth", *few]
    assert train("second", *absent)[0] == 1
    status, _, err = train("third", *absent, "--init-from", str(tmp_path / "first"))
    assert status == 0, err
    assert "pretrained: /absent.pth" in (tmp_path / "third" / "config.yaml").read_text()


def test_convert_names_the_recipe_that_fits_a_file(capsys, tmp_path, monkeypatch):
    """Names and shapes decide; small recipes stand in for the real ones, which differ from them in size alone."""
    import torch

    import msdetr
    from msdetr import recipes
    from msdetr.model import to_released

    small = SMALL | {"model.pretrained": "none", "model.backbone": "resnet18"}
    del small["model.num_queries"]  # in which the recipes differ
    whole = recipes.get
    monkeypatch.setattr(recipes, "get", lambda name: whole(name).override(small))
    file = tmp_path / "released.pth"
    # the second is of another kind, whose names are unknown to the recipe that is tried
    for fitting in ("coco/ms-detr-pp-900", "coco/dino-4scale-r50"):
        config = recipes.get(fitting)
        torch.save({"model": to_released(msdetr.build(config).state_dict(), config)}, file)
        status, _, err = run(capsys, "convert", str(file), str(tmp_path / "out"), "--recipe", "coco/ms-detr-300")
        assert status == 1 and f"does not fit the recipe coco/ms-detr-300; it fits --recipe {fitting} (" in err
        assert not (tmp_path / "out").exists()
    torch.save({"model": {"backbone.res2.0.conv1.weight": torch.zeros(1)}}, file)
    status, _, err = run(capsys, "convert", str(file), str(tmp_path / "out"), "--recipe", "coco/mr-detr-300")
    assert status == 1 and "backbone and neck, which do not convert" in err and not (tmp_path / "out").exists()


def test_predictions_are_drawn_and_written_for_other_programs(capsys, run_dir, data, tmp_path):
    from PIL import Image
    from pycocotools.coco import COCO

    images, annotations = data / "val", data / "annotations" / "instances_val.json"
    drawn, results, listed, rows = (tmp_path / name for name in ("drawn", "results.json", "listed.json", "found.csv"))
    common = ["predict", str(run_dir), str(images), "--min-score", "0", "--max-detections", "5", "--device", "cpu"]
    status, out, _ = run(
        capsys, *common, "--draw", str(drawn), "--coco", str(results), "--annotations", str(annotations),
        "--table", str(rows),
    )  # fmt: skip
    count = len(list(images.glob("*.png")))
    assert status == 0 and f"{5 * count} detections in {count} images" in out
    assert len(list(drawn.glob("*.png"))) == count
    first = min(images.glob("*.png"))
    assert Image.open(min(drawn.glob("*.png"))).size == Image.open(first).size
    truth = COCO(str(annotations))
    assert len(truth.loadRes(str(results)).getAnnIds()) == 5 * count  # every image id is one of the annotations'
    assert len(rows.read_text().splitlines()) == 1 + 5 * count

    assert run(capsys, *common, "--coco", str(listed))[0] == 0
    viewed = COCO(str(listed))
    assert viewed.loadImgs(viewed.getImgIds()[:1])[0]["file_name"] == first.name
    assert viewed.dataset["info"]["folder"] == str(images)
    assert len(viewed.getAnnIds()) == 5 * count and all("score" in a for a in viewed.anns.values())
    assert {c["name"] for c in viewed.cats.values()} == {c["name"] for c in truth.cats.values()}
    assert {c["id"]: c["name"] for c in viewed.cats.values()} == {c["id"]: c["name"] for c in truth.cats.values()}


@pytest.mark.fault("F137")
def test_images_that_the_annotations_do_not_have_are_named(capsys, run_dir, data, tmp_path):
    image = tmp_path / "other.png"
    image.write_bytes(min((data / "val").glob("*.png")).read_bytes())
    annotations = str(data / "annotations" / "instances_val.json")
    arguments = ["predict", str(run_dir), str(image), "--device", "cpu", "--annotations", annotations]
    status, _, err = run(capsys, *arguments, "--coco", str(tmp_path / "results.json"))
    assert status == 1 and "other.png: is not among the images of the annotations" in err
    assert not (tmp_path / "results.json").exists()
    status, _, err = run(capsys, *arguments)
    assert status == 1 and "--annotations: gives --coco its image ids" in err


@pytest.mark.fault("F137")
def test_images_are_looked_up_before_anything_is_computed(capsys, tmp_path):
    """The model named here does not exist: it would be the error if anything had begun."""
    (tmp_path / "annotations.json").write_text('{"images": [{"id": 7, "file_name": "1.jpg"}], "annotations": []}')
    given = ["predict", "RUN", "a/2.jpg", "--annotations", str(tmp_path / "annotations.json")]
    status, _, err = run(capsys, *given, "--coco", str(tmp_path / "results.json"))
    assert status == 1 and "a/2.jpg: is not among the images" in err


@pytest.mark.fault("F137")
@pytest.mark.parametrize(
    ("images", "files", "answer"),
    [
        ([(7, "1.jpg"), (8, "b/1.jpg")], ["ph/b/1.jpg", "ph/a/1.jpg"], [8, 7]),
        ([(7, "1.jpg")], ["ph/a/1.jpg", "ph/b/1.jpg"], "ph/a/1.jpg and ph/b/1.jpg: are both the image '1.jpg' .id 7."),
        ([(7, "1.jpg"), (8, "1.jpg")], ["1.jpg"], "the ids 7 and 8 have one file_name, '1.jpg'"),
        ([(2.7, "1.jpg")], ["1.jpg"], "an id, a whole number"),
    ],
)
def test_the_ids_of_images(tmp_path, images, files, answer):
    listed = [{"id": number, "file_name": name} for number, name in images]
    (tmp_path / "annotations.json").write_text(json.dumps({"images": listed, "annotations": []}))
    if isinstance(answer, list):
        assert image_ids(tmp_path / "annotations.json", files) == answer
    else:
        with pytest.raises(AnnotationError, match=answer):
            image_ids(tmp_path / "annotations.json", files)


def test_warnings_are_lines_to_read(data, tmp_path, run_dir):
    content = json.loads((data / "annotations" / "instances_val.json").read_text())
    content["annotations"][0]["bbox"][2] = 0
    folder = tmp_path / "damaged"
    shutil.copytree(data, folder)
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(content))
    command = [sys.executable, "-m", "msdetr", "eval", str(run_dir), "--data", str(folder), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"^msdetr: warning: .*1 × box of zero or negative size left out", done.stderr, re.MULTILINE)
    assert "loader.py" not in done.stderr


@pytest.mark.fault("F91")
def test_an_image_whose_name_is_no_utf_8_is_in_the_table(capsys, run_dir, data, tmp_path):
    image, rows = tmp_path / os.fsdecode(b"caf\xe9.png"), tmp_path / "found.csv"
    shutil.copy(min((data / "val").glob("*.png")), image)
    given = ["--min-score", "0", "--max-detections", "2", "--device", "cpu", "--table", str(rows)]
    assert run(capsys, "predict", str(run_dir), str(image), *given)[0] == 0
    assert rows.read_text().splitlines()[1].startswith(rf"{tmp_path}/caf\udce9.png,")


def test_nothing_is_predicted_for_a_reader_who_has_gone(run_dir, data):
    """As ``head`` goes, here before anything comes. The last file would be the error if it were read."""
    [first, *_] = (data / "val").glob("*.png")
    command = [sys.executable, "-m", "msdetr", "predict", str(run_dir), *[str(first)] * 40, "absent.png"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*command, "--device", "cpu"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 0 and not done.stderr
