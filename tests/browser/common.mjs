// What the tests share: where Chromium and the server are, and a running server.
//
// CHROMIUM is the path of Chromium (default: /usr/bin). NETWATCH_SERVER is the path of the server (default: target/release).

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

export const PATIENCE_MS = Number(process.env.PATIENCE_MS ?? 60_000);

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const SERVER = process.env.NETWATCH_SERVER ?? here("../../target/release/netwatch-server");
export const CHROMIUM = process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser"].find(existsSync);

/** Starts a netwatch-server. `stored` and `stop` return all reports in its files; `stop` shuts it down first. */
export async function netwatch(t, settings = {}) {
  const dir = mkdtempSync(join(tmpdir(), "netwatch-browser-"));
  const env = { HOST: "127.0.0.1", PORT: "0", DATA_DIR: dir, LOG_FORMAT: "json", FLUSH_INTERVAL: "50ms", CONFIG_FILE: "/dev/null" };
  const server = spawn(SERVER, { env: { ...env, ...settings }, stdio: ["ignore", "ignore", "pipe"] });
  t.after(() => {
    server.kill("SIGKILL");
    rmSync(dir, { recursive: true, force: true });
  });
  let address;
  for await (const line of createInterface({ input: server.stderr })) {
    address = JSON.parse(line).fields.address;
    if (address) break;
  }
  server.stderr.resume();
  const stored = () => {
    const files = readdirSync(dir).filter((name) => name.endsWith(".jsonl.zst") && !name.startsWith("."));
    const text = files.map((name) => execFileSync("zstdcat", [join(dir, name)], { encoding: "utf8" })).join("");
    return text.split("\n").filter(Boolean).map((line) => JSON.parse(line));
  };
  return {
    address,
    url: `http://${address}/api/v1/reports`,
    stored,
    async stop() {
      server.kill("SIGTERM");
      if (server.exitCode === null) await once(server, "exit");
      assert.equal(server.exitCode, 0);
      return stored();
    },
  };
}

export async function until(what, ask) {
  const deadline = Date.now() + PATIENCE_MS;
  while (!(await ask())) {
    assert.ok(Date.now() < deadline, `timeout while waiting until ${what}`);
    await sleep(20);
  }
}

/**
 * Opens a page of the server. `page.check` fails if the page has sent a request to another origin, violated its policy,
 * thrown an error, or run anything from a report.
 */
export async function openPage(t, browser, address, context = {}) {
  const tab = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...context });
  t.after(() => tab.close());
  const page = await tab.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  const faults = [];
  const { origin } = new URL(address);
  page.on("request", (request) => new URL(request.url()).origin === origin || faults.push(`request to ${request.url()}`));
  page.on("pageerror", (error) => faults.push(`error: ${error.stack}`));
  page.on("dialog", (dialog) => (faults.push("dialog"), dialog.dismiss()));
  await page.exposeFunction("reportFault", (fault) => faults.push(fault));
  await page.addInitScript(() => addEventListener("securitypolicyviolation", ({ violatedDirective, blockedURI, sample }) =>
    reportFault(`policy: ${violatedDirective} ${blockedURI} ${sample}`)));
  await page.goto(address);
  page.check = async () => {
    assert.equal(await page.evaluate(() => globalThis.hacked), undefined);
    assert.deepEqual(faults, []);
  };
  return { page, tab, faults };
}
