// Server-sent events by `fetch`. Unlike `EventSource`, this can show why a request is refused, notices a silent server,
// and reads no faster than the page can follow: a slow page makes the server skip reports instead of the browser buffer
// them.

import { ApiError, request } from "./api.js";

const MAX_EVENT_CHARS = 64_000_000;
const RETRY_MS = [1000, 2000, 4000, 8000];

/** The events of a response: their type and their data. Comments are events without data. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, type, data] = ["", "message", []];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    // Only the new text is searched, so that a long line costs no more than its length.
    const lines = value.split("\n");
    lines[0] = rest + lines[0];
    rest = lines.pop();
    if (rest.length > MAX_EVENT_CHARS) throw new Error("the event is too long");
    for (const line of lines.map((line) => (line.endsWith("\r") ? line.slice(0, -1) : line))) {
      if (line === "") {
        if (data.length) yield { type, data: data.join("\n") };
        [type, data] = ["message", []];
      } else if (line.startsWith("data:")) {
        data.push(line.slice(line[5] === " " ? 6 : 5));
      } else if (line.startsWith("event:")) {
        type = line.slice(6).trim();
      } else if (line.startsWith(":")) {
        yield { type: "comment" };
      }
    }
  }
}

/**
 * Reads a stream until `stop`, and connects again when it ends.
 *
 * `onState` gets `{ name: "connecting" | "open" | "waiting" | "failed", error }`. After `failed`, there is no other try.
 */
export class Stream {
  #abort = new AbortController();

  constructor(address, { onEvent, onState, idleMs }) {
    this.#run(address, onEvent, onState, idleMs);
  }

  stop() {
    this.#abort.abort();
  }

  async #run(address, onEvent, onState, idleMs) {
    const stopped = this.#abort.signal;
    for (let failures = 0; !stopped.aborted; failures += 1) {
      let [error, silence] = [null, new AbortController()];
      let timer;
      const heard = () => {
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), idleMs);
      };
      try {
        onState({ name: "connecting" });
        heard();
        const response = await request(address, { signal: AbortSignal.any([stopped, silence.signal]) });
        onState({ name: "open" });
        for await (const event of events(response.body)) {
          if (stopped.aborted) return;
          heard();
          failures = 0;
          if (event.type !== "comment") onEvent(event);
        }
      } catch (thrown) {
        error = thrown instanceof ApiError ? thrown : new ApiError(0, "The connection is interrupted.");
      } finally {
        clearTimeout(timer);
      }
      if (stopped.aborted) return;
      if (error?.isPermanent) return onState({ name: "failed", error });
      onState({ name: "waiting", error });
      await this.#pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)] * (0.75 + Math.random() / 2));
    }
  }

  #pause(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#abort.signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
    });
  }
}
