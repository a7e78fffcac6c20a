// The web page, in a real browser, against a mock of the server: every view, by mouse and keyboard, in light and dark.
//
// The tests need Chromium. CHROMIUM is its path (default: /usr/bin). SCREENSHOTS is a directory for pictures of the page.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { CHROMIUM, PATIENCE_MS, openPage, until } from "./common.mjs";
import { TOKEN, hostileReports, mock, netwatchReports } from "./mock.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const ANALYSIS = "#/analysis?path=.hosts%5B%5D.history%5B%5D.latency&by=.hosts%5B%5D.name&since=1h";

let browser;
before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"], timeout: PATIENCE_MS });
});
after(() => browser?.close());

/** Starts a mock server and opens its page, logged in unless there is another fragment. */
async function open(t, { fragment = `#token=${TOKEN}`, server: options, ...context } = {}) {
  const server = await mock(options);
  t.after(() => server.close());
  return { server, ...(await openPage(t, browser, `${server.origin}/${fragment}`, context)) };
}

const shown = (page, text) => page.getByText(text).first().waitFor();
const chart = (page, title) => page.getByRole("region", { name: title, exact: true });
const fragmentOf = (page) => new URL(page.url()).hash;

/** Waits until the view shows its data. */
async function ready(page, view) {
  if (view.startsWith("#/analysis")) await page.getByRole("slider").first().waitFor();
  else if (view === "#/files") await page.getByRole("link", { name: /reports-/ }).first().waitFor();
  else if (view === "#/live") await page.locator(".reports li").nth(1).waitFor();
}

test("a wrong token is refused with the reason, and the right one opens the page", async (t) => {
  const { page, tab, server } = await open(t, { fragment: "#/files", server: { files: 3 } });
  const field = page.getByLabel("Admin token");
  await field.fill("wrong");
  await field.press("Enter");
  await shown(page, "The server does not accept this token.");
  await field.fill(TOKEN);
  await page.getByRole("button", { name: "Log in" }).click();
  // The view that was asked for, not another one.
  await page.getByRole("heading", { name: "Files" }).waitFor();
  await ready(page, "#/files");
  const [cookie] = await tab.cookies();
  assert.deepEqual([cookie.httpOnly, cookie.sameSite], [true, "Strict"]);
  const kept = await page.evaluate(() => JSON.stringify([location.href, { ...localStorage }, { ...sessionStorage }, document.cookie, document.documentElement.outerHTML]));
  assert.ok(!kept.includes(TOKEN));
  assert.ok(server.state.requests.every((request) => !request.includes(TOKEN)));
  await page.check();
});

test("a token in the fragment logs in, and stays neither in the address nor in the history", async (t) => {
  const { page } = await open(t);
  await ready(page, "#/live");
  assert.equal(fragmentOf(page), "#/live");
  await page.getByRole("link", { name: "Files" }).click();
  await page.getByRole("heading", { name: "Files" }).waitFor();
  await page.goBack();
  await page.getByRole("heading", { name: "Live" }).waitFor();
  assert.equal(fragmentOf(page), "#/live");
  assert.equal(await page.evaluate(() => history.length), 3);
  await page.check();
});

test("a wrong token in the fragment shows the login and the reason", async (t) => {
  const { page } = await open(t, { fragment: "#token=wrong" });
  await shown(page, "The server does not accept this token.");
  assert.equal(fragmentOf(page), "#/live");
  await page.check();
});

test("logging out ends the session", async (t) => {
  const { page, server } = await open(t);
  await ready(page, "#/live");
  await page.getByRole("button", { name: "Log out" }).click();
  await page.getByLabel("Admin token").waitFor();
  await until("all streams are closed", () => server.state.streams.size === 0);
  await page.reload();
  await page.getByLabel("Admin token").waitFor();
  assert.equal(await page.getByRole("navigation").count(), 0);
  await page.check();
});

test("a session that ends shows the login, and then the same view again", async (t) => {
  const { page, server } = await open(t, { server: { files: 3 } });
  await ready(page, "#/live");
  await page.goto(`${server.origin}/${ANALYSIS}`);
  await ready(page, ANALYSIS);
  server.state.cookie = "session=changed";
  server.interrupt();
  await page.getByLabel("Admin token").fill(TOKEN);
  await page.keyboard.press("Enter");
  await ready(page, ANALYSIS);
  assert.equal(fragmentOf(page), ANALYSIS);
  await page.check();
});

