// The bar of controls over the pictures: layer, τ, k, α, rule, training step, and what the pictures show.

import { choice, h, slider } from "./dom.js";
import { number } from "./numbers.js";
import { framesOf, settingsOf, stepsOf } from "./scene.js";

export const MODES = [
  ["output", "Output", "what the detector answers, and which objects it finds (1)"],
  ["one", "One-to-one", "the query of every object (2)"],
  ["many", "One-to-many", "the queries of every object (3)"],
  ["both", "Both", "one-to-one and one-to-many pairs (4)"],
];
export const RULES = [
  ["exclusive", "exclusive (Section C)"],
  ["literal", "literal (Algorithm 1)"],
  ["released", "released code"],
];

/** The controls. Returns {element, update(state)}. */
export function controls(content, actions) {
  const change = (name) => (value) => actions.change({ [name]: value });
  const mode = choice("what the pictures show", MODES, (value) => actions.set({ mode: value }));
  const two = (value) => number(value, 2);
  const sliders = {
    layer: slider("layer", { label: "layer", title: "decoder layer ( [ and ] )", min: 1, max: 6, step: 1 }, (value) => actions.set({ layer: value - 1 })),
    threshold: slider("threshold", { label: "τ", title: "threshold on the score (t and T)", min: 0, max: 1, step: 0.01, text: two }, change("threshold")),
    k: slider("k", { label: "k", title: "queries per object at most (k and K)", min: 1, max: 20, step: 1 }, change("k")),
    alpha: slider("alpha", { label: "α", title: "share of the class probability in the score (a and A)", min: 0, max: 1, step: 0.01, text: two }, change("alpha")),
    least: slider("least", { label: "score ≥", title: "detections count from this score on (s and S)", min: 0.02, max: 0.99, step: 0.01, text: two }, (value) => actions.set({ least: value })),
    step: slider("step", { label: "step", title: "training step of the recording (, and . — f plays it)", min: 0, max: 1, step: 1, text: (at) => stepName(at) }, (value) => actions.set({ step: steps[value], playing: false })),
  };
  let steps = ["end"];
  const stepName = (at) => (steps[at] === "end" ? "checkpoint" : String(steps[at]));
  const rule = h("select", { "aria-label": "rule of one-to-many matching", title: "rule of one-to-many matching (r)", "data-name": "rule", onchange: (event) => actions.change({ rule: event.target.value }) }, RULES.map(([value, text]) => h("option", { value }, text)));
  const merge = h("input", { type: "checkbox", "data-name": "merge", onchange: (event) => actions.change({ merge: event.target.checked }) });
  const reset = h("button", { type: "button", class: "quiet", title: "settings as in training (0)", onclick: () => actions.set({ changes: {} }) }, "as trained");
  const play = h("button", { type: "button", class: "quiet", title: "play the training (f)", onclick: () => actions.play() }, "▶");
  const film = h("div", { class: "film" }, play, sliders.step.element);
  const element = h(
    "div",
    { class: "controls" },
    mode.element,
    sliders.layer.element,
    h("div", { class: "matching" }, sliders.threshold.element, sliders.k.element, sliders.alpha.element),
    h("label", { class: "rule" }, h("span", {}, "rule"), rule),
    h("label", { class: "merge", title: "add one-to-one pairs that one-to-many matching missed (g)" }, merge, " merge"),
    reset,
    sliders.least.element,
    film,
  );

  function update(state) {
    const views = content.runs.map((_, run) => framesOf(content, state.image, run)[0]).filter(Boolean);
    const layers = Math.max(1, ...views.map((frame) => frame.one_to_one.layers));
    const queries = Math.max(1, ...views.map((frame) => frame.one_to_one.queries));
    const settings = settingsOf(content, state.run, state);
    steps = stepsOf(content, state.image);
    mode.set(state.mode);
    sliders.layer.set(Math.min(state.layer, layers - 1) + 1, { max: layers });
    sliders.threshold.set(settings.threshold);
    sliders.k.set(settings.k, { max: Math.min(Math.max(20, settings.k), queries) });
    sliders.alpha.set(settings.alpha);
    sliders.least.set(state.least);
    const nearest = steps.reduce((best, own, at) => (Math.abs(own - state.step) < Math.abs(steps[best] - state.step) ? at : best), 0);
    sliders.step.set(steps.includes(state.step) ? steps.indexOf(state.step) : nearest, { max: steps.length - 1 });
    rule.value = settings.rule;
    merge.checked = settings.merge;
    reset.hidden = Object.keys(state.changes).length === 0;
    film.hidden = steps.length < 2;
    play.textContent = state.playing ? "❚❚" : "▶";
    element.classList.toggle("of-output", state.mode === "output");
  }

  return { element, update };
}
