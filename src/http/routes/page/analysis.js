// The analysis view: statistics of one value in the reports, over time and by group.

import { json, latestReports } from "./api.js";
import { Cursor, TimeChart, bar, binaryCeiling, millisecondsCeiling, niceCeiling, secondsCeiling } from "./chart.js";
import { alertBox, el, field, scrollable, table } from "./dom.js";
import * as f from "./format.js";
import { NAMES, NETWATCH, errorPaths, groupPaths, isNetwatch, pathsOf, timePaths, unitOf, valuePaths } from "./paths.js";

const RANGES = { "15m": "Last 15 minutes", "1h": "Last hour", "6h": "Last 6 hours", "1d": "Last day", "7d": "Last 7 days", "30d": "Last 30 days" };
const STEPS = {
  "10s": 10, "30s": 30, "1m": 60, "2m": 120, "5m": 300, "10m": 600, "15m": 900, "30m": 1800, "1h": 3600, "2h": 7200, "6h": 21_600, "12h": 43_200, "1d": 86_400,
};
/** Reports without a time of arrival have that of their file, which is about a minute long. */
const MIN_AUTO_STEP_S = 60;
const MAX_AUTO_POINTS = 90;
/** More points than this would only slow down the page. */
const MAX_STEPS = 2000;
const GAP_STEPS = 3.5;
const QUANTILES = [0.5, 0.95, 0.99];
const QUANTILE_NAMES = ["p50", "p95", "p99"];
const MAX_LINES = 6;
const TOP = 20;
const MAX_GROUP_IN_URL = 300;
const FORMATS = { ms: f.milliseconds, bytes: f.bytes, s: f.seconds, "": f.number };
const CEILINGS = { ms: millisecondsCeiling, bytes: binaryCeiling, s: secondsCeiling, "": niceCeiling };

const nameOf = (group) => (group === null ? "(none)" : group === "" ? "(empty)" : group);
const nameOfPath = (path) => NAMES[path] ?? f.visibleLine(path, 80);
/** A name as the head of a column. A path stays as it is. */
const headOf = (name) => name[0].toUpperCase() + name.slice(1);
const errorShare = ({ count, errors }) => (count + errors > 0 ? errors / (count + errors) : null);

/** The smallest step with at most `MAX_AUTO_POINTS` points. */
function autoStep(seconds) {
  return Object.keys(STEPS).find((step) => STEPS[step] >= MIN_AUTO_STEP_S && seconds / STEPS[step] <= MAX_AUTO_POINTS) ?? "1d";
}

