// Pages in a real browser send reports to a server on another origin, with every method that browsers offer.
//
// The tests need Chromium, zstdcat and a netwatch-server binary. CHROMIUM is the path of Chromium (default: /usr/bin).
// NETWATCH_SERVER is the path of the server (default: target/release).

import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { CHROMIUM, PATIENCE_MS, netwatch, until } from "./common.mjs";

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"], timeout: PATIENCE_MS });
});
after(() => browser?.close());

/** Starts a web server, whose pages all have this content and these headers. Returns its origin. */
async function origin(t, html = "", headers = {}) {
  const server = createServer((_, response) => {
    response.writeHead(200, { "content-type": "text/html", ...headers }).end(`<!doctype html><title>app</title>${html}`);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.close());
  return `http://127.0.0.1:${server.address().port}`;
}

async function pageAt(t, url) {
  const page = await browser.newPage();
  t.after(() => page.close());
  await page.goto(url, { timeout: PATIENCE_MS });
  return page;
}

const byWay = (a, b) => (a.way < b.way ? -1 : a.way > b.way ? 1 : 0);

// Runs in the page. Sends reports in every way; each report contains the name of the way. Returns the answers.
async function sendInEveryWay(url) {
  const report = (way) => JSON.stringify({ way, text: "é 💡" });
  const gzip = (text) => {
    const packed = new Blob([text]).stream().pipeThrough(new CompressionStream("gzip"));
    return new Response(packed).blob();
  };
  const requests = {
    string: { body: report("string") },
    json: { body: report("json"), headers: { "content-type": "application/json" } },
    blob: { body: new Blob([report("blob")], { type: "application/json" }) },
    credentials: { body: report("credentials"), credentials: "include" },
    keepalive: { body: report("keepalive"), keepalive: true },
    array: { body: `[${report("array 1")},${report("array 2")}]`, headers: { "content-type": "application/json" } },
    lines: { body: `${report("lines 1")}\n${report("lines 2")}\n` },
    gzip: { body: await gzip(report("gzip")), headers: { "content-encoding": "gzip" } },
    "not JSON": { body: "{" },
    form: { body: new FormData() },
    unknown: { body: "{}", headers: { "content-encoding": "rot13" } },
  };
  const answers = {};
  for (const [way, request] of Object.entries(requests)) {
    const response = await fetch(url, { method: "POST", ...request });
    const { status, accepted, type } = await response.json();
    answers[way] = [response.status, accepted ?? type.split(":").pop(), status];
  }
  // Without CORS, the page can't read the answer, but the server accepts the report.
  await fetch(url, { method: "POST", mode: "no-cors", body: report("no-cors") });
  answers.beacons = [
    navigator.sendBeacon(url, report("beacon string")),
    navigator.sendBeacon(url, new Blob([report("beacon blob")], { type: "application/json" })),
    navigator.sendBeacon(url, await gzip("x").then(() => new Blob([`[${report("beacon batch")}]`]))),
  ];
  addEventListener("pagehide", () => {
    fetch(url, { method: "POST", body: report("keepalive on pagehide"), keepalive: true });
    navigator.sendBeacon(url, report("beacon on pagehide"));
  });
  return answers;
}

const WAYS = [
  "array 1", "array 2", "beacon batch", "beacon blob", "beacon on pagehide", "beacon string", "blob", "credentials",
  "gzip", "json", "keepalive", "keepalive on pagehide", "lines 1", "lines 2", "no-cors", "string",
];

for (const listed of [false, true]) {
  test(`a page of ${listed ? "a listed" : "another"} origin sends in every way and reads the answers`, async (t) => {
    const app = await origin(t);
    const server = await netwatch(t, listed ? { CORS_ALLOW_ORIGINS: `https://a.example,${app}` } : {});
    const page = await pageAt(t, app);
    const answers = await page.evaluate(sendInEveryWay, server.url);
    const one = [200, 1, "ok"];
    const two = [200, 2, "ok"];
    assert.deepEqual(answers, {
      string: one, json: one, blob: one, credentials: one, keepalive: one, array: two, lines: two, gzip: one,
      "not JSON": [400, "not-json", 400],
      form: [415, "unsupported-type", 415],
      unknown: [415, "unsupported-encoding", 415],
      beacons: [true, true, true],
    });
    await page.goto("about:blank");
    await until("all reports are in files", () => server.stored().length >= WAYS.length);
    const reports = await server.stop();
    assert.deepEqual(reports.sort(byWay), WAYS.map((way) => ({ way, text: "é 💡" })));
  });
}

test("a page of an unlisted origin can't send in any way", async (t) => {
  const [app, other] = [await origin(t), await origin(t)];
  const server = await netwatch(t, { CORS_ALLOW_ORIGINS: app });
  const page = await pageAt(t, other);
  const failures = await page.evaluate(async (url) => {
    const requests = [
      { body: "{}" },
      { body: "{}", headers: { "content-type": "application/json" } },
      { body: "{}", keepalive: true },
    ];
    const failed = (request) => fetch(url, { method: "POST", ...request }).then(() => "sent", (error) => error.name);
    const failures = await Promise.all(requests.map(failed));
    navigator.sendBeacon(url, "{}");
    // Sent after the beacon and in the same way. The page can't read the answer.
    await fetch(url, { method: "POST", mode: "no-cors", body: "{}" });
    return failures;
  }, server.url);
  assert.deepEqual(failures, ["TypeError", "TypeError", "TypeError"]);
  await page.goto("about:blank");
  // A page of the listed origin can send.
  const allowed = await pageAt(t, app);
  await allowed.evaluate((url) => fetch(url, { method: "POST", body: '{"way":"listed"}' }), server.url);
  assert.deepEqual(await server.stop(), [{ way: "listed" }]);
});

test("a repeated request with the same key is stored once, by fetch and by beacon", async (t) => {
  const server = await netwatch(t, { DEDUP_WINDOW: "1h" });
  const page = await pageAt(t, await origin(t));
  const answers = await page.evaluate(async (url) => {
    const key = crypto.getRandomValues(new Uint32Array(4)).join("-");
    const send = () => fetch(url, { method: "POST", body: '{"way":"once"}', headers: { "idempotency-key": key } });
    const answers = await Promise.all([send(), send()].map(async (response) => (await response).json()));
    navigator.sendBeacon(`${url}?idempotency_key=${key}`, '{"way":"once"}');
    navigator.sendBeacon(url, '{"way":"without"}');
    return answers;
  }, server.url);
  assert.deepEqual(answers, [{ status: "ok", accepted: 1 }, { status: "ok", accepted: 1 }]);
  await page.goto("about:blank");
  await until("the last report is in a file", () => server.stored().some(({ way }) => way === "without"));
  assert.deepEqual((await server.stop()).sort(byWay), [{ way: "once" }, { way: "without" }]);
});

test("the server accepts the report of the browser about a policy violation", async (t) => {
  const server = await netwatch(t);
  const policy = `img-src 'none'; report-uri ${server.url}`;
  await pageAt(t, await origin(t, "<img src=x>", { "content-security-policy": policy }));
  await until("the report of the browser is in a file", () => server.stored().length > 0);
  const [report] = await server.stop();
  assert.equal(report["csp-report"]["effective-directive"], "img-src");
});
