// The list of conversations, and that nothing typed is lost.

import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { check, says, sleep } from "./harness.js";

const titles = (v) => v.texts("#conversations .title");

async function choose(v, title, label) {
  await v.page.evaluate((title) => [...document.querySelectorAll("#conversations li")].find((li) => li.textContent.includes(title)).querySelector(".more").click(), title);
  await v.page.evaluate((label) => [...document.querySelectorAll("#menu button")].find((b) => b.textContent === label).click(), label);
  await sleep(150);
}

async function two(v) {
  await v.say("About cherries", { answer: says("They have stones.") });
  await v.page.click("#new-chat");
  await v.say("About Éperviers", { answer: says("They hunt finches, **quick** ones.") });
  await sleep(150);
}

check("conversations are listed, searched, renamed, deleted, and deletion undone", async (v) => {
  await two(v);
  assert.deepEqual(await titles(v), ["About Éperviers", "About cherries"]);
  await v.page.type("#search", "stones");
  await sleep(300);
  assert.deepEqual(await titles(v), ["About cherries"]);
  assert.match(await v.text("#conversations .snippet"), /stones/);
  await v.page.keyboard.press("Escape");
  await v.page.type("#search", "epervier");
  await sleep(300);
  assert.deepEqual(await titles(v), ["About Éperviers"], "accents do not matter");
  await v.page.keyboard.press("Escape");
  await sleep(300);
  await choose(v, "cherries", "Rename");
  await v.page.keyboard.type("Stone fruit");
  await v.page.keyboard.press("Enter");
  await sleep(200);
  assert.ok((await titles(v)).includes("Stone fruit"));
  await choose(v, "Éperviers", "Delete");
  assert.deepEqual(await titles(v), ["Stone fruit"]);
  assert.equal(await v.count(".message"), 0, "the open conversation went");
  await v.page.$eval("#toast .text-button", (b) => b.click());
  await sleep(200);
  assert.equal((await titles(v)).length, 2);
  assert.equal(await v.count(".message"), 2);
  await choose(v, "Stone fruit", "Delete");
  await v.reload();
  assert.deepEqual(await titles(v), ["About Éperviers"]);
});

check("a conversation that is deleted while its reply comes stays deleted", async (v) => {
  await v.say("count !slow", { wait: false });
  await sleep(250);
  await choose(v, "count", "Delete");
  await sleep(400);
  await v.reload();
  assert.deepEqual(await titles(v), []);
});

check("export and import carry conversations to another browser", async (v) => {
  const folder = await mkdtemp(join(tmpdir(), "hawfinch-page-"));
  const cdp = await v.page.createCDPSession();
  await cdp.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: folder, browserContextId: v.context.id });
  await two(v);
  v.answers.push(says("Another."));
  await v.press(1, "Regenerate");
  await v.finished();
  await v.page.click("#export-all");
  let name;
  for (let i = 0; i < 100 && !(name = (await readdir(folder)).find((f) => f.endsWith(".json"))); i++) await sleep(50);
  assert.ok(name, "a file came");
  const file = join(folder, name);
  const text = await readFile(file, "utf8");
  assert.equal(JSON.parse(text).conversations.length, 2);
  // Where they are already, an import stands beside; in an empty browser it is the same again.
  const input = await v.page.$("#import-file");
  await input.uploadFile(file);
  await sleep(400);
  assert.equal((await titles(v)).length, 4);
  await v.page.evaluate(() => indexedDB.databases && new Promise((done) => {
    const open = indexedDB.open("hawfinch", 1);
    open.onsuccess = () => { const clear = open.result.transaction("conversations", "readwrite").objectStore("conversations").clear(); clear.onsuccess = done; };
  }));
  await v.page.goto(`${v.url}/#/`);
  await v.reload();
  assert.equal((await titles(v)).length, 0);
  await (await v.page.$("#import-file")).uploadFile(file);
  await sleep(400);
  assert.deepEqual((await titles(v)).toSorted(), ["About cherries", "About Éperviers"].toSorted());
  await v.page.evaluate(() => [...document.querySelectorAll("#conversations .open")].find((b) => b.textContent.includes("perviers")).click());
  await sleep(200);
  assert.match(await v.text(".message.assistant .branches"), /2\/2/);
  assert.match(await v.text(".message.assistant .prose:not(.thoughts)"), /Another/);
  // Files that are no export, or a hostile one, are refused in a sentence and nothing is written.
  const bad = join(folder, "bad.json");
  const loop = { root: { children: ["a"], pick: 0 }, a: { role: "user", content: "x", children: ["a"] } };
  for (const value of ["nonsense", "{}", JSON.stringify({ format: "hawfinch-conversations", version: 9, conversations: [] }),
    JSON.stringify({ format: "hawfinch-conversations", version: 1, conversations: [{ nodes: loop }] }), JSON.stringify({ format: "hawfinch-conversations", version: 1, conversations: [{ nodes: { root: { children: ["__proto__"] } } }] })]) {
    await writeFile(bad, value);
    await (await v.page.$("#import-file")).uploadFile(bad);
    await sleep(200);
    assert.match(await v.text("#toast span"), /^The file .+[.]$/);
    assert.equal((await titles(v)).length, 2);
  }
});

