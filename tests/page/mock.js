// A server that speaks the part of the HTTP API that the page uses, with errors on demand. No dependency.
//
//   node mock.js [PORT]
//
// What is said in a message steers the reply: "!slow", "!fast" (100 tokens a second), "!long" (ends with "length"),
// "!think" (reasoning), "!busy" (429), "!fail" (500), "!refuse" (400), "!break" (an error event within the stream),
// "!cut" (the connection ends within the stream), "!markdown", "!rtl", "!cjk", "!hang" (no token until cancelled).
// POST /mock `{ "key": "secret" | null, "down": true | false }` makes it ask for an API key, or refuse connections.
// GET /mock tells the requests that came and how many were cancelled.

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { texts } from "./texts.js";

const page = fileURLToPath(new URL("../../crates/hawfinch-server/page/", import.meta.url));
const types = { html: "text/html; charset=utf-8", js: "text/javascript; charset=utf-8", css: "text/css; charset=utf-8", svg: "image/svg+xml" };

const sampler = { temperature: 1.0, top_p: 0.3, top_k: 0, presence_penalty: 0.5, frequency_penalty: 0.5, penalty_decay: 0.996 };
const about = { kind: "model", base: "goose-0.4b", version: "7", parameters: 450767872, width: 1024, layers: 24, vocab: 65536, template: "world", reasoning: false, sampler, max_tokens: 4096 };
const model = (id, changes) => ({ id, object: "model", created: 1760000000, owned_by: "hawfinch", hawfinch: { ...about, ...changes } });
const models = [
  model("goose-0.4b", {}),
  model("goose-0.4b+letters", { kind: "adapter" }),
  model("goose-0.4b+butler", { kind: "state" }),
  model("g1-1.5b", { base: "g1-1.5b", parameters: 1527404544, width: 2048, template: "g1", reasoning: true, sampler: { ...sampler, temperature: 0.6, top_p: 0.7 } }),
];

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const error = (message, type, code = null) => ({ error: { message, type, param: null, code } });

export function start(port = 0) {
  const seen = { requests: [], cancelled: 0 };
  let settings = { key: null, down: false };

  const server = createServer(async (req, res) => {
    const json = (status, value, headers = {}) => { res.writeHead(status, { "Content-Type": "application/json", ...headers }); res.end(JSON.stringify(value)); };
    const url = new URL(req.url, "http://mock");
    let body = "";
    for await (const part of req) body += part;
    if (url.pathname === "/mock") {
      if (req.method === "POST") settings = { ...settings, ...JSON.parse(body) };
      return json(200, seen);
    }
    if (settings.down) return req.socket.destroy();
    const file = url.pathname === "/" ? "index.html" : url.pathname.slice(1);
    if (req.method === "GET" && /^[\w-]+\.(html|js|css|svg)$/.test(file)) {
      try {
        const data = await readFile(join(page, file));
        res.writeHead(200, { "Content-Type": types[file.split(".").pop()], "Content-Security-Policy": "default-src 'self'", "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff" });
        return res.end(data);
      } catch { return json(404, error("There is no such file.", "invalid_request_error")); }
    }
    if (settings.key && req.headers.authorization !== `Bearer ${settings.key}`) return json(401, error("The API key is missing or wrong.", "invalid_request_error", "invalid_api_key"));
    if (url.pathname === "/v1/models") return json(200, { object: "list", data: models });
    if (url.pathname === "/v1/chat/completions") return chat(JSON.parse(body), res, json);
    return json(404, error(`There is no ${url.pathname}.`, "invalid_request_error"));
  });

  async function chat(asked, res, json) {
    seen.requests.push(asked);
    const last = asked.messages.findLast((m) => m.role === "user")?.content ?? "";
    const proceeding = asked.messages.at(-1).role === "assistant";
    const wants = (word) => last.includes(`!${word}`);
    if (!models.some((m) => m.id === asked.model)) return json(404, error(`No model is called ${asked.model}.`, "invalid_request_error", "model_not_found"));
    if (wants("busy") && !wants("once")) return json(429, error("The queue is full.", "rate_limit_error"), { "Retry-After": "3" });
    if (wants("fail")) return json(500, error("the model ran out of memory", "server_error"));
    if (wants("refuse")) return json(400, error("temperature must lie between 0 and 2", "invalid_request_error"));

    let gone = false;
    res.on("close", () => { if (!res.writableEnded) { gone = true; seen.cancelled++; } });
    res.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
    const send = (value) => { if (!gone) res.write(`data: ${typeof value === "string" ? value : JSON.stringify(value)}\n\n`); };
    const chunk = (delta, finish = null) => send({ id: "chatcmpl-1", object: "chat.completion.chunk", created: 1760000000, model: asked.model, system_fingerprint: "mock", choices: [{ index: 0, delta, logprobs: null, finish_reason: finish }] });
    const pace = wants("slow") ? 60 : wants("fast") ? 10 : 4;
    const speak = async (text, key) => {
      let n = 0;
      for (const token of text.match(/\s?[^\s]{1,6}|\s/gu) ?? []) {
        if (gone) return n;
        chunk({ [key]: token });
        n++;
        await wait(pace);
        if (n % 40 === 0) res.write(": keep-alive\n\n");
        if (n === 12 && key === "content" && wants("break")) { send(error("the GPU was lost", "server_error")); res.end(); gone = true; return n; }
        if (n === 12 && key === "content" && wants("cut")) { res.destroy(); gone = true; return n; }
      }
      return n;
    };
    while (wants("hang") && !gone) await wait(20);
    await wait(40);
    chunk({ role: "assistant", content: "" });
    const thoughts = wants("think") || (asked.reasoning_effort && asked.reasoning_effort !== "none") ? await speak(texts.thoughts, "reasoning_content") : 0;
    const named = ["markdown", "rtl", "cjk", "long", "fast"].find(wants);
    const text = proceeding ? " … and this is what came after." : texts[named] ?? texts.plain(last, asked.messages.length);
    const n = await speak(text, "content");
    if (gone) return;
    chunk({}, wants("long") && !proceeding ? "length" : "stop");
    const prompt = asked.messages.reduce((sum, m) => sum + Math.ceil(m.content.length / 4) + 4, 0);
    const cached = asked.messages.length > 2 ? prompt - Math.ceil(last.length / 4) - 4 : 0;
    send({ id: "chatcmpl-1", object: "chat.completion.chunk", created: 1760000000, model: asked.model, choices: [],
      usage: { prompt_tokens: prompt, completion_tokens: n + thoughts, total_tokens: prompt + n + thoughts, prompt_tokens_details: { cached_tokens: cached }, completion_tokens_details: { reasoning_tokens: thoughts } },
      timings: { queue_ms: 0.2, prompt_ms: 12, prompt_tokens_computed: prompt - cached, prompt_per_second: 900, predicted_ms: n * pace, predicted_per_second: 1000 / pace } });
    send("[DONE]");
    res.end();
  }

  return new Promise((resolve) => server.listen(port, "127.0.0.1", () => resolve({ url: `http://127.0.0.1:${server.address().port}`, close: () => { server.closeAllConnections(); server.close(); } })));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await start(Number(process.argv[2] ?? 8099));
  console.log(`The mock listens at ${url}.`);
}
