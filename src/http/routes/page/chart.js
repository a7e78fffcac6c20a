// Charts of values over time, as SVG.
//
// The drawing is a slider over its points in time: the pointer or the arrow keys select a point, and the legend shows
// the values there. A table has all values.

import { el, scrollable, svg, table } from "./dom.js";
import { clock, tick, timestamp, visibleLine } from "./format.js";

const TICKS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800];
const TICK_PX = 64;
const LABEL_CHAR_PX = 6.8;
const MARGIN = { top: 8, right: 8, bottom: 20, left: 40 };
const DAY_MS = 86_400_000;

/** The charts that select the same point in time. */
export class Cursor {
  charts = new Set();

  move(time, source) {
    for (const chart of this.charts) chart.select(time, chart === source);
  }
}

/** The end of an axis: a round number that is at least `value`. */
export function niceCeiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((factor) => factor * power).find((nice) => nice >= value * (1 - 1e-9));
}

/** The same for seconds: half of it is a round number of seconds, minutes, hours or days, too. */
export function secondsCeiling(value) {
  if (value <= 1) return niceCeiling(value);
  const round = [2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 60, 120, 240, 360, 600, 1200, 1800, 2400, 3600, 7200, 14_400, 28_800, 43_200, 86_400];
  return round.find((nice) => nice >= value) ?? 86_400 * niceCeiling(value / 86_400);
}

export const millisecondsCeiling = (value) => (value < 1000 ? niceCeiling(value) : 1000 * secondsCeiling(value / 1000));

/** The same for sizes in bytes: a power of two. */
export const binaryCeiling = (value) => (value > 1 ? 2 ** Math.ceil(Math.log2(value) - 1e-9) : 1);

export class TimeChart {
  #times = [];
  #series = [];
  #gapMs = Infinity;
  #ceiling = 0;
  #selected = null;
  #selectedIndex = null;
  #width = 0;
  #left = MARGIN.left;
  #x = (time) => time;
  #y = (value) => value;

