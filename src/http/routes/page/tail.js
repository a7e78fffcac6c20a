// The latest reports, as they are acknowledged.

import { el, field } from "./dom.js";
import { clock, number, visible, visibleLine, whole } from "./format.js";
import { url } from "./api.js";
import { Stream } from "./stream.js";

/** Rows on the page, and characters of a report that stay in memory. */
const MAX_ROWS = 100;
const MAX_KEPT_CHARS = 200_000;
const MAX_LINE_CHARS = 400;
const MAX_SHOWN_CHARS = 20_000;
/** The server sends a comment every 15 seconds. */
const SILENCE_MS = 40_000;
const REDRAW_MS = 250;
const STATES = { connecting: "Connecting…", open: "Following", waiting: "Disconnected: trying again", failed: "Stopped" };

export function tail({ filter, onFilter }) {
  let [stream, waiting, received, skipped, isPaused, timer] = [null, [], 0, 0, false, null];
  const rows = el("ol", { class: "reports", "aria-label": "Latest reports, newest first" });
  const state = el("span", { role: "status" });
  const counts = el("span", {});
  const problem = el("p", { class: "notice bad", role: "alert", hidden: true });
  const pause = el("button", { type: "button", onclick: () => setPaused(!isPaused) }, "Pause");
  const input = el("input", { type: "text", value: filter, spellcheck: "false", autocomplete: "off", autocapitalize: "off", maxlength: "4000", placeholder: '.geo.country == "DE"' });
  const form = el(
    "form", { class: "row", onsubmit: (event) => (event.preventDefault(), onFilter(input.value.trim())) },
    field("Filter (jq)", input), el("button", { type: "submit" }, "Apply"), pause,
    el("button", { type: "button", onclick: clear }, "Clear"),
  );
  const element = el(
    "section", { class: "card tail", "aria-labelledby": "tail" },
    el("div", { class: "head" }, el("h2", { id: "tail" }, "Latest reports"), el("p", { class: "now" }, state)),
    form, problem, el("p", { class: "note" }, counts), rows,
  );

  function connect() {
    stream?.stop();
    problem.hidden = true;
    if (document.hidden) return;
    stream = new Stream(url("api/v1/reports/tail", { filter }), {
      idleMs: SILENCE_MS,
      onEvent: receive,
      onState: ({ name, error }) => {
        state.textContent = STATES[name];
        state.dataset.state = name;
        problem.hidden = !error;
        problem.textContent = error ? visible(error.message, 1000) : "";
      },
    });
  }

  function receive({ type, data }) {
    if (type === "skipped") {
      skipped += JSON.parse(data).reports;
    } else if (type === "message") {
      received += 1;
      const kept = { at: Date.now(), chars: data.length, text: data.length > MAX_KEPT_CHARS ? data.slice(0, MAX_KEPT_CHARS) : data };
      waiting.push(kept);
      // Reports that arrive faster than the page draws are counted, and the newest are shown.
      if (waiting.length > MAX_ROWS) waiting.splice(0, waiting.length - MAX_ROWS);
    }
    timer ??= setTimeout(draw, REDRAW_MS);
  }

  function draw() {
    timer = null;
    if (!isPaused) {
      rows.prepend(...waiting.splice(0).reverse().map(row));
      // An open report stays until it is closed, or the list is cleared.
      const closed = [...rows.children].slice(MAX_ROWS).filter((row) => !row.firstChild.open);
      for (const row of closed) row.remove();
    }
    const news = isPaused && waiting.length ? ` · ${waiting.length === MAX_ROWS ? `${MAX_ROWS} or more` : waiting.length} new` : "";
    counts.textContent = `${whole(received)} received · ${whole(skipped)} skipped, because they arrived too fast${news}`;
  }

  function row({ at, chars, text }) {
    const more = el("pre", { tabindex: "0" });
    const show = ({ currentTarget }) => {
      if (!currentTarget.open) return;
      more.textContent ||= pretty(text, chars);
      // The report would move away from its reader.
      setPaused(true);
    };
    return el("li", {}, el(
      "details", { ontoggle: show },
      el("summary", {}, el("time", {}, clock(at)), el("code", {}, visibleLine(text, MAX_LINE_CHARS)),
        chars > MAX_LINE_CHARS ? el("small", {}, size(chars)) : null),
      more,
    ));
  }

  function setPaused(paused) {
    isPaused = paused;
    pause.textContent = paused ? "Continue" : "Pause";
    draw();
  }

  function clear() {
    rows.replaceChildren();
    [waiting, received, skipped] = [[], 0, 0];
    draw();
  }

  const onVisibility = () => (document.hidden ? stream?.stop() : connect());
  document.addEventListener("visibilitychange", onVisibility);
  connect();
  draw();
  return {
    element,
    setFilter(next) {
      if (next === filter) return;
      filter = input.value = next;
      clear();
      connect();
    },
    close() {
      document.removeEventListener("visibilitychange", onVisibility);
      clearTimeout(timer);
      stream?.stop();
    },
  };
}

const size = (chars) => `${number(chars)} characters`;

/** A report with line breaks, or the start of it if it is long. */
function pretty(text, chars) {
  let shown = text;
  if (chars === text.length) {
    try {
      shown = JSON.stringify(JSON.parse(text), null, 2);
    } catch {
      // The filter printed something else.
    }
  }
  const cut = shown.length > MAX_SHOWN_CHARS || chars > text.length;
  return visible(shown, MAX_SHOWN_CHARS) + (cut ? `\n(the start of ${size(chars)})` : "");
}