test("the live view shows the state of the server", async (t) => {
  const { page } = await open(t, { server: { history: 60 } });
  await ready(page, "#/live");
  const texts = {
    Reports: /^\d+(\.\d+)?K?\/s$/, Bytes: /^[\d.]+ [KM]iB\/s$/, "Refused requests": /^[\d.]+\/s$/, Latency: /^p99 [\d.]+ ms$/,
    Journal: /^p99 [\d.]+ ms$/, Buffer: /^[\d.]+ %$/, "Flush backlog": /^[\d.]+ s$/, "Free disk": /^[\d.]+ GiB$/,
  };
  for (const [title, text] of Object.entries(texts)) assert.match(await chart(page, title).locator(".now").innerText(), text, title);
  assert.match(await chart(page, "Refused requests").innerText(), /Since the start: rate-limited 1\.8\dK/);
  // 182.3 GB at 9.2 GB in 3.2 days.
  assert.match(await chart(page, "Free disk").innerText(), /Full in 63\.\d d/);
  await page.check();
});

test("a full disk and lost reports raise an alarm", async (t) => {
  const { page, server } = await open(t);
  await ready(page, "#/live");
  assert.equal(await page.locator("main [role=alert] .notice").count(), 0);
  server.state.snapshot = { disk_full: true, lost: 3 };
  await page.getByRole("alert").filter({ hasText: "The disk is full: the server refuses reports." }).waitFor();
  await page.getByRole("alert").filter({ hasText: "3 acknowledged reports are lost." }).waitFor();
  await page.check();
});

test("a restart of the server is no burst of reports", async (t) => {
  const { page, server } = await open(t, { server: { history: 20 } });
  await ready(page, "#/live");
  const table = async () => {
    await chart(page, "Reports").locator("summary").click();
    const rows = await chart(page, "Reports").locator("tbody tr").allInnerTexts();
    await chart(page, "Reports").locator("summary").click();
    return rows.map((row) => row.split("\t")[1]);
  };
  // Counters and uptime begin again, and the rates of the first snapshot are unknown.
  server.state.snapshot = { reports: 5000, uptime_seconds: 1 };
  await until("the restart is seen", async () => (await table()).slice(0, -1).includes("–"));
  server.state.snapshot = { reports: 5010, uptime_seconds: 2 };
  const rates = await table();
  assert.ok(rates.every((rate) => rate === "–" || /^(\d{1,3}|1\.\d+K|1K|0)(\.\d+)?\/s$/.test(rate)), rates.join());
  await page.check();
});

test("the page shows that it is disconnected, and connects again", async (t) => {
  const { page, server } = await open(t);
  await ready(page, "#/live");
  const state = page.locator(".connection");
  await until("it is connected", async () => (await state.innerText()) === "Connected");
  server.state.isRefusing = true;
  server.interrupt();
  await until("it is disconnected", async () => (await state.innerText()) === "Disconnected: trying again");
  assert.equal(await page.locator(".tail [role=status]").innerText(), "Disconnected: trying again");
  server.state.isRefusing = false;
  await until("it is connected again", async () => (await state.innerText()) === "Connected");
  await until("reports arrive again", async () => (await page.locator(".tail [role=status]").innerText()) === "Following");
  await page.check();
});