export function analysis({ parameters, navigate }) {
  const closed = new AbortController();
  let running = new AbortController();
  let current = parameters;
  /** What the charts show, without a request. */
  let [quantile, selected, charts] = [1, null, []];

  const lists = {};
  const control = (name, hint) => {
    lists[name] = el("datalist", { id: `paths-${name}` });
    return el("input", { name, list: `paths-${name}`, type: "text", spellcheck: "false", autocomplete: "off", autocapitalize: "off", maxlength: "1024", placeholder: hint });
  };
  const options = (entries) => Object.entries(entries).map(([value, text]) => el("option", { value }, text));
  const inputs = {
    path: control("path", ".load_ms"),
    by: control("by", "no groups"),
    errors: control("errors", "none"),
    since: el("select", { name: "range", onchange: showCustom }, ...options(RANGES), el("option", { value: "custom" }, "Choose times…")),
    step: el("select", { name: "step" }, el("option", { value: "" }, "automatic"), ...Object.keys(STEPS).map((step) => el("option", { value: step }, step))),
    where: el("input", { name: "where", type: "text", spellcheck: "false", autocomplete: "off", autocapitalize: "off", maxlength: "4000", placeholder: '.geo.country == "DE"' }),
    time: control("time", "time of arrival"),
    from: el("input", { type: "datetime-local", name: "from", step: "1" }),
    to: el("input", { type: "datetime-local", name: "to", step: "1" }),
  };
  inputs.path.required = true;
  const custom = el("div", { class: "fields custom", hidden: true }, field("From", inputs.from), field("To", inputs.to));
  const more = el("details", { class: "more" }, el("summary", {}, "More options"),
    el("div", { class: "fields" },
      field("Only reports that match (jq)", inputs.where), field("Time of a report", inputs.time, "A path, if reports have a time of their own"), field("Step", inputs.step)));
  const form = el(
    "form", { class: "card analysis-form", onsubmit: submit },
    el("div", { class: "fields" }, field("Value", inputs.path), field("Group by", inputs.by), field("Failed if it has", inputs.errors), field("Time range", inputs.since)),
    custom, more,
    el("div", { class: "row" }, el("button", { type: "submit", class: "primary" }, "Show"), el("p", { class: "now", role: "status" })),
    ...Object.values(lists),
  );
  const status = form.querySelector("[role=status]");
  const results = el("div", { class: "results" });
  const element = el("div", {}, el("h1", { tabindex: "-1" }, "Analysis"), form, results);

  function showCustom() {
    custom.hidden = inputs.since.value !== "custom";
  }

  function submit(event) {
    event.preventDefault();
    navigate("analysis", readForm());
  }

  function readForm() {
    const text = (name) => inputs[name].value.trim();
    const isoOf = (input) => (input.value ? new Date(input.value).toISOString() : "");
    const times = inputs.since.value === "custom" ? { since: isoOf(inputs.from), until: isoOf(inputs.to) } : { since: inputs.since.value };
    return { path: text("path"), by: text("by"), errors: text("errors"), ...times, step: inputs.step.value, where: text("where"), time: text("time") };
  }

  function fillForm(from) {
    for (const name of ["path", "by", "errors", "where", "time"]) inputs[name].value = from.get(name) ?? "";
    const since = from.get("since") || "1h";
    inputs.since.value = since in RANGES && !from.get("until") ? since : "custom";
    if (inputs.since.value === "custom") {
      inputs.from.value = localTime(startOf(since));
      inputs.to.value = from.get("until") ? localTime(new Date(from.get("until"))) : "";
    }
    inputs.step.value = STEPS[from.get("step")] ? from.get("step") : "";
    if (from.get("where") || from.get("time") || from.get("step")) more.open = true;
    showCustom();
  }

  /** Suggests paths from the latest reports. Without parameters, shows what these reports are about. */
  async function start() {
    fillForm(current);
    const isFirst = !current.get("path");
    // One query after the other: the server runs only a few at once, for all its users.
    if (!isFirst) await run(current);
    try {
      if (isFirst) status.textContent = "Looking at the latest reports…";
      const found = pathsOf(await latestReports(closed.signal));
      if (closed.signal.aborted) return;
      const suggestions = { path: valuePaths(found), by: groupPaths(found), errors: errorPaths(found), time: timePaths(found) };
      for (const [name, paths] of Object.entries(suggestions)) lists[name].replaceChildren(...paths.map((path) => el("option", { value: path })));
      if (!isFirst || current.get("path")) return;
      status.textContent = "";
      const preset = isNetwatch(found) ? { path: NETWATCH.value, by: NETWATCH.group, errors: NETWATCH.errors } : { path: suggestions.path[0] };
      if (!preset.path) {
        const text = found.length ? "The latest reports contain no numbers. Enter the path of a value." : "There are no reports yet.";
        return results.replaceChildren(el("p", { class: "notice" }, text));
      }
      // The address contains the view, but the way back does not stop here.
      navigate("analysis", { ...preset, since: current.get("since") ?? "1h" }, { replace: true });
    } catch (error) {
      if (closed.signal.aborted) return;
      status.textContent = "";
      if (isFirst) results.replaceChildren(alertBox(f.visible(error.message, 1000)));
    }
  }

  async function run(from) {
    running.abort();
    running = new AbortController();
    const { signal } = running;
    const get = (name) => from.get(name) ?? "";
    const since = get("since") || "1h";
    const length = Math.max(1, ((get("until") ? Date.parse(get("until")) : Date.now()) - startOf(since)) / 1000);
    let step = STEPS[get("step")] ? get("step") : autoStep(length);
    if (length / STEPS[step] > MAX_STEPS) step = autoStep(length);
    const common = { since, until: get("until"), where: get("where"), time: get("time"), format: "json", quantiles: QUANTILES.join() };
    const by = get("by");
    status.textContent = "Calculating…";
    results.setAttribute("aria-busy", "true");
    const started = performance.now();
    try {
      const answer = await json("api/v1/stats", { ...common, path: get("path"), by, errors: get("errors"), step, top: TOP }, signal);
      if (signal.aborted) return;
      show(answer, { from, step });
      results.removeAttribute("aria-busy");
      status.textContent = `${f.number(answer.reports_matched)} of ${f.number(answer.reports)} reports, ${f.milliseconds(performance.now() - started)}`;
      if (by === NETWATCH.group && get("path") === NETWATCH.value) {
        const countries = { ...common, path: NETWATCH.value, by: NETWATCH.country, distinct: NETWATCH.client, top: TOP };
        showCountries(await json("api/v1/stats", countries, signal).catch((error) => error), signal);
      }
    } catch (error) {
      if (signal.aborted || closed.signal.aborted) return;
      status.textContent = "";
      clearCharts();
      results.replaceChildren(alertBox(f.visible(error.message, 1000)));
    } finally {
      if (!signal.aborted) results.removeAttribute("aria-busy");
    }
  }

  function clearCharts() {
    for (const chart of charts) chart.remove();
    charts = [];
  }

  function show(answer, { from, step }) {
    clearCharts();
    const format = FORMATS[unitOf(answer.path)];
    const { series } = answer;
    const hasGroups = Boolean(answer.by);
    const hasErrors = Boolean(from.get("errors"));
    const all = answer.other ? [...series, { ...answer.other, group: undefined }] : series;
    const stepMs = STEPS[step] * 1000;
    const label = hasGroups ? nameOfPath(answer.by) : "";
    const name = nameOfPath(answer.path);
    if (!all.some(({ count, errors }) => count || errors)) {
      return results.replaceChildren(el("p", { class: "notice" }, "No report in this time range has this value. Check the path, or choose a longer time range."));
    }

    const cursor = new Cursor();
    const times = axis(all, stepMs);
    const at = ({ points = [] }) => {
      const byTime = new Map(points.map((point) => [Date.parse(point.time), point]));
      return times.map((time) => byTime.get(time));
    };
    const main = new TimeChart({ title: headOf(name), format, height: 240, cursor, ceilingOf: CEILINGS[unitOf(answer.path)] });
    const count = new TimeChart({ title: "Values per step", format: f.number, kind: "bar", height: 110, cursor, note: `One step is ${step}.` });
    const failed = hasErrors && new TimeChart({ title: "Error share", format: f.percent, height: 110, cursor });
    charts = [main, count, failed].filter(Boolean);
    const choice = hasGroups && el("div", { class: "choice", role: "group", "aria-label": "Quantile" }, ...QUANTILE_NAMES.map((name, i) =>
      el("button", { type: "button", "aria-pressed": String(i === quantile), onclick: () => ((quantile = i), draw()) }, name)));
    const back = hasGroups && el("button", { type: "button", hidden: true, onclick: () => pick(null) }, "All groups");
    if (choice) main.drawing.before(el("div", { class: "row tools" }, choice, back));

    const groups = new Map(series.map((one) => [nameOf(one.group), one]));
    const wanted = from.get("group");
    selected = wanted !== null && groups.has(wanted) ? groups.get(wanted) : null;

    function draw() {
      const one = hasGroups ? selected : all[0];
      const points = one && at(one);
      const lines = one
        ? QUANTILE_NAMES.map((name, i) => ({ name, look: i + 1, values: points.map((point) => point?.quantiles?.[i] ?? null) }))
        : series.slice(0, MAX_LINES).map((one, i) => ({ name: nameOf(one.group), look: (i % 8) + 1, values: at(one).map((point) => point?.quantiles?.[quantile] ?? null) }));
      main.setTitle(one ? (hasGroups ? `${headOf(name)}: ${f.visibleLine(nameOf(one.group), 60)}` : headOf(name)) : `${QUANTILE_NAMES[quantile]} of ${name} by ${label}`);
      main.set({ times, series: lines, gapMs: stepMs * GAP_STEPS });
      main.setNote(one || series.length <= MAX_LINES ? "" : `The ${MAX_LINES} largest groups. Choose another one in the table.`);
      const shown = one ? [one] : all;
      const total = (key) => times.map((_, i) => shown.reduce((sum, series) => sum + (pointsOf.get(series)[i]?.[key] ?? 0), 0));
      const counts = total("count");
      count.set({ times, series: [{ name: "values", values: counts }], now: f.number(shown.reduce((sum, { count }) => sum + count, 0)) });
      if (failed) {
        const errors = total("errors");
        const values = counts.map((count, i) => errorShare({ count, errors: errors[i] }));
        const sums = shown.reduce((sum, { count, errors }) => ({ count: sum.count + count, errors: sum.errors + errors }), { count: 0, errors: 0 });
        failed.set({ times, series: [{ name: "errors", look: 3, values }], gapMs: stepMs * GAP_STEPS, now: f.percent(errorShare(sums)) });
      }
      if (!choice) return;
      choice.hidden = Boolean(one);
      back.hidden = !one;
      [...choice.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === quantile)));
      for (const button of results.querySelectorAll("button.group")) button.setAttribute("aria-pressed", String(button.value === String(series.indexOf(one))));
    }

    function pick(series) {
      selected = series;
      const group = series ? nameOf(series.group) : "";
      // A group with a very long name is not part of the address.
      if (group.length <= MAX_GROUP_IN_URL) {
        current = new URLSearchParams(current);
        if (series) current.set("group", group);
        else current.delete("group");
        navigate("analysis", Object.fromEntries(current), { replace: true, silent: true });
      }
      draw();
      if (!series) main.drawing.focus();
    }

    const pointsOf = new Map(all.map((one) => [one, at(one)]));
    const tables = el("div", { class: "grid wide" });
    if (hasGroups) tables.append(slowest(all, series, { format, label, pick }));
    else tables.append(summary(all[0], { format, hasErrors }));
    if (hasGroups && hasErrors) tables.append(errorTable(all, label));
    results.replaceChildren(main.element, el("div", { class: "grid pair" }, count.element, failed && failed.element), tables);
    draw();
  }

  function showCountries(answer, signal) {
    if (signal.aborted) return;
    const card = el("section", { class: "card", "aria-labelledby": "countries" }, el("h2", { id: "countries" }, "Clients by country"));
    results.querySelector(".grid.wide")?.append(card);
    if (answer instanceof Error) return card.append(alertBox(f.visible(answer.message, 500)));
    const rows = [...answer.series].sort((a, b) => (b.distinct ?? 0) - (a.distinct ?? 0));
    const most = rows[0]?.distinct ?? 0;
    card.append(scrollable("Clients by country", table("Different clients, and the latency that they see", ["Country", "Clients", "", "p50", "p95"], rows.map((one) => [
      f.visibleLine(nameOf(one.group), 40), f.number(one.distinct), bar(one.distinct / most, 4), f.milliseconds(one.quantiles?.[0]), f.milliseconds(one.quantiles?.[1])]))));
  }

  start();
  return {
    title: "Analysis",
    element,
    update(next) {
      current = next;
      if (!next.get("path")) return start();
      fillForm(next);
      run(next);
    },
    close() {
      closed.abort();
      running.abort();
      clearCharts();
    },
  };
}

