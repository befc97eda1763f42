"""The microscope on a real run: two steps of training on the generated data."""

import json
import re

import pytest
import small

from msdetr.analysis.candidates import measure_run
from msdetr.analysis.specimen import Microscope
from msdetr.cli import main
from msdetr.engine import train
from msdetr.errors import ConfigError
from msdetr.viz.explorer import Explorer
from msdetr.viz.inspect import inspect
from msdetr.viz.page import write_page

TINY = {
    "model.num_queries": 12, "model.num_points": 2, "data.num_train": 4, "data.num_val": 3, "data.augment": "none",
    "train.batch_size": 2, "train.micro_batch": 2, "train.epochs": 1, "train.log_every": 1,
    "ms_detr.threshold": 0.05, "ms_detr.k": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    config = small.config("c", **TINY | {"data.root": str(folder / "shapes")})
    train(config, folder / "run", device="cpu", progress=False)
    return folder / "run"


def test_inspect_writes_figures_and_says_it_in_text(run, tmp_path):
    found = inspect(run, out=tmp_path, object=0, query=3, device="cpu")
    names = {path.stem for path in found.figures}
    assert {"assignments", "outcome", "object_0_one_to_many", "query_3", "why_not_one_to_one"} <= names
    assert all(path.stat().st_size > 1000 for path in found.figures)
    assert (tmp_path / "report.txt").read_text() == found.text
    assert "WHY NOT?" in found.text and "HEALTH OF THE RUN" in found.text and "layer 2" in found.text
    assert not found.explanation.one_to_many.hypothetical, "the one-to-many branch is kept for looking at it"
    assert found.specimen.picture.shape == (128, 128, 3) and len(found.specimen.sampling) == 2


def test_other_settings_and_images(run):
    loose, strict = (inspect(run, 2, threshold=t, device="cpu").explanation for t in (0.0, 1.0))
    assert loose.one_to_many.matched.sum() > strict.one_to_many.matched.sum() == 0
    by_name = inspect(run, "000000000002.png", layer=1, device="cpu")
    assert by_name.specimen.name == "000000000002.png" and by_name.figures == []


def test_a_further_branch_is_looked_at_in_its_own_numbers(run, tmp_path):
    found = inspect(run, out=tmp_path, branch="encoder", object=0, query=20, device="cpu")
    assert {"object_0_encoder", "why_not_encoder"} <= {path.stem for path in found.figures}
    serving = found.explanation.branch("encoder").serving(0)
    served = inspect(run, branch="encoder", query=serving[0], device="cpu")
    name = found.explanation.branch("encoder").object_name(0)
    assert f"{name}: encoder, layer 1" in found.text and f"layer 1: serves {name}" in served.text


def test_what_does_not_exist_is_named(run):
    for wrong, message in (
        ({"image": 99}, "neither an image id nor a file name"),
        ({"layer": 7}, "1 to 2"),
        ({"query": 12}, "query: 12"),
        ({"object": 50}, "object: 50"),
        ({"k": 0}, "matching.k"),
        ({"branch": "hybird"}, "none of one_to_one, one_to_many, encoder"),
        ({"branch": "encoder", "layer": 2}, "1 to 1"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            inspect(run, device="cpu", **wrong)


def test_explorer_and_candidate_quality_of_a_run(run):
    explorer = Explorer.of_run(Microscope(run, device="cpu"), images=2)
    assert len(explorer.images) == 2 and "layer 1" in explorer.figure(image=1, layer=0).get_suptitle()
    quality = measure_run(run, limit=2, device="cpu", top=5)
    assert quality.images == 2 and quality.result().num_layers == 2


def test_a_page_of_a_run_and_of_two(run, tmp_path, capsys):
    own = ["--device", "cpu", "--note", "Drawn by the generator."]
    assert main(["inspect", str(run), str(run), "--html", str(tmp_path / "both.html"), "--images", "2", *own]) == 0
    assert "2 images" in capsys.readouterr().out
    page = (tmp_path / "both.html").read_text()
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.DOTALL)[1])
    assert len(content["images"]) == 2 and len(content["runs"]) == 2 and content["comparison"]["first"] is not None
    assert content["about"] == {"text": ["Drawn by the generator."], "data": "shapes/val, 3 images", "images": 3}
    budget = content["runs"][0]["budget"]
    assert sum(cause["share"] for cause in budget["causes"]) == pytest.approx(100 - budget["ap"], abs=1e-6)
    assert all(view["frame"]["sampling"]["queries"] for image in content["images"] for view in image["views"])
    with pytest.raises(ConfigError, match="more than 0.1 MB"):
        write_page(tmp_path / "small.html", [run], device="cpu", most_bytes=100_000)
    assert not (tmp_path / "small.html").exists()
    assert main(["inspect", str(run), "--images", "2"]) == 1 and "--html" in capsys.readouterr().err
