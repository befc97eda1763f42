"""The page in a real browser: every slider dragged, clicks, pointing, keys, names that hurt, and nothing that leaves the page.

Pictures are compared within one test: an action changes them, and undoing it brings the same picture back.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from browser import browser_page, complaints_of, needs_browser
from PIL import Image
from scenes import HOSTILE, specimen

from msdetr.viz.page import About, View, page_content, page_html
from msdetr.viz.page.content import DETAILS, Detail

expect = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install msdetr[dev]").expect
pytestmark = [pytest.mark.slow, needs_browser]


def budget(label: str) -> dict:
    """A small one; its numbers mean nothing, its words hurt."""
    words = {"name": label, "description": "</script><b>", "mended": "'\""}
    share = {"errors": 1200, "d_ap": 20.0, "share": 40.0}
    part = {"objects": 9, "ap": 60.0, "causes": {"placed": share}}
    return {
        "ap": 60.0, "classes": list(HOSTILE),
        "causes": [{"id": "placed", **words, **share, "available": True},
                   {"id": "lost", **words, "errors": 0, "d_ap": 0, "share": 0, "available": False}],
        "by_class": [part | {"name": name} for name in HOSTILE], "by_size": [part | {"name": "small"}], "by_layer": [],
        "remedies": [{"change": HOSTILE[0], "basis": "exact", "gain": 1.5, "text": HOSTILE[1]}],
        "images": [{"image_id": i, "lost_ap": float(i)} for i in (1, 2, 3)],
        "failures": [{"image_id": 2, "kind": "missed", "cause": "placed", "lost_ap": 2.0, "object": 1, "query": 3, "label": 0, "size": "small",
                      "box": [1, 2, 30, 40], "sentence": f"{HOSTILE[1]} is missed"}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def looks():
    return {seed: specimen(seed, layers=3, queries=40, objects=4) for seed in (1, 2, 3)}


@pytest.fixture(scope="module")
def window():
    with browser_page() as page:
        page.complaints = complaints_of(page)
        yield page


@pytest.fixture
def opening(window, tmp_path):
    """``opening(content, address)`` opens a page; afterwards nothing may have been complained about."""

    def opened(content, address: str = ""):
        (tmp_path / "page.html").write_text(page_html(content, HOSTILE[1]), encoding="utf-8")
        window.goto("about:blank")
        window.goto((tmp_path / "page.html").as_uri() + address)
        window.mouse.move(0, 0)
        return window

    window.complaints.clear()
    yield opened
    assert window.complaints == []


@pytest.fixture
def page(opening, looks):
    """A page of one run with a film of image 2."""
    film = [(step, specimen(2, layers=3, queries=40, objects=4)) for step in (0, 100, 200)]
    view = View(HOSTILE[0], looks, {2: film}, budget(HOSTILE[1]))
    return opening(page_content([view], list(looks), Detail(), About((HOSTILE[1],), HOSTILE[2], 9)))


def put(page, **changes) -> None:
    """Changes what the page shows."""
    page.evaluate("(changes) => page.set(changes)", changes)


def state(page) -> dict:
    return page.evaluate("page.get()")


def drag(page, name: str, share: float) -> None:
    """Drags the thumb of a slider to a share of its length."""
    slider = page.locator(f"[data-name={name}]")
    slider.scroll_into_view_if_needed()
    value, least, most = (float(slider.evaluate(f"(input) => input.{key}")) for key in ("value", "min", "max"))
    box, thumb = slider.bounding_box(), 16
    across = lambda part: box["x"] + thumb / 2 + part * (box["width"] - thumb)
    page.mouse.move(across((value - least) / (most - least)), box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(across(share), box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    page.mouse.move(0, 0)


def picture(page, selector: str = ".canvas") -> np.ndarray:
    """What is on the screen of an element, in pixels."""
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).first.screenshot())).convert("RGB"))


def queries(page, selector: str) -> list[int]:
    return page.locator(selector).evaluate_all("(all) => all.map((one) => Number(one.dataset.query))")


def test_names_stay_names(page):
    assert page.locator("script").count() == 2 and page.locator("img[onerror]").count() == 0
    assert page.title() == HOSTILE[1]
    text = page.locator(".overview").inner_text()
    assert HOSTILE[1] in text and "9 in all" in text and "not known" in text
    put(page, screen="image", image=1, object=0, query={"run": 0, "query": 3})
    labels = ",".join(page.locator(".objects th").all_inner_texts())
    assert any(name in labels for name in HOSTILE) and page.locator("script").count() == 2


def test_the_gallery_filters_and_opens(page):
    assert page.locator(".card").evaluate_all("(all) => all.map((card) => card.dataset.image)") == ["2", "1", "0"]
    page.click("tr[data-cause=placed]")
    assert state(page)["cause"] == "placed" and page.locator(".card").count() == 1
    page.select_option("[data-name=size]", label="large")
    assert page.locator(".card").count() == 0
    page.select_option("[data-name=size]", label="small")
    page.select_option("[data-name=label]", label=HOSTILE[0])
    page.click(".card")
    assert state(page)["screen"] == "image" and state(page)["image"] == 1
    page.click(".failures button")
    now = state(page)
    assert now["object"] == 1 and now["query"] == {"run": 0, "query": 3}
    assert page.locator(".path .panel").count() == 3


def test_every_slider_is_answered_with_the_matching_of_the_package(page, looks):
    put(page, screen="image", image=0, mode="many")
    before = state(page)
    shots = [picture(page)]
    for name, share in {"threshold": 0.2, "k": 0.1, "alpha": 0.8, "layer": 0.0}.items():
        drag(page, name, share)
        now = state(page)
        assert (now["changes"], now["layer"]) != (before["changes"], before["layer"]), name
        found, layer = looks[1].explain(**now["changes"]).one_to_many, now["layer"]
        wanted = sorted(query for target in range(4) for query in found.serving(target, layer))
        assert sorted(queries(page, ".boxes .query")) == wanted, name
        shots.append(picture(page))
        assert (shots[-1] != shots[-2]).any(), f"{name} changes the picture"
        before = now
    assert set(now["changes"]) == {"threshold", "k", "alpha"} and now["layer"] == 0
    drag(page, "layer", 1.0)
    page.click("text=as trained")
    page.mouse.move(0, 0)
    np.testing.assert_array_equal(picture(page), shots[0], "the settings of training bring the first picture back")


def test_every_rule_is_that_of_the_package(page, looks):
    put(page, screen="image", image=0, mode="many")
    page.check("[data-name=merge]")
    for rule in ("literal", "released", "exclusive"):
        page.select_option("[data-name=rule]", rule)
        changes = state(page)["changes"]
        assert changes == {"rule": rule, "merge": True}
        pairs = looks[1].explain(**changes).one_to_many.matched[-1].sum()
        assert page.locator(".boxes .query").count() == pairs


def test_the_score_from_which_detections_count(page):
    put(page, screen="image", image=0, mode="output")
    before, shot = page.locator(".boxes .query").count(), picture(page)
    least = state(page)["least"]
    drag(page, "least", 0.9)
    assert state(page)["least"] > least and page.locator(".boxes .query").count() < before
    assert (picture(page) != shot).any()


def test_an_object_and_its_candidates(page, looks):
    put(page, screen="image", image=2, mode="many")
    nothing = picture(page)
    page.click(".label[data-object='2']")
    assert state(page)["object"] == 2
    best = [candidate.query for candidate in looks[3].explain().one_to_many.candidates(2, top=12)]
    assert queries(page, ".candidates tbody tr")[:12] == best
    page.keyboard.press("j")
    terms = page.locator(".candidates tbody td:nth-child(8)").all_inner_texts()
    costs = [float(text.replace("−", "-")) for text in terms]
    wanted = sorted(looks[3].explain().one_to_one.cost[-1, 2])[:12]
    assert costs[:12] == pytest.approx(wanted, abs=0.006)
    page.keyboard.press("j")
    chosen = picture(page)
    assert (chosen != nothing).any()
    page.keyboard.press("Escape")
    np.testing.assert_array_equal(picture(page), nothing)
    page.click(".objects tr[data-object='2']")
    page.mouse.move(0, 0)
    np.testing.assert_array_equal(picture(page), chosen, "chosen in the list as in the picture")


def test_pointing_at_a_row_lights_up_the_box_and_the_other_way_round(page, looks):
    put(page, screen="image", image=2, mode="many", object=2)
    [best] = [candidate.query for candidate in looks[3].explain().one_to_many.candidates(2, top=1)]
    dark = picture(page)
    page.hover(f".candidates tr[data-query='{best}']")
    assert page.locator(".canvas .marked rect").count() > 1 and (picture(page) != dark).any()
    page.mouse.move(0, 0)
    np.testing.assert_array_equal(picture(page), dark)
    x, y = page.evaluate(EDGE, best)
    page.mouse.move(x, y)
    assert queries(page, ".candidates tr.marked") == [best] and page.locator(".canvas .marked rect").count() > 1
    page.mouse.click(x, y)
    assert state(page)["query"] == {"run": 0, "query": best} and state(page)["object"] == 2


# a point of the window where nothing lies over the edge of a query's box
EDGE = """(query) => {
  for (const edge of document.querySelectorAll(`.boxes [data-query="${query}"] > rect`)) {
    const { left, right, top, bottom } = edge.getBoundingClientRect();
    for (let i = 0.05; i < 1; i += 0.05)
      for (const [x, y] of [[left + i * (right - left), top + 4], [left + 4, top + i * (bottom - top)],
                            [left + i * (right - left), bottom - 4], [right - 4, top + i * (bottom - top)]])
        if (document.elementFromPoint(x, y) === edge) return [x, y];
  }
}"""


def test_a_query_through_the_layers(page):
    put(page, screen="image", image=2, mode="many", object=2)
    row = page.locator(".candidates tbody tr").first
    row.click()
    query = int(row.get_attribute("data-query"))
    assert state(page)["query"] == {"run": 0, "query": query} and state(page)["object"] == 2
    assert page.locator(".path .panel").count() == 3 and "serve" in page.locator(".why").inner_text()
    assert page.locator(".path circle.sample").count() > 10 and page.locator(".canvas circle.sample").count() > 0
    page.click(".path .panel:first-child")
    assert state(page)["layer"] == 0
    page.click("[title='let go of the query (Esc)']")
    assert state(page)["query"] is None and page.locator("section.path").is_hidden()


def test_the_picture_zooms_and_is_dragged(page):
    put(page, screen="image", image=2)
    whole, box = picture(page), page.locator(".canvas").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.wheel(0, -400)
    expect(page.locator(".canvas")).not_to_have_attribute("viewBox", "0 0 64 48")
    assert state(page)["zoom"]["x"] == pytest.approx(0.5, abs=0.01), "what is under the pointer stays there"
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=3)
    page.mouse.up()
    assert state(page)["zoom"]["x"] < 0.5 and state(page)["object"] is None, "a drag is no click"
    page.mouse.dblclick(x, y)
    put(page, object=None, query=None)  # which the clicks may have chosen
    page.mouse.move(0, 0)
    np.testing.assert_array_equal(picture(page), whole)


def test_the_keyboard_does_it_all(page):
    put(page, screen="image", image=2)
    for key, changed in {
        "ArrowRight": {"image": 1}, "ArrowLeft": {"image": 2}, "ArrowDown": {"object": 0}, "ArrowUp": {"object": 3},
        "[": {"layer": 1}, "]": {"layer": 2}, "1": {"mode": "output"}, "4": {"mode": "both"}, "s": {"least": None},
        "t": {"changes": {"threshold": 0.38}}, "K": {"changes": {"threshold": 0.38, "k": 7}}, "0": {"changes": {}},
        "r": {"changes": {"rule": "literal"}}, "g": {"changes": {"rule": "literal", "merge": True}}, "d": {"theme": "dark"},
        "p": {"scale": 1.2}, "+": {"zoom": None}, "=": {"zoom": {"scale": 1, "x": 0.5, "y": 0.5}},
    }.items():  # fmt: skip
        before = state(page)
        page.keyboard.press(key)
        now = state(page)
        for name, value in changed.items():
            assert now[name] != before[name] if value is None else now[name] == value, key
    assert page.locator(".msdetr").evaluate("(page) => getComputedStyle(page).colorScheme") == "dark"
    for _ in range(2):
        page.keyboard.press("Escape")
    assert state(page)["screen"] == "overview"


def test_what_is_chosen_with_the_keyboard_keeps_the_focus(page):
    focused = "() => ({ ...document.activeElement.dataset })"
    page.focus("tr[data-cause=placed]")
    page.keyboard.press("Space")
    assert state(page)["cause"] == "placed" and page.evaluate(focused) == {"cause": "placed"}
    page.focus(".card")
    page.keyboard.press("Enter")
    assert state(page)["screen"] == "image" and page.locator(".back").evaluate(
        "(back) => back === document.activeElement"
    )
    page.focus(".objects tr[data-object='2']")
    page.keyboard.press("Enter")
    assert state(page)["object"] == 2 and page.evaluate(focused) == {"object": "2"}
    query = page.locator(".candidates tbody tr").nth(1).get_attribute("data-query")
    page.focus(f".candidates tr[data-query='{query}']")
    assert page.locator(".canvas .marked rect").count() > 1, "the focus lights up a box as pointing does"
    page.keyboard.press("Enter")
    assert state(page)["query"] == {"run": 0, "query": int(query)} and page.evaluate(focused) == {"query": query}
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("t")
    page.keyboard.press("Escape")
    now = state(page)
    assert page.locator("dialog").is_hidden() and now["changes"] == {} and now["query"] is not None, (
        "an open dialog has the keys"
    )
    for _ in range(3):
        page.keyboard.press("Escape")
    assert page.evaluate(focused) == {"image": "1"}, "back to the card"


def test_text_on_colors_can_be_read(page):
    """By WCAG 2, 4.5 to 1 at least, light and dark, for all text that stands on a color of its own."""
    put(page, screen="image", image=2, mode="output", least=0.5)
    for theme in ("light", "dark"):
        put(page, theme=theme)
        for contrast, text in page.evaluate(CONTRASTS):
            assert contrast >= 4.5, f"{theme}: {text} has {contrast:.1f} to 1"


CONTRASTS = """() => {
  const luminance = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255)
      .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const under = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return color.startsWith("rgba") && element.parentElement ? under(element.parentElement) : color;
  };
  const labels = [...document.querySelectorAll(".label")].map((label) => [label.querySelector("text"), getComputedStyle(label.querySelector("rect")).fill, "fill"]);
  const others = [...document.querySelectorAll(".outcome b, .chip, button, .note, .legend span, .caption, td, th, dt, kbd")]
    .filter((element) => element.checkVisibility()).map((element) => [element, under(element), "color"]);
  return [...labels, ...others].map(([element, ground, key]) => {
    const [a, b] = [luminance(getComputedStyle(element)[key]), luminance(ground)].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), element.textContent];
  });
}"""


def test_dark_and_light(page):
    light = picture(page, ".budget")
    page.keyboard.press("d")
    assert (picture(page, ".budget") != light).mean() > 0.5
    page.keyboard.press("d")
    np.testing.assert_array_equal(picture(page, ".budget"), light)


def test_training_as_a_film(page):
    put(page, screen="image", image=1)
    assert page.locator("[data-name=step]").get_attribute("max") == "3"
    page.keyboard.press(",")
    page.keyboard.press(",")
    assert state(page)["step"] == 100 and page.evaluate("page.scenes()[0].step") == 100
    drag(page, "step", 0.0)
    assert state(page)["step"] == 0
    page.keyboard.press("f")
    expect(page.locator(".film output")).to_have_text("checkpoint")
    expect(page.locator(".film button")).to_have_text("▶")


def test_a_link_leads_to_what_was_shown(opening, looks):
    content = page_content([View("run", looks)], list(looks), Detail())
    page = opening(content, "#image=2&object=1&layer=1&k=3&rule=literal&show=one&query=5")
    now = state(page)
    assert (now["image"], now["object"], now["layer"], now["mode"]) == (2, 1, 0, "one")
    assert now["changes"] == {"k": 3, "rule": "literal"} and now["query"] == {"run": 0, "query": 5}
    put(page, object=2)
    page.wait_for_url("**object=2**")
    page = opening(content, "#image=99&object=-1&layer=x&k=0&rule=%3Cb%3E&cause=__proto__&query=1e9")
    assert state(page)["screen"] == "overview" and state(page)["changes"] == {}


def test_two_runs_side_by_side(opening, looks):
    other = {seed: specimen(seed + 40, layers=2, queries=30, objects=4) for seed in looks}
    cause = {
        "id": "placed",
        "name": HOSTILE[0],
        "first": 30.0,
        "second": 40.0,
        "won": -10.0,
        "only_first": 2,
        "only_second": 1,
    }
    objects = [{"image_id": 2, "object": 1, "found_by": 0, "cause": "placed", "sentence": HOSTILE[1]}]
    comparison = {"names": ["one", HOSTILE[1]], "first": 60.0, "second": 50.0, "iou": 0.5, "both": 5, "neither": 1,
                  "causes": [cause], "objects": objects}  # fmt: skip
    views = [View("one", looks, {}, budget("placed")), View(HOSTILE[1], other, {}, budget("placed"))]
    page = opening(page_content(views, list(looks), Detail(), About(), comparison))
    assert "−10.0 worse" in page.locator(".wins").inner_text()
    page.click(".wins summary")
    page.click(".wins .failures button")
    assert state(page)["run"] == 1 and state(page)["image"] == 1 and page.locator(".picture").count() == 2
    captions = page.locator(".caption").all_inner_texts()
    assert "layer 3" in captions[0] and "layer 2" in captions[1], "each in its own last layer"
    page.keyboard.press("b")
    assert state(page)["run"] == 0


def test_a_slider_answers_within_50_ms_on_a_large_page(opening):
    """Matching, drawing and layout, on fifty images of a large detector with all their failures. In time of the processor, since
    others may use this computer, too."""
    big = specimen(1, layers=6, queries=300, objects=7)
    content = page_content([View("large", {1: big}, {}, budget("placed"))], [1], DETAILS[3])
    [image], run = content["images"], content["runs"][0]
    content["images"] = [image | {"id": str(number), "name": str(number)} for number in range(50)]
    [failure] = run["budget"]["failures"]
    run["budget"]["failures"] = [failure | {"image_id": str(number % 50)} for number in range(5_000)]
    page = opening(content, "#image=0&object=0&query=7")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    spent = lambda: {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}[
        "TaskDuration"
    ]
    for name in ("layer", "threshold", "k", "alpha"):
        page.evaluate(MOVES, name)  # once to compile
        before = spent()
        page.evaluate(MOVES, name)
        assert 1000 * (spent() - before) / 10 < 50, name


MOVES = """(name) => {
  const input = document.querySelector(`[data-name=${name}]`);
  for (let i = 0; i < 10; i++) {
    input.value = Number(input.min) + (i / 9) * (input.max - input.min);
    input.dispatchEvent(new Event("input"));
    document.querySelector(".msdetr").getBoundingClientRect();
  }
}"""


def test_the_live_copy_opens(window):
    window.complaints.clear()
    window.goto((Path(__file__).parents[2] / "docs" / "inspect.html").as_uri())
    assert "AP 51.0" in window.locator(".budget h2").inner_text()
    window.locator(".card").first.click()
    assert window.locator(".boxes .query").count() > 10 and window.complaints == []
