// How replies are written: Markdown without a way in for markup, right-to-left and CJK text.

import assert from "node:assert/strict";
import { check, says } from "./harness.js";
import { texts } from "./texts.js";

/** The HTML that a text becomes, whole or in pieces. */
const render = (v, pieces) => v.page.evaluate(async (pieces) => {
  const { Markdown } = await import("/markdown.js");
  const el = document.createElement("div");
  const markdown = new Markdown(el);
  let text = "";
  for (const piece of pieces) markdown.set(text += piece);
  return el.innerHTML;
}, pieces);

const plain = (html) => html.replace(/ dir="(auto|ltr)"/g, "").replace(/ (target|rel)="[^"]*"/g, "").replace(/ class=""/g, "");

const examples = [
  ["a **b** *c* ~~d~~ `e`", "<p>a <strong>b</strong> <em>c</em> <s>d</s> <code>e</code></p>"],
  ["***x***", "<p><em><strong>x</strong></em></p>"],
  ["**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"],
  ["**强调。**后", "<p><strong>强调。</strong>后</p>"],
  ["snake_case_name and 2 * 3 * 4 and **", "<p>snake_case_name and 2 * 3 * 4 and **</p>"],
  ["\\*no\\* \\`no\\`", "<p>*no* `no`</p>"],
  ["line\nbreak", "<p>line<br>break</p>"],
  ["[a](https://x.org/y) [b](javascript:x) [c](data:text/html,x) [d](/local)", "<p><a href=\"https://x.org/y\">a</a> [b](javascript:x) [c](data:text/html,x) [d](/local)</p>"],
  ["see https://x.org/a_b_(c). Or <http://y.org>", "<p>see <a href=\"https://x.org/a_b_(c)\">https://x.org/a_b_(c)</a>. Or <a href=\"http://y.org/\">http://y.org</a></p>"],
  ["<img src=x onerror=alert(1)> & <b>", "<p>&lt;img src=x onerror=alert(1)&gt; &amp; &lt;b&gt;</p>"],
  ["# One\n\n### Three #", "<h2 class=\"h1\">One</h2><h4 class=\"h3\">Three</h4>"],
  ["- a\n- b\n  - c\n\ntext", "<ul><li><span>a</span></li><li><span>b</span><ul><li><span>c</span></li></ul></li></ul><p>text</p>"],
  ["3. a\n4. b", "<ol start=\"3\"><li><span>a</span></li><li><span>b</span></li></ol>"],
  ["1. a\n\n   more\n\n2. b", "<ol class=\"loose\"><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>"],
  ["- [x] done", "<ul><li>☑ <span>done</span></li></ul>"],
  ["> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"],
  ["a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"],
  ["`` a`b ``", "<p><code>a`b</code></p>"],
  ["`open", "<p>`open</p>"],
];

check("Markdown becomes what it means, and markup stays text", async (v) => {
  for (const [text, html] of examples) assert.equal(plain(await render(v, [text])), html, text);
  const table = await render(v, ["| a | b |\n|:-:|--:|\n| `x|y` | 2 |\n| only |"]);
  assert.match(table, /<th[^>]*class="center"[^>]*>a<\/th>/);
  assert.match(table, /<code dir="ltr">x\|y<\/code>/);
  const code = await render(v, ["~~~js\nlet a = `<b>`;\n\n  b\n~~~\nafter"]);
  assert.match(code, /let a = `&lt;b&gt;`;\n\n {2}b<\/code>/);
  assert.match(code, /<p dir="auto">after<\/p>$/);
});

