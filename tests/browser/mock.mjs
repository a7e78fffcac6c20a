// A server that answers like netwatch-server, with generated reports, for the tests of the page.
//
// Run it alone to work on the page: node mock.mjs PORT. The token is "page-test-token-1".

import { once } from "node:events";
import { readFileSync, readdirSync } from "node:fs";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";

const PAGE = fileURLToPath(new URL("../../src/http/routes/page/", import.meta.url));
const TYPES = { html: "text/html; charset=utf-8", css: "text/css; charset=utf-8", js: "text/javascript; charset=utf-8", svg: "image/svg+xml" };
/** The policy of the real server, so that the tests apply it. */
const POLICY = /"(default-src[^"]*)"/.exec(readFileSync(`${PAGE}mod.rs`, "utf8"))[1].replace(/\\\n\s*/, "");

export const TOKEN = "page-test-token-1";

/** A repeatable source of numbers from 0 to 1. */
function random(seed) {
  return () => {
    seed = (seed * 1_664_525 + 1_013_904_223) >>> 0;
    return seed / 2 ** 32;
  };
}

const PLACES = [["DE", 31], ["US", 24], ["FR", 14], ["BR", 9], ["IN", 8], ["JP", 6], ["KE", 5], ["AU", 3]];
const HOSTS = [["api", 42, 0.004], ["auth", 65, 0.002], ["cdn", 12, 0.001], ["images", 28, 0.009], ["search", 118, 0.021]];

/** Reports like those of NetWatch, over the last hours, the oldest first. */
export function netwatchReports(count = 2500, hours = 3, now = Date.now()) {
  const next = random(7);
  const normal = () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
  const clients = Array.from({ length: 220 }, (_, i) => {
    let pick = next() * 100;
    const [country] = PLACES.find(([, share]) => (pick -= share) < 0) ?? PLACES[0];
    return { id: `client-${i.toString(16).padStart(4, "0")}`, country, distance: { DE: 1, FR: 1.1, US: 1.7, JP: 2.3, BR: 2.2, IN: 2, KE: 2.6, AU: 2.9 }[country] };
  });
  return Array.from({ length: count }, (_, i) => {
    const at = now - hours * 3_600_000 * (1 - (i + 1) / count);
    const client = clients[Math.floor(next() * clients.length)];
    const isIncident = at > now - 0.45 * 3_600_000 && at < now - 0.3 * 3_600_000;
    const hosts = HOSTS.slice(0, 2 + Math.floor(next() * 4)).map(([name, median, failures]) => {
      const slow = isIncident && name === "search" ? 3.2 : 1;
      const history = Array.from({ length: 6 }, (_, n) => {
        const t = Math.round(at - (6 - n) * 5000);
        if (next() < failures * slow * slow) return { t, error: "timeout" };
        return { t, latency: Math.round(median * slow * client.distance * (1 + 0.25 * Math.sin(at / 2_400_000)) * Math.exp(0.45 * normal()) * 10) / 10 };
      });
      return { name, url: `https://${name}.example.com/health`, status: history.at(-1).error ? "down" : "up", history };
    });
    return { clientId: client.id, seq: i, timestamp: new Date(at).toISOString(), geo: { country: client.country }, hosts, _at: at };
  });
}

const NASTY = "<img src=x onerror=\"globalThis.hacked=1\"><script>globalThis.hacked=1</script>\u202e\u2066gnp.exe\u2069\u0000\u0007\u001b[31m\ud800\u200b\u2028</td></svg>";

/** Reports whose every key and value attacks the page. */
export function hostileReports(now = Date.now()) {
  const long = "<script>globalThis.hacked=1</script>A".repeat(28_000);
  let deep = { load_ms: 1 };
  for (let i = 0; i < 100; i += 1) deep = { deep };
  const names = [NASTY, long, "", "__proto__", "constructor", "</script><script>globalThis.hacked=1</script>", "${globalThis.hacked=1}", "javascript:globalThis.hacked=1", "\u202e".repeat(300), "Z\u0351\u036b\u0343".repeat(500)];
  return names.map((name, i) => {
    const report = JSON.parse('{"__proto__":{"load_ms":3},"constructor":1,"toString":"x"}');
    Object.assign(report, { load_ms: 100 + 10 * i, [NASTY]: NASTY, page: name, deep, hosts: [{ name, history: [{ latency: 5 + i }, { error: NASTY }] }], huge: 1.7e308, list: Array(1000).fill(i), _at: now - (names.length - i) * 60_000 });
    if (i === 1) report.text = long;
    return report;
  });
}

