// Requests to the server. The session is a cookie, which scripts can't read.

const PATIENCE_MS = 60_000;
/** A server that is busy with other queries is asked again. */
const MAX_TRIES = 4;
const RETRY_MS = 2000;

/** A refused request, with the text of its problem document. */
export class ApiError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }

  /** The same request fails again. */
  get isPermanent() {
    return this.status >= 400 && this.status < 500 && this.status !== 408 && this.status !== 429;
  }
}

export function url(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== "" && value != null));
  return query.size ? `${path}?${query}` : path;
}

let whenLoggedOut = () => {};

/** `then` is called whenever the server wants a login. */
export function onLoggedOut(then) {
  whenLoggedOut = then;
}

/** Sends a request. Throws an `ApiError` unless the answer is a success. */
export async function request(address, options = {}) {
  let response;
  try {
    response = await fetch(address, { cache: "no-store", redirect: "error", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, error.name === "TimeoutError" ? "The server does not answer." : "The server can't be reached.");
  }
  if (response.ok) return response;
  const error = new ApiError(response.status, await reason(response));
  if (response.status === 401 && options.method !== "POST") whenLoggedOut();
  throw error;
}

async function reason(response) {
  try {
    const { title, detail } = await response.json();
    return String(detail ?? title ?? `The server answers ${response.status}.`);
  } catch {
    return `The server answers ${response.status}.`;
  }
}

/** Waits, unless the signal ends the wait. */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}

/** Sends a query. While the server is busy with other queries, tries again. */
async function query(address, signal) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await request(address, { signal });
    } catch (error) {
      if (error.status !== 503 || tries === MAX_TRIES) throw error;
      await pause(RETRY_MS, signal);
    }
  }
}

/** Requests JSON. An answer that ends early is an error. */
export async function json(path, parameters, signal) {
  const response = await query(url(path, parameters), AbortSignal.any([signal, AbortSignal.timeout(PATIENCE_MS)]));
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The answer is incomplete. The query may have reached its time limit: choose a shorter time range.");
  }
}

/** The latest reports, as many as fit into a few megabytes. Lines that are not JSON are ignored. */
export async function latestReports(signal, limit = 50, maxChars = 4_000_000) {
  const response = await query(url("api/v1/reports", { order: "desc", limit, format: "ndjson" }), signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  while (text.length < maxChars) {
    const { done, value } = await reader.read();
    if (done) break;
    text += value;
  }
  if (text.length >= maxChars) {
    reader.cancel().catch(() => {});
    text = text.slice(0, text.lastIndexOf("\n") + 1);
  }
  const reports = [];
  for (const line of text.split("\n")) {
    try {
      reports.push(JSON.parse(line));
    } catch {
      // An empty line, or the answer was cut.
    }
  }
  return reports;
}

export async function login(token) {
  await request("login", { method: "POST", body: token, headers: { "content-type": "text/plain" } });
}

export async function logout() {
  await request("logout", { method: "POST" });
}
