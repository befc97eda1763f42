// The objects of the image, what became of each, and why AP was lost on it.

import { DETECTIONS, inkOn, objectColor, OUTCOMES } from "./colors.js";
import { h, pressable, show } from "./dom.js";
import { pairs } from "./matching.js";
import { number, ranking } from "./numbers.js";
import { outcomesOf } from "./outcomes.js";

/** The list of objects. Returns {element, update(scene, state), mark(hover)}. */
export function objectList(content, actions) {
  const element = h("section", { class: "list", "aria-label": "objects" });
  let rows = new Map();

  function update(scene, state) {
    rows = new Map();
    element.hidden = !scene;
    if (element.hidden) return;
    const { detections, outcomes } = outcomesOf(scene.frame, scene.objects, state.least);
    for (let target = 0; target < scene.objects.count; target++)
      rows.set(target, row(scene, state, target, outcomes[target], detections));
    show(
      element,
      h(
        "table",
        { class: "objects" },
        h("thead", {}, h("tr", {}, ["object", `output ≥ ${number(state.least)}`, "1:1", "1:many"].map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, [...rows.values()]),
      ),
      scene.objects.count ? null : h("p", {}, "This image has no objects."),
    );
    element.classList.toggle("short", state.object !== null);
    const chosen = rows.get(state.object);
    if (chosen) element.scrollTop = chosen.offsetTop - element.clientHeight / 2;
  }

  function row(scene, state, target, outcome, detections) {
    const color = objectColor(target);
    const mine = detections.filter((detection) => detection.target === target && detection.kind !== "background");
    const named = mine.slice(0, 2).map((d) => `${number(d.score)} (query ${d.query})`);
    const text = mine.length ? `${named.join(", ")}${mine.length > 2 ? ` and ${mine.length - 2} more` : ""}` : missedBecause(scene, target, state.least);
    return h(
      "tr",
      {
        ...pressable(() => actions.select({ run: scene.run, object: state.object === target ? null : target })),
        "data-object": target,
        "aria-current": String(state.object === target),
        onpointerenter: () => actions.hover({ object: target }),
        onpointerleave: () => actions.hover(null),
      },
      h("th", { scope: "row" }, h("span", { class: "chip", style: { background: color, color: inkOn(color) } }, target), ` ${content.className(scene.objects.labels[target])}`),
      h("td", { class: "outcome" }, h("b", { style: { background: OUTCOMES[outcome].color, color: inkOn(OUTCOMES[outcome].color) } }, OUTCOMES[outcome].sign), ` ${text}`),
      h("td", {}, scene.one.serving[target].join(", ") || "–"),
      h("td", {}, scene.many.serving[target].join(", ") || "–"),
    );
  }

  return {
    element,
    update,
    mark: (hover) => rows.forEach((row, target) => row.classList.toggle("marked", hover?.object === target && hover?.query === undefined)),
  };
}

/** Why no detection finds an object, in a few words: no box in the last layer fits, or the best that does scores too low. */
function missedBecause(scene, target, least) {
  const branch = scene.frame.one;
  const last = pairs(branch, scene.objects, branch.layers - 1);
  const row = (table) => Array.from(table.subarray(target * branch.queries, (target + 1) * branch.queries));
  const [overlap, probability] = [row(last.iou), row(last.probability)];
  const fitting = ranking(probability).filter((query) => overlap[query] >= 0.5);
  const closest = ranking(overlap)[0];
  if (!fitting.length) return closest === undefined ? "no queries" : `no box fits: IoU ${number(overlap[closest])} at best`;
  const [best] = fitting;
  if (probability[best] < least) return `only ${number(probability[best])} at best (query ${best})`;
  const detected = scene.frame.detections.some((own) => own.query === best && own.label === scene.objects.labels[target]);
  return `query ${best} (${number(probability[best])}) ${detected ? "counts elsewhere" : "is not among the detections kept"}`;
}

/** The failures of the image that is open. Returns {element, update(scene, state)}. */
export function failureSection(content, actions) {
  const element = h("section", { "aria-label": "failures" });
  function update(scene, state) {
    const failures = scene ? failuresOf(content, scene.run, content.images[scene.image].id, state) : [];
    element.hidden = !failures.length;
    if (!element.hidden) show(element, h("h3", {}, `Where AP was lost here${scene.step === "end" ? "" : ", by the checkpoint"}`), failureList(content, failures, scene.run, actions));
  }
  return { element, update };
}

/** Failures of an image in a run's budget that pass the filters, worst first. */
export function failuresOf(content, run, imageId, { cause = null, label = null, size = null }) {
  return content.failuresIn(run, imageId).filter(
    (failure) =>
      (cause === null || failure.cause === cause) &&
      (label === null || failure.label === label) &&
      (size === null || failure.size === size),
  );
}

const KINDS = { missed: OUTCOMES.missed.color, false: DETECTIONS.background.color, low: OUTCOMES.doubled.color };

/** Failures as a list to click on. */
function failureList(content, failures, run, actions, most = 30) {
  const name = (id) => content.runs[run].budget.causes.find((cause) => cause.id === id)?.name ?? id;
  return h(
    "ul",
    { class: "failures" },
    failures.slice(0, most).map((failure, i) =>
      h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            "data-failure": i,
            style: { "--mark": KINDS[failure.kind] },
            onclick: () => actions.open(failure, run),
            onpointerenter: () => actions.hover(failure.query === null ? { object: failure.object } : { run, query: failure.query, branch: "one" }),
            onpointerleave: () => actions.hover(null),
          },
          h("b", {}, name(failure.cause)),
          ` −${number(failure.lost_ap, 2)} AP`,
          h("span", {}, failure.sentence),
        ),
      ),
    ),
    failures.length > most ? h("li", { class: "note" }, `and ${failures.length - most} more`) : null,
  );
}
