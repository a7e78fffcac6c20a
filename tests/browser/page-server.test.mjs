// The web page of the real server, in a real browser.
//
// The tests need Chromium, zstdcat and a netwatch-server binary: see common.mjs.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { CHROMIUM, PATIENCE_MS, netwatch, openPage, until } from "./common.mjs";
import { hostileReports, netwatchReports } from "./mock.mjs";

const TOKEN = "a-token-for-the-page+/=";

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"], timeout: PATIENCE_MS });
});
after(() => browser?.close());

const lineOf = (report) => JSON.stringify({ ...report, _at: undefined });

async function send(server, reports) {
  for (let i = 0; i < reports.length; i += 50) {
    const body = reports.slice(i, i + 50).map(lineOf).join("\n");
    const response = await fetch(server.url, { method: "POST", body });
    assert.equal(response.status, 200, await response.text());
  }
}

/** Starts a server that has stored some reports, and opens its page. */
async function open(t, reports, settings = {}) {
  const server = await netwatch(t, { ADMIN_TOKEN: TOKEN, ...settings });
  await send(server, reports);
  return { server, ...(await openPage(t, browser, `http://${server.address}/#token=${encodeURIComponent(TOKEN)}`)) };
}

const fragmentOf = (page) => new URL(page.url()).hash;
const followed = (page) => until("the tail follows", async () => (await page.locator(".tail [role=status]").innerText()) === "Following");

test("the page logs in, follows new reports, filters them and logs out", async (t) => {
  const { page, server, tab } = await open(t, []);
  await page.getByRole("heading", { name: "Live" }).waitFor();
  assert.equal(fragmentOf(page), "#/live");
  const [cookie] = await tab.cookies();
  assert.deepEqual([cookie.httpOnly, cookie.sameSite], [true, "Strict"]);
  await followed(page);
  await send(server, [{ n: 1, text: "first" }]);
  await page.locator(".reports li", { hasText: '{"n":1,"text":"first"}' }).waitFor();
  await page.getByRole("region", { name: "Reports", exact: true }).getByText("1 since the start").waitFor();

  const filter = page.getByLabel("Filter (jq)");
  await filter.fill(".n > 2");
  await filter.press("Enter");
  await followed(page);
  await send(server, [{ n: 2, text: "hidden" }, { n: 3, text: "second" }]);
  await page.locator(".reports li", { hasText: '"second"' }).waitFor();
  assert.equal(await page.locator(".reports li").count(), 1);
  await filter.fill(".n > (");
  await filter.press("Enter");
  await page.locator(".tail .notice.bad").waitFor();
  await until("the tail has stopped", async () => (await page.locator(".tail [role=status]").innerText()) === "Stopped");

  await page.getByRole("button", { name: "Log out" }).click();
  await page.getByLabel("Admin token").waitFor();
  assert.deepEqual(await tab.cookies(), []);
  await page.getByLabel("Admin token").fill("not the token");
  await page.keyboard.press("Enter");
  await page.locator(".login .notice.bad").waitFor();
  await page.check();
});