/** The values at a path. Each has the part of the report that it shares with `other`. */
function steps(path) {
  return [...path.matchAll(/\.?\[\]|\.?\["((?:[^"\\]|\\.)*)"\]|\."((?:[^"\\]|\\.)*)"|\.([A-Za-z_]\w*)/g)].map(([text, a, b, plain]) => (text.endsWith("[]") ? null : plain ?? JSON.parse(`"${a ?? b}"`)));
}

function walk(value, path, from = 0) {
  for (let i = from; i < path.length; i += 1) {
    if (path[i] === null) return Array.isArray(value) ? value.flatMap((element) => walk(element, path, i + 1)) : [];
    if (value === null || typeof value !== "object" || !Object.hasOwn(value, path[i])) return [];
    value = value[path[i]];
  }
  return [value];
}

/** The length of the prefix that two paths share, up to the last [] in it. */
function shared(a, b) {
  let [n, last] = [0, 0];
  while (n < a.length && n < b.length && a[n] === b[n]) {
    n += 1;
    if (a[n - 1] === null) last = n;
  }
  return last;
}

function summarize(values, errors, distinct) {
  const sorted = values.sort((a, b) => a - b);
  const at = (q) => (sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] : null);
  return {
    count: sorted.length, errors, min: at(0), mean: sorted.length ? sorted.reduce((a, b) => a + b) / sorted.length : null, max: at(1),
    quantiles: [0.5, 0.95, 0.99].map(at), distinct: distinct ? distinct.size : null,
  };
}

class BadQuery extends Error {}

function statistics(reports, query) {
  const path = steps(query.get("path") ?? "");
  if (!path.length || !query.get("path").startsWith(".")) throw new BadQuery(`path: expected a dot at position 1 of ${JSON.stringify(query.get("path"))}`);
  const [by, errors, distinct] = ["by", "errors", "distinct"].map((name) => query.get(name) && steps(query.get(name)));
  const stepMs = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }[query.get("step")?.slice(-1)] * parseInt(query.get("step"), 10) || null;
  const groups = new Map();
  const inGroup = (group, time) => {
    let found = groups.get(group);
    if (!found) groups.set(group, (found = { values: [], errors: 0, distinct: new Set(), points: new Map() }));
    if (!stepMs) return [found];
    const start = Math.floor(time / stepMs) * stepMs;
    if (!found.points.has(start)) found.points.set(start, { values: [], errors: 0, distinct: new Set() });
    return [found, found.points.get(start)];
  };
  const matched = reports.filter(({ _at }) => _at >= since(query));
  for (const report of matched) {
    const split = by ? shared(path, by) : 0;
    for (const part of walk(report, path.slice(0, split))) {
      const group = by ? walk(part, by, split)[0] ?? null : null;
      for (const holder of walk(part, path.slice(0, -1), split)) {
        const value = holder?.[path.at(-1)];
        const failed = errors && errors.length === path.length && holder?.[errors.at(-1)] != null;
        if (typeof value !== "number" && !failed) continue;
        for (const sum of inGroup(typeof group === "object" && group ? JSON.stringify(group) : group, report._at)) {
          if (typeof value === "number") sum.values.push(value);
          if (failed) sum.errors += 1;
          if (distinct) for (const one of walk(report, distinct)) sum.distinct.add(one);
        }
      }
    }
  }
  const series = [...groups].map(([group, { values, errors, distinct: set, points }]) => ({
    group, ...summarize(values, errors, distinct && set),
    points: [...points].sort((a, b) => a[0] - b[0]).map(([time, one]) => ({ time: new Date(time).toISOString(), ...summarize(one.values, one.errors, distinct && one.distinct) })),
  })).sort((a, b) => b.count - a.count);
  return { path: query.get("path"), by: query.get("by"), step_seconds: stepMs && stepMs / 1000, since: null, until: null, quantiles: [0.5, 0.95, 0.99], series, other: null, reports: reports.length, reports_matched: matched.length };
}

