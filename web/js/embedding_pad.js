// The embedding pad: a square with an embedding in each corner. A point on it is the mixture of Mix
// Image Embeddings, a path over it the walk of Interpolate Image Embeddings.
// Value: [[x, y], ...] from 0 to 1, from the left and from the top; empty: the node's own widgets.

import { chain, drag, element, pictureUrl, statusLine, valueWidget, widgetOf } from "./parts.mjs";
import { text } from "./texts.mjs";

const CORNERS = ["a", "b", "c", "d"]; // top left, top right, bottom left, bottom right
const MIDDLE = [0.5, 0.5];
const APART = 0.015; // of a drawn path's points
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const STYLES = new URL("./embedding_pad.css", import.meta.url).href;

valueWidget("PRIOR_ART_PAD", 300, (part) => {
  const pad = new Pad(part, text("pad.place"));
  pad.pressed = (event) => {
    const place = (at) => [pad.pointAt(at)];
    pad.draw(place(event));
    drag(pad.square, event, (moved) => pad.draw(place(moved)), (last) => pad.end(last && place(last)));
  };
  pad.moved = (to) => [to(pad.points[0] ?? MIDDLE)];
  pad.dots = ([point]) => (point ? [point] : pad.wired("c") || pad.wired("d") ? [MIDDLE] : []);
  pad.says = ([point]) =>
    point
      ? pad.shares(point)
      : text(pad.wired("c") || pad.wired("d") ? "pad.placeMiddle" : "pad.placeEmpty");
  return pad.view;
});

valueWidget("PRIOR_ART_PATH", 300, (part) => {
  const pad = new Pad(part, text("pad.path"));
  const count = () => widgetOf(part.node, "count")?.value ?? 2;
  pad.pressed = (event) => {
    const drawn = [pad.pointAt(event)];
    const follow = (moved) => {
      const point = pad.pointAt(moved);
      if (distance(point, drawn.at(-1)) > APART) drawn.push(point);
      if (drawn.length > 1) pad.draw(drawn);
    };
    // A click adds a point; a path that is drawn takes the place of the one before.
    const done = (last) => pad.end(last && (drawn.length > 1 ? drawn : [...pad.points, ...drawn]));
    drag(pad.square, event, follow, done);
  };
  pad.moved = (to) => [...pad.points.slice(0, -1), to(pad.points.at(-1) ?? MIDDLE)];
  pad.added = () => [...pad.points, pad.points.at(-1) ?? MIDDLE];
  pad.dots = (points) => (points.length > 1 ? along(points, count()) : points);
  pad.says = (points) => {
    if (points.length < 2) return text(points.length ? "pad.pathBegun" : "pad.pathEmpty");
    return text("pad.pathDrawn", { count: count(), place: pad.shares(points.at(-1)) });
  };
  chain(widgetOf(part.node, "count"), "callback", () => pad.draw(pad.points));
  return pad.view;
});

class Pad {
  constructor(part, label) {
    this.part = part;
    this.line = element("div", { class: "prior-art-pad-line" });
    this.line.innerHTML =
      '<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true"><polyline/></svg>';
    this.corners = CORNERS.map((name) =>
      element("div", { class: `prior-art-corner prior-art-corner-${name}` }),
    );
    this.square = element("div", { class: "prior-art-pad", role: "application", tabindex: 0 });
    this.square.setAttribute("aria-label", label);
    this.square.append(...this.corners, this.line);
    this.status = statusLine();
    this.clear = element("button", { type: "button", onclick: () => this.set([]) }, text("pad.clear"));
    const bar = element("div", { class: "prior-art-bar" }, this.clear, this.status);
    part.root.append(element("link", { rel: "stylesheet", href: STYLES }), this.square, bar);
    this.square.addEventListener("pointerdown", (event) => this.press(event));
    this.square.addEventListener("keydown", (event) => this.key(event));
    for (const seen of ["pointerenter", "focus"]) {
      this.square.addEventListener(seen, () => this.drawCorners());
    }
    for (const changed of ["onConnectionsChange", "onAfterGraphConfigured"]) {
      chain(part.node, changed, () => this.draw(this.points));
    }
    this.view = { show: () => this.draw(this.points) };
  }

  get points() {
    return Array.isArray(this.part.value) ? this.part.value : [];
  }

  set(points) {
    this.part.value = points.length ? points : null;
  }

  /** What a drag ends with: its points, or null where it was taken away. */
  end(points) {
    if (points) this.set(points);
    else this.draw(this.points);
  }

