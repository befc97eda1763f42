// The picture of an image: objects, boxes of queries, sampling points; it zooms, and what is drawn in it can be clicked.

import { DETECTIONS, inkOn, objectColor, OUTCOMES } from "./colors.js";
import { h, show, svg } from "./dom.js";
import { number } from "./numbers.js";
import { outcomesOf } from "./outcomes.js";

const ONE_DASH = "11 4";
const MANY_DASH = "4 3";

/** Corner and size in pixels of the i-th box of an array. */
export function pixels(boxes, i, { width, height }) {
  const [w, tall] = [Math.max(boxes[4 * i + 2], 0) * width, Math.max(boxes[4 * i + 3], 0) * height];
  return { x: boxes[4 * i] * width - w / 2, y: boxes[4 * i + 1] * height - tall / 2, width: w, height: tall };
}

/** A box: a light line under a colored one. */
export function boxOf(rectangle, color, { width = 1.6, dash = null, opacity = 1, halo = true } = {}) {
  const line = (stroke, size, dashes) =>
    svg("rect", { ...rectangle, fill: "none", stroke, "stroke-width": size, "stroke-dasharray": dashes, "vector-effect": "non-scaling-stroke" });
  return svg("g", { opacity }, halo && line("#fffc", width + 2, null), line(color, width, dash));
}

/** The image itself, or an empty frame where the page has none. */
export function imageOf(image) {
  const size = { x: 0, y: 0, width: image.width, height: image.height };
  return image.picture
    ? svg("image", { ...size, href: image.picture, preserveAspectRatio: "none" })
    : svg("rect", { ...size, class: "blank" });
}