test("the tail filters, pauses, and counts what it skips", async (t) => {
  const { page, server } = await open(t, { server: { tailMs: 20 } });
  await ready(page, "#/live");
  const counts = page.locator(".tail .note");
  await until("reports are skipped", async () => /[1-9]\d* skipped/.test(await counts.innerText()));

  await page.getByRole("button", { name: "Pause" }).click();
  const rows = await page.locator(".reports li").allInnerTexts();
  await until("reports wait", async () => /· \d+( or more)? new/.test(await counts.innerText()));
  assert.deepEqual(await page.locator(".reports li").allInnerTexts(), rows);
  await page.getByRole("button", { name: "Continue" }).click();
  await until("the list goes on", async () => (await page.locator(".reports li").first().innerText()) !== rows[0]);
  await until("the list is full", async () => (await page.locator(".reports li").count()) === 100);

  const filter = page.getByLabel("Filter (jq)");
  await filter.fill('.geo.country == "DE"');
  await filter.press("Enter");
  await until("the filter is sent", () => server.state.requests.includes("GET /api/v1/reports/tail?filter=.geo.country+%3D%3D+%22DE%22"));
  assert.equal(fragmentOf(page), "#/live?filter=.geo.country+%3D%3D+%22DE%22");
  await filter.fill("((");
  await filter.press("Enter");
  await shown(page, "filter: unexpected end of input at position 3");
  await until("the tail stops", async () => (await page.locator(".tail [role=status]").innerText()) === "Stopped");
  await page.goBack();
  assert.equal(await filter.inputValue(), '.geo.country == "DE"');
  await ready(page, "#/live");
  await page.check();
});