/** The steps from the first to the last one that has a value. */
function axis(series, stepMs) {
  let [first, last] = [Infinity, -Infinity];
  for (const { points = [] } of series) {
    for (const { time } of points) {
      first = Math.min(first, Date.parse(time));
      last = Math.max(last, Date.parse(time));
    }
  }
  const times = [];
  for (let time = first; time <= last && times.length < MAX_STEPS; time += stepMs) times.push(time);
  return times;
}

function slowest(all, series, { format, label, pick }) {
  const rows = [...all].sort((a, b) => (b.quantiles?.[2] ?? -1) - (a.quantiles?.[2] ?? -1));
  const most = rows[0]?.quantiles?.[2] ?? 0;
  const cells = (one) => {
    const text = one.group === undefined ? "all others" : f.visibleLine(nameOf(one.group), 60);
    const first = one.group === undefined ? text
      : el("button", { type: "button", class: "group link", value: series.indexOf(one), "aria-pressed": "false", onclick: () => pick(one) }, text);
    return [first, ...(one.quantiles ?? []).map((value) => format(value)), bar((one.quantiles?.[2] ?? 0) / most, 3), f.number(one.count)];
  };
  const heads = [headOf(label), ...QUANTILE_NAMES, "", "Values"];
  return el("section", { class: "card", "aria-labelledby": "slowest" }, el("h2", { id: "slowest" }, "Slowest groups"),
    scrollable("Slowest groups", table("By p99. A name shows that group alone.", heads, rows.map(cells))));
}

