// Talking: send, stream, stop, branches, forks, settings, models.

import assert from "node:assert/strict";
import { check, says, sleep, stream } from "./harness.js";

check("a message is answered, its reply streams in and stays over a reload", async (v) => {
  await v.shot("welcome");
  await v.say("Hello, who are you? !slow", { wait: false });
  assert.ok(await v.visible("#stop"), "the stop button is there while a reply is written");
  const lengths = new Set();
  for (let i = 0; i < 400 && !(await v.page.$eval("#stop", (b) => b.hidden)); i++) {
    lengths.add((await v.text(".message.assistant .prose:not(.thoughts)")).length);
    await sleep(25);
  }
  await v.finished();
  const grown = [...lengths];
  // A small model may be done before the next look.
  assert.ok(grown.length > (v.mock ? 2 : 0), `the text grew in steps: ${grown}`);
  assert.deepEqual(grown, grown.toSorted((a, b) => a - b));
  const meta = await v.text(".message.assistant .meta");
  assert.match(meta, /\d tokens?/);
  assert.match(meta, /[\d.]+ tokens\/s/);
  assert.match(meta, /prompt token/);
  const said = await v.text(".message.assistant .prose:not(.thoughts)");
  assert.match(v.page.url(), /#\/\w+/);
  assert.equal(await v.count("#conversations li"), 1);
  await v.reload();
  assert.equal(await v.text(".message.assistant .prose:not(.thoughts)"), said);
  assert.equal(await v.text(".message.user .bubble"), "Hello, who are you? !slow");
});

check("numbers under a reply are those of the last chunk", async (v) => {
  await v.say("x", { answer: says("Yes.") });
  const model = await v.page.$eval("#model", (m) => m.value);
  assert.deepEqual(await v.texts(".meta span"), [model, "7 tokens", "61.2 tokens/s", "1,024 of 1,060 prompt tokens from the state"]);
});

check("stop keeps what has come, and cancels on the server", async (v) => {
  await v.say("Count to one thousand in words. !slow", { wait: false });
  await v.page.waitForFunction(() => document.querySelector(".message.assistant .prose:not(.thoughts)").textContent.length > 5 || document.querySelector("#stop").hidden);
  const stopped = await v.page.$eval("#stop", (b) => { if (b.hidden) return false; b.click(); return true; });
  await v.finished();
  if (v.mock) assert.ok(stopped);
  if (!stopped) return; // a small model may have ended by itself
  assert.match(await v.text(".notice"), /Stopped\./);
  const said = await v.text(".message.assistant .prose:not(.thoughts)");
  assert.ok(said.length > 0);
  await sleep(400);
  assert.equal(await v.text(".message.assistant .prose:not(.thoughts)"), said, "nothing comes after");
  if (v.mock) {
    const { cancelled } = await (await fetch(`${v.url}/mock`)).json();
    assert.ok(cancelled >= 1, "the server saw the connection close");
  }
  // Escape does the same.
  await v.say("Again. !slow", { wait: false });
  await sleep(150);
  await v.page.keyboard.press("Escape");
  await v.finished();
});

check("an edited message is a branch, and both can be gone to", async (v) => {
  await v.say("first words", { answer: says("Reply one.") });
  await v.say("second words", { answer: says("Reply two.") });
  await v.press(2, "Edit message");
  assert.equal(await v.page.$eval(".editor textarea", (t) => t.value), "second words");
  await v.page.keyboard.type(", changed");
  v.answers.push(says("Reply three."));
  await v.page.keyboard.press("Enter");
  await sleep(100);
  await v.finished();
  assert.deepEqual(v.requests.at(-1).messages.map((m) => m.content), ["first words", "Reply one.", "second words, changed"]);
  assert.deepEqual(await v.texts(".bubble"), ["first words", "second words, changed"]);
  assert.match(await v.text(".branches"), /2\/2/);
  await v.press(2, "Branch before");
  assert.deepEqual(await v.texts(".bubble"), ["first words", "second words"]);
  assert.match(await v.text(".message.last .prose:not(.thoughts)"), /Reply two/);
  assert.equal(await v.page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Next branch", "the keyboard stays at the branches");
  await v.reload();
  assert.deepEqual(await v.texts(".bubble"), ["first words", "second words"], "the branch shown stays over a reload");
  await v.press(2, "Next branch");
  assert.match(await v.text(".message.last .prose:not(.thoughts)"), /Reply three/);
  // A reply can be edited too: the words of the model become others, in a branch.
  await v.press(3, "Edit reply");
  await v.page.keyboard.type(" And more.");
  await v.press(3, "Save");
  assert.match(await v.text(".message.last .prose:not(.thoughts)"), /Reply three\. And more\./);
  assert.match(await v.text(".message.last .branches"), /2\/2/);
});

check("regenerate is a branch of the reply", async (v) => {
  await v.say("go", { answer: says("One.") });
  v.answers.push(says("Two."));
  await v.press(1, "Regenerate");
  await v.finished();
  assert.match(await v.text(".message.assistant .branches"), /2\/2/);
  assert.deepEqual(v.requests[1].messages, v.requests[0].messages);
  await v.press(1, "Branch before");
  assert.match(await v.text(".message.assistant .prose:not(.thoughts)"), /One\./);
});

check("a fork goes on without changing where it came from", async (v) => {
  await v.say("one", { answer: says("A.") });
  await v.say("two", { answer: says("B.") });
  const before = v.page.url();
  await v.press(1, "Fork here");
  await v.page.waitForFunction((u) => location.href !== u, {}, before);
  assert.deepEqual(await v.texts(".bubble"), ["one"]);
  await v.say("three", { answer: says("C.") });
  assert.deepEqual(v.requests.at(-1).messages.map((m) => m.content), ["one", "A.", "three"]);
  assert.equal(await v.count("#conversations li"), 2);
  // A fork at what the user said waits for a reply.
  await v.press(0, "Fork here");
  await v.page.waitForFunction(() => document.querySelectorAll(".message").length === 1);
  v.answers.push(says("Another A."));
  await v.press(0, "Get a reply");
  await v.finished();
  assert.deepEqual(v.requests.at(-1).messages.map((m) => m.content), ["one"]);
  assert.equal(await v.count(".message"), 2);
  await v.page.goBack();
  await sleep(200);
  await v.page.goBack();
  await sleep(200);
  assert.equal(v.page.url(), before);
  assert.deepEqual(await v.texts(".bubble"), ["one", "two"]);
});

check("replies go back to the server exactly as they came, without reasoning", async (v) => {
  const odd = "\n  Leading space,\ttabs \r\n**and** trailing line\n\n";
  await v.say("a", { answer: stream([{ reasoning: "Thinking about it." }, { content: odd.slice(0, 9) }, { content: odd.slice(9) }, { finish: "stop" }]) });
  await v.say("b", { answer: says("ok") });
  assert.deepEqual(v.requests[1].messages, [{ role: "user", content: "a" }, { role: "assistant", content: odd }, { role: "user", content: "b" }]);
});

check("reasoning is open while it comes and folded after", async (v) => {
  await v.say("think", { answer: stream([{ reasoning: "First this, then that." }, { content: "Done." }, { finish: "stop" }]) });
  assert.equal(await v.page.$eval(".reasoning", (d) => d.open), false);
  assert.match(await v.text(".thoughts"), /First this/);
  await v.page.click(".reasoning summary");
  assert.ok(await v.visible(".thoughts"));
  if (!v.mock) return;
  await v.say("more !think !slow", { wait: false });
  await v.page.waitForFunction(() => document.querySelector(".message.last .thoughts").textContent.length > 3);
  assert.equal(await v.page.$eval(".message.last .reasoning", (d) => d.open), true);
  await v.shot("reasoning");
  await v.page.keyboard.press("Escape");
  await v.finished();
});

check("a reply that was cut by its length can go on", async (v) => {
  await v.say("long", { answer: stream([{ content: "It goes on and" }, { finish: "length" }, { usage: { prompt_tokens: 5, completion_tokens: 4 } }]) });
  assert.match(await v.text(".notice"), /longest length/);
  v.answers.push(stream([{ content: " on." }, { finish: "stop" }, { usage: { prompt_tokens: 9, completion_tokens: 2 } }]));
  await v.press(1, "Continue");
  await v.finished();
  assert.equal(await v.text(".message.assistant .prose:not(.thoughts)"), "It goes on and on.");
  const { messages, continue_final_message } = v.requests.at(-1);
  assert.deepEqual(messages.at(-1), { role: "assistant", content: "It goes on and" });
  assert.equal(continue_final_message, true);
  assert.match(await v.text(".meta"), /6 tokens/);
  assert.equal(await v.visible(".notice"), false);
});

check("settings are the model's own at first, are sent, stay over a reload and can be set back", async (v) => {
  const own = (await (await fetch(`${v.url}/v1/models`)).json()).data.find(Boolean).hawfinch.sampler;
  const value = (key) => v.page.$eval(`#set-${key}`, (i) => i.value);
  const put = async (key, text) => { await v.page.click(`#set-${key}`, { count: 3 }); await v.page.type(`#set-${key}`, text); await v.page.keyboard.press("Tab"); };
  await v.page.click("#settings-open");
  assert.equal(Number(await value("temperature")), own.temperature);
  assert.equal(Number(await value("top_p")), own.top_p);
  await put("temperature", "0.45");
  await put("top_k", "40");
  await put("seed", "7");
  await v.page.type("#set-stop", "END\\n");
  await v.page.type("#set-system", "Be brief.");
  await v.shot("settings");
  await put("top_p", "7");
  assert.equal(Number(await value("top_p")), own.top_p, "a value out of bounds is not kept");
  assert.match(await v.text("#set-top_p-wrong"), /Between 0 and 1/);
  await v.say("hi", { answer: says("Yes.") });
  const sent = v.requests.at(-1);
  assert.equal(sent.temperature, 0.45);
  assert.equal(sent.top_k, 40);
  assert.equal(sent.seed, 7);
  assert.equal(sent.top_p, own.top_p, "the model's own values are sent as they are shown");
  assert.deepEqual(sent.stop, ["END\n"]);
  assert.deepEqual(sent.messages, [{ role: "system", content: "Be brief." }, { role: "user", content: "hi" }]);
  await v.reload();
  await v.page.click("#settings-open");
  assert.equal(await value("temperature"), "0.45");
  assert.equal(await value("system"), "Be brief.");
  await v.page.click('[aria-label^="Temperature: back"]');
  assert.equal(Number(await value("temperature")), own.temperature);
  await v.page.click("#settings-reset");
  assert.equal(await value("system"), "");
  assert.equal(await value("seed"), "");
  await v.page.click("#settings-close");
  await v.say("again", { answer: says("Yes.") });
  assert.equal(v.requests.at(-1).messages[0].role, "user");
  assert.equal(v.requests.at(-1).seed, undefined);
});

check("adapters stand under their model, and the one chosen answers", async (v) => {
  const { data } = await (await fetch(`${v.url}/v1/models`)).json();
  assert.deepEqual((await v.page.$$eval("#model option", (o) => o.map((x) => x.value))).toSorted(), data.map((m) => m.id).toSorted());
  const other = data.find((m) => m.hawfinch.sampler.temperature !== data[0].hawfinch.sampler.temperature);
  if (other) {
    await v.page.click("#settings-open");
    await v.page.select("#model", other.id);
    assert.equal(Number(await v.page.$eval("#set-temperature", (i) => i.value)), other.hawfinch.sampler.temperature, "the panel shows the defaults of the model chosen");
    assert.equal(await v.count("#set-reasoning_effort"), other.hawfinch.reasoning ? 1 : 0);
    await v.page.click("#settings-close");
  }
  const adapter = data.find((m) => m.id.includes("+"));
  if (!adapter) return;
  assert.equal(await v.page.$eval(`#model option[value="${adapter.id}"]`, (o) => o.parentElement.label), adapter.hawfinch.base);
  await v.page.select("#model", adapter.id);
  await v.say("hi", { answer: says("Yes.") });
  assert.equal(v.requests[0].model, adapter.id);
  await v.reload();
  assert.equal(await v.page.$eval("#model", (m) => m.value), adapter.id);
});

check("the page follows a reply only while it is at its end", async (v) => {
  const long = Array.from({ length: 60 }, (_, i) => `Paragraph ${i}.`).join("\n\n");
  await v.say("one", { answer: says(long) });
  const place = () => v.page.$eval("#scroller", (s) => s.scrollHeight - s.scrollTop - s.clientHeight);
  assert.ok(await place() < 3, "at the end after a reply");
  assert.equal(await v.visible("#to-end"), false);
  await v.page.$eval("#scroller", (s) => { s.scrollTop = 100; });
  await sleep(100);
  assert.ok(await v.visible("#to-end"));
  // A reply that comes while one reads above leaves the place alone.
  v.answers.push(says("Later."));
  const fold = await v.page.$eval("#scroller", (s) => s.scrollTop);
  await v.page.evaluate(async (text) => {
    const { emit, state } = await import("/state.js");
    const node = Object.values(state.conversation.nodes).at(-1);
    node.content += text;
    emit("stream", node);
  }, "\n\nGrown.");
  await sleep(100);
  assert.equal(await v.page.$eval("#scroller", (s) => s.scrollTop), fold);
  await v.page.click("#to-end");
  await sleep(50);
  assert.ok(await place() < 3);
});
