// What goes wrong: one clear sentence at the message, a way to try again, and nothing lost.

import assert from "node:assert/strict";
import { check, failure, says, sleep, stream } from "./harness.js";

const cases = [
  ["the network is gone", "gone", /cannot be reached/],
  ["the server is busy", failure(429, "full", { "Retry-After": "3" }), /busy and asks to wait 3 seconds\.$/],
  ["the server fails", failure(500, "the model ran out of memory"), /The server failed: the model ran out of memory\.$/],
  ["the request is refused", failure(400, "temperature must lie between 0 and 2."), /refused the request: temperature must lie between 0 and 2\.$/],
  ["an answer is no JSON", { status: 502, contentType: "text/html", body: "<h1>Bad gateway</h1>" }, /The server failed with status 502\.$/],
  ["an error comes within the stream", stream([{ content: "So far " }, { error: { message: "the GPU was lost" } }], false), /stopped with an error: the GPU was lost\.$/],
  ["the stream ends early", stream([{ content: "So far " }], false), /closed the connection before the reply was complete\.$/],
  ["an event is broken", { status: 200, contentType: "text/event-stream", body: "data: {nonsense\n\n" }, /not JSON\.$/],
];

for (const [name, answer, sentence] of cases) {
  check(`failure: ${name}`, async (v) => {
    await v.say("my words", { answer });
    assert.match(await v.text(".notice.error p"), sentence);
    assert.equal(await v.text(".bubble"), "my words");
    if (answer.status === 429) assert.match(await v.text(".notice.error button"), /^Retry in \d s$/);
    assert.equal(await v.text("#alerts"), await v.text(".notice.error p"), "it is read out");
    if (name.startsWith("the network")) await v.shot("error");
    const partial = await v.text(".message.assistant .prose:not(.thoughts)");
    await v.reload();
    assert.match(await v.text(".notice.error p"), sentence, "it is still there after a reload");
    v.answers.push(says("Now it works."));
    if (answer.status === 429) await v.page.waitForFunction(() => document.querySelector(".notice.error button").textContent === "Retry");
    await v.press(1, "Retry");
    await v.finished();
    assert.equal(await v.text(".message.assistant .prose:not(.thoughts)"), "Now it works.");
    assert.equal(await v.count(".notice.error"), 0);
    // A part of a reply stays as a branch; nothing at all is replaced.
    assert.equal(await v.count(".message.assistant .branches"), partial ? 1 : 0);
  });
}

check("failure: the connection breaks within the stream", async (v) => {
  await v.say("words !cut");
  assert.match(await v.text(".notice.error p"), /before the reply was complete\.$/);
  assert.ok((await v.text(".message.assistant .prose:not(.thoughts)")).length > 0);
}, { mock: true });

check("the page says when the server is not there at all, and comes back by itself", async (v) => {
  v.answerAll = (url) => url.pathname === "/v1/models" ? "gone" : null;
  await v.page.reload();
  await v.page.waitForFunction(() => !document.querySelector("#banner").hidden);
  assert.match(await v.text("#banner"), /cannot be reached/);
  await v.page.type("#draft", "kept");
  v.answerAll = null;
  await v.page.waitForFunction(() => document.querySelector("#banner").hidden, { timeout: 15000 });
  assert.equal(await v.page.$eval("#draft", (d) => d.value), "kept");
  v.answers.push(says("Back."));
  await v.page.focus("#draft");
  await v.page.keyboard.press("Enter");
  await v.page.waitForSelector(".message.assistant .meta");
  assert.equal(await v.text(".message.assistant .prose:not(.thoughts)"), "Back.");
});

check("a server with a key is asked with one", async (v) => {
  const key = "sesame";
  const guard = (url, request) => url.pathname.startsWith("/v1/") && request.headers().authorization !== `Bearer ${key}` ? failure(401, "no key") : null;
  v.answerAll = guard;
  await v.page.reload();
  await v.page.waitForSelector("#key[open]");
  assert.match(await v.text("#key-why"), /asks for an API key/);
  await v.shot("key");
  await v.page.type("#key-value", "wrong");
  await v.page.keyboard.press("Enter");
  await v.page.waitForFunction(() => /did not accept/.test(document.querySelector("#key-why").textContent) && document.querySelector("#key").open);
  await v.page.type("#key-value", key);
  await v.page.keyboard.press("Enter");
  await v.ready();
  assert.deepEqual(await v.page.evaluate(() => [sessionStorage["hawfinch.key"], localStorage["hawfinch.key"] ?? "no"]), ["sesame", "no"]);
  await v.reload();
  assert.equal(await v.page.$eval("#key", (d) => d.open), false, "the tab remembers");
  // A key that a server stops accepting in the middle of a conversation is asked for, and the message goes on.
  await v.page.type("#draft", "hello");
  v.answers.push(failure(401, "no"));
  v.answers.push(says("Welcome."));
  await v.page.keyboard.press("Enter");
  await v.page.waitForSelector("#key[open]");
  await v.page.type("#key-value", key);
  await v.page.click("#key-keep");
  await v.page.click("#key-form [type=submit]");
  await v.page.waitForFunction(() => document.querySelector(".message.assistant")?.textContent.includes("Welcome."));
  assert.equal(await v.page.evaluate(() => localStorage["hawfinch.key"]), key);
  await v.finished();
  // Who gives none is told at the message.
  v.answers.push(failure(401, "no"));
  await v.page.type("#draft", "once more");
  await v.page.keyboard.press("Enter");
  await v.page.waitForSelector("#key[open]");
  await v.page.keyboard.press("Escape");
  await v.finished();
  assert.match(await v.text(".message.last .notice p"), /API key/);
  await sleep(50);
});