check("what was typed survives a reload: drafts, edits, other conversations", async (v) => {
  await v.page.type("#draft", "half a thought");
  await v.reload();
  assert.equal(await v.page.$eval("#draft", (d) => d.value), "half a thought");
  await v.page.focus("#draft");
  await v.page.keyboard.press("Enter");
  await v.page.waitForSelector(".message.assistant");
  await v.finished();
  assert.equal(await v.page.$eval("#draft", (d) => d.value), "");
  await v.page.type("#draft", "next");
  await v.page.click("#new-chat");
  assert.equal(await v.page.$eval("#draft", (d) => d.value), "", "another conversation has a box of its own");
  await v.page.click("#conversations .open");
  await sleep(150);
  assert.equal(await v.page.$eval("#draft", (d) => d.value), "next");
  await v.press(0, "Edit message");
  await v.page.keyboard.type(", longer");
  await v.reload();
  assert.equal(await v.page.$eval(".editor textarea", (t) => t.value), "half a thought, longer");
});

check("a reply goes on while another conversation is open, and one that a reload cut off says so", async (v) => {
  await v.say("first !slow", { wait: false });
  await sleep(100);
  await v.page.click("#new-chat");
  assert.equal(await v.page.$eval("#stop", (b) => b.hidden), true);
  await sleep(200);
  if (v.mock) assert.equal(await v.count("#conversations .running"), 1);
  await v.page.click("#conversations .open");
  await sleep(100);
  await v.finished();
  assert.ok((await v.text(".message.assistant")).length > 0);
  if (!v.mock) return;
  await v.say("second !slow", { wait: false });
  await sleep(1800);
  await v.reload();
  assert.match(await v.text(".message.last .notice"), /interrupted/);
  assert.ok((await v.text(".message.last .prose:not(.thoughts)")).length > 0, "what had come is kept");
});

check("two tabs see each other's conversations", async (v) => {
  await v.say("from the first", { answer: says("Yes.") });
  const other = await v.context.newPage();
  await other.goto(v.page.url());
  await other.waitForSelector(".message.assistant .meta");
  await v.page.bringToFront();
  await v.say("once more", { answer: says("Of course.") });
  await sleep(400);
  assert.deepEqual(await other.$$eval(".bubble", (all) => all.map((b) => b.textContent)), ["from the first", "once more"]);
});

check("what two tabs write into one conversation is all kept", async (v) => {
  await v.say("count !slow !markdown", { wait: false });
  // Until what has come was saved once.
  await sleep(1500);
  const other = await v.context.newPage();
  await other.goto(v.page.url());
  await other.waitForSelector(".message.assistant");
  await other.type("#draft", "from the second");
  await other.keyboard.press("Enter");
  await sleep(600);
  await v.page.bringToFront();
  assert.ok(await v.visible("#stop"), "the first reply still comes");
  await v.finished();
  await other.waitForFunction(() => document.querySelector("#stop").hidden);
  await sleep(200);
  const whole = await v.text(".message.assistant");
  await v.reload();
  assert.deepEqual(await v.texts(".bubble"), ["count !slow !markdown", "from the second"]);
  assert.equal(await v.text(".message.assistant"), whole, "the reply is whole");
}, { mock: true });
