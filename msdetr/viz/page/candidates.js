// An object's candidates, ranked: what one-to-many matching adds up to a score, what one-to-one matching adds up to a cost.

import { objectColor } from "./colors.js";
import { choice, h, pressable, show } from "./dom.js";
import { STATUS, serves } from "./matching.js";
import { number, plain, ranking } from "./numbers.js";
import { oneToManyReason, oneToOneCost, oneToOneReason } from "./reasons.js";
import { oneToOneStatus } from "./scene.js";

const FEW = 12;

/** The table of the chosen object. Returns {element, update(scene, state), mark(hover)}. */
export function candidates(content, actions) {
  const judge = choice(
    "which matching",
    [
      ["many", "Candidates by score", "as one-to-many matching sees them (j)"],
      ["one", "by cost", "as one-to-one matching sees them (j)"],
    ],
    (value) => actions.set({ judge: value }),
  );
  const table = h("table", { class: "candidates" });
  const more = h("button", { type: "button", class: "quiet" });
  const why = h("p", { class: "why" });
  const element = h("section", { "aria-label": "candidates" }, judge.element, h("div", { class: "scroll" }, table), more, why);
  let rows = new Map();
  let all = false;
  more.addEventListener("click", () => {
    all = !all;
    actions.set({});
  });

  function update(scene, state) {
    element.hidden = state.object === null || !scene;
    if (element.hidden) return;
    judge.set(state.judge);
    const ranked = state.judge === "many" ? byScore(scene, state) : byCost(scene, state);
    const chosen = state.query?.run === scene.run ? state.query.query : null;
    const places = ranked.order.map((query, place) => [query, place]);
    const listed = places.filter(([query, place]) => all || place < FEW || query === chosen);
    rows = new Map(listed.map(([query, place]) => [query, ranked.row(query, place)]));
    for (const [query, row] of rows) row.setAttribute("aria-current", String(query === chosen));
    show(table, h("thead", {}, h("tr", {}, ranked.heads.map(([text, title]) => h("th", { scope: "col", title }, text)))), h("tbody", {}, [...rows.values()]));
    more.hidden = places.length <= FEW;
    more.textContent = all ? `the best ${FEW} only` : `all ${places.length} queries`;
    show(
      why,
      chosen === null
        ? ranked.note
        : [h("b", {}, "one-to-many: "), oneToManyReason(content, scene, state.object, chosen), h("br"), h("b", {}, "one-to-one: "), oneToOneReason(content, scene, state.object, chosen)],
    );
  }

  /** A row: pointing at it lights up the box, and choosing it shows the query's path. */
  function row(scene, state, query, status, cells) {
    const here = { run: scene.run, query, object: state.object, branch: state.judge };
    return h(
      "tr",
      {
        ...pressable(() => actions.select({ run: scene.run, query, keep: true })),
        "data-query": query,
        class: serves(status) ? "serves" : null,
        style: { "--own": objectColor(state.object) },
        onpointerenter: () => actions.hover(here),
        onpointerleave: () => actions.hover(null),
        onfocus: () => actions.hover(here),
      },
      cells.map((cell) => (cell instanceof Element ? cell : h("td", {}, cell))),
    );
  }

  function byScore(scene, state) {
    const { found, settings } = scene;
    const { queries } = found;
    const first = state.object * queries;
    const order = ranking(found.score.subarray(first, first + queries));
    const { alpha } = settings;
    return {
      heads: [
        ["#", "rank by score"],
        ["query"],
        ["s", "probability of the object's class"],
        ["IoU", "of the query's box with the object's"],
        [`${plain(alpha)}·s + ${plain(1 - alpha)}·IoU`, "both shares of the score; the line is τ"],
        ["score"],
        ["fate", "what one-to-many matching made of the pair"],
      ],
      note: `The boxes are those of the ${scene.frame.many === scene.frame.one ? "one-to-one (there is no other)" : "one-to-many"} branch. Filled: the query serves the object; the line in the bar is τ.`,
      order,
      row(query, place) {
        const at = first + query;
        const [p, overlap] = [found.seen.probability[at], found.seen.iou[at]];
        const status = found.status[at];
        const bar = h(
          "td",
          { class: "bar" },
          h("i", { class: "class", style: { width: `${100 * alpha * p}%` } }),
          h("i", { class: "iou", style: { width: `${100 * (1 - alpha) * overlap}%` } }),
          h("i", { class: "tau", style: { left: `${100 * settings.threshold}%` } }),
        );
        return row(scene, state, query, status, [place + 1, query, number(p), number(overlap), bar, number(found.score[at], 3), fate(STATUS[status], status)]);
      },
    };
  }

  function byCost(scene, state) {
    const { queries } = scene.frame.one;
    const costs = Array.from({ length: queries }, (_, query) => oneToOneCost(content, scene, state.object, query));
    const order = ranking(costs.map((terms) => -terms.total));
    const weights = content.runs[scene.run].weights.map(plain);
    const { classCosts, fates } = scene.frame.one;
    const rule = fates
      ? "This run does not match by cost: the fates are those of its own rule, the cost is what Hungarian matching would go by."
      : "Hungarian matching makes the total cost of the image least, so an object need not get its cheapest query.";
    return {
      heads: [
        ["#", "rank by cost"],
        ["query"],
        ["s", "probability of the object's class"],
        ["IoU", "of the query's box with the object's"],
        ["class", `${weights[0]} · ${classCosts ? "the class cost of this run's own" : "(focal loss of a positive minus that of a negative)"}`],
        ["L1", `${weights[1]} · distance of center and size`],
        ["GIoU", `${weights[2]} · negative generalized IoU`],
        ["cost", "their sum"],
        ["fate", "what one-to-one matching made of the pair"],
      ],
      note: `The boxes are those of the one-to-one branch. ${rule}`,
      order,
      row(query, place) {
        const at = state.object * queries + query;
        const { probability, iou } = scene.one.seen;
        const terms = costs[query];
        const status = oneToOneStatus(scene, state.object, query);
        const cells = [place + 1, query, number(probability[at]), number(iou[at]), number(terms.class), number(terms.l1), number(terms.giou), number(terms.total), fate(STATUS[status], status)];
        return row(scene, state, query, status, cells);
      },
    };
  }

  return {
    element,
    update,
    mark: (hover) => rows.forEach((row, query) => row.classList.toggle("marked", hover?.query === query)),
  };
}

const fate = (text, status) => h("td", { class: `fate ${status}` }, text);
