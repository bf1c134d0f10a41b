// What the checks stand on: a browser, a fresh page for each, answers in the server's place.

import assert from "node:assert/strict";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import puppeteer from "puppeteer-core";

const checks = [];
/** A check; `body` gets a fresh page of its own storage. `{ mock: true }` needs the mock. */
export const check = (name, body, options = {}) => checks.push({ name, body, options });

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Server-sent events as the API writes them, from `{ reasoning }`, `{ content }`, `{ finish }`, `{ usage }`, `{ error }`. */
export function stream(parts, done = true) {
  const chunk = (delta, finish = null) => ({ id: "c", object: "chat.completion.chunk", created: 1, model: "m", choices: [{ index: 0, delta, logprobs: null, finish_reason: finish }] });
  const events = parts.map((p) => p.reasoning ? chunk({ reasoning_content: p.reasoning }) : p.content ? chunk({ content: p.content }) : p.finish ? chunk({}, p.finish)
    : p.usage ? { choices: [], usage: p.usage, timings: p.timings } : { error: p.error });
  const body = [": keep-alive", ...events.map((e) => `data: ${JSON.stringify(e)}`), ...(done ? ["data: [DONE]"] : [])].map((l) => `${l}\n\n`).join("");
  return { status: 200, contentType: "text/event-stream", body };
}

/** A whole reply. */
export const says = (content) => stream([{ content }, { finish: "stop" }, { usage: { prompt_tokens: 1060, completion_tokens: 7, prompt_tokens_details: { cached_tokens: 1024 } }, timings: { predicted_per_second: 61.23 } }]);

export const failure = (status, message, headers = {}) => ({ status, headers, contentType: "application/json", body: JSON.stringify({ error: { message, type: "t", param: null, code: null } }) });

/** A page and what one does with it. */
class Visit {
  constructor(page, url, folder) {
    Object.assign(this, { page, url, folder, requests: [], answers: [], complaints: [], foreign: [], expected: [] });
  }

  async start() {
    const { page } = this;
    page.on("pageerror", (e) => this.complaints.push(String(e)));
    page.on("console", (m) => { if (["error", "warn"].includes(m.type())) this.complaints.push(m.text()); });
    await page.setRequestInterception(true);
    page.on("request", async (request) => {
      const url = new URL(request.url());
      if (url.protocol !== "blob:" && url.origin !== this.url) this.foreign.push(request.url());
      const chat = url.pathname === "/v1/chat/completions";
      if (chat) this.requests.push(JSON.parse(request.postData()));
      const answer = chat ? this.answers.shift() : this.answerAll?.(url, request);
      if (answer === "gone") await request.abort("connectionrefused");
      else if (answer) await request.respond(answer);
      else await request.continue();
    });
    await page.goto(`${this.url}/`);
    await this.ready();
    return this;
  }

  /** Waits until the models are there. */
  ready() { return this.page.waitForFunction(() => document.querySelector("#model").value !== "" && document.querySelector("#model").value !== "…"); }
  async reload() { await this.page.reload(); await this.ready(); await sleep(150); }

  /** Writes a message and sends it; waits for the end of the reply unless told otherwise. */
  async say(text, { answer, wait = true } = {}) {
    if (answer) this.answers.push(answer);
    const before = await this.count(".message");
    await this.page.type("#draft", text);
    await this.page.keyboard.press("Enter");
    await this.page.waitForFunction((n) => document.querySelectorAll(".message").length > n, {}, before);
    if (wait) await this.finished();
  }

  async finished() {
    await this.page.waitForFunction(() => document.querySelector("#stop").hidden, { timeout: 120000 });
    await sleep(60);
  }

  count(selector) { return this.page.$$eval(selector, (all) => all.length); }
  text(selector) { return this.page.$eval(selector, (el) => el.textContent); }
  async texts(selector) { return this.page.$$eval(selector, (all) => all.map((el) => el.textContent)); }
  visible(selector) { return this.page.$eval(selector, (el) => el.checkVisibility({ visibilityProperty: true })); }

  /** Presses a button of the nth message (from the end with a negative n) by its name. */
  async press(n, name) {
    const button = await this.page.evaluateHandle((n, name) => [...document.querySelectorAll(".message")].at(n).querySelector(`button[aria-label="${name}"]`)
      ?? [...[...document.querySelectorAll(".message")].at(n).querySelectorAll("button")].find((b) => b.textContent.trim() === name), n, name);
    assert.ok(button.asElement(), `message ${n} has no button “${name}”`);
    await button.asElement().evaluate((b) => b.click());
    await sleep(60);
  }

  async shot(name) { if (this.folder) await this.page.screenshot({ path: join(this.folder, `${name}.png`) }); }

  /** The errors of the console but for those that a check brings about. */
  unexpected() {
    return this.complaints.filter((c) => !/Failed to load resource/.test(c) && !this.expected.some((e) => e.test(c)));
  }
}

export async function run({ url, folder, mock, only }) {
  if (folder) await mkdir(folder, { recursive: true });
  const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    // A browser without a window has no mouse; these say that there is one, as at a desk.
    args: ["--no-sandbox", "--disable-dev-shm-usage", "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"],
  });
  let failed = 0;
  let skipped = 0;
  const chosen = checks.filter((c) => !only || c.name.includes(only));
  for (const { name, body, options } of chosen) {
    if (options.mock && !mock) { skipped++; console.log(`skip  ${name} (needs the mock)`); continue; }
    const context = await browser.createBrowserContext();
    const page = await context.newPage();
    await page.setViewport({ width: 1280, height: 800, ...options.viewport });
    const visit = new Visit(page, url, folder);
    visit.mock = mock;
    visit.context = context;
    try {
      await visit.start();
      await body(visit);
      assert.deepEqual(visit.foreign, [], "requests to other hosts");
      assert.deepEqual(visit.unexpected(), [], "complaints in the console");
      console.log(`ok    ${name}`);
    } catch (error) {
      failed++;
      console.log(`FAIL  ${name}\n      ${String(error.stack ?? error).split("\n").slice(0, 12).join("\n      ")}`);
      for (const c of visit.complaints) console.log(`      console: ${c}`);
      if (folder) await page.screenshot({ path: join(folder, `failed-${name.replace(/\W+/g, "-").slice(0, 50)}.png`) }).catch(() => {});
    }
    await context.close();
  }
  await browser.close();
  console.log(`${chosen.length - failed - skipped} passed, ${failed} failed, ${skipped} skipped`);
  return failed === 0 && chosen.length > skipped;
}