  pointAt({ clientX, clientY }) {
    const { left, top, width, height } = this.square.getBoundingClientRect();
    return inside([(clientX - left) / width, (clientY - top) / height]);
  }

  press(event) {
    if (event.button !== 0) return;
    event.preventDefault();
    this.square.focus();
    this.pressed(event);
  }

  key(event) {
    const arrow = ARROWS[event.key];
    const by = event.shiftKey ? 0.1 : 0.01;
    if (arrow) this.set(this.moved(([x, y]) => inside([x + by * arrow[0], y + by * arrow[1]])));
    else if (event.key === "Enter" && this.added) this.set(this.added());
    else if (event.key === "Delete" || event.key === "Backspace") this.set([]);
    else return;
    event.preventDefault();
  }

  wired(name) {
    return this.part.node.inputs?.some((i) => i.name === `image_embeds_${name}` && i.link != null);
  }

  /** How much of each corner a point is, in words. */
  shares([x, y]) {
    const [c, d] = [this.wired("c"), this.wired("d")];
    const down = c || d ? y : 0;
    const lower = c && d ? [1 - x, x] : [1, 1]; // an edge with one corner is that one everywhere
    const shares = { a: (1 - x) * (1 - down), b: x * (1 - down), c: lower[0] * down, d: lower[1] * down };
    return CORNERS.filter((name) => name === "a" || name === "b" || this.wired(name))
      .map((name) => `${name} ${Math.round(100 * shares[name])}%`)
      .join(", ");
  }

  draw(points) {
    this.line.querySelector("polyline").setAttribute("points", points.join(" "));
    for (const dot of this.line.querySelectorAll("span")) dot.remove();
    for (const [x, y] of this.dots(points)) {
      const style = `left: ${100 * x}%; top: ${100 * y}%`;
      this.line.append(element("span", { class: points.length ? "" : "unset", style }));
    }
    this.status.textContent = this.says(points);
    this.clear.disabled = !points.length;
    this.drawCorners();
  }

  drawCorners() {
    for (const [i, name] of CORNERS.entries()) {
      const { picture, words } = sourceOf(this.part.node, `image_embeds_${name}`);
      const corner = this.corners[i];
      corner.hidden = i > 1 && !this.wired(name);
      corner.title = words ?? "";
      corner.replaceChildren(element("b", {}, name));
      if (picture) corner.append(element("img", { src: picture, alt: "", draggable: "false" }));
      else if (words) corner.append(element("small", {}, words));
    }
  }
}

/** What a corner was made of, as far as the graph tells: a picture's address, or a prompt. */
function sourceOf(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  const makers = new Set([slot < 0 ? null : node.getInputNode(slot)]);
  for (const maker of makers) {
    if (!maker) continue;
    const file = maker.type === "LoadImage" && widgetOf(maker, "image")?.value;
    if (file) return { picture: inputUrl(file) };
    const said = widgetOf(maker, "text") ?? widgetOf(maker, "value");
    const wired = maker.inputs?.some((input) => input.widget?.name === "text" && input.link != null);
    if (typeof said?.value === "string" && said.value.trim() && !wired) return { words: said.value };
    maker.inputs?.forEach((_, i) => makers.add(maker.getInputNode(i)));
  }
  return {};
}

/** The address of what Load Image's widget names: "folder/name.png [output]". */
function inputUrl(file) {
  const [, subfolder = "", filename, type = "input"] = /^(?:(.*)\/)?(.*?)(?: \[(\w+)\])?$/.exec(file);
  return pictureUrl({ filename, subfolder, type });
}

const distance = ([x, y], [u, v]) => Math.hypot(x - u, y - v);

const inside = (point) => point.map((n) => Math.round(1000 * Math.min(1, Math.max(0, n))) / 1000);

/** `count` points evenly spaced on the line through `points`, as the node walks it. */
function along(points, count) {
  const reached = [0];
  for (const [i, point] of points.slice(1).entries()) {
    reached.push(reached[i] + distance(points[i], point));
  }
  return Array.from({ length: count }, (_, i) => {
    const at = (reached.at(-1) * i) / (count - 1);
    const end = Math.max(1, reached.findIndex((length) => length >= at - 1e-9));
    const part = (at - reached[end - 1]) / (reached[end] - reached[end - 1] || 1);
    return points[end - 1].map((n, axis) => n + part * (points[end][axis] - n));
  });
}
