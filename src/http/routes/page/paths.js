// Paths of the values in reports, as jq writes them: .hosts[].history[].latency

const MAX_DEPTH = 8;
const MAX_PATHS = 400;
const MAX_KEY_CHARS = 80;
const MAX_ELEMENTS = 20;
const MAX_DISTINCT = 60;

const isPlain = (key) => /^[A-Za-z_][A-Za-z0-9_]*$/.test(key);
const member = (path, key) => `${path}.${isPlain(key) ? key : JSON.stringify(key)}`;

/** The paths in some reports, with the types and the number of different values at each. */
export function pathsOf(reports) {
  const paths = new Map();
  const visit = (value, path, depth) => {
    if (Array.isArray(value)) {
      for (const element of value.slice(0, MAX_ELEMENTS)) visit(element, `${path}[]`, depth + 1);
    } else if (value !== null && typeof value === "object") {
      if (depth >= MAX_DEPTH) return;
      for (const [key, inner] of Object.entries(value).slice(0, MAX_PATHS)) {
        if (key.length <= MAX_KEY_CHARS) visit(inner, member(path, key), depth + 1);
      }
    } else if (value !== null) {
      let found = paths.get(path);
      if (!found) {
        if (paths.size >= MAX_PATHS) return;
        paths.set(path, (found = { path, count: 0, numbers: 0, texts: 0, times: 0, distinct: new Set() }));
      }
      found.count += 1;
      if (typeof value === "number") found.numbers += 1;
      if (typeof value === "string") {
        found.texts += 1;
        if (/^\d{4}-\d\d-\d\dT\d\d:\d\d/.test(value)) found.times += 1;
      }
      if (found.distinct.size < MAX_DISTINCT) found.distinct.add(typeof value === "string" ? value.slice(0, 200) : value);
    }
  };
  for (const report of reports) visit(report, "", 0);
  return [...paths.values()];
}

const isTime = (found) => found.times > found.count / 2;
const last = (path) => path.split(/\.|\[\]/).filter(Boolean).at(-1) ?? path;

/** Numbers first that look like measurements. */
export function valuePaths(found) {
  const rank = ({ path, distinct }) => (/latency|duration|_ms$|Ms$|time_?taken|elapsed|bytes|size/i.test(last(path)) ? 2 : 0) + (distinct.size > 5 ? 1 : 0);
  const isIdentity = ({ path }) => /^(t|ts|time|timestamp|seq|id|lat|lon)$|_at$|Id$/.test(last(path));
  return found.filter(({ numbers, count }) => numbers > count / 2).sort((a, b) => isIdentity(a) - isIdentity(b) || rank(b) - rank(a)).map(({ path }) => path);
}

/** Texts with few different values first. */
export function groupPaths(found) {
  const groups = found.filter((one) => one.count > one.numbers && !isTime(one) && !(one.distinct.size === 1 && one.count === 1 && found.length > 20));
  const identifies = ({ distinct, count }) => distinct.size > 10 && distinct.size > count / 2;
  return groups.sort((a, b) => identifies(a) - identifies(b) || a.distinct.size - b.distinct.size).map(({ path }) => path);
}

/** Members that exist only after a failure. */
export const errorPaths = (found) => found.filter(({ path }) => /err|fail|exception/i.test(last(path))).map(({ path }) => path);

export const timePaths = (found) => found.filter((one) => isTime(one) || /^(t|ts|time|timestamp)$|_at$/i.test(last(one.path))).map(({ path }) => path);

/** The unit of a value, as far as its name tells. */
export function unitOf(path) {
  if (/latency|_ms$|Ms$/.test(last(path))) return "ms";
  if (/bytes/i.test(last(path))) return "bytes";
  if (/_seconds$|_s$/.test(last(path))) return "s";
  return "";
}

/** What NetWatch reports: the latencies of hosts, as a browser sees them. */
export const NETWATCH = {
  value: ".hosts[].history[].latency",
  group: ".hosts[].name",
  errors: ".hosts[].history[].error",
  country: ".geo.country",
  client: ".clientId",
};

/** Names for the paths that need no explanation. */
export const NAMES = { __proto__: null, [NETWATCH.value]: "latency", [NETWATCH.group]: "host", [NETWATCH.country]: "country" };

export const isNetwatch = (found) => {
  const paths = new Set(found.map(({ path }) => path));
  return paths.has(NETWATCH.value) && paths.has(NETWATCH.group);
};
