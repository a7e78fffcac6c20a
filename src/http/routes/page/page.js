// The page: login, navigation, and the state of the connection.
//
// The fragment of the address contains the view and its parameters: #/analysis?path=.load_ms&since=1h
// The one exception is #token=…, which logs in and is removed at once.

import { analysis } from "./analysis.js";
import { login, logout, onLoggedOut } from "./api.js";
import { el, field } from "./dom.js";
import { files } from "./files.js";
import { visible } from "./format.js";
import { Snapshots, live } from "./live.js";

const VIEWS = { live, analysis, files };
const STATES = { connecting: "Connecting…", open: "Connected", waiting: "Disconnected: trying again", failed: "No connection" };

const main = document.querySelector("main");
const nav = document.querySelector("nav");
const connection = document.querySelector(".connection");
const logoutButton = document.querySelector("#logout");
const snapshots = new Snapshots();
let current = null;

function addressOf(view, parameters) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value != null));
  return `#/${view}${query.size ? `?${query}` : ""}`;
}

/** Goes to a view. A silent change of the address does not change the view. */
function navigate(view, parameters, { replace = false, silent = false } = {}) {
  const address = addressOf(view, parameters);
  if (address !== location.hash) history[replace ? "replaceState" : "pushState"](null, "", address);
  if (!silent) route();
}

/** Shows the view of the address. */
function route() {
  if (takeToken()) return;
  const [, name, query] = /^#\/(\w+)(?:\?(.*))?$/.exec(location.hash) ?? [];
  const view = Object.hasOwn(VIEWS, name ?? "") ? name : "live";
  const parameters = new URLSearchParams(query ?? "");
  if (current?.name === view) return current.update(parameters);
  show(view, VIEWS[view]({ parameters, navigate, snapshots }));
}

function show(name, view) {
  const isFirst = !current;
  current?.close();
  current = { name, ...view };
  const isIn = name !== "login";
  nav.hidden = connection.hidden = logoutButton.hidden = !isIn;
  document.title = `${view.title} – netwatch-server`;
  for (const link of nav.children) {
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.replaceChildren(view.element);
  if (isIn) snapshots.start();
  else snapshots.stop();
  if (!isFirst || !isIn) (main.querySelector("[autofocus]") ?? main.querySelector("h1")).focus({ preventScroll: true });
  if (!isFirst) scrollTo(0, 0);
}

/** Logs in with the token in the address, and removes it from the address and the history. */
function takeToken() {
  const [, token] = /^#token=(.+)$/.exec(location.hash) ?? [];
  if (!token) return false;
  history.replaceState(null, "", "#/live");
  let decoded = token;
  try {
    decoded = decodeURIComponent(token);
  } catch {
    // A percent sign that encodes nothing is part of the token.
  }
  login(decoded).then(route, (error) => showLogin(error.message));
  return true;
}

function showLogin(problem = "") {
  if (current?.name === "login") return;
  const token = el("input", { type: "password", name: "token", autocomplete: "current-password", required: true, autofocus: true, spellcheck: "false", maxlength: "500" });
  const message = el("p", { class: "notice bad", role: "alert", hidden: !problem }, visible(problem, 500));
  const button = el("button", { type: "submit", class: "primary" }, "Log in");
  const submit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await login(token.value.trim());
      route();
    } catch (error) {
      message.hidden = false;
      message.textContent = visible(error.message, 500);
      token.select();
    }
    button.disabled = false;
  };
  const form = el("form", { class: "card login", onsubmit: submit }, el("h1", { tabindex: "-1" }, "Log in"), message,
    field("Admin token", token, "ADMIN_TOKEN of the server. The page does not keep it: a cookie, which scripts can't read, keeps you logged in."), button);
  show("login", { title: "Log in", element: form, update() {}, close() {} });
}

snapshots.addEventListener("state", ({ detail: { name, error } }) => {
  connection.textContent = STATES[name];
  connection.dataset.state = name;
  connection.title = error ? visible(error.message, 300) : "";
  if (name === "failed" && error.status !== 401) showProblem(error);
});
snapshots.addEventListener("snapshot", () => {
  const { version } = snapshots.list.at(-1);
  document.querySelector("#version").textContent = `netwatch-server ${visible(String(version ?? ""), 40)}`;
});

/** A refusal that no login changes: the server is closed, or another server answers here. */
function showProblem(error) {
  if (main.querySelector("#problem")) return;
  main.prepend(el("p", { class: "notice bad", role: "alert", id: "problem" }, visible(error.message, 500)));
}

onLoggedOut(() => showLogin());
logoutButton.addEventListener("click", async () => {
  await logout().catch(() => {});
  showLogin();
});
addEventListener("hashchange", route);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.querySelector("#zone").textContent = `Times are local: ${Intl.DateTimeFormat().resolvedOptions().timeZone}`;
route();
