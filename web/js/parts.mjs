// What the pack's widgets share: a DOM element in a node, the JSON text that it edits, what the
// server told of the node, and a small vocabulary for building it.
//
// All of it works in both renderers (canvas and Vue) and needs nothing but the editor's own
// scripts. A widget is a function `build(part)` that fills `part.root` and returns
//   show(value)   draw the value: what the JSON text says, or null where it is empty or no JSON
//   executed(data)   draw what the node's last run told, under the widget's type in its `ui`
// either of them optional.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const MARGIN = 10; // that a DOM widget keeps on each side in the canvas renderer

const STYLES = new URL("./parts.css", import.meta.url).href;

/**
 * A widget whose value is the JSON text of a STRING input with `widgetType: type` in its schema.
 * @param {string} type also the name of the node's `ui` entry that is handed to `executed`
 * @param {number} height least height in pixels
 * @param {(part: Part) => {show?: Function, executed?: Function}} build
 */
export function valueWidget(type, height, build) {
  app.registerExtension({
    name: `PriorArt.${type}`,
    getCustomWidgets: () => ({
      [type]: (node, name) => ({ widget: new Part(node, name, type, height, build).widget }),
    }),
    ...restoring(type),
  });
}

/** A widget without a value, below all others of the nodes with this id. Parameters as above. */
export function viewWidget(nodeId, type, height, build) {
  app.registerExtension({
    name: `PriorArt.${type}`,
    nodeCreated(node) {
      if (node.comfyClass !== nodeId) return;
      const { widget } = new Part(node, type, type, height, build);
      widget.serialize = widget.options.serialize = false;
    },
    ...restoring(type),
  });
}

const alive = new Set(); // every Part in a graph, for what comes without naming a widget
const left = new Map(); // roots of removed nodes, by the node's id and the widget's name

/** What the last run told, for nodes that were made again: after undo, or on a workflow's tab. */
function restoring(type) {
  const restore = (outputs) => {
    for (const part of alive) {
      const { id, graph } = part.node;
      const name = graph?.isRootGraph === false ? `${graph.id}:${id}` : id;
      if (part.type === type) part.tell(outputs?.[name]);
    }
  };
  const afterConfigureGraph = () => {
    restore(app.nodeOutputs);
    requestAnimationFrame(takePlaces);
  };
  return { onNodeOutputsUpdated: restore, afterConfigureGraph };
}

/** The Vue renderer goes on showing the old element where a node is made again under its old id. */
function takePlaces() {
  for (const part of alive) {
    const old = left.get(part.place);
    if (old?.isConnected && !part.root.isConnected) old.replaceWith(part.root);
  }
  left.clear();
}

class Part {
  constructor(node, name, type, height, build) {
    this.node = node;
    this.type = type;
    this.text = "";
    this.root = element("div", { class: "prior-art", style: `min-height: ${height}px` });
    this.root.append(element("link", { rel: "stylesheet", href: STYLES }));
    keepFromCanvas(this.root);
    this.widget = node.addDOMWidget(name, type, this.root, {
      getValue: () => this.text,
      setValue: (text) => this.show(text),
      getMinHeight: () => height + 2 * MARGIN,
      hideOnZoom: false,
    });
    this.view = build(this);
    chain(node, "onExecuted", (output) => this.tell(output));
    chain(this.widget, "onRemove", () => {
      alive.delete(this);
      left.set(this.place, this.root);
    });
    alive.add(this);
    this.show("");
  }

  /** What the text says; null where it is empty or is no JSON. */
  get value() {
    try {
      return JSON.parse(this.text);
    } catch {
      return null;
    }
  }

  /** The user's choice: any JSON, or null for the empty text. One step for the editor's undo. */
  set value(value) {
    app.canvas.emitBeforeChange();
    this.widget.value = value === null ? "" : JSON.stringify(value);
    app.canvas.emitAfterChange();
  }

  get place() {
    return `${this.node.id} ${this.widget.name}`;
  }

  show(text) {
    this.text = text ?? "";
    this.view?.show?.(this.value);
  }

  tell(output) {
    const data = output?.[this.type]?.[0];
    if (data) this.view.executed?.(data);
  }
}

/** Runs `after` whenever the object's method `name` has run. */
export function chain(object, name, after) {
  const before = object[name];
  object[name] = function (...given) {
    const result = before?.apply(this, given);
    after(...given);
    return result;
  };
}

/** Another widget of the node by name, such as "keep". */
export function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

/** The address of a picture that the host keeps: {filename, subfolder, type}, as `show` gives it. */
export function pictureUrl(kept) {
  return api.apiURL(`/view?${new URLSearchParams(kept)}`);
}

/** element("button", { class: "x", onclick: f, "aria-label": "y" }, "text", child) */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** An element of an ARIA role with its name; the CSS class is `prior-art-<kind>`. */
export function labelled(role, label, kind) {
  return element("div", { role, "aria-label": label, class: `prior-art-${kind}` });
}

/** A line that screen readers speak when it changes. */
export function statusLine() {
  return element("p", { class: "prior-art-status", role: "status", "aria-live": "polite" });
}

/** Of these elements Tab reaches one only, the one that had the focus last. */
export function rove(elements, current) {
  for (const one of elements) one.tabIndex = one === current ? 0 : -1;
}

/** Where an arrow key, Home or End leads from place `at` of `count`, `columns` in a row; or null. */
export function arrowed(key, at, count, columns) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (key === "Home") return 0;
  if (key === "End") return count - 1;
  if (step === undefined) return null;
  return at + step >= 0 && at + step < count ? at + step : at;
}

/**
 * Follows the pointer that went down on `target`, outside of it too.
 * @param {(event: PointerEvent) => void} move
 * @param {(event: PointerEvent | null) => void} done where it went up; null if it was taken away
 */
export function drag(target, event, move, done) {
  const over = new AbortController();
  const { signal } = over;
  const end = (last) => {
    over.abort();
    done(last.type === "pointerup" ? last : null);
  };
  target.setPointerCapture(event.pointerId);
  target.addEventListener("pointermove", move, { signal });
  target.addEventListener("pointerup", end, { signal });
  target.addEventListener("pointercancel", end, { signal });
}

/** What is done inside moves neither node nor canvas, and no key of it is one of the editor's. */
function keepFromCanvas(root) {
  const own = ["pointerdown", "pointermove", "mousedown", "dblclick", "contextmenu"];
  for (const kind of own) {
    root.addEventListener(kind, (event) => {
      if (event.button !== 1) event.stopPropagation(); // the middle button pans the canvas
    });
  }
  root.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && event.key !== "Escape") event.stopPropagation();
  });
}
