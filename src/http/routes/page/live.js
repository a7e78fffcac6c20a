// The live view: the state of the server, once per second, and the latest reports.

import { Cursor, TimeChart, binaryCeiling, millisecondsCeiling, niceCeiling, secondsCeiling } from "./chart.js";
import { el } from "./dom.js";
import * as f from "./format.js";
import { Stream } from "./stream.js";
import { tail } from "./tail.js";

/** Snapshots of the last minutes. */
const KEPT_MS = 5 * 60_000;
const GAP_MS = 3500;
/** The server sends a snapshot every second. */
const SILENCE_MS = 10_000;
const MAX_REASONS = 5;
const MANY_YEARS_S = 10 * 365 * 86_400;

/** Collects snapshots as long as the session lasts, also while another view is shown. */
export class Snapshots extends EventTarget {
  list = [];
  #stream = null;

  start() {
    this.#stream ??= new Stream("api/v1/live", {
      idleMs: SILENCE_MS,
      onEvent: ({ data }) => this.#add(JSON.parse(data)),
      onState: (state) => this.dispatchEvent(new CustomEvent("state", { detail: state })),
    });
  }

  stop() {
    this.#stream?.stop();
    this.#stream = null;
    this.list = [];
  }

  #add(snapshot) {
    const before = this.list.at(-1);
    // Counters that decrease belong to another process. Its first snapshot has no rates.
    const isSame = before && snapshot.now_ms > before.now_ms && snapshot.uptime_seconds >= before.uptime_seconds;
    const seconds = isSame ? (snapshot.now_ms - before.now_ms) / 1000 : NaN;
    const rate = (after, earlier) => (isSame ? Math.max(0, after - (earlier ?? 0)) / seconds : null);
    const refused = Object.entries(snapshot.refused ?? {});
    snapshot.rates = {
      reports: rate(snapshot.reports, before?.reports),
      bytes: rate(snapshot.bytes, before?.bytes),
      refused: Object.fromEntries(refused.map(([reason, count]) => [reason, rate(count, before?.refused?.[reason])])),
    };
    if (before && !(snapshot.now_ms > before.now_ms)) this.list = [];
    this.list.push(snapshot);
    const kept = this.list.findIndex(({ now_ms }) => snapshot.now_ms - now_ms <= KEPT_MS);
    this.list.splice(0, kept);
    this.dispatchEvent(new Event("snapshot"));
  }
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

/** Seconds until the disk is full, if reports arrive as on average since the start and nothing is deleted. */
export function secondsUntilFull({ disk_free_bytes, written_bytes, uptime_seconds }) {
  if (!(uptime_seconds >= 60) || !(written_bytes > 0)) return null;
  return disk_free_bytes / (written_bytes / uptime_seconds);
}

