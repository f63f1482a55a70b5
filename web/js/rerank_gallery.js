// CLIP Rerank's gallery: all candidates in rank order, and a tray of those that are picked.
// Value: places in the batch in the order in which they come out, [5, 0, 2]; empty: the best `keep`.

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

valueWidget("PRIOR_ART_GALLERY", 320, (part) => {
  let run = null; // {sheet, columns, scores by place, ranking: places, the best first}
  const next = element("button", { type: "button", onclick: pickNext });
  const best = element("button", { type: "button", onclick: () => pick([], text("gallery.kept")) });
  const status = statusLine();
  const tray = labelled("listbox", text("gallery.tray"), "tray");
  const gallery = labelled("listbox", text("gallery.candidates"), "gallery");
  gallery.setAttribute("aria-multiselectable", "true");
  gallery.dataset.captureWheel = true; // the Vue renderer: scrolls, once it has the focus
  part.root.append(element("div", { class: "prior-art-bar" }, best, next), tray, gallery, status);

  const picks = () => {
    const places = Array.isArray(part.value) ? part.value : [];
    return run ? places.filter((place) => place in run.scores) : places;
  };
  const keep = () => widgetOf(part.node, "keep")?.value ?? 0;
  const rank = (place) => run.ranking.indexOf(place) + 1;

  function pick(places, words) {
    part.value = places.length ? places : null;
    status.textContent = words;
  }

  function toggle(place) {
    const others = picks().filter((one) => one !== place);
    const taken = others.length < picks().length;
    const places = taken ? others : [...others, place];
    const said = { rank: rank(place), number: places.length };
    pick(places, text(taken ? "gallery.putBack" : "gallery.picked", said));
  }

  function move(from, to) {
    const places = [...picks()];
    places.splice(to, 0, ...places.splice(from, 1));
    pick(places, text("gallery.moved", { rank: rank(places[to]), number: to + 1 }));
  }

  function following() {
    if (!run || !keep()) return [];
    const last = picks().length ? Math.max(...picks().map(rank)) : keep();
    return run.ranking.slice(last, last + keep());
  }

  function pickNext() {
    const places = following();
    pick(places, text("gallery.followed", { first: rank(places[0]), last: rank(places.at(-1)) }));
  }

  function thumbnail(place) {
    const column = place % run.columns;
    const row = Math.floor(place / run.columns);
    const rows = Math.ceil(run.scores.length / run.columns);
    const along = (at, count) => (count > 1 ? (at / (count - 1)) * 100 : 0);
    return element("div", {
      role: "option",
      class: "prior-art-thumbnail",
      "data-place": place,
      style:
        `background-image: url("${pictureUrl(run.sheet)}");` +
        `background-size: ${run.columns * 100}% ${rows * 100}%;` +
        `background-position: ${along(column, run.columns)}% ${along(row, rows)}%`,
    });
  }

  function drawCandidates() {
    gallery.replaceChildren(
      ...run.ranking.map((place) => {
        const option = thumbnail(place);
        option.append(
          element("span", { class: "prior-art-number", "aria-hidden": "true" }),
          element("span", { "aria-hidden": "true" }, run.scores[place].toFixed(3)),
        );
        return option;
      }),
    );
    rove(gallery.children, gallery.firstChild);
    const sheet = new Image();
    sheet.onload = () => {
      const rows = Math.ceil(run.scores.length / run.columns);
      const shape = sheet.naturalWidth / run.columns / (sheet.naturalHeight / rows);
      part.root.style.setProperty("--prior-art-shape", shape);
    };
    sheet.src = pictureUrl(run.sheet);
  }

  function drawPicks() {
    const places = picks();
    for (const [at, option] of [...gallery.children].entries()) {
      const number = places.indexOf(Number(option.dataset.place)) + 1;
      const kept = !places.length && (!keep() || at < keep());
      option.classList.toggle("kept", kept);
      option.setAttribute("aria-selected", number > 0);
      option.firstChild.textContent = number || "";
      const score = run.scores[option.dataset.place].toFixed(3);
      const key = number ? "gallery.onePicked" : kept ? "gallery.oneKept" : "gallery.one";
      option.setAttribute("aria-label", text(key, { rank: at + 1, score, number }));
    }
    tray.replaceChildren(
      ...(run ? places : []).map((place, at) => {
        const option = thumbnail(place);
        option.setAttribute("aria-label", text("gallery.inTray", { number: at + 1, rank: rank(place) }));
        option.setAttribute("aria-keyshortcuts", "Shift+ArrowLeft Shift+ArrowRight Delete");
        option.title = text("gallery.order");
        return option;
      }),
    );
    rove(tray.children, tray.firstChild);
    best.textContent = keep() ? text("gallery.best", { count: keep() }) : text("gallery.all");
    best.setAttribute("aria-pressed", part.value === null);
    next.textContent = keep() ? text("gallery.next", { count: keep() }) : text("gallery.nextOnes");
    next.title = text("gallery.nextHint");
    next.disabled = !following().length;
  }

  const at = (list, target) => [...list.children].indexOf(target.closest("[role=option]"));

  /** Arrow keys within a list; the new place has the focus. */
  function walk(list, event) {
    const all = [...list.children];
    const columns = all.filter((one) => one.offsetTop === all[0].offsetTop).length;
    const to = arrowed(event.key, at(list, event.target), all.length, columns);
    if (to === null) return;
    event.preventDefault();
    focus(list, to);
  }

  function focus(list, to) {
    const option = list.children[Math.min(to, list.children.length - 1)];
    if (!option) return;
    rove(list.children, option);
    option.focus();
  }

  gallery.addEventListener("click", (event) => {
    const place = at(gallery, event.target);
    if (place < 0) return;
    focus(gallery, place);
    toggle(run.ranking[place]);
  });
  gallery.addEventListener("keydown", (event) => {
    if (event.key === " " || event.key === "Enter") {
      event.preventDefault();
      toggle(run.ranking[at(gallery, event.target)]);
    } else walk(gallery, event);
  });

  tray.addEventListener("keydown", (event) => {
    const from = at(tray, event.target);
    const by = event.shiftKey && { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) {
      event.preventDefault();
      const to = Math.min(Math.max(from + by, 0), picks().length - 1);
      move(from, to);
      focus(tray, to);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      toggle(picks()[from]);
      focus(tray, from);
    } else walk(tray, event);
  });
  tray.addEventListener("pointerdown", (event) => {
    const from = at(tray, event.target);
    if (from < 0 || event.button !== 0) return;
    event.preventDefault();
    focus(tray, from);
    const under = ({ clientX, clientY }) => {
      const found = document.elementFromPoint(clientX, clientY);
      return found && tray.contains(found) ? at(tray, found) : -1;
    };
    const mark = (to) => {
      for (const [i, one] of [...tray.children].entries()) {
        one.classList.toggle("target", i !== from && i === to);
      }
    };
    drag(tray, event, (moved) => mark(under(moved)), (last) => {
      const to = last ? under(last) : -1;
      mark(-1);
      if (to < 0 || to === from) return;
      move(from, to);
      focus(tray, to);
    });
  });

  chain(widgetOf(part.node, "keep"), "callback", drawPicks);
  status.textContent = text("gallery.none");
  return {
    show: drawPicks,
    executed(data) {
      const others = run && picks().length && String(run.scores) !== String(data.scores);
      run = data;
      drawCandidates();
      drawPicks();
      status.textContent = others
        ? text("gallery.others")
        : text("gallery.shown", { count: run.scores.length });
    },
  };
});