  /**
   * `format` makes text of a value. `kind` is "line" or "bar". `ceilingOf` rounds the largest value for the axis.
   * Charts with the same `cursor` select the same point in time. `note` is a text below the legend.
   */
  constructor({ title, level = 2, format, kind = "line", height = 118, cursor = new Cursor(), ceilingOf = niceCeiling, note }) {
    Object.assign(this, { title, format, kind, height, cursor, ceilingOf });
    this.heading = el(`h${level}`, {}, title);
    this.now = el("p", { class: "now" });
    this.legend = el("ul", { class: "legend" });
    this.when = el("p", { class: "when" });
    this.drawing = svg("svg", {
      class: "plot", role: "slider", tabindex: "0", height, "aria-label": `${title}, values by time`, "aria-valuemin": "0",
      onkeydown: (event) => this.#onKey(event),
      onfocus: () => this.#selectIndex(this.#selectedIndex ?? this.#times.length - 1),
      onblur: () => this.cursor.move(null, this),
      onpointermove: (event) => this.#onPointer(event),
      onpointerdown: (event) => this.#onPointer(event),
      onpointerleave: () => document.activeElement === this.drawing || this.cursor.move(null, this),
    });
    this.data = el("details", { class: "data", ontoggle: () => this.#showData() }, el("summary", {}, "Data table"));
    this.element = el(
      "section", { class: "card chart", "aria-label": title },
      el("div", { class: "head" }, this.heading, this.now),
      this.drawing,
      this.legend,
      (this.note = el("p", { class: "note", hidden: !note }, note)),
      el("div", { class: "foot" }, this.data, this.when),
    );
    new ResizeObserver(([{ contentRect }]) => {
      if (Math.abs(contentRect.width - this.#width) < 1) return;
      this.#width = contentRect.width;
      this.#draw();
    }).observe(this.drawing);
    cursor.charts.add(this);
  }

  remove() {
    this.cursor.charts.delete(this);
    this.element.remove();
  }

  setNote(text) {
    this.note.textContent = text;
    this.note.hidden = !text;
  }

  setTitle(title) {
    this.title = title;
    this.heading.textContent = title;
    this.element.setAttribute("aria-label", title);
    this.drawing.setAttribute("aria-label", `${title}, values by time`);
  }

  /**
   * Shows other values. `series` is a list of `{ name, values, look }`: a value, or null, for each of `times`; the look is
   * a number from 1 to 8. A line has a gap where two values are further apart than `gapMs`. `now` is the text of the
   * current value. The axis contains `atLeast`.
   */
  set({ times, series, gapMs = Infinity, now = "", atLeast = 0 }) {
    this.#times = times;
    this.#series = series.map((one, i) => ({ ...one, look: one.look ?? (i % 8) + 1 }));
    this.#gapMs = gapMs;
    let most = atLeast;
    for (const { values } of series) for (const value of values) if (value > most) most = value;
    this.#ceiling = this.ceilingOf(most);
    this.now.textContent = now;
    this.element.classList.toggle("empty", !times.length);
    // The only value is in the head already.
    this.legend.hidden = this.#series.length < 2;
    this.legend.replaceChildren(...this.#series.map((one) => {
      one.readout = el("b");
      return el("li", { class: `s${one.look}` }, svg("svg", { viewBox: "0 0 16 4", "aria-hidden": "true" }, svg("path", { d: "M0 2H16" })),
        el("span", {}, visibleLine(one.name, 60)), one.readout);
    }));
    this.#draw();
  }

  #draw() {
    const [times, width] = [this.#times, this.#width];
    this.drawing.setAttribute("aria-valuemax", Math.max(0, times.length - 1));
    if (!width) return this.select(this.#selected, false);
    const [first, last] = [times[0] ?? 0, times.at(-1) ?? 1];
    const step = this.kind === "bar" && times.length ? (last - first) / Math.max(1, times.length - 1) || 60_000 : 0;
    const labels = [0, 0.5, 1].map((share) => this.format(share * this.#ceiling).length);
    this.#left = Math.max(MARGIN.left, Math.max(...labels) * LABEL_CHAR_PX + 10);
    const inner = { width: width - this.#left - MARGIN.right, height: this.height - MARGIN.top - MARGIN.bottom };
    const span = last - first + step || 1;
    this.#x = (time) => this.#left + ((time - first + step / 2) / span) * inner.width;
    this.#y = (value) => MARGIN.top + inner.height * (1 - value / this.#ceiling);
    const marks = this.kind === "bar" ? this.#bars(inner.width / Math.max(1, span / (step || 1))) : this.#lines();
    this.drawing.replaceChildren(...this.#grid(inner, first, last), ...marks, (this.mark = svg("g", { class: "cursor" })));
    if (!times.length) {
      const middle = { x: this.#left + inner.width / 2, y: MARGIN.top + inner.height / 2, class: "none" };
      this.drawing.append(svg("text", middle, "No values"));
    }
    this.select(this.#selected, false);
  }

  #grid(inner, first, last) {
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      const y = this.#y(share * this.#ceiling);
      parts.push(svg("line", { class: share ? "grid" : "axis", x1: this.#left, x2: this.#left + inner.width, y1: y, y2: y }));
      if (this.#times.length) {
        parts.push(svg("text", { class: "y", x: this.#left - 6, y: y + 4 }, this.format(share * this.#ceiling)));
      }
    }
    if (last <= first || !this.#times.length) return parts;
    const most = Math.max(2, inner.width / TICK_PX);
    const stepMs = 1000 * (TICKS_S.find((step) => (last - first) / 1000 / step <= most) ?? TICKS_S.at(-1));
    // Ticks are at whole hours and days of the local time.
    const zone = -new Date(first).getTimezoneOffset() * 60_000;
    for (let time = Math.ceil((first + zone) / stepMs) * stepMs - zone; time <= last; time += stepMs) {
      const x = this.#x(time);
      // A label at the edge would be cut.
      if (x < this.#left + 12 || x > this.#left + inner.width - 22) continue;
      parts.push(svg("text", { class: "x", x, y: this.height - 4 }, tick(time, stepMs)));
    }
    return parts;
  }

  #lines() {
    const parts = [];
    const base = this.#y(0);
    for (const { look, values } of this.#series) {
      let [line, area, dots, run] = ["", "", "", []];
      const end = () => {
        if (run.length === 1) dots += `M${run[0]}h.01`;
        if (run.length > 1) {
          line += `M${run.join("L")}`;
          area += `M${run[0].split(" ")[0]} ${base}L${run.join("L")}L${run.at(-1).split(" ")[0]} ${base}Z`;
        }
        run = [];
      };
      let before = -Infinity;
      this.#times.forEach((time, i) => {
        if (!Number.isFinite(values[i])) return;
        if (time - before > this.#gapMs) end();
        before = time;
        run.push(`${this.#x(time).toFixed(1)} ${this.#y(values[i]).toFixed(1)}`);
      });
      end();
      if (this.#series.length === 1) parts.push(svg("path", { class: `area s${look}`, d: area }));
      parts.push(svg("path", { class: `line s${look}`, d: line }), svg("path", { class: `dots s${look}`, d: dots }));
    }
    return parts;
  }

  #bars(slot) {
    const [{ look, values } = { values: [] }] = this.#series;
    const [width, base] = [Math.max(1, slot * 0.8), this.#y(0)];
    return values.map((value, i) => {
      const y = this.#y(value || 0);
      return svg("rect", { class: `bar s${look}`, x: this.#x(this.#times[i]) - width / 2, width, y, height: Math.max(0, base - y) });
    });
  }

  /** Shows the values at the point that is nearest to a time, or the last values. */
  select(time, isSource) {
    this.#selected = time;
    const index = time == null || !this.#times.length ? null : this.#nearest(time);
    this.#selectedIndex = index;
    const shown = index ?? this.#times.length - 1;
    for (const { values, readout } of this.#series) readout.textContent = this.format(values[shown]);
    const only = this.#series.length === 1 ? `: ${this.format(this.#series[0].values[shown])}` : "";
    this.when.textContent = index == null ? "" : this.#label(this.#times[index]) + only;
    const values = this.#series.map(({ name, values }) => `${visibleLine(name, 60)} ${this.format(values[shown])}`);
    this.drawing.setAttribute("aria-valuenow", Math.max(0, shown));
    // A text that changes by itself would interrupt a screen reader.
    if (isSource || index == null) {
      this.drawing.setAttribute("aria-valuetext", shown < 0 ? "No values" : `${this.#label(this.#times[shown])}: ${values.join(", ")}`);
    }
    if (!this.mark) return;
    this.mark.replaceChildren();
    if (index == null) return;
    const x = this.#x(this.#times[index]);
    this.mark.append(svg("line", { x1: x, x2: x, y1: MARGIN.top, y2: this.height - MARGIN.bottom }));
    for (const { look, values } of this.kind === "line" ? this.#series : []) {
      if (Number.isFinite(values[index])) this.mark.append(svg("circle", { class: `s${look}`, cx: x, cy: this.#y(values[index]), r: 3.5 }));
    }
  }

  #label(time) {
    const isWithinADay = this.#times.at(-1) - this.#times[0] < DAY_MS;
    return isWithinADay ? clock(time) : timestamp(time);
  }

  #nearest(time) {
    const times = this.#times;
    let [low, high] = [0, times.length - 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (times[middle] < time) low = middle + 1;
      else high = middle;
    }
    return low && time - times[low - 1] < times[low] - time ? low - 1 : low;
  }

  #selectIndex(index) {
    const last = this.#times.length - 1;
    if (last >= 0) this.cursor.move(this.#times[Math.min(last, Math.max(0, index))], this);
  }

  #onPointer(event) {
    const times = this.#times;
    if (times.length < 1) return;
    const x = event.clientX - this.drawing.getBoundingClientRect().left;
    const [left, right] = [this.#x(times[0]), this.#x(times.at(-1))];
    this.cursor.move(times[0] + ((x - left) / (right - left || 1)) * (times.at(-1) - times[0]), this);
  }

  #onKey(event) {
    const at = this.#selectedIndex ?? this.#times.length - 1;
    const page = Math.max(2, Math.round(this.#times.length / 10));
    const to = {
      ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, PageDown: at - page, PageUp: at + page, Home: 0,
      End: this.#times.length - 1,
    }[event.key];
    if (event.key === "Escape") this.cursor.move(null, this);
    if (to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.#selectIndex(to);
  }

  /** The table contains the values of the moment when it is opened, so that it does not change while someone reads it. */
  #showData() {
    this.data.querySelector(".scroll")?.remove();
    if (!this.data.open) return;
    const heads = ["Time", ...this.#series.map(({ name }) => visibleLine(name, 60))];
    const rows = this.#times.map((time, i) => [timestamp(time), ...this.#series.map(({ values }) => this.format(values[i]))]);
    const caption = `${this.title}${rows.length ? `, until ${timestamp(this.#times.at(-1))}` : ": no values"}`;
    this.data.append(scrollable(`Data of ${this.title}`, table(caption, heads, rows.reverse())));
  }
}

/** A bar next to a value in a table. */
export function bar(share, look = 1) {
  const width = Math.max(0, Math.min(1, Number.isFinite(share) ? share : 0)) * 100;
  return svg("svg", { class: "inline-bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 6 }), svg("rect", { class: `bar s${look}`, width, height: 6 }));
}