function errorTable(all, label) {
  const rows = [...all].sort((a, b) => (errorShare(b) ?? -1) - (errorShare(a) ?? -1));
  const most = errorShare(rows[0]) || 1;
  const cells = (one) => [one.group === undefined ? "all others" : f.visibleLine(nameOf(one.group), 60), f.percent(errorShare(one)), bar(errorShare(one) / most, 3), f.number(one.errors)];
  return el("section", { class: "card", "aria-labelledby": "errors" }, el("h2", { id: "errors" }, `Error share by ${label}`),
    scrollable(`Error share by ${label}`, table("Errors, of all values and errors", [headOf(label), "Share", "", "Errors"], rows.map(cells))));
}

function summary(one, { format, hasErrors }) {
  const rows = [["Minimum", format(one.min)], ["Mean", format(one.mean)], ...QUANTILE_NAMES.map((name, i) => [name, format(one.quantiles?.[i])]),
    ["Maximum", format(one.max)], ["Values", f.number(one.count)], ...(hasErrors ? [["Error share", f.percent(errorShare(one))]] : [])];
  return el("section", { class: "card", "aria-labelledby": "summary" }, el("h2", { id: "summary" }, "Summary"), table("The whole time range", ["", "Value"], rows));
}

/** The time that a relative or absolute start of a range means now. */
function startOf(since) {
  const [, amount, unit] = /^(\d+)([smhdw])$/.exec(since) ?? [];
  if (amount) return new Date(Date.now() - amount * { s: 1, m: 60, h: 3600, d: 86_400, w: 604_800 }[unit] * 1000);
  const time = new Date(since);
  return Number.isNaN(time.getTime()) ? new Date(Date.now() - 3_600_000) : time;
}

/** The value of a field for a local time. */
function localTime(time) {
  return Number.isNaN(time.getTime()) ? "" : new Date(time.getTime() - time.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}
