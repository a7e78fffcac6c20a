// Numbers, times and texts for people.

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });
const dateTime = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const minute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const second = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export const NOTHING = "–";

const known = (format) => (value) => (Number.isFinite(value) ? format(value) : NOTHING);

/** About three significant digits, and never an exponent. */
function digits(value) {
  const size = Math.abs(value);
  const text = value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 ? 2 : 3);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** Text of a value in the largest of the units, each of which is a name and a size, that it reaches. */
function inUnits(units) {
  return known((value) => {
    const [name, size] = units.find(([, size]) => Math.abs(value) >= size) ?? units.at(-1);
    return `${digits(value / size)} ${name}`;
  });
}

export const number = known((value) => compact.format(value));
export const whole = known((value) => exact.format(value));
export const perSecond = known((value) => `${compact.format(value)}/s`);
export const bytes = inUnits([["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10], ["B", 1]]);
export const bytesPerSecond = (value) => (Number.isFinite(value) ? `${bytes(value)}/s` : NOTHING);
export const milliseconds = inUnits([["min", 60_000], ["s", 1000], ["ms", 1]]);
export const seconds = inUnits([["d", 86_400], ["h", 3600], ["min", 60], ["s", 1]]);
export const percent = known((value) => `${digits(value * 100)} %`);

export const timestamp = (time) => dateTime.format(time);
export const clock = (time) => second.format(time);

/** The label of a tick on an axis of time with this distance of ticks. */
export function tick(time, stepMs) {
  if (stepMs >= 86_400_000) return day.format(time);
  return (stepMs >= 60_000 ? minute : second).format(time);
}

// Control characters, characters that change the direction of the text, other invisible ones, and halves of pairs.
// The two joiners stay: some scripts and emoji need them.
const INVISIBLE = /(?![\u200c\u200d\n])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** At most `limit` characters of a text from a report, with escapes for its invisible characters. */
export function visible(text, limit = 200) {
  const start = text.slice(0, limit).replace(INVISIBLE, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);
  return text.length > limit || start.length > limit ? `${start.slice(0, limit)}…` : start;
}

/** The same on a single line. */
export const visibleLine = (text, limit) => visible(text, limit).replaceAll("\n", "\\n");
