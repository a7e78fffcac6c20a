// The files view: report files, the newest first.

import { request, url } from "./api.js";
import { alertBox, el, field, scrollable } from "./dom.js";
import * as f from "./format.js";

const PAGE = 200;
const RANGES = { "": "All", "1h": "Last hour", "1d": "Last day", "7d": "Last 7 days", "30d": "Last 30 days" };

export function files({ parameters, navigate }) {
  let loading = new AbortController();
  let since = parameters.get("since") ?? "";
  let [names, total, until] = [new Set(), 0, ""];

  const range = el("select", { onchange: () => navigate("files", { since: range.value }) }, ...Object.entries(RANGES).map(([value, text]) => el("option", { value }, text)));
  const status = el("p", { class: "note", role: "status" });
  const body = el("tbody");
  const heads = ["Name", "First report", "Last report", "Size"].map((head) => el("th", { scope: "col" }, head));
  const content = el("table", { class: "files" }, el("caption", {}, "The newest first. Files are zstd-compressed, with one report per line."), el("thead", {}, el("tr", {}, ...heads)), body);
  const more = el("button", { type: "button", hidden: true, onclick: load }, "Show older files");
  const problem = el("div");
  const list = scrollable("Report files", content);
  const element = el("div", {}, el("h1", { tabindex: "-1" }, "Files"),
    el("section", { class: "card", "aria-label": "Report files" }, el("div", { class: "row" }, field("Time range", range), status), problem, list, more));

  async function load() {
    const { signal } = loading;
    more.disabled = true;
    status.textContent = "Loading…";
    try {
      const response = await request(url("api/v1/files", { since, until, order: "desc", limit: PAGE }), { signal });
      const { files } = await response.json();
      if (signal.aborted) return;
      const [, gap] = /^incomplete; (.*)/.exec(response.headers.get("netwatch-status") ?? "") ?? [];
      problem.replaceChildren(...(gap ? [el("p", { class: "notice" }, `Not all files: ${f.visible(gap)}.`)] : []));
      const fresh = files.filter(({ name }) => !names.has(name));
      for (const { name, bytes } of fresh) {
        names.add(name);
        total += bytes;
      }
      body.append(...fresh.map(row));
      // The next page begins at the oldest file of this one. If there is none that is older, this is the end.
      until = files.at(-1)?.first ?? until;
      more.hidden = files.length < PAGE || !fresh.length;
      list.hidden = !names.size;
      status.textContent = names.size ? `${f.whole(names.size)} files${more.hidden ? "" : " shown"}, ${f.bytes(total)}` : "No report files yet. A file is written about once per minute.";
    } catch (error) {
      if (signal.aborted) return;
      status.textContent = "";
      problem.replaceChildren(alertBox(f.visible(error.message, 1000)));
    }
    more.disabled = false;
  }

  function row({ name, first, last, bytes }) {
    const time = (text) => (text ? el("time", { datetime: text }, f.timestamp(new Date(text))) : f.NOTHING);
    const link = el("a", { href: `api/v1/files/${encodeURIComponent(name)}`, download: name }, f.visibleLine(name, 120));
    return el("tr", {}, el("th", { scope: "row" }, link), el("td", {}, time(first)), el("td", {}, time(last)), el("td", {}, f.bytes(bytes)));
  }

  function restart() {
    loading.abort();
    loading = new AbortController();
    range.value = since in RANGES ? since : "";
    [names, total, until] = [new Set(), 0, ""];
    body.replaceChildren();
    problem.replaceChildren();
    load();
  }

  restart();
  return {
    title: "Files",
    element,
    update(next) {
      since = next.get("since") ?? "";
      restart();
    },
    close: () => loading.abort(),
  };
}