export function live({ snapshots, parameters, navigate }) {
  const cursor = new Cursor();
  const chart = (options) => new TimeChart({ cursor, ...options });
  const charts = {
    reports: chart({ title: "Reports", format: f.perSecond }),
    bytes: chart({ title: "Bytes", format: f.bytesPerSecond, ceilingOf: binaryCeiling }),
    refused: chart({ title: "Refused requests", format: f.perSecond }),
    latency: chart({ title: "Latency", format: f.milliseconds, ceilingOf: millisecondsCeiling }),
    journal: chart({ title: "Journal", format: f.milliseconds, ceilingOf: millisecondsCeiling }),
    buffer: chart({ title: "Buffer", format: f.percent, ceilingOf: (share) => Math.max(0.1, niceCeiling(share)) }),
    backlog: chart({ title: "Flush backlog", format: f.seconds, ceilingOf: secondsCeiling }),
    disk: chart({ title: "Free disk", format: f.bytes, ceilingOf: binaryCeiling }),
  };
  // A reason keeps its colour when the order changes.
  const looks = new Map();
  const lookOf = (reason) => looks.get(reason) ?? looks.set(reason, (looks.size % 7) + 2).get(reason);
  const facts = el("dl", { class: "facts" });
  const alarms = el("div", { role: "alert" });
  const waiting = el("p", { class: "notice" }, "Waiting for the first values…");
  const board = el("div", { class: "grid", hidden: true }, ...Object.values(charts).map(({ element }) => element));

  let alarmText = "";
  function show() {
    const { list } = snapshots;
    const last = list.at(-1);
    if (!last) return;
    waiting.hidden = true;
    board.hidden = false;
    const times = list.map(({ now_ms }) => now_ms);
    const set = (name, series, now, atLeast) =>
      charts[name].set({ times, gapMs: GAP_MS, now, atLeast, series: series.map(([name, get, look]) => ({ name, look, values: list.map(get) })) });

    set("reports", [["reports", (s) => s.rates.reports]], f.perSecond(last.rates.reports));
    charts.reports.setNote(`${f.number(last.reports)} since the start`);
    set("bytes", [["bytes", (s) => s.rates.bytes]], f.bytesPerSecond(last.rates.bytes));
    const compression = last.written_bytes > 0 ? `, compressed to ${f.bytes(last.written_bytes)}` : "";
    charts.bytes.setNote(`${f.bytes(last.bytes)} since the start${compression}`);

    const total = Object.entries(last.refused ?? {}).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1]);
    const top = total.slice(0, MAX_REASONS).map(([reason]) => [reason, (s) => s.rates.refused[reason] ?? (s.rates.reports == null ? null : 0), lookOf(reason)]);
    const refusedNow = last.rates.reports == null ? null : sum(Object.values(last.rates.refused));
    set("refused", top.length ? top : [["all", (s) => (s.rates.reports == null ? null : 0), 2]], f.perSecond(refusedNow));
    charts.refused.setNote(total.length
      ? `Since the start: ${total.slice(0, 8).map(([reason, count]) => `${f.visibleLine(reason, 40)} ${f.number(count)}`).join(", ")}`
      : "None since the start.");

    set("latency", ["p50", "p95", "p99"].map((q, i) => [q, (s) => s.latency_ms?.[q], i + 1]), `p99 ${f.milliseconds(last.latency_ms?.p99)}`);
    set("journal", ["p50", "p99"].map((q, i) => [q, (s) => s.journal_commit_ms?.[q], i ? 3 : 1]), `p99 ${f.milliseconds(last.journal_commit_ms?.p99)}`);

    const share = (part, whole) => (whole > 0 ? part / whole : 0);
    set("buffer", [["memory", (s) => share(s.buffer_bytes, s.buffer_max_bytes), 1], ["spill", (s) => share(s.spilled_bytes, s.spill_max_bytes), 2]],
      f.percent(share(last.buffer_bytes, last.buffer_max_bytes)));
    const { free, active, sealed } = last.batches ?? {};
    charts.buffer.setNote(`${f.bytes(last.buffer_bytes)} of ${f.bytes(last.buffer_max_bytes)} in memory, ${f.bytes(last.spilled_bytes)} of ${f.bytes(last.spill_max_bytes)} spilled`);

    set("backlog", [["age", (s) => s.oldest_unflushed_seconds ?? 0]], f.seconds(last.oldest_unflushed_seconds ?? 0), 10);
    charts.backlog.setNote(`Age of the oldest report that is in no file. Batches: ${f.whole(free)} free, ${f.whole(active)} active, ${f.whole(sealed)} waiting for the flush`);

    set("disk", [["free", (s) => s.disk_free_bytes]], f.bytes(last.disk_free_bytes), last.disk_total_bytes);
    const full = secondsUntilFull(last);
    const rate = "at the average rate since the start and without deletions";
    const when = full > MANY_YEARS_S ? "in more than ten years" : `in ${f.seconds(full)}`;
    charts.disk.setNote(`${f.bytes(last.disk_free_bytes)} of ${f.bytes(last.disk_total_bytes)}. ${full == null ? "Days until full: not known yet." : `Full ${when}, ${rate}.`}`);

    facts.replaceChildren(...[
      ["Running for", f.seconds(last.uptime_seconds)],
      ["Requests", f.number(last.requests)],
      ["Connections", f.whole(last.connections)],
      ["Report files", `${f.whole(last.files)}, ${f.bytes(last.files_bytes)}`],
      ["Lost", f.whole(last.lost)],
    ].map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));

    const texts = [
      last.disk_full && "The disk is full: the server refuses reports.",
      last.lost > 0 && `${f.whole(last.lost)} acknowledged reports are lost. The log has the reason.`,
    ].filter(Boolean);
    if (texts.join() !== alarmText) alarms.replaceChildren(...texts.map((text) => el("p", { class: "notice bad" }, text)));
    alarmText = texts.join();
  }

  const reports = tail({ filter: parameters.get("filter") ?? "", onFilter: (filter) => navigate("live", { filter }) });
  snapshots.addEventListener("snapshot", show);
  show();
  return {
    title: "Live",
    element: el("div", {}, el("h1", { tabindex: "-1" }, "Live"), alarms, facts, waiting, board, reports.element),
    update: (next) => reports.setFilter(next.get("filter") ?? ""),
    close() {
      snapshots.removeEventListener("snapshot", show);
      reports.close();
    },
  };
}
