"""The page's matcher is the package's: every score, place, status and rival, and the sentences, for random settings."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from browser import needs_browser
from javascript import AVAILABLE, answer
from scenes import specimen

from msdetr import recipes
from msdetr.matching import STATUSES
from msdetr.viz.page import View, page_content
from msdetr.viz.page.content import Detail

SCENES = 24
NAMES = {"matched": "matched", "merged": "merged", "dropped by τ": "below", "lost to another object": "lost",
         "beyond k": "beyond", "beyond its votes": "unvoted", "serves another object": "taken",
         "another query costs less": "costlier"}  # fmt: skip
MATCH = """({ content, cases }) => {
  const page = readContent(content);
  return cases.map(({ image, layer, changes, object, query }) => {
    const scene = sceneOf(page, 0, { image, layer, changes, step: "end" });
    const { found } = scene;
    const table = (values) => Array.from(values);
    return {
      status: found.status, score: table(found.score), place: table(found.place), rival: table(found.rival),
      one: scene.one.serving, text: object < 0 ? "" : oneToManyReason(page, scene, object, query),
    };
  });
}"""


def content_and_specimens():
    specimens = {seed: specimen(seed) for seed in range(SCENES)}
    return page_content([View("scenes", specimens)], range(SCENES), Detail()), specimens


def draw(rng: np.random.Generator) -> dict:
    """Settings of matching, extreme ones among them."""
    return {
        "threshold": float(rng.choice([rng.random(), 0, 0.4, 0.5, 1])),
        "k": int(rng.integers(1, 12)),
        "alpha": float(rng.choice([rng.random(), 0, 0.3, 0.5, 1])),
        "rule": str(rng.choice(["exclusive", "literal", "released"])),
        "merge": bool(rng.random() < 0.4),
    }


def compare(folder, number: int, browser: bool) -> None:
    rng = np.random.default_rng(number)
    content, specimens = content_and_specimens()
    cases, wanted = [], []
    for i in range(number):
        image, changes = i % SCENES, draw(rng)
        found = specimens[image].explain(**changes)
        branch = found.one_to_many
        layer, query = int(rng.integers(found.num_layers)), int(rng.integers(found.num_queries))
        target = int(rng.integers(len(found.targets))) if len(found.targets) else -1
        cases.append({"image": image, "layer": layer, "changes": changes, "object": target, "query": query})
        wanted.append(
            {
                "status": [NAMES[STATUSES[status]] for status in branch.status[layer].ravel()],
                "score": branch.score[layer].ravel().tolist(),
                "place": branch.place[layer].ravel().tolist(),
                "rival": branch.rival[layer].ravel().tolist(),
                "one": [found.one_to_one.serving(t, layer) for t in range(len(found.targets))],
                "text": branch.why_not(query, target, layer).text if target >= 0 else "",
            }
        )
    seen = {status for want in wanted for status in want["status"]}
    assert number < 300 or seen == set(NAMES.values()) - {"taken", "costlier"}, "the settings reach every status"
    answers = answer(folder, "reasons.js", MATCH, {"content": content, "cases": cases}, browser)
    for case, want, got in zip(cases, wanted, answers, strict=True):
        assert got == want, case


@pytest.mark.skipif(not AVAILABLE, reason="neither node nor Chromium")
@pytest.mark.filterwarnings("ignore:one-to-many matching. k")
@pytest.mark.filterwarnings("ignore:.*stay unmatched")
def test_the_page_matches_as_the_package_does(tmp_path):
    compare(tmp_path, 48, browser=False)


PAIRS = """({ content, image, layer, object }) => {
  const page = readContent(content);
  const scene = sceneOf(page, 0, { image, layer, changes: {}, step: "end" });
  return Array.from({ length: scene.frame.one.queries }, (_, query) => ({
    cost: oneToOneCost(page, scene, object, query), fate: oneToOneStatus(scene, object, query),
    text: oneToOneReason(page, scene, object, query),
  }));
}"""


@pytest.mark.skipif(not AVAILABLE, reason="neither node nor Chromium")
@pytest.mark.parametrize(
    "recipe, settings",
    [
        ("shapes/ms-detr-c", {"matching.focal_alpha": 0.5}),
        ("shapes/stable-dino", {}),
        ("shapes/stable-dino", {"stable.cost": "released"}),
        ("shapes/deta", {}),
    ],
)
def test_costs_and_reasons_of_one_to_one_matching_are_those_of_the_run(tmp_path, recipe, settings):
    config = recipes.get(recipe).override(settings)
    looks = {seed: replace(specimen(seed, queries=30, objects=5), config=config) for seed in (1, 2)}
    content = page_content([View("run", looks)], list(looks), Detail())
    branch, layer, target = looks[2].explain().one_to_one, 1, 3
    got = answer(tmp_path, "reasons.js", PAIRS, {"content": content, "image": 1, "layer": layer, "object": target})
    assert [own["fate"] for own in got] == [NAMES[STATUSES[status]] for status in branch.status[layer, target]]
    costs = [own["cost"]["class"] for own in got]
    np.testing.assert_allclose(costs, branch.cost_class[layer, target], rtol=1e-4, atol=1e-5)
    if recipe != "shapes/deta":  # which matches the boxes that queries start from, and by no cost
        np.testing.assert_allclose([own["cost"]["total"] for own in got], branch.cost[layer, target], rtol=1e-4)
    for query, own in enumerate(got):  # the page leaves out what giving a query away would cost
        text = branch.why_not(query, target, layer).text.replace("-0.00", "0.00")
        assert text.startswith(own["text"].replace("−", "-").removesuffix("."))


@pytest.mark.slow  # a thousand explanations and a browser
@needs_browser
def test_the_page_matches_as_the_package_does_on_a_thousand_settings_in_a_browser(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compare(tmp_path, 1000, browser=True)
