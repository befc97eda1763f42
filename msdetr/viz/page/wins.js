// Two runs on the same images: what the one finds and the other misses, by cause.

import { h } from "./dom.js";
import { number } from "./numbers.js";

/** The table of both budgets side by side, or nothing where there are not two. */
export function wins(content) {
  const [a, b] = content.runs.map((run) => run.budget);
  if (!a || !b) return null;
  const other = new Map(b.causes.map((cause) => [cause.id, cause]));
  const rows = a.causes.filter((cause) => cause.available && other.get(cause.id)?.available).map((cause) => [cause, other.get(cause.id)]);
  const most = Math.max(...rows.map(([one, two]) => Math.abs(two.share - one.share)), 1e-9);
  return h(
    "section",
    { class: "wins", "aria-label": "comparison" },
    h("h2", {}, `${content.runs[1].title} against ${content.runs[0].title}: ${signed(b.ap - a.ap)} AP`),
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ["cause", content.runs[0].title, content.runs[1].title, "difference in lost AP"].map((text) => h("th", { scope: "col" }, text)))),
      h(
        "tbody",
        {},
        rows.map(([one, two]) => {
          const change = two.share - one.share;
          const side = change > 0 ? "worse" : "better";
          return h(
            "tr",
            {},
            h("th", { scope: "row" }, one.name),
            h("td", {}, number(one.share, 1)),
            h("td", {}, number(two.share, 1)),
            h("td", { class: "change" }, h("i", { class: side, style: { width: `${(45 * Math.abs(change)) / most}%` } }), h("span", {}, `${signed(change)}${Math.abs(change) < 0.05 ? "" : ` (${side})`}`)),
          );
        }),
      ),
    ),
  );
}

const signed = (value) => `${value > 0 ? "+" : ""}${number(value, 1)}`;