test("a report opens by keyboard and then stays where it is", async (t) => {
  const { page } = await open(t, { server: { tailMs: 100 } });
  await ready(page, "#/live");
  await page.locator(".reports summary").first().focus();
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Continue" }).waitFor();
  const text = await page.locator(".reports details[open] pre").innerText();
  assert.match(text, /^\{\n {2}"clientId": "client-/);
  assert.equal(JSON.parse(text).geo.country.length, 2);
  await page.check();
});

test("the analysis needs no choice for reports of NetWatch", async (t) => {
  const { page } = await open(t, { fragment: `#token=${TOKEN}` });
  await ready(page, "#/live");
  await page.getByRole("link", { name: "Analysis" }).click();
  await ready(page, "#/analysis");
  await page.getByRole("heading", { name: "p95 of latency by host" }).waitFor();
  const rowsOf = (name) => page.getByRole("region", { name, exact: true }).locator("table tbody tr");
  await until("the countries are there", async () => (await rowsOf("Clients by country").count()) > 3);
  assert.match(await rowsOf("Slowest groups").first().innerText(), /^search/);
  assert.match(await rowsOf("Error share by host").first().innerText(), /^search\s+\d/);
  // The address contains the view, and the way back does not lead here again.
  const parameters = new URLSearchParams(fragmentOf(page).split("?")[1]);
  assert.deepEqual(Object.fromEntries(parameters), { path: ".hosts[].history[].latency", by: ".hosts[].name", errors: ".hosts[].history[].error", since: "1h" });
  await page.goBack();
  await page.getByRole("heading", { name: "Live" }).waitFor();
  await page.check();
});

test("a group, a quantile and a range can be chosen, and the address brings them back", async (t) => {
  const { page, server } = await open(t);
  await ready(page, "#/live");
  await page.goto(`${server.origin}/${ANALYSIS}`);
  await ready(page, ANALYSIS);
  await page.getByRole("button", { name: "p99" }).click();
  await page.getByRole("heading", { name: "p99 of latency by host" }).waitFor();

  await page.getByRole("button", { name: "search" }).click();
  await page.getByRole("heading", { name: "latency: search" }).waitFor();
  assert.deepEqual(await page.locator(".results .chart").first().locator(".legend span").allInnerTexts(), ["p50", "p95", "p99"]);
  assert.match(fragmentOf(page), /&group=search$/);
  await page.reload();
  await page.getByRole("heading", { name: "latency: search" }).waitFor();
  await page.getByRole("button", { name: "All groups" }).click();
  await page.getByRole("heading", { name: "p95 of latency by host" }).waitFor();

  await page.getByLabel("Group by").fill("");
  await page.getByLabel("Time range").selectOption("15m");
  await page.getByRole("button", { name: "Show" }).click();
  await page.getByRole("heading", { name: "Summary" }).waitFor();
  assert.match(fragmentOf(page), /since=15m/);
  assert.ok(server.state.requests.some((request) => /stats\?since=15m.*&step=1m/.test(request)));
  await page.goBack();
  await page.getByRole("heading", { name: "Slowest groups" }).waitFor();

  await page.getByRole("combobox", { name: "Value" }).fill("hosts");
  await page.getByRole("button", { name: "Show" }).click();
  await shown(page, 'path: expected a dot at position 1 of "hosts"');
  await page.getByRole("combobox", { name: "Value" }).fill(".nothing");
  await page.getByRole("button", { name: "Show" }).click();
  await shown(page, "No report in this time range has this value.");
  await page.check();
});

test("times are chosen and shown in the time zone of the browser", async (t) => {
  const { page, server } = await open(t, { timezoneId: "Asia/Kolkata" });
  await ready(page, "#/live");
  await page.goto(`${server.origin}/${ANALYSIS}`);
  await ready(page, ANALYSIS);
  await page.getByLabel("Time range").selectOption("custom");
  const local = (time) => new Date(time + 5.5 * 3_600_000).toISOString().slice(0, 19);
  const from = Math.floor(Date.now() / 60_000) * 60_000 - 7_200_000;
  await page.getByLabel("From").fill(local(from));
  await page.getByLabel("To", { exact: true }).fill(local(from + 3_600_000));
  await page.getByRole("button", { name: "Show" }).click();
  const iso = (time) => encodeURIComponent(new Date(time).toISOString());
  await until("the times are sent", () => server.state.requests.some((request) => request.includes(`since=${iso(from)}&until=${iso(from + 3_600_000)}&`)));
  await page.reload();
  await ready(page, ANALYSIS);
  assert.equal(await page.getByLabel("From").inputValue(), local(from).slice(0, 16));
  await shown(page, /^Times are local: Asia\/(Kolkata|Calcutta)$/);
  await page.check();
});

test("a query waits while the server is busy, and says so if that takes too long", async (t) => {
  const { page, server } = await open(t);
  await ready(page, "#/live");
  server.state.busy = 2;
  await page.goto(`${server.origin}/${ANALYSIS}`);
  await ready(page, ANALYSIS);
  assert.equal(server.state.busy, 0);
  server.state.busy = 100;
  await page.getByRole("button", { name: "Show" }).click();
  await shown(page, "The server runs other queries.");
  await page.check();
});

test("paths are suggested from the latest reports", async (t) => {
  const reports = Array.from({ length: 30 }, (_, i) => ({ page: ["/", "/cart"][i % 2], load_ms: 90 + i, "two words": { 'q"uote': i }, at: new Date().toISOString(), _at: Date.now() - i * 1000 }));
  const { page } = await open(t, { server: { reports } });
  await ready(page, "#/live");
  await page.getByRole("link", { name: "Analysis" }).click();
  await page.getByRole("heading", { name: ".load_ms" }).waitFor();
  const suggestions = (name) => page.locator(`#paths-${name} option`).evaluateAll((options) => options.map(({ value }) => value));
  assert.deepEqual(await suggestions("path"), [".load_ms", '."two words"."q\\"uote"']);
  assert.deepEqual(await suggestions("by"), [".page"]);
  assert.deepEqual(await suggestions("time"), [".at"]);
  await page.check();
});

test("a server without reports says so", async (t) => {
  const { page } = await open(t, { server: { reports: [] } });
  await page.getByRole("heading", { name: "Live" }).waitFor();
  await page.getByRole("link", { name: "Analysis" }).click();
  await shown(page, "There are no reports yet.");
  await page.getByRole("link", { name: "Files" }).click();
  await shown(page, "No report files yet.");
  await page.check();
});

test("a chart shows its values by keyboard, by pointer and as a table", async (t) => {
  const { page, server } = await open(t, { server: { history: 60 } });
  await ready(page, "#/live");
  await page.goto(`${server.origin}/${ANALYSIS}`);
  await ready(page, ANALYSIS);
  const main = page.locator(".results .chart").first();
  const slider = main.getByRole("slider");
  const value = () => slider.getAttribute("aria-valuetext");
  await slider.focus();
  const last = await value();
  assert.match(last, /^\d\d:\d\d:\d\d: (auth|api|cdn|images|search) [\d.]+ m?s,/);
  await page.keyboard.press("ArrowLeft");
  assert.notEqual(await value(), last);
  await page.keyboard.press("End");
  assert.equal(await value(), last);
  await page.keyboard.press("Home");
  const first = await value();
  assert.equal(await slider.getAttribute("aria-valuenow"), "0");
  assert.equal(`${await main.locator(".when").innerText()}`, first.split(": ")[0]);
  // The other charts show the same point in time.
  assert.match(await chart(page, "Values per step").locator(".when").innerText(), new RegExp(`^${first.split(": ")[0]}: \\d+$`));

  await main.getByText("Data table").click();
  const row = await main.locator("tbody tr").last().innerText();
  assert.deepEqual(row.split(/\t/).slice(1), first.split(": ")[1].split(", ").map((one) => one.replace(/^\w+ /, "")));

  await page.getByRole("heading", { name: "Analysis" }).click();
  assert.equal(await main.locator(".when").innerText(), "");
  const { x, y, width, height } = await slider.boundingBox();
  await page.mouse.move(x + width - 20, y + height / 2);
  assert.match(await main.locator(".when").innerText(), /^\d\d:\d\d:\d\d$/);
  await page.mouse.move(x + width / 2, y - 60);
  assert.equal(await main.locator(".when").innerText(), "");
  await page.check();
});

test("the files view lists, counts and downloads the files", async (t) => {
  const { page, server } = await open(t, { server: { files: 450 } });
  await ready(page, "#/live");
  await page.getByRole("link", { name: "Files" }).click();
  await ready(page, "#/files");
  await shown(page, /^200 files shown, [\d.]+ MiB$/);
  await page.getByRole("button", { name: "Show older files" }).click();
  await shown(page, /^399 files shown/);
  await page.getByRole("button", { name: "Show older files" }).click();
  await shown(page, /^450 files, [\d.]+ MiB$/);
  assert.equal(await page.getByRole("button", { name: "Show older files" }).count(), 0);
  const names = await page.locator("tbody a").allInnerTexts();
  assert.deepEqual([names.length, new Set(names).size], [450, 450]);
  const name = await page.locator("tbody a").nth(5).innerText();
  const [download] = await Promise.all([page.waitForEvent("download"), page.locator("tbody a").nth(5).click()]);
  assert.equal(download.suggestedFilename(), name);
  assert.ok(server.state.requests.includes(`GET /api/v1/files/${name}`));
  await page.getByLabel("Time range").selectOption("1h");
  await shown(page, /^60 files, /);
  assert.equal(fragmentOf(page), "#/files?since=1h");
  await page.check();
});

for (const [name, reports] of Object.entries({ realistic: netwatchReports(), hostile: hostileReports() })) {
  for (const colorScheme of ["light", "dark"]) {
    for (const [device, viewport] of Object.entries({ desktop: { width: 1280, height: 900 }, phone: { width: 360, height: 740 } })) {
      test(`every view is accessible and fits, with ${name} reports on a ${colorScheme} ${device}`, async (t) => {
        const { page, server } = await open(t, { fragment: "#/live", colorScheme, viewport, server: { reports, files: 30, history: 60, tailMs: 100 } });
        const views = { login: "", live: "#/live", files: "#/files", analysis: reports[0].clientId ? "#/analysis" : "#/analysis?path=.load_ms&by=.page&errors=.constructor" };
        await page.evaluate(AXE);
        for (const [view, fragment] of Object.entries(views)) {
          if (view === "login") {
            await page.getByLabel("Admin token").waitFor();
          } else {
            await page.evaluate((fragment) => (location.hash = fragment), fragment);
            await page.getByRole("heading", { level: 1, name: view, exact: false }).waitFor();
            await ready(page, fragment);
            for (const summary of await page.locator(".chart summary").all()) await summary.click();
            if (view === "live") await page.locator(".reports summary").nth(1).click();
          }
          const { violations } = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
          const found = violations.map(({ id, nodes }) => `${view}: ${id}: ${nodes.map(({ html, failureSummary }) => `${html.slice(0, 200)} ${failureSummary}`)}`);
          assert.deepEqual(found, []);
          const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
          assert.ok(overflow <= 0, `${view} is ${overflow} pixels too wide`);
          if (process.env.SCREENSHOTS) {
            await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = false)));
            await page.screenshot({ path: join(process.env.SCREENSHOTS, `${name}-${view}-${colorScheme}-${device}.png`), fullPage: device === "phone" });
          }
          if (view === "login") {
            await page.getByLabel("Admin token").fill(TOKEN);
            await page.keyboard.press("Enter");
          }
        }
        await page.check();
        assert.ok(server.state.requests.length > 10);
      });
    }
  }
}