test("the page analyses reports of NetWatch, and downloads their files", async (t) => {
  const reports = netwatchReports(400, 1);
  const { page, server } = await open(t, reports);
  await until("all reports are in files", () => server.stored().length === reports.length);
  await page.getByRole("link", { name: "Analysis" }).click();
  await page.getByRole("heading", { name: "p95 of latency by host" }).waitFor();
  const rowsOf = async (name) => {
    const rows = page.getByRole("region", { name, exact: true }).locator("tbody tr");
    await rows.first().waitFor();
    return rows.allInnerTexts();
  };
  const cells = (text) => text.split(/\s+/);

  const histories = (host) => reports.flatMap(({ hosts }) => hosts.filter(({ name }) => name === host).flatMap(({ history }) => history));
  const shares = Object.fromEntries((await rowsOf("Error share by host")).map((row) => [cells(row)[0], Number(cells(row)[1])]));
  assert.deepEqual(Object.keys(shares).sort(), ["api", "auth", "cdn", "images", "search"]);
  for (const [host, share] of Object.entries(shares)) {
    const probes = histories(host);
    const expected = (100 * probes.filter(({ error }) => error).length) / probes.length;
    assert.ok(Math.abs(share - expected) <= 0.006, `${host}: ${share} instead of ${expected}`);
  }
  assert.match((await rowsOf("Slowest groups"))[0], /^search/);
  const clients = Object.fromEntries((await rowsOf("Clients by country")).map((row) => [cells(row)[0], Number(cells(row)[1])]));
  const inGermany = new Set(reports.filter(({ geo }) => geo.country === "DE").map(({ clientId }) => clientId)).size;
  assert.ok(Math.abs(clients.DE - inGermany) <= Math.max(1, 0.05 * inGermany), `${clients.DE} clients instead of ${inGermany}`);

  // With the time of the reports themselves, the hour has many steps.
  await page.getByText("More options").click();
  await page.getByLabel("Time of a report").fill(".timestamp");
  await page.getByRole("button", { name: "Show" }).click();
  const slider = page.getByRole("slider").first();
  await until("the chart has many points", async () => Number(await slider.getAttribute("aria-valuemax")) > 50);
  await page.getByLabel("Only reports that match (jq)").fill("(");
  await page.getByRole("button", { name: "Show" }).click();
  await page.locator(".results .notice.bad").waitFor();

  await page.getByRole("link", { name: "Files" }).click();
  const links = page.getByRole("link", { name: /reports-/ });
  await links.first().waitFor();
  let lines = 0;
  for (const link of await links.all()) {
    const [download] = await Promise.all([page.waitForEvent("download"), link.click()]);
    assert.equal(download.suggestedFilename(), await link.innerText());
    lines += execFileSync("zstdcat", ["-f", await download.path()], { encoding: "utf8" }).trim().split("\n").length;
  }
  assert.equal(lines, reports.length);
  await page.check();
});

test("the page follows a server that restarts, without another login", async (t) => {
  const first = await open(t, []);
  const { page, server } = first;
  await followed(page);
  await server.stop();
  await until("the page is disconnected", async () => (await page.locator(".connection").innerText()) === "Disconnected: trying again");
  const next = await netwatch(t, { ADMIN_TOKEN: TOKEN, PORT: server.address.split(":")[1] });
  await until("the page is connected", async () => (await page.locator(".connection").innerText()) === "Connected");
  await followed(page);
  await send(next, [{ n: 1, text: "after the restart" }]);
  await page.locator(".reports li", { hasText: "after the restart" }).waitFor();
  await page.check();
});

test("hostile reports are harmless on every view", async (t) => {
  // The server refuses texts with unpaired surrogates, so they never reach the page.
  const reports = hostileReports().map((report) => JSON.parse(JSON.stringify(report).replaceAll("\\ud800", "")));
  const { page, server } = await open(t, [], { MAX_BODY_BYTES: "8MiB" });
  await followed(page);
  for (const report of reports) await send(server, [report]);
  await until("the reports are there", async () => (await page.locator(".reports li").count()) === reports.length);
  for (const fragment of ["#/analysis", "#/analysis?path=.load_ms&by=.page", "#/analysis?path=.hosts[].history[].latency&by=.hosts[].name&errors=.hosts[].history[].error", "#/files"]) {
    await page.goto(`http://${server.address}/${fragment}`);
    await page.getByRole("heading", { level: 1 }).waitFor();
    await until("nothing is loading", async () => (await page.locator("[aria-busy], .results:empty").count()) === 0);
    assert.equal(await page.locator("main img, main script, main iframe").count(), 0, fragment);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), fragment);
    assert.doesNotMatch(await page.locator("main").innerText(), /[\u0000-\u0008\u202a-\u202e\u2066-\u2069]/u);
    if (fragment.includes(".page")) assert.ok((await page.locator("button.group").count()) >= reports.length - 2, "the server merges groups with very long names");
  }
  await page.check();
});

test("a server without a token says that it is closed", async (t) => {
  const server = await netwatch(t);
  const { page } = await openPage(t, browser, `http://${server.address}/`);
  await page.locator("#problem").waitFor();
  assert.match(await page.locator("#problem").innerText(), /ADMIN_TOKEN/);
  await page.check();
});
