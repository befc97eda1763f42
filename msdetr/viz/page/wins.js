// Two runs on the same images: what the one finds and the other misses, by cause.

import { OUTCOMES } from "./colors.js";
import { h } from "./dom.js";
import { number } from "./numbers.js";

const MOST = 40;

/** The comparison of both budgets, or nothing where there are not two runs. */
export function wins(content, actions) {
  const { comparison } = content;
  if (!comparison) return null;
  const [first, second] = comparison.names;
  const known = new Set(content.runs.flatMap((run) => run.budget.causes.filter((cause) => cause.available).map((cause) => cause.id)));
  const rows = comparison.causes.filter((cause) => known.has(cause.id));
  const most = Math.max(...rows.map((cause) => Math.abs(cause.won)), 1e-9);
  const heads = ["cause", `lost by ${first}`, `lost by ${second}`, `won by ${second}`, `objects that ${first} alone finds`, `that ${second} alone finds`];
  const shown = comparison.objects.slice(0, MOST);
  return h(
    "section",
    { class: "wins", "aria-label": "comparison" },
    h("h2", {}, comparison.second === null || comparison.first === null ? "Two runs" : `${second} against ${first}: ${signed(comparison.second - comparison.first)} AP`),
    h("p", { class: "note" }, `At IoU ${number(comparison.iou)} both find ${comparison.both} objects, neither finds ${comparison.neither}.`),
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows.map(row)))),
    shown.length
      ? h("details", {}, h("summary", {}, `${comparison.objects.length} objects of these images that one run finds and the other misses`), h("ul", { class: "failures" }, shown.map(object)))
      : null,
  );

  function row(cause) {
    const side = cause.won < 0 ? "worse" : "better";
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, cause.name),
      h("td", {}, number(cause.first, 1)),
      h("td", {}, number(cause.second, 1)),
      h("td", { class: "change" }, h("i", { style: { background: OUTCOMES[cause.won < 0 ? "missed" : "found"].color, width: `${(6 * Math.abs(cause.won)) / most}em` } }), signed(cause.won), Math.abs(cause.won) < 0.05 ? "" : ` ${side}`),
      h("td", {}, cause.only_first),
      h("td", {}, cause.only_second),
    );
  }

  /** An object that one run finds; the other one says why it does not. */
  function object(own) {
    const run = 1 - own.found_by;
    const failure = { image_id: own.image_id, kind: "missed", object: own.object, query: null };
    return h("li", {}, h("button", { type: "button", style: { "--mark": OUTCOMES[own.found_by ? "found" : "missed"].color }, onclick: () => actions.open(failure, run) }, h("b", {}, `found by ${comparison.names[own.found_by]} alone`), h("span", {}, own.sentence)));
  }
}

const signed = (value) => `${value > 0 ? "+" : ""}${number(value, 1)}`;