function since(query) {
  const [, amount, unit] = /^(\d+)([smhd])$/.exec(query.get("since") ?? "") ?? [];
  if (amount) return Date.now() - amount * { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }[unit];
  return query.get("since") ? Date.parse(query.get("since")) : 0;
}

const text = (report) => JSON.stringify({ ...report, _at: undefined });

/**
 * Starts the server. `reports` are what it has stored, `files` is the number of report files, and `history` the number of
 * snapshots that `/live` sends at once. `state` can be changed: `isRefusing` closes the server, and `busy` is the number of
 * queries that it refuses, and `snapshot` has members for the snapshots of `/live`.
 */
export async function mock({ port = 0, reports = netwatchReports(), files = 0, history = 0, tailMs = 400 } = {}) {
  const state = { reports, requests: [], isRefusing: false, busy: 0, snapshot: {}, streams: new Set(), cookie: "session=abc123", opened: Date.now(), started: Date.now() - 86_400_000 * 3.2 };
  const assets = Object.fromEntries(readdirSync(PAGE).filter((name) => name.split(".").at(-1) in TYPES).map((name) => [name === "index.html" ? "/" : `/page/${name}`, name]));
  const next = random(11);
  const totals = { reports: 61_480_200, bytes: 73_900_000_000, refused: { "rate-limited": 1802, "too-large": 12, "not-json": 4 }, requests: 61_490_000 };

  function snapshot(now) {
    const wave = 1 + 0.35 * Math.sin(now / 41_000) + 0.15 * Math.sin(now / 9000);
    const arrived = Math.round(820 * wave * (0.9 + 0.2 * next()));
    totals.reports += arrived;
    totals.requests += arrived + 3;
    totals.bytes += arrived * 1200;
    if (next() < 0.25) totals.refused["rate-limited"] += Math.round(next() * 9);
    if (next() < 0.03) totals.refused["not-json"] += 1;
    const age = (now / 1000) % 60;
    return {
      now_ms: now, version: "1.0.0", uptime_seconds: (now - state.started) / 1000, ...structuredClone(totals),
      latency_ms: { p50: 0.3 * wave, p95: 1.1 * wave * (0.8 + 0.4 * next()), p99: 3 * wave * (0.7 + 0.8 * next()) },
      buffer_bytes: Math.round(age * 820 * 1200 * 0.8) % 67_108_864, buffer_max_bytes: 67_108_864, journal_commit_ms: { p50: 0.06 * wave, p99: 0.5 * wave * (0.6 + next()) },
      batches: { free: 4, active: 1, sealed: age < 2 ? 1 : 0 }, oldest_unflushed_seconds: age, spilled_bytes: 0, spill_max_bytes: 2 ** 30,
      disk_free_bytes: 182_300_000_000 - (now % 3_600_000) * 30, disk_total_bytes: 250_000_000_000, disk_full: false,
      files: 4608, files_bytes: 9_420_000_000, written_bytes: 9_200_000_000, connections: 1214, lost: 0, ...state.snapshot,
    };
  }

  const server = createServer((request, response) => {
    const { pathname, searchParams: query } = new URL(request.url, "http://localhost");
    state.requests.push(`${request.method} ${request.url}`);
    const problem = (status, name, detail) =>
      response.writeHead(status, { "content-type": "application/problem+json" }).end(JSON.stringify({ type: `tag:netwatch-server,2026:${name}`, title: name, status, detail }));
    const json = (value) => response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(value));
    const follow = () => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.flushHeaders();
      state.streams.add(response);
      response.on("close", () => state.streams.delete(response));
    };

    if (pathname in assets) {
      const name = assets[pathname];
      return response.writeHead(200, { "content-type": TYPES[name.split(".").at(-1)], "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache" }).end(readFileSync(PAGE + name));
    }
    if (state.isRefusing) return problem(503, "stopping", "The server is shutting down.");
    if (pathname === "/login" && request.method === "POST") {
      let body = "";
      request.on("data", (chunk) => (body += chunk)).on("end", () => {
        if (body !== TOKEN) return problem(401, "admin-token-wrong", "The server does not accept this token. Write keys do not permit reading.");
        response.writeHead(204, { "set-cookie": `${state.cookie}; HttpOnly; SameSite=Strict; Path=/` }).end();
      });
      return;
    }
    if (pathname === "/logout" && request.method === "POST") {
      return response.writeHead(204, { "set-cookie": "session=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0" }).end();
    }
    if (!pathname.startsWith("/api/v1/")) return problem(404, "not-found", "There is no such path.");
    if (!(request.headers.cookie ?? "").includes(state.cookie)) return problem(401, "admin-token-missing", "The request has no admin token.");

    if (pathname === "/api/v1/live") {
      follow();
      const send = (now) => response.write(`data: ${JSON.stringify(snapshot(now))}\n\n`);
      for (let ago = history; ago > 0; ago -= 1) send(Date.now() - ago * 1000);
      send(Date.now());
      const timer = setInterval(() => send(Date.now()), 1000);
      return response.on("close", () => clearInterval(timer));
    }
    if (pathname === "/api/v1/reports/tail") {
      if (query.get("filter")?.includes("((")) return problem(400, "bad-query", "filter: unexpected end of input at position 3");
      follow();
      response.write(": hello\n\n");
      let n = 0;
      const send = () => {
        response.write(`data: ${text(state.reports[n++ % state.reports.length])}\n\n`);
        if (n % 10 === 0) response.write('event: skipped\ndata: {"reports":7}\n\n');
      };
      const timer = setInterval(send, tailMs);
      return response.on("close", () => clearInterval(timer));
    }
    if (pathname === "/api/v1/reports") {
      const latest = state.reports.slice(-(query.get("limit") ?? 100)).reverse();
      return response.writeHead(200, { "content-type": "application/x-ndjson" }).end(latest.map((report) => `${text(report)}\n`).join(""));
    }
    if (pathname === "/api/v1/stats") {
      if (state.busy > 0) {
        state.busy -= 1;
        return problem(503, "too-many-queries", "The server runs other queries. Try again in a moment.");
      }
      try {
        return json(statistics(state.reports, query));
      } catch (error) {
        return problem(400, "bad-query", error.message);
      }
    }
    if (pathname === "/api/v1/files") {
      const until = query.get("until") ? Date.parse(query.get("until")) : Infinity;
      const minute = 60_000;
      const now = Math.floor(state.opened / minute) * minute;
      // An age counts from the newest file. So the number of files does not depend on the time of the request.
      const from = since(query) - (Date.now() - now);
      const all = Array.from({ length: files }, (_, i) => now - (i + 1) * minute).filter((first) => first >= from && first <= until);
      return json({ files: all.slice(0, query.get("limit")).map((first) => ({
        name: `reports-${new Date(first).toISOString().replace(/[-:]/g, "").replace(".000Z", `.${String(123_456_789 + (first / minute) % 1000)}Z`)}-5f3a9c01.jsonl.zst`,
        first: new Date(first).toISOString(), last: new Date(first + 59_000).toISOString(), bytes: 1_940_000 + ((first / minute) % 97) * 4321,
      })) });
    }
    if (pathname.startsWith("/api/v1/files/")) {
      return response.writeHead(200, { "content-type": "application/zstd" }).end("content");
    }
    problem(404, "not-found", "There is no such path.");
  });
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  return {
    ...state,
    state,
    origin: `http://127.0.0.1:${server.address().port}`,
    /** Ends all open streams, as a restart does. */
    interrupt: () => state.streams.forEach((response) => response.destroy()),
    close: () => (server.closeAllConnections(), server.close()),
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const hostile = process.argv.includes("hostile");
  const { origin } = await mock({ port: Number(process.argv[2] ?? 8099), files: 450, history: 240, reports: hostile ? hostileReports() : netwatchReports() });
  console.log(`${origin}/#token=${TOKEN}`);
}
