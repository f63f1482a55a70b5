// The token grid of AR Complete and AR Variations: a picture under the grid of its codes, on which
// is painted what to draw anew. Value: a text of 0 and 1 for each row, ["0000", "0110"]; empty: what
// the node's other inputs say.

import { api } from "../../../scripts/api.js";
import {
  arrowed,
  chain,
  drag,
  element,
  labelled,
  pictureUrl,
  rove,
  statusLine,
  valueWidget,
  widgetOf,
} from "./parts.mjs";
import { text } from "./texts.mjs";

const TYPE = "PRIOR_ART_TOKENS";
const PUBLISHED = 16; // codes in a row of minDALL-E's pictures
const EMBEDDED = 8; // and of the embedded family's

const logProbs = new Map(); // what AR Score told: log p of each code, by the picture's codes

api.addEventListener("executed", ({ detail }) => {
  for (const { codes, log_probs } of detail.output?.PRIOR_ART_SCORED_TOKENS ?? []) {
    logProbs.set(codes.join(), log_probs);
  }
});

valueWidget(TYPE, 420, (part) => {
  const { node } = part;
  let run = null; // {codes, picture, redrawn, masked} of the last run
  let cells = []; // in reading order
  let erasing = false;

  const button = (key, onclick) =>
    element("button", { type: "button", title: text(`${key}Hint`), onclick }, text(key));
  const draw = button("grid.draw", () => use(false));
  const erase = button("grid.erase", () => use(true));
  const toEnd = button("grid.toEnd", paintToEnd);
  const bar = element("div", { class: "prior-art-bar" }, draw, erase);
  bar.append(button("grid.invert", invert), toEnd, button("grid.clear", () => commit([])));
  const picture = element("div", { class: "prior-art-picture" });
  const board = labelled("grid", text("grid.codes"), "board");
  board.setAttribute("aria-multiselectable", "true");
  const status = statusLine();
  const hint = element("p", { class: "prior-art-status" });
  part.root.append(bar, element("div", { class: "prior-art-stage" }, board), status, hint);
  use(false);

  /** The grid as it is painted, or as the other inputs say: a boolean for each code, true: anew. */
  function painted() {
    const rows = part.value;
    if (Array.isArray(rows)) return rows.flatMap((row) => [...String(row)].map((one) => one === "1"));
    const kept = widgetOf(node, "keep_rows")?.value ?? Infinity;
    return Array.from({ length: side() ** 2 }, (_, i) => i >= kept * side());
  }

  function side() {
    if (Array.isArray(part.value)) return part.value.length;
    if (run) return run.codes.length;
    const vae = upstream(node, "vae");
    const source = vae && widgetOf(vae, "source")?.value;
    return source && !String(source).startsWith("shapes-") ? PUBLISHED : EMBEDDED;
  }

  function commit(marks) {
    const n = side();
    const rows = Array.from({ length: n }, (_, row) =>
      marks.slice(row * n, row * n + n).map(Number).join(""),
    );
    part.value = marks.includes(true) ? rows : null;
  }

  function use(eraser) {
    erasing = eraser;
    draw.setAttribute("aria-pressed", !eraser);
    erase.setAttribute("aria-pressed", eraser);
  }

  function invert() {
    commit(painted().map((mark) => !mark));
  }

  function paintToEnd() {
    const marks = painted();
    commit(marks.map((_, i) => i >= marks.indexOf(true)));
  }

  function toggle(places) {
    const marks = painted();
    const anew = !places.every((place) => marks[place]);
    for (const place of places) marks[place] = anew;
    commit(marks);
  }

  function build() {
    const n = side();
    cells = Array.from({ length: n * n }, (_, i) =>
      element("div", { role: "gridcell", class: "prior-art-cell", "data-place": i }),
    );
    const rows = Array.from({ length: n }, (_, row) => {
      const header = element("div", {
        role: "rowheader",
        class: "prior-art-row",
        title: text("grid.rowHint"),
        "aria-label": text("grid.row", { row: row + 1 }),
      });
      const own = cells.slice(row * n, row * n + n);
      return element("div", { role: "row" }, header, ...own);
    });
    board.style.setProperty("--prior-art-side", n);
    board.replaceChildren(picture, ...rows);
    rove(stops(), cells[0]);
  }

  const stops = () => [...board.querySelectorAll("[role=rowheader], [role=gridcell]")];

  function show() {
    if (cells.length !== side() ** 2) build();
    const masked = run?.masked ? [...run.redrawn.join("")].map((one) => one === "1") : null;
    const marks = painted();
    const counted = masked ?? marks;
    const first = counted.indexOf(true);
    let after = 0;
    for (const [i, cell] of cells.entries()) {
      const follows = first >= 0 && i > first && !counted[i];
      after += follows;
      cell.setAttribute("aria-selected", marks[i]);
      const place = described(i);
      cell.setAttribute("aria-label", text(marks[i] ? "grid.anew" : "grid.stays", { place }));
      cell.classList.toggle("follows", follows);
      cell.classList.toggle("masked", masked?.[i] ?? false);
    }
    board.classList.toggle("implied", part.value === null);
    toEnd.disabled = first < 0 || !after;
    status.textContent = said(first, after);
    showPicture();
  }

  function said(first, after) {
    if (first < 0) return text("grid.none");
    const around = widgetOf(node, "keep_rows") ? "grid.unseen" : "grid.bestOfN";
    const choice = text(after ? around : "grid.exact", { count: after });
    return run?.masked ? `${text("grid.masked")} ${choice}` : choice;
  }

  function described(i) {
    const n = side();
    const row = Math.floor(i / n);
    const code = run?.codes[row]?.[i % n];
    const place = { row: row + 1, column: (i % n) + 1, code };
    if (code === undefined) return text("grid.place", place);
    const known = logProbs.get(run.codes.flat().join());
    if (!known) return text("grid.code", place);
    return text("grid.scored", { ...place, p: Math.exp(known[i]).toPrecision(3) });
  }

  function showPicture() {
    const url = run ? pictureUrl(run.picture) : sourceUrl(node);
    picture.style.backgroundImage = url ? `url("${url}")` : "none";
  }

  /** The code under the pointer, the nearest where it is outside. */
  function under({ clientX, clientY }) {
    const n = side();
    const box = picture.getBoundingClientRect();
    const along = (at, from, length) =>
      Math.min(n - 1, Math.max(0, Math.floor(((at - from) / length) * n)));
    return along(clientY, box.top, box.height) * n + along(clientX, box.left, box.width);
  }

  /** All codes on the straight line from one to another. */
  function line(from, to) {
    const n = side();
    const [down, right] = [Math.floor(to / n) - Math.floor(from / n), (to % n) - (from % n)];
    const steps = Math.max(Math.abs(down), Math.abs(right), 1);
    return Array.from({ length: steps + 1 }, (_, i) => {
      const row = Math.floor(from / n) + Math.round((down * i) / steps);
      return row * n + (from % n) + Math.round((right * i) / steps);
    });
  }

  board.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    const header = event.target.closest("[role=rowheader]");
    if (header) {
      focus(header);
      return toggleRow(header);
    }
    let last = under(event);
    const marks = painted();
    const paint = (place) => {
      for (const one of line(last, place)) {
        marks[one] = !erasing;
        cells[one].setAttribute("aria-selected", marks[one]);
      }
      last = place;
    };
    focus(cells[last]);
    paint(last);
    drag(board, event, (moved) => paint(under(moved)), () => commit(marks));
  });

  board.addEventListener("pointerover", (event) => hover(event.target));
  board.addEventListener("focusin", (event) => hover(event.target));

  function hover(target) {
    if (target.dataset.place) hint.textContent = described(Number(target.dataset.place));
  }

  function toggleRow(header) {
    toggle([...header.parentNode.children].slice(1).map((cell) => Number(cell.dataset.place)));
  }

  function focus(stop) {
    rove(stops(), stop);
    stop.focus();
  }

  board.addEventListener("keydown", (event) => {
    const all = stops();
    const to = arrowed(event.key, all.indexOf(event.target), all.length, side() + 1);
    if (event.key === " " || event.key === "Enter") {
      if (event.target.dataset.place) toggle([Number(event.target.dataset.place)]);
      else toggleRow(event.target);
    } else if (to === null) return;
    else focus(all[to]);
    event.preventDefault();
  });

  const rows = widgetOf(node, "keep_rows");
  if (rows) chain(rows, "callback", show);
  chain(node, "onConnectionsChange", show);
  return {
    show,
    executed(data) {
      run = data;
      show();
    },
  };
});

/** The node that is wired into an input. */
function upstream(node, name) {
  const at = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return at < 0 ? null : node.getInputNode(at);
}

/** Before the first run: the picture file that the node's picture or latent is made of. */
function sourceUrl(node) {
  const names = ["image", "latent_image", "samples", "pixels"];
  for (let steps = 0; node && steps < 20; steps++) {
    const file = widgetOf(node, "image")?.value;
    if (typeof file === "string") {
      const [, path, type] = file.match(/^(.*?)(?: \[(\w+)\])?$/);
      const cut = path.lastIndexOf("/");
      return pictureUrl({
        filename: path.slice(cut + 1),
        subfolder: path.slice(0, Math.max(cut, 0)),
        type: type ?? "input",
        channel: "rgb", // what is transparent is a mask
      });
    }
    node = names.map((name) => upstream(node, name)).find(Boolean);
  }
  return null;
}