test("hostile reports are shown as text, and the page stays usable", async (t) => {
  const { page, server } = await open(t, { server: { reports: hostileReports(), tailMs: 50 } });
  await ready(page, "#/live");
  await until("the largest report is there", async () => (await page.locator(".reports li").count()) >= 12);
  const titles = await page.locator(".reports summary").allInnerTexts();
  assert.ok(titles.every((title) => title.length < 600));
  assert.ok(titles.some((title) => title.includes("<img src=x onerror=")), "as text");
  await page.locator(".reports summary").nth(3).click();
  await page.getByRole("button", { name: "Continue" }).waitFor();
  const text = await page.locator(".reports details[open] pre").innerText();
  assert.match(text, /<script>globalThis\.hacked=1<\/script>\\u\{202e\}/);
  assert.ok(text.length < 60_000);
  assert.doesNotMatch(await page.locator("main").innerText(), /[\u0000-\u0008\u202a-\u202e\u2066-\u2069]/u);

  for (const fragment of ["#/analysis", "#/analysis?path=.load_ms&by=.page", "#/analysis?path=.hosts[].history[].latency&by=.hosts[].name&errors=.hosts[].history[].error", `#/analysis?path=${encodeURIComponent("<img src=x onerror=hacked=1>")}`, "#/live?filter=%3Cimg%20src%3Dx%20onerror%3Dhacked%3D1%3E", "#/__proto__", "#/constructor?x=1"]) {
    await page.goto(`${server.origin}/${fragment}`);
    await page.getByRole("heading", { level: 1 }).waitFor();
    await until("nothing is loading", async () => (await page.locator("[aria-busy], .results:empty").count()) === 0);
    const elements = await page.evaluate(() => document.querySelectorAll("main img, main script, main iframe, main object, main embed, main style, main link, main form[action], main [src], main [onerror], main [style*=url]").length);
    assert.equal(elements, 0, fragment);
  }
  await page.goto(`${server.origin}/#/analysis?path=.load_ms&by=.page`);
  await page.getByRole("button", { name: "<img src=x" }).click();
  await page.getByRole("heading", { name: ".load_ms: <img src=x" }).waitFor();
  await page.check();
});

