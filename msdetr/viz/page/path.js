// A query's path through the decoder layers: where it started, where it looked, what it found, whom it served.

import { objectColor } from "./colors.js";
import { h, show, svg } from "./dom.js";
import { corners, iou } from "./matching.js";
import { number } from "./numbers.js";
import { boxOf, imageOf, pixels, samplingDots } from "./picture.js";
import { sceneOf } from "./scene.js";

/** The steps of the chosen query. Returns {element, update(scene, state)}. */
export function path(content, actions) {
  const title = h("h3");
  const panels = h("div", { class: "steps" });
  const note = h("p", { class: "note" });
  const element = h("section", { class: "path", "aria-label": "path of the query" }, title, panels, note);

  let drawn = "";

  function update(scene, state) {
    element.hidden = !scene || state.query?.run !== scene.run;
    if (element.hidden) return;
    const { query } = state.query;
    const { frame } = scene;
    const lists = (here) => [here.one.served.get(query), here.many.served.get(query)];
    const layers = Array.from({ length: frame.one.layers }, (_, layer) => sceneOf(content, scene.run, { ...state, layer }));
    const asked = JSON.stringify([scene.run, scene.image, scene.step, query, state.layer, layers.map(lists)]);
    if (asked === drawn) return;
    drawn = asked;
    show(title, `Query ${query} through the layers `, h("button", { type: "button", class: "quiet", title: "let go of the query (Esc)", onclick: () => actions.select({}) }, "✕"));
    show(panels, layers.map((here) => panel(here, query)));
    const sampled = frame.sampling?.queries.includes(query);
    note.textContent = [
      "Solid: the box; dotted: the reference that the layer started from; the objects in their colors.",
      sampled
        ? `Dots: the ${frame.sampling.points} heaviest sampling points (at least ${number(100 * frame.sampling.share, 0)} % of the weight), larger where they weigh more.`
        : frame.sampling
          ? `Sampling points travel with the page for ${frame.sampling.queries.length} queries of this image, those that serve or detect: ${frame.sampling.queries.join(", ")}.`
          : "",
    ].join(" ");
  }

  function panel(scene, query) {
    const { frame, layer, objects } = scene;
    const image = content.images[scene.image];
    const at = layer * frame.one.queries + query;
    const box = corners(frame.one.boxes, at);
    const overlaps = Array.from({ length: objects.count }, (_, t) => iou(box, corners(objects.boxes, t)));
    const nearest = overlaps.length ? overlaps.indexOf(Math.max(...overlaps)) : null;
    const served = (side) => (side.served.get(query) ?? []).join(", ") || "–";
    const view = around(frame.one, query, image, nearest === null ? null : pixels(objects.boxes, nearest, image));
    const drawing = svg("svg", { viewBox: view.join(" "), class: "step", "aria-hidden": "true" }, imageOf(image));
    for (let t = 0; t < objects.count; t++) drawing.append(boxOf(pixels(objects.boxes, t, image), objectColor(t), t === nearest ? { width: 2.2 } : { width: 1, opacity: 0.4 }));
    if (frame.references) drawing.append(boxOf(pixels(frame.references, at, image), "#111", { dash: "2 3", width: 1.2 }));
    drawing.append(...samplingDots(frame, layer, query, image, view[2] / 130));
    drawing.append(boxOf(pixels(frame.one.boxes, at, image), "#111", { width: 2.2 }));
    return h(
      "button",
      { type: "button", class: "panel", "data-layer": layer, "aria-pressed": String(layer === actions.get().layer), onclick: () => actions.set({ layer }) },
      h("b", {}, `layer ${layer + 1}`),
      drawing,
      h("span", {}, `${content.className(frame.topLabels[at])} ${number(frame.topScores[at])}`),
      nearest === null ? null : h("span", {}, `IoU ${number(overlaps[nearest])} with object ${nearest}`),
      h("span", {}, `1:1 ${served(scene.one)} · 1:many ${served(scene.many)}`),
    );
  }

  return { element, update };
}

/** The part of the image where a query's boxes lie, with the object that it is closest to: x, y, width, height. */
function around(branch, query, image, object) {
  const boxes = Array.from({ length: branch.layers }, (_, layer) => pixels(branch.boxes, layer * branch.queries + query, image));
  if (object) boxes.push(object);
  const low = (key) => Math.min(...boxes.map((box) => box[key]));
  const high = (key, size) => Math.max(...boxes.map((box) => box[key] + box[size]));
  const [x0, y0, x1, y1] = [low("x"), low("y"), high("x", "width"), high("y", "height")];
  const side = Math.min(1.5 * Math.max(x1 - x0, y1 - y0, image.width / 12), Math.max(image.width, image.height));
  return [(x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side];
}