/** One run's view of the image. actions: {select, hover, zoom}. Returns {element, update(scene, state), mark(hover)}. */
export function picture(content, run, actions) {
  const canvas = svg("svg", { class: "canvas", role: "img", "data-run": run });
  const caption = h("div", { class: "caption" });
  const legend = h("div", { class: "legend" });
  const element = h("figure", { class: "picture" }, caption, canvas, legend);
  const parts = Object.fromEntries(
    ["image", "boxes", "path", "objects", "marked", "labels"].map((name) => [name, svg("g", { class: name })]),
  );
  canvas.append(...Object.values(parts));
  let scene = null;
  let state = null;
  let shown = null;
  let labeled = [];
  let wide = 0; // of the canvas, in pixels of the screen

  const image = () => content.images[state.image];
  const scale = () => window_().width / Math.max(wide, 1);
  /** The visible part of the image. */
  function window_() {
    const { width, height } = image();
    const { scale: times, x, y } = state.zoom;
    return { x: x * width - width / times / 2, y: y * height - height / times / 2, width: width / times, height: height / times };
  }

  function label(rectangle, text, color, extra = {}) {
    const size = 13 * state.scale * scale();
    const width = (text.length * 0.62 + 0.6) * size; // about: text is not measured
    const height = 1.35 * size;
    let top = Math.max(rectangle.y - height, window_().y);
    const covers = (other) => rectangle.x < other.x + other.width && other.x < rectangle.x + width && top < other.y + height && other.y < top + height;
    for (let i = 0; i < 6 && labeled.some(covers); i++) top += height;
    labeled.push({ x: rectangle.x, y: top, width });
    return svg(
      "g",
      { class: "label", ...extra },
      svg("rect", { x: rectangle.x, y: top, width, height, fill: color, rx: 0.2 * size }),
      svg("text", { x: rectangle.x + 0.3 * size, y: top + 1.02 * size, "font-size": size, fill: inkOn(color) }, text),
    );
  }

  /** The box of a query, which can be pointed at. */
  function pointable(query, rectangle, color, options, title = `query ${query}`) {
    const hit = { ...rectangle, fill: "none", stroke: "transparent", "stroke-width": 9, "vector-effect": "non-scaling-stroke", "pointer-events": "stroke" };
    return svg("g", { class: "query", "data-query": query }, boxOf(rectangle, color, options), svg("rect", hit, svg("title", {}, title)));
  }

  const queryBox = (branch, query, color, options) =>
    pointable(query, pixels(branch.boxes, scene.layer * branch.queries + query, image()), color, options);

  function objects(style) {
    for (let target = 0; target < scene.objects.count; target++) {
      const rectangle = pixels(scene.objects.boxes, target, image());
      const chosen = state.object === target;
      const { color, dash, sign } = style(target);
      const faded = state.object !== null && !chosen && state.mode !== "output";
      const options = { width: chosen ? 4 : 2.6, dash, opacity: faded ? 0.35 : 1 };
      parts.objects.append(svg("g", { class: "object", "data-object": target }, boxOf(rectangle, color, options)));
      const name = content.className(scene.objects.labels[target]);
      const text = `${target}${scene.objects.count <= 12 || chosen ? ` ${name.length > 18 ? `${name.slice(0, 17)}…` : name}` : ""}${sign ? ` ${sign}` : ""}`;
      parts.labels.append(label(rectangle, text, color, { "data-object": target, opacity: faded ? 0.5 : 1 }));
    }
  }

  function drawOutput() {
    const { detections, outcomes } = outcomesOf(scene.frame, scene.objects, state.least);
    const branch = scene.frame.one;
    for (const detection of [...detections].reverse()) {
      if (state.object !== null && detection.target !== state.object) continue;
      const rectangle = pixels(branch.boxes, (branch.layers - 1) * branch.queries + detection.query, image());
      const { color, dash } = DETECTIONS[detection.kind];
      const title = `query ${detection.query}: ${content.className(detection.label)} ${number(detection.score)}`;
      parts.boxes.append(pointable(detection.query, rectangle, color, { dash, width: 1.5 }, title));
      if (detection.kind === "background")
        parts.labels.append(label({ ...rectangle, y: rectangle.y + rectangle.height + 17 * state.scale * scale() }, `${content.className(detection.label)} ${number(detection.score)}`, color));
    }
    objects((target) => OUTCOMES[outcomes[target]]);
    const counted = (word) => outcomes.filter((outcome) => outcome === word).length;
    const background = detections.filter((d) => d.kind === "background").length;
    caption.append(`output at score ≥ ${number(state.least)}: ${counted("found")} found, ${counted("doubled")} doubled, ${counted("missed")} missed, ${background} on background`);
    show(legend, key("found", OUTCOMES.found), key("doubled", OUTCOMES.doubled), key("missed", OUTCOMES.missed), key("detection on background", DETECTIONS.background));
  }

  function drawPairs() {
    const [one, many] = [state.mode !== "many", state.mode !== "one"];
    const { queries } = scene.frame.many;
    const mine = (target) => state.object === null || state.object === target;
    if (state.object !== null && many) {
      const target = state.object;
      for (let query = 0; query < queries; query++)
        if (scene.found.place[target * queries + query] <= 12 && !scene.many.serving[target].includes(query))
          parts.boxes.append(queryBox(scene.frame.many, query, objectColor(target), { width: 1, opacity: 0.45, halo: false }));
    }
    for (let target = 0; target < scene.objects.count; target++) {
      if (!mine(target)) continue;
      const color = objectColor(target);
      if (many)
        for (const query of scene.many.serving[target]) parts.boxes.append(queryBox(scene.frame.many, query, color, { dash: MANY_DASH }));
      if (one)
        for (const query of scene.one.serving[target]) parts.boxes.append(queryBox(scene.frame.one, query, color, { dash: ONE_DASH, width: 2 }));
    }
    objects((target) => ({ color: objectColor(target), dash: null }));
    const count = (side) => side.serving.reduce((sum, list) => sum + list.length, 0);
    const would = content.runs[run].hypothetical ? " (as it would be)" : "";
    const says = [one && `${count(scene.one)} one-to-one`, many && `${count(scene.many)} one-to-many${would}`].filter(Boolean);
    caption.append(`${says.join(", ")} pairs in layer ${scene.layer + 1}`);
    show(
      legend,
      key("object", { color: "currentColor" }),
      one && key("box of its one-to-one query", { color: "currentColor", dash: ONE_DASH }),
      many && key("boxes of its one-to-many queries", { color: "currentColor", dash: MANY_DASH }),
    );
  }

  function drawPath() {
    const query = state.query?.run === run ? state.query.query : null;
    if (query === null) return;
    const { frame, layer } = scene;
    const branch = frame.one;
    for (let i = 0; i < layer; i++)
      parts.path.append(boxOf(pixels(branch.boxes, i * branch.queries + query, image()), "#111", { width: 1, opacity: 0.25 + (0.5 * (i + 1)) / branch.layers }));
    if (frame.references)
      parts.path.append(boxOf(pixels(frame.references, layer * branch.queries + query, image()), "#111", { dash: "2 3", width: 1.2 }));
    parts.path.append(...samplingDots(frame, layer, query, image(), scale()));
    const box = pixels(branch.boxes, layer * branch.queries + query, image());
    parts.path.append(svg("g", { class: "query", "data-query": query }, boxOf(box, "#111", { width: 3 })));
    parts.labels.append(label({ ...box, y: box.y + box.height + 17 * state.scale * scale() }, `query ${query}`, "#111111"));
  }

  function draw() {
    if (shown !== image()) {
      shown = image();
      show(parts.image, imageOf(shown));
      canvas.style.setProperty("--ratio", shown.width / shown.height);
      canvas.setAttribute("aria-label", `image ${shown.name}`);
    }
    const view = window_();
    canvas.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
    for (const name of ["boxes", "path", "objects", "marked", "labels"]) parts[name].replaceChildren();
    labeled = [];
    show(caption, content.runs.length > 1 && h("strong", {}, content.runs[run].title, " · "));
    if (!scene) return void caption.append("this run has no predictions for this image");
    if (state.mode === "output") drawOutput();
    else drawPairs();
    drawPath();
  }

  /** Lights up a query's box or an object. */
  function mark(hover) {
    parts.marked.replaceChildren();
    if (!scene || !hover || (hover.run !== undefined && hover.run !== run)) return;
    if (hover.object !== undefined)
      parts.marked.append(boxOf(pixels(scene.objects.boxes, hover.object, image()), objectColor(hover.object), { width: 5 }));
    if (hover.query === undefined) return;
    const branch = hover.branch === "one" || state.mode === "one" || state.mode === "output" ? scene.frame.one : scene.frame.many;
    const layer = state.mode === "output" && hover.branch === undefined ? branch.layers - 1 : scene.layer;
    const rectangle = pixels(branch.boxes, layer * branch.queries + hover.query, image());
    const color = hover.object === undefined ? "#111" : objectColor(hover.object);
    parts.marked.append(svg("rect", { ...rectangle, fill: color, opacity: 0.25 }), boxOf(rectangle, color, { width: 3 }));
  }

  listen(canvas, {
    image,
    window_,
    zoom: (change) => actions.zoom(change),
    point: (event) => queryAt(event) ?? objectAt(event),
    click: (found) => actions.select({ run, ...found }),
    hover: (found) => actions.hover(found && { run, ...found }),
    embedded: content.embedded,
  });
  const queryAt = (event) => {
    const at = event.target.closest?.("[data-query]");
    return at && { query: Number(at.dataset.query) };
  };
  /** The smallest object under the pointer, or the one whose label it is. */
  const objectAt = (event) => {
    const at = event.target.closest?.(".label[data-object]");
    if (at) return { object: Number(at.dataset.object) };
    if (!scene) return null;
    const bounds = canvas.getBoundingClientRect();
    const view = window_();
    const x = view.x + ((event.clientX - bounds.left) / bounds.width) * view.width;
    const y = view.y + ((event.clientY - bounds.top) / bounds.height) * view.height;
    const around = Array.from({ length: scene.objects.count }, (_, t) => ({ t, ...pixels(scene.objects.boxes, t, image()) }))
      .filter((box) => x >= box.x && x <= box.x + box.width && y >= box.y && y <= box.y + box.height)
      .sort((a, b) => a.width * a.height - b.width * b.height);
    return around.length ? { object: around[0].t } : null;
  };
  new ResizeObserver(([entry]) => {
    wide = entry.contentRect.width;
    if (state && wide) draw();
  }).observe(canvas);

  return {
    element,
    mark,
    update(newScene, newState) {
      [scene, state] = [newScene, newState];
      draw();
    },
  };
}

