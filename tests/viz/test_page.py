"""The page as a file: what travels with it, what is escaped, and that it stays small."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from javascript import AVAILABLE, answer
from scenes import HOSTILE, specimen

from msdetr import recipes
from msdetr.analysis.stability import MatchHistory
from msdetr.errors import ConfigError, InputError
from msdetr.methods import build_postprocess
from msdetr.structures import DetectorOutput
from msdetr.viz.page import About, View, films_of, page_content, page_html
from msdetr.viz.page.content import DETAILS, Detail
from msdetr.viz.page.modules import FOLDER, joined, source
from msdetr.viz.page.packing import packed, unpacked
from msdetr.viz.page.write import write_page


def content_of(specimens, detail=DETAILS[0], **more):
    return page_content([View("run", specimens)], list(specimens), detail, **more)


def embedded(page: str) -> dict:
    """The content of a page, as a browser finds it: what stands between the tags."""
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize("type, tolerance", [("f4", 0), ("f2", 2e-3), ("q2", 3e-5)])
def test_arrays_come_back(type, tolerance):
    values = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_allclose(unpacked(packed(values, type)), values.ravel(), atol=tolerance, rtol=tolerance)
    assert unpacked(packed(np.zeros((0, 2)), type)).shape == (0,)
    np.testing.assert_array_equal(unpacked(packed(np.array([0, 255]), "u1")), [0, 255])
    assert np.ptp(unpacked(packed(np.full(4, 0.25), "q2"))) == 0


def test_predictions_travel_exactly_or_in_half_the_space():
    one = specimen(1, queries=50, objects=3)
    exact, rounded = (
        content_of({1: one}, detail)["images"][0]["views"][0]["frame"]["one_to_one"] for detail in DETAILS[:2]
    )
    boxes = one.output.one_to_one.boxes[:, 0].numpy().ravel()
    np.testing.assert_array_equal(unpacked(exact["boxes"]), boxes)
    np.testing.assert_allclose(unpacked(rounded["boxes"]), boxes, atol=5e-5)
    assert len(json.dumps(rounded)) < 0.6 * len(json.dumps(exact))


def test_names_from_the_data_stay_text():
    page = page_html(content_of({1: specimen(1), 2: specimen(2)}, about=About(("</script><b>",))), HOSTILE[1])
    content = embedded(page)
    assert content["classes"] == list(HOSTILE) and content["images"][0]["name"] == specimen(1).name
    markup = re.sub(r"<script.*?</script>|<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "onerror=alert" not in re.sub(r"<title>.*?</title>", "", markup) and "<img" not in markup
    assert page.count("</script>") == 2, "one for the content, one for the front end"
    title = re.search("<title>(.*?)</title>", page)[1]
    assert title == "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;"


def test_a_page_refers_to_nothing_outside():
    page = page_html(content_of({1: specimen(1)}), "page")
    without_data = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    addresses = set(re.findall(r"https?://[^\s\"'`]+", without_data))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a name of XML, never fetched"
    assert not re.search(r"\b(fetch|XMLHttpRequest|importScripts|WebSocket|innerHTML|eval)\b", joined())
    assert "default-src 'none'" in page


def test_the_front_end_is_whole_and_short():
    names = {path.name for path in FOLDER.iterdir() if path.name.endswith(".js")}
    bundle = joined()
    assert all(f"// ---- {name}" in bundle for name in names), "every module is used"
    assert not re.search(r"^import ", bundle, re.MULTILINE)
    assert all(len(source(name).splitlines()) <= 400 for name in names)
    assert len(bundle) + len(source("page.css")) < 150_000


def test_fifty_images_of_a_large_detector_fit():
    """300 queries, six layers, both branches: as on COCO."""
    across = np.linspace(0, 6, 640)
    picture = 127 + 60 * np.sin(across)[None, :, None] * np.cos(3 * across[:480])[:, None, None] * np.ones(3)
    picture = (picture + np.random.default_rng(0).normal(0, 6, picture.shape)).astype(np.uint8)
    big = replace(specimen(10, layers=6, queries=300, objects=7), picture=picture)
    assert len(big.targets.labels.unique()) == 3, "as many classes an image as COCO has"
    sizes = [len(json.dumps(content_of({10: big}, detail)["images"])) for detail in DETAILS]
    assert sizes == sorted(sizes, reverse=True) and 50 * sizes[3] < 4_800_000


def test_films_and_two_runs_are_kept_apart():
    film = [(step, specimen(3)) for step in (0, 50, 100, 150)]
    views = [View("first", {3: specimen(3)}, {3: film}), View("second", {3: specimen(3), 4: specimen(4)})]
    content = page_content(views, [3, 4], Detail(frames=3))
    first, second = content["images"][0]["views"]
    assert [frame["step"] for frame in first["film"]] == [0, 100, 150] and second["film"] == []
    assert content["images"][1]["views"][0] is None, "the first run did not look at this image"
    other = View("first", {3: specimen(3)}, {3: [(0, specimen(4))]})
    assert page_content([other], [3], Detail())["images"][0]["views"][0]["film"] == [], "of another image"


def test_the_answer_is_that_of_the_run(tmp_path):
    """DETA suppresses detections, at every step of its training as in the end."""
    config, plain = recipes.get("shapes/deta"), specimen(5, queries=40, objects=3)
    look, predictions = replace(plain, config=config), plain.output.one_to_one
    history = MatchHistory(
        np.array([10]), np.array([1.0]), plain.targets, plain.matching, {},
        [DetectorOutput(predictions, references=plain.output.references)], [plain.picture], plain.class_names,
    )  # fmt: skip
    content = page_content([View("run", {5: look}, films_of(history, config))], [5], Detail())
    [wanted] = build_postprocess(config)(predictions, torch.ones(1, 2), 100)
    sure = wanted.scores >= 0.02
    [view] = content["images"][0]["views"]
    for frame in (view["frame"], *view["film"]):
        assert frame["detections"]["queries"] == wanted.query[sure].tolist()
        assert frame["detections"]["labels"] == wanted.labels[sure].tolist()
        np.testing.assert_array_equal(unpacked(frame["detections"]["scores"]), wanted.scores[sure])
    [usual] = content_of({5: plain})["images"][0]["views"]
    assert usual["frame"]["detections"]["queries"] != wanted.query[sure].tolist()


@pytest.mark.skipif(not AVAILABLE, reason="neither node nor Chromium")
def test_images_with_huge_ids_are_kept_apart(tmp_path):
    ids = [2**60, 2**60 + 1]
    one = specimen(1)
    looks = {own: replace(one, targets=replace(one.targets, image_ids=(own,))) for own in ids}
    budget = {
        "images": [{"image_id": own, "lost_ap": 1.0} for own in ids],
        "failures": [{"image_id": own, "sentence": f"of {own}"} for own in ids],
    }
    comparison = {"objects": [{"image_id": own} for own in ids]}
    content = page_content([View("run", looks, {}, budget)], ids, Detail(), comparison=comparison)
    read = """(content) => {
      const page = readContent(content);
      return page.images.map(({ id }) => ({ sentences: page.failuresIn(0, id).map((own) => own.sentence),
        lost: page.runs[0].budget.images.filter((own) => own.image_id === id).length,
        compared: page.comparison.objects.filter((own) => own.image_id === id).length }));
    }"""
    found = answer(tmp_path, "scene.js", read, content)
    assert found == [{"sentences": [f"of {own}"], "lost": 1, "compared": 1} for own in ids]


@pytest.mark.skipif(not AVAILABLE, reason="neither node nor Chromium")
def test_arrow_keys_do_nothing_where_the_filter_leaves_no_image(tmp_path):
    content = content_of({1: specimen(1), 2: specimen(2)})
    press = """({ content, search }) => {
      const state = { screen: "image", image: 0, run: 0, cause: null, label: null, size: null, search, step: "end" };
      const changes = [];
      const actions = { get: () => state, set: (change) => changes.push(change) };
      shortcuts(readContent(content), actions, () => 1).ArrowRight();
      return changes;
    }"""
    pressed = lambda search: answer(tmp_path, "app.js", press, {"content": content, "search": search})
    assert pressed("no such file") == []
    assert pressed("") == [{"image": 1, "object": None, "query": None}]


def test_what_cannot_be_shown_is_named(tmp_path):
    with pytest.raises(InputError, match="no image"):
        page_content([View("run", {1: specimen(1)})], [], Detail())
    with pytest.raises(ConfigError, match="one run or two"):
        write_page(tmp_path / "page.html", [])
