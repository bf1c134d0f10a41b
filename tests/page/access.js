// For everyone: names, landmarks, keyboard, contrast, narrow screens, motion, input methods.

import assert from "node:assert/strict";
import { check, says, sleep } from "./harness.js";
import { texts } from "./texts.js";

/** Faults that an accessibility checker would report, found by hand. */
function faults() {
  const found = [];
  const visible = (el) => el.checkVisibility({ visibilityProperty: true, opacityProperty: false });
  const name = (el) => (el.getAttribute("aria-label") ?? (el.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join(" ")).trim()
    || [...(el.labels ?? [])].map((l) => l.textContent).join(" ").trim() || el.textContent.trim() || el.title || "";
  for (const el of document.querySelectorAll("button, a[href], input, select, textarea, summary, [role=menuitem], [tabindex]:not([tabindex='-1'])")) {
    if (el.matches("pre, [hidden]") || !visible(el)) continue;
    const own = el.matches("textarea, input") ? name({ getAttribute: (a) => el.getAttribute(a), labels: el.labels, textContent: "", title: el.title }) : name(el);
    if (!own) found.push(`no name: ${el.outerHTML.slice(0, 120)}`);
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((i) => i === id).length > 1) found.push(`id twice: ${id}`);
  for (const el of document.querySelectorAll("[aria-controls], [aria-labelledby], [aria-describedby]")) {
    for (const attribute of ["aria-controls", "aria-labelledby", "aria-describedby"]) {
      for (const id of (el.getAttribute(attribute) ?? "").split(" ").filter(Boolean)) if (!document.getElementById(id)) found.push(`${attribute} leads nowhere: ${id}`);
    }
  }
  for (const img of document.images) if (!img.hasAttribute("alt")) found.push("an image without alt");
  const one = { main: 1, h1: 1, header: 1 };
  for (const [tag, n] of Object.entries(one)) if (document.querySelectorAll(tag).length !== n) found.push(`${tag}: not ${n}`);
  if (!document.querySelector("nav[aria-label]")) found.push("no named navigation");
  if (!document.documentElement.lang) found.push("no language");
  if (document.querySelector("[tabindex]:not([tabindex='0']):not([tabindex='-1'])")) found.push("a positive tabindex");
  return found;
}

/** Text whose contrast with its ground is under 4.5 (3 if large). */
function faint() {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parse = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1];
  const light = ([r, g, b]) => { const f = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; }; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const ground = (el) => {
    const chain = [];
    for (let e = el; e; e = e.parentElement) chain.push(parse(getComputedStyle(e).backgroundColor));
    return chain.reverse().reduce((under, c) => c[3] > 0 ? over(c, under) : under, [255, 255, 255, 1]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const el = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !el.checkVisibility({ visibilityProperty: true, opacityProperty: true }) || el.closest(".visually-hidden, :disabled, option, .skip")) continue;
    const style = getComputedStyle(el);
    const under = ground(el);
    const [a, b] = [light(over(parse(style.color), under)), light(under)].toSorted((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)}: “${walker.currentNode.data.trim().slice(0, 40)}” in ${el.tagName}.${el.className}`);
  }
  return found;
}

async function sound(v, where) {
  assert.deepEqual(await v.page.evaluate(faults), [], where);
  assert.deepEqual(await v.page.evaluate(faint), [], `contrast, ${where}`);
}

check("every control has a name, landmarks are there, text has contrast, light and dark", async (v) => {
  for (const scheme of ["light", "dark"]) {
    await v.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await v.page.click("#new-chat");
    await sound(v, `welcome, ${scheme}`);
    if (scheme === "dark") await v.shot("welcome-dark");
    await v.say("Tell me about the hawfinch, please.", { answer: says(texts.markdown) });
    await v.say("And what may go wrong?", { answer: "gone" });
    await sound(v, `messages, ${scheme}`);
    await v.page.$eval("#scroller", (s) => { s.scrollTop = 0; });
    await sleep(150);
    await v.shot(`messages-${scheme}`);
    await v.page.$eval("#scroller", (s) => { s.scrollTop = 620; });
    await sleep(150);
    await v.shot(`messages-${scheme}-2`);
    await v.page.$eval("#scroller", (s) => { s.scrollTop = s.scrollHeight; });
    await v.press(0, "Edit message");
    await sound(v, `edit, ${scheme}`);
    await v.page.keyboard.press("Escape");
    await v.page.click("#settings-open");
    await sleep(300);
    await sound(v, `settings, ${scheme}`);
    await v.shot(`settings-${scheme}`);
    await v.page.click("#settings-close");
    await v.page.click("#shortcuts-open");
    await sleep(300);
    await sound(v, `shortcuts, ${scheme}`);
    await v.shot(`shortcuts-${scheme}`);
    await v.page.keyboard.press("Escape");
    await v.page.hover("#conversations li");
    await v.page.click("#conversations .more");
    await sound(v, `menu, ${scheme}`);
    await v.page.keyboard.press("Escape");
  }
});

check("the theme follows the system and its switch, over a reload", async (v) => {
  const ground = () => v.page.evaluate(() => getComputedStyle(document.body).backgroundColor.match(/\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 3);
  await v.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
  assert.ok(await ground() > 200);
  await v.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  assert.ok(await ground() < 60);
  await v.page.click("#theme");
  assert.match(await v.page.$eval("#theme", (b) => b.ariaLabel), /light/);
  assert.ok(await ground() > 200);
  await v.reload();
  assert.ok(await ground() > 200);
  await v.page.click("#theme");
  await v.page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "light" }]);
  assert.ok(await ground() < 60);
});

const wideText = `${texts.markdown}\n\n${"averylongwordwithoutanybreak".repeat(12)}\n\n| ${Array.from({ length: 12 }, (_, i) => `column ${i}`).join(" | ")} |\n|${"---|".repeat(12)}\n| ${"value | ".repeat(12)}`;

for (const width of [320, 390]) {
  check(`a phone ${width} px wide has no sideways scrolling`, async (v) => {
    const flat = async (where) => {
      const over = await v.page.evaluate(() => {
        const root = document.scrollingElement;
        const scroller = document.querySelector("#scroller");
        const cut = [...document.querySelectorAll("#main button, #main select, #main textarea, #main .bubble, #main p")].filter((e) => e.checkVisibility({ visibilityProperty: true }) && !e.closest(".table, pre, .code"))
          .filter((e) => { const r = e.getBoundingClientRect(); return r.width > 0 && (r.right > innerWidth + 0.5 || r.left < -0.5); }).map((e) => e.outerHTML.slice(0, 80));
        return [root.scrollWidth - innerWidth, scroller.scrollWidth - scroller.clientWidth, cut];
      });
      assert.ok(over[0] <= 0 && over[1] <= 0, `${where}: ${over}`);
      assert.deepEqual(over[2], [], `${where}: cut off`);
    };
    await flat("welcome");
    await v.shot(`phone-${width}-welcome`);
    await v.page.type("#draft", "Tell me about the hawfinch, and do so at some length, please");
    v.answers.push(says(wideText));
    await v.page.click("#send");
    await v.page.waitForSelector(".message.assistant .meta");
    await flat("messages");
    await v.shot(`phone-${width}-end`);
    await v.page.$eval("#scroller", (s) => { s.scrollTop = 0; });
    await sleep(100);
    await v.shot(`phone-${width}`);
    await v.press(0, "Edit message");
    await flat("edit");
    await v.page.keyboard.press("Escape");
    const small = await v.page.$$eval(".foot button, #send, header button", (all) => all.filter((b) => b.checkVisibility()).map((b) => b.getBoundingClientRect()).filter((r) => r.width < 36 || r.height < 36).length);
    assert.equal(small, 0, "buttons are large enough for a finger");
    await v.page.click("#menu-open");
    await sleep(350);
    await flat("list");
    assert.ok(await v.visible("#new-chat"));
    assert.equal(await v.page.$eval("#main", (m) => m.inert), true, "the page behind waits");
    await v.shot(`phone-${width}-list`);
    await v.page.keyboard.press("Escape");
    await sleep(350);
    assert.equal(await v.visible("#new-chat"), false);
    assert.equal(await v.page.evaluate(() => document.activeElement.id), "menu-open");
    await v.page.click("#settings-open");
    await sleep(300);
    await flat("settings");
    assert.ok(await v.page.$eval("#settings", (d) => d.scrollWidth <= d.clientWidth && d.matches(":modal")));
    await v.shot(`phone-${width}-settings`);
  }, { viewport: { width, height: 680, isMobile: true, hasTouch: true, deviceScaleFactor: 2 } });
}

check("everything can be done by keyboard", async (v) => {
  const { page } = v;
  const active = () => page.evaluate(() => document.activeElement.getAttribute("aria-label") || document.activeElement.textContent.trim() || document.activeElement.id);
  const tabTo = async (name, back = false) => {
    for (let i = 0; i < 60; i++) {
      if (back) await page.keyboard.down("Shift");
      await page.keyboard.press("Tab");
      if (back) await page.keyboard.up("Shift");
      const now = await active();
      if (now === name || now.startsWith(name)) {
        const ring = await page.evaluate(() => { const s = getComputedStyle(document.activeElement); return s.outlineStyle !== "none" || document.activeElement.id === "draft"; });
        assert.ok(ring, `${name} shows that it has the focus`);
        return;
      }
    }
    assert.fail(`the Tab key does not reach “${name}”`);
  };
  // The skip link is the first stop.
  await page.evaluate(() => { document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute("tabindex"); });
  await page.keyboard.press("Tab");
  assert.equal(await active(), "Skip to the message box");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "draft");
  await page.keyboard.type("line one");
  await page.keyboard.down("Shift");
  await page.keyboard.press("Enter");
  await page.keyboard.up("Shift");
  await page.keyboard.type("line two");
  v.answers.push(says("A reply."));
  await page.keyboard.press("Enter");
  await page.waitForSelector(".message.assistant .meta");
  assert.deepEqual(v.requests[0].messages, [{ role: "user", content: "line one\nline two" }]);
  assert.match(await v.text("#status"), /Reply finished\. A reply\./);
  assert.equal(await page.evaluate(() => document.activeElement.id), "draft", "one can write on");
  await page.keyboard.press("ArrowUp");
  assert.equal(await active(), "Edit message");
  v.answers.push(says("Another."));
  await page.keyboard.type("!");
  await page.keyboard.press("Enter");
  await page.waitForSelector(".message.assistant .meta");
  await sleep(100);
  await tabTo("Regenerate", true);
  v.answers.push(says("A third."));
  await page.keyboard.press("Space");
  await sleep(200);
  await tabTo("Branch before", true);
  await page.keyboard.press("Enter");
  await sleep(100);
  assert.match(await v.text(".message.assistant .prose:not(.thoughts)"), /Another\./);
  await page.keyboard.press("?");
  await page.waitForSelector("#shortcuts[open]");
  await page.keyboard.press("Escape");
  assert.equal(await page.$eval("#shortcuts", (d) => d.open), false);
  await page.keyboard.press("/");
  assert.equal(await page.evaluate(() => document.activeElement.id), "draft");
  assert.equal(await page.$eval("#draft", (d) => d.value), "", "the key is not typed");
  await page.keyboard.down("Control"); await page.keyboard.down("Shift"); await page.keyboard.press("O"); await page.keyboard.up("Shift"); await page.keyboard.up("Control");
  await sleep(100);
  assert.equal(await v.count(".message"), 0);
  await page.keyboard.down("Control"); await page.keyboard.press("k"); await page.keyboard.up("Control");
  assert.equal(await page.evaluate(() => document.activeElement.id), "search");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Enter");
  await sleep(200);
  assert.equal(await v.count(".message"), 2);
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  assert.equal(await active(), "Rename");
  await page.keyboard.press("Enter");
  await page.keyboard.type("By key");
  await page.keyboard.press("Enter");
  await sleep(200);
  assert.deepEqual(await v.texts("#conversations .title"), ["By key"]);
  await tabTo("Settings");
  await page.keyboard.press("Enter");
  await sleep(100);
  await page.keyboard.press("Escape");
  await sleep(100);
  assert.equal(await active(), "Settings");
});

check("Enter that ends a composition does not send", async (v) => {
  await v.page.focus("#draft");
  const cdp = await v.page.createCDPSession();
  await cdp.send("Input.imeSetComposition", { text: "にほん", selectionStart: 3, selectionEnd: 3 });
  await cdp.send("Input.dispatchKeyEvent", { type: "rawKeyDown", key: "Process", code: "Enter", windowsVirtualKeyCode: 229 });
  await v.page.evaluate(() => document.querySelector("#draft").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true, cancelable: true })));
  await v.page.evaluate(() => document.querySelector("#draft").dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", keyCode: 229, bubbles: true, cancelable: true })));
  assert.equal(await v.count(".message"), 0);
  await cdp.send("Input.insertText", { text: "日本" });
  v.answers.push(says("はい。"));
  await v.page.keyboard.press("Enter");
  await v.page.waitForSelector(".message.assistant .meta");
  assert.equal(await v.text(".bubble"), "日本");
});

check("who wants less motion gets none", async (v) => {
  await v.page.emulateMediaFeatures([{ name: "prefers-reduced-motion", value: "reduce" }]);
  const longest = await v.page.evaluate(() => Math.max(...[...document.querySelectorAll("*")].map((e) => Math.max(parseFloat(getComputedStyle(e).transitionDuration), parseFloat(getComputedStyle(e).animationDuration)))));
  assert.ok(longest <= 0.001);
});