/** Sampling points of a query in a layer, larger where they weigh more; none where they do not travel with the page. */
export function samplingDots(frame, layer, query, { width, height }, scale) {
  const { sampling } = frame;
  const row = sampling ? sampling.queries.indexOf(query) : -1;
  if (row < 0) return [];
  const box = pixels(frame.one.boxes, layer * frame.one.queries + query, { width, height });
  const most = 0.08 * Math.max(box.width, box.height); // small objects stay visible
  return Array.from({ length: sampling.points }, (_, i) => {
    const at = (layer * sampling.queries.length + row) * sampling.points + i;
    const [x, y] = [sampling.places[2 * at], sampling.places[2 * at + 1]];
    if (x < 0 || x > 1 || y < 0 || y > 1) return null;
    const r = Math.max(Math.min((1.2 + 7 * Math.sqrt(sampling.weights[at])) * scale, most * (0.3 + 1.5 * Math.sqrt(sampling.weights[at]))), 1.2 * scale);
    return svg("circle", { cx: x * width, cy: y * height, r, class: "sample", "stroke-width": Math.min(0.7 * scale, r / 3) });
  }).filter(Boolean);
}

/** An entry of a legend. */
function key(text, { color, dash }) {
  const line = svg("line", { x1: 1, x2: 27, y1: 5, y2: 5, stroke: color, "stroke-width": 2.4, "stroke-dasharray": dash });
  return h("span", { class: "key" }, svg("svg", { width: 28, height: 10, "aria-hidden": "true" }, line), text);
}

/** Wheel, dragging, clicking and pointing on a canvas. */
function listen(canvas, { image, window_, zoom, point, click, hover, embedded }) {
  let from = null;
  const place = (event) => {
    const bounds = canvas.getBoundingClientRect();
    return [(event.clientX - bounds.left) / bounds.width, (event.clientY - bounds.top) / bounds.height];
  };
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (embedded && !event.ctrlKey) return;
      event.preventDefault();
      const view = window_();
      const [u, v] = place(event);
      const { width, height } = image();
      zoom({ times: Math.exp(-event.deltaY / 400), at: [(view.x + u * view.width) / width, (view.y + v * view.height) / height], screen: [u, v] });
    },
    { passive: false },
  );
  canvas.addEventListener("pointerdown", (event) => {
    from = { at: place(event), x: event.clientX, y: event.clientY, moved: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!from || !event.buttons) return hover(point(event));
    from.moved ||= Math.hypot(event.clientX - from.x, event.clientY - from.y) > 4;
    if (!from.moved) return;
    const [u, v] = place(event);
    const view = window_();
    const { width, height } = image();
    zoom({ move: [((from.at[0] - u) * view.width) / width, ((from.at[1] - v) * view.height) / height] });
    from.at = [u, v];
  });
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("click", (event) => {
    if (!from?.moved) click(point(event));
    from = null;
  });
  canvas.addEventListener("dblclick", () => zoom({ reset: true }));
}