check("a text in pieces becomes the same as in one", async (v) => {
  const all = [...examples.map(([t]) => t), texts.markdown, texts.rtl, texts.cjk, "foo\n*bold* x", "foo\n- a\n\n\n- b\nlazy\n\n    code?\n1) x", "a | b\n--|--\n1|2\nend", "x\r\n\r\n- y\r\n- z\r\n\r\nw"].map((t) => `Before.\n\n${t}\n\nAfter **it**.`);
  for (const text of all) {
    const whole = await render(v, [text]);
    assert.equal(await render(v, Array.from(text)), whole, text);
    for (const n of [2, 5, 11]) assert.equal(await render(v, text.match(new RegExp(`[^]{1,${n}}`, "g"))), whole, text);
  }
});

check("hostile texts neither hang the page nor run", async (v) => {
  const hostile = [">".repeat(3000) + "x", "- ".repeat(3000) + "x", "*a ".repeat(20000), "**a_".repeat(10000), "[".repeat(20000), "`".repeat(9999) + " ` `` ".repeat(2000), "# " + " ".repeat(50000) + "x", "``` " + " ".repeat(50000) + "`",
    "a|".repeat(20000) + "\n" + "-|".repeat(20000), "<script>document.title='owned'</script>", "[x](javascript:document.title='owned')", "<".repeat(30000), "h".repeat(50000), "http://".repeat(5000), " ".repeat(100000), "\\".repeat(50000), "![" .repeat(9000), "~~".repeat(20000)];
  for (const text of hostile) {
    const began = Date.now();
    await render(v, [text.slice(0, text.length / 2), text.slice(text.length / 2)]);
    assert.ok(Date.now() - began < 5000, `${text.slice(0, 20)}… took ${Date.now() - began} ms`);
  }
  await v.say("go", { answer: says(`${texts.markdown}\n<img src=x onerror="document.title='owned'"><svg onload="document.title='owned'">`) });
  assert.equal(await v.count(".prose script, .prose img, .prose svg[onload]"), 0);
  assert.notEqual(await v.page.title(), "owned");
  for (const a of await v.page.$$eval(".prose a", (all) => all.map((a) => [a.protocol, a.rel, a.target]))) {
    assert.ok(["http:", "https:"].includes(a[0]));
    assert.match(a[1], /noopener/);
    assert.equal(a[2], "_blank");
  }
});

check("text from right to left runs so, block by block", async (v) => {
  await v.say("حدثني عن طائر البلبل الزيتوني من فضلك", { answer: says(texts.rtl) });
  const direction = (selector, n = 0) => v.page.$$eval(selector, (all, n) => getComputedStyle(all[n]).direction, n);
  assert.equal(await direction(".bubble"), "rtl");
  assert.equal(await direction(".message.assistant .prose > p"), "rtl");
  assert.equal(await direction(".message.assistant .prose > ul"), "rtl");
  assert.equal(await direction(".message.assistant .prose > p", 2), "ltr", "English stays as it is");
  assert.equal(await direction("#title"), "rtl");
  await v.page.type("#draft", "مرحبا");
  assert.equal(await direction("#draft"), "rtl");
  await v.shot("rtl");
  await v.page.$eval("#draft", (d) => { d.value = ""; d.dispatchEvent(new Event("input")); });
  await v.say("请介绍一下锡嘴雀,用中文、日文和韩文。", { answer: says(texts.cjk) });
  assert.deepEqual(await v.texts(".message.last .prose strong"), ["嘴粗大而有力，", "硬い種子を割って"]);
  await v.shot("cjk");
});

check("code can be copied", async (v) => {
  await v.context.overridePermissions(v.url, ["clipboard-read", "clipboard-write"]);
  await v.say("code", { answer: says("```rust\nfn main() {}\n```\nDone.") });
  await v.page.$eval('[aria-label="Copy code"]', (b) => b.click());
  await v.page.waitForFunction(() => document.querySelector("#status").textContent === "Copied.");
  assert.equal(await v.page.evaluate(() => navigator.clipboard.readText()), "fn main() {}");
  await v.press(1, "Copy reply");
  assert.equal(await v.page.evaluate(() => navigator.clipboard.readText()), "```rust\nfn main() {}\n```\nDone.");
});
