// The budget of lost AP: of 100 points, how many each cause takes.

import { barColor } from "./colors.js";
import { choice, h, pressable, show } from "./dom.js";
import { number } from "./numbers.js";

const GROUPS = [
  ["all", "all objects"],
  ["by_class", "by class"],
  ["by_size", "by size"],
  ["by_layer", "by layer"],
];

/** The bars of a run's budget. Returns {element, update(state)}. */
export function budget(content, run, actions) {
  const own = content.runs[run].budget;
  const element = h("section", { class: "budget", "aria-label": "budget of lost AP" });
  if (!own) return { element: h("section", { hidden: true }), update() {} };
  const colors = new Map(own.causes.map((cause, i) => [cause.id, barColor(i)]));
  const grouping = choice("groups", GROUPS.filter(([id]) => id === "all" || own[id]?.length), (value) => actions.set({ grouping: value }));
  const body = h("div");
  const head = h("h2", {}, content.runs.length > 1 ? `${content.runs[run].title}: ` : "", own.ap === null ? "AP is undefined" : `AP ${number(own.ap, 1)} — where the other ${number(100 - own.ap, 1)} points went`);
  element.append(head, grouping.element, body);

  function update(state) {
    grouping.set(state.grouping);
    if (state.grouping === "all") show(body, strip(own.causes, own.ap, "all objects"), h("div", { class: "scroll" }, table(state)), remedies());
    else show(body, groups(own[state.grouping], state.grouping));
  }

  const filter = (changes) => actions.filter(changes, run);

  /** 100 points as one bar. */
  function strip(causes, ap, label) {
    const parts = causes.filter((cause) => cause.share > 0);
    return h(
      "div",
      { class: "strip", role: "img", "aria-label": `${label}: AP ${number(ap, 1)}; ${parts.map((c) => `${nameOf(c.id)} ${number(c.share, 1)}`).join(", ")}` },
      h("i", { class: "ap", style: { "flex-grow": Math.max(ap ?? 0, 0) }, title: `AP ${number(ap, 1)}` }, h("span", {}, ap >= 8 ? `AP ${number(ap, 1)}` : "")),
      parts.map((cause) =>
        h("i", { style: { "flex-grow": cause.share, "--fill": colors.get(cause.id) }, title: `${nameOf(cause.id)}: ${number(cause.share, 1)}` }, h("span", {}, cause.share >= 4 ? number(cause.share, 1) : "")),
      ),
    );
  }

  const nameOf = (id) => own.causes.find((cause) => cause.id === id)?.name ?? id;

  function table(state) {
    const most = Math.max(...own.causes.map((cause) => Math.max(cause.share ?? 0, cause.d_ap ?? 0)), 1e-9);
    const bar = (value, fill) => h("i", { class: "level", style: { width: `${Math.max(0, (100 * value) / most)}%`, "--fill": fill } });
    return h(
      "table",
      { class: "causes" },
      h("thead", {}, h("tr", {}, [["cause"], ["share of the lost AP", "Shapley values: they add up to 100 − AP"], ["AP gained were it alone mended", "dAP, as in TIDE"], ["errors", "over all IoU thresholds, 0.50 to 0.95"]].map(([text, title]) => h("th", { scope: "col", title }, text)))),
      h(
        "tbody",
        {},
        own.causes.map((cause) => {
          if (!cause.available)
            return h("tr", { class: "unavailable", title: "cannot be told from what this run left" }, h("th", { scope: "row" }, cause.name), h("td", {}, "not known"), h("td", {}, ""), h("td", {}, "–"));
          return h(
            "tr",
            { ...pressable(() => filter({ cause: state.cause === cause.id ? null : cause.id })), "data-cause": cause.id, "aria-current": String(state.cause === cause.id), title: `${cause.description} Mended: ${cause.mended}` },
            h("th", { scope: "row" }, h("i", { class: "swatch", style: { "--fill": colors.get(cause.id) } }), ` ${cause.name}`, h("small", {}, cause.description)),
            h("td", { class: "amount" }, bar(cause.share, colors.get(cause.id)), number(cause.share, 1)),
            h("td", { class: "amount" }, bar(cause.d_ap, "var(--muted)"), number(cause.d_ap, 1)),
            h("td", { title: "over all IoU thresholds, 0.50 to 0.95" }, cause.errors.toLocaleString("en")),
          );
        }),
      ),
    );
  }

  /** What would bring some of it back. */
  function remedies() {
    if (!own.remedies?.length) return null;
    return h(
      "details",
      { class: "remedies" },
      h("summary", {}, "What would help"),
      h("table", {}, h("tbody", {}, own.remedies.map((remedy) => h("tr", {}, h("td", {}, remedy.text))))),
    );
  }

  function groups(list, grouping) {
    return h(
      "div",
      { class: "groups" },
      h("p", { class: "legend" }, own.causes.filter((c) => c.available && c.share > 0).map((cause) => h("span", { class: "key" }, h("i", { class: "swatch", style: { "--fill": colors.get(cause.id) } }), cause.name))),
      list.map((group, index) => {
        const causes = own.causes.filter((c) => group.causes[c.id]).map((c) => ({ id: c.id, ...group.causes[c.id] }));
        const changes = { by_class: { label: own.classes.indexOf(group.name) }, by_size: { size: group.name } }[grouping];
        return h(
          "button",
          { type: "button", class: "group", "data-group": index, disabled: !changes, onclick: () => filter(changes) },
          h("span", {}, grouping === "by_layer" ? `lost in layer ${group.name ?? index + 1}` : group.name, h("small", {}, group.objects === undefined || group.objects === null ? "" : ` ${group.objects} objects`)),
          strip(causes, group.ap, group.name),
        );
      }),
    );
  }

  return { element, update };
}
