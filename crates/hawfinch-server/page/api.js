// The server: models and streamed chat completions. Every failure is an `ApiError` whose message is one sentence.

import { local } from "./dom.js";

const KEY = "hawfinch.key";

export class ApiError extends Error {
  /** `kind`: "network", "key", "busy", "request", "server" or "cut". */
  constructor(kind, message, wait = 0) {
    super(message);
    this.kind = kind;
    this.wait = wait;
  }
}

let key = (() => { try { return sessionStorage.getItem(KEY); } catch { return null; } })() ?? local.get(KEY);

export const hasKey = () => Boolean(key);

/** Uses an API key: for this tab, or with `keep` until the browser's data are cleared. */
export function setKey(value, keep) {
  key = value;
  try { sessionStorage.setItem(KEY, value); } catch { /* kept in memory */ }
  local.set(KEY, keep ? value : null);
}

const GONE = "The server cannot be reached; see whether it still runs, then try again.";

const sentence = (text) => /[.!?…。！？]$/.test(text) ? text : `${text}.`;

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("network", navigator.onLine === false ? "This device has no network; connect it, then try again." : GONE);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let said = "";
  try { said = (await response.json()).error?.message ?? ""; } catch { /* not JSON */ }
  if (response.status === 401) {
    return new ApiError("key", key ? "The server did not accept the API key." : "The server asks for an API key.");
  }
  if (response.status === 429) {
    const given = response.headers.get("Retry-After");
    const wait = given === null ? 0 : /^\d+$/.test(given.trim()) ? Number(given) : Math.max(0, Math.ceil((Date.parse(given) - Date.now()) / 1000)) || 0;
    const seconds = wait === 1 ? "1 second" : `${wait} seconds`;
    return new ApiError("busy", wait ? `The server is busy and asks to wait ${seconds}.` : "The server is busy; try again in a moment.", wait);
  }
  if (response.status >= 500) {
    return new ApiError("server", said ? `The server failed: ${sentence(said)}` : `The server failed with status ${response.status}.`);
  }
  return new ApiError("request", said ? `The server refused the request: ${sentence(said)}` : `The server refused the request with status ${response.status}.`);
}

/** The models the server has. */
export async function models() {
  const response = await call("/v1/models", { cache: "no-store" });
  let list;
  try { list = (await response.json()).data; } catch { /* below */ }
  if (!Array.isArray(list)) throw new ApiError("server", "The server's list of models cannot be read.");
  return list.filter((m) => typeof m?.id === "string");
}

/**
 * Streams a chat completion. `on` is called with what arrives: `{ reasoning }`, `{ content }`, `{ finish }`,
 * `{ usage, timings }`. Resolves at the end of the stream. Aborting `signal` cancels the request on the server.
 */
export async function chat(body, signal, on) {
  const response = await call("/v1/chat/completions", {
    method: "POST", signal,
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  let ended = false;
  let finished = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") { ended = true; break; }
      let chunk;
      try { chunk = JSON.parse(data); } catch { throw new ApiError("server", "The server sent an event that is not JSON."); }
      if (chunk.error) throw new ApiError("server", `The server stopped with an error: ${sentence(String(chunk.error.message ?? "it gave no reason"))}`);
      const choice = chunk.choices?.[0];
      if (choice?.delta?.reasoning_content) on({ reasoning: choice.delta.reasoning_content });
      if (choice?.delta?.content) on({ content: choice.delta.content });
      if (choice?.finish_reason) { finished = true; on({ finish: choice.finish_reason }); }
      if (chunk.usage) on({ usage: chunk.usage, timings: chunk.timings });
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError("cut", "The connection to the server broke before the reply was complete.");
  }
  if (!ended && !finished) throw new ApiError("cut", "The server closed the connection before the reply was complete.");
}

/** The data of server-sent events. Lines may be divided anywhere, also within a character. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      rest += value;
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length > 0) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    if (rest.startsWith("data:")) data.push(rest.slice(5).trimStart());
    if (data.length > 0) yield data.join("\n");
  } finally {
    reader.cancel().catch(() => {});
  }
}