test("the policy of the page stops a script in its content", async (t) => {
  const { page, faults } = await open(t);
  await ready(page, "#/live");
  const thrown = await page.evaluate(() => {
    try {
      document.querySelector("main").innerHTML = "<img src=x onerror='globalThis.hacked=1'>";
    } catch (error) {
      return error.name;
    }
  });
  assert.equal(thrown, "TypeError");
  await until("the violation is reported", () => faults.length > 0);
  assert.match(faults[0], /^policy: require-trusted-types-for/);
  await assert.rejects(page.check(), "the other tests would notice it");
});

test("nothing moves if the system asks for less motion", async (t) => {
  const { page } = await open(t, { reducedMotion: "reduce" });
  await ready(page, "#/live");
  const moving = await page.evaluate(() => [...document.querySelectorAll("*")].filter((element) => {
    const { transitionDuration, animationName } = getComputedStyle(element);
    return transitionDuration !== "0s" || animationName !== "none";
  }).length);
  assert.equal(moving, 0);
  await page.check();
});

test("the whole page can be used by keyboard, and the focus is visible", async (t) => {
  const { page } = await open(t, { fragment: "#/live", server: { files: 3 } });
  await page.getByLabel("Admin token").waitFor();
  await page.keyboard.type(TOKEN);
  await page.keyboard.press("Enter");
  await ready(page, "#/live");
  // From the top: skip link, navigation.
  await page.reload();
  await ready(page, "#/live");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to content");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  const seen = [];
  for (let i = 0; i < 18; i += 1) {
    await page.keyboard.press("Tab");
    const { name, outline } = await page.evaluate(() => {
      const element = document.activeElement;
      return { name: element.getAttribute("aria-label") ?? element.id ?? element.textContent, outline: getComputedStyle(element).outlineStyle };
    });
    assert.notEqual(outline, "none", name);
    seen.push(name);
  }
  assert.ok(seen.includes("Reports, values by time") && seen.includes("Free disk, values by time"), seen.join());
  await page.check();
});
