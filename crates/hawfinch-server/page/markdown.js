// Markdown to DOM nodes. Nothing here parses HTML: whatever a model writes ends in text nodes and in attributes that
// this file chooses. Blocks here, what stands in a line in inline.js.
//
// It is the part of CommonMark and GitHub's tables that models write, with three departures: a line break is a line
// break, emphasis needs no space or punctuation around it (Chinese and Japanese have none), and images become links.

import { h, iconButton, copyText } from "./dom.js";
import { inline } from "./inline.js";

const DEPTH = 12;
const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)(.*)$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>[ ]?/;
const ITEM = /^( {0,3})([-*+•]|\d{1,9}[.)])([ \t]+|$)/;
const DELIMITER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const BLANK = /^[ \t]*$/;

/** The blocks of a text: `{ type, start, end, … }`, the last two in lines. */
function blocks(lines, depth = 0) {
  const found = [];
  let i = 0;
  while (i < lines.length) {
    if (BLANK.test(lines[i])) { i++; continue; }
    const start = i;
    const block = depth < DEPTH ? fence(lines, i) ?? heading(lines, i) ?? rule(lines, i) ?? quote(lines, i) ?? list(lines, i)
      ?? table(lines, i) ?? paragraph(lines, i) : paragraph(lines, i);
    i = block.end;
    found.push({ ...block, start });
  }
  return found;
}

function fence(lines, i) {
  const open = FENCE.exec(lines[i]);
  if (!open) return null;
  const close = new RegExp(`^ {0,3}${open[2][0] === "`" ? "`" : "~"}{${open[2].length},}[ \\t]*$`);
  const indent = new RegExp(`^ {0,${open[1].length}}`);
  const code = [];
  let end = i + 1;
  while (end < lines.length && !close.test(lines[end])) code.push(lines[end++].replace(indent, ""));
  return { type: "code", language: open[3].trim().split(/\s+/)[0], code: code.join("\n"), end: Math.min(end + 1, lines.length) };
}

function heading(lines, i) {
  const m = HEADING.exec(lines[i]);
  return m && { type: "heading", level: m[1].length, text: m[2].trim().replace(/(^|\s)#+$/, "").trimEnd(), end: i + 1 };
}

const rule = (lines, i) => RULE.test(lines[i]) ? { type: "rule", end: i + 1 } : null;

function quote(lines, i) {
  if (!QUOTE.test(lines[i])) return null;
  const inner = [];
  let end = i;
  while (end < lines.length && QUOTE.test(lines[end])) inner.push(lines[end++].replace(QUOTE, ""));
  return { type: "quote", inner, end };
}

function list(lines, i) {
  const first = ITEM.exec(lines[i]);
  if (!first) return null;
  const kind = (m) => /\d/.test(m[2]) ? m[2].at(-1) : m[2];
  const items = [];
  let end = i;
  let loose = false;
  while (end < lines.length) {
    const m = ITEM.exec(lines[end]);
    if (!m || kind(m) !== kind(first) || RULE.test(lines[end])) break;
    // Content begins behind the marker; text that stands at least that far to the right belongs to the item.
    const width = m[1].length + m[2].length + (m[3].length > 4 || m[3] === "" ? 1 : m[3].length);
    const inner = [lines[end].slice(m[0].length)];
    end++;
    let blank = 0;
    while (end < lines.length) {
      const line = lines[end].replace(/^\t/, "    ");
      const indent = line.search(/[^ ]/);
      if (indent === -1) { blank++; end++; continue; }
      // Models indent by two where a number takes three; any indent past the marker counts as inside.
      if (indent >= Math.min(width, m[1].length + 2)) {
        while (blank > 0) { inner.push(""); blank--; loose = true; }
        inner.push(line.slice(Math.min(indent, width)));
      } else if (blank === 0 && !starts(line)) {
        inner.push(line.trimStart());
      } else break;
      end++;
    }
    items.push(inner);
    if (blank > 0) {
      const next = end < lines.length ? ITEM.exec(lines[end]) : null;
      if (!next || kind(next) !== kind(first)) { end -= blank; break; }
      loose = true;
    }
  }
  return { type: "list", ordered: /\d/.test(first[2]), from: parseInt(first[2], 10), items, loose, end };
}

function cells(line) {
  const row = [];
  let cell = "";
  let ticks = false;
  for (let i = 0; i < line.length; i++) {
    if (line[i] === "\\" && line[i + 1] === "|") { cell += "|"; i++; continue; }
    if (line[i] === "`") ticks = !ticks;
    if (line[i] === "|" && !ticks) { row.push(cell.trim()); cell = ""; } else cell += line[i];
  }
  row.push(cell.trim());
  if (/^\s*\|/.test(line)) row.shift();
  if (row.length > 1 && row.at(-1) === "") row.pop();
  return row;
}

function table(lines, i) {
  if (!lines[i].includes("|") || i + 1 >= lines.length || !lines[i + 1].includes("-") || !DELIMITER.test(lines[i + 1])) return null;
  const head = cells(lines[i]);
  const align = cells(lines[i + 1]).map((c) => c.endsWith(":") ? (c.startsWith(":") ? "center" : "end") : "start");
  if (head.length !== align.length) return null;
  const rows = [];
  let end = i + 2;
  while (end < lines.length && lines[end].includes("|") && !BLANK.test(lines[end])) rows.push(cells(lines[end++]));
  return { type: "table", head, align, rows, end };
}

/** Whether a line ends the paragraph above it. */
const starts = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

function paragraph(lines, i) {
  let end = i + 1;
  while (end < lines.length && !BLANK.test(lines[end]) && !starts(lines[end]) && !table(lines, end)) end++;
  return { type: "paragraph", text: lines.slice(i, end).map((l) => l.trimStart()).join("\n"), end };
}

// Direction is found for every block of the top level. What lies inside one follows by style (unicode-bidi: plaintext),
// since a `dir` of its own would hide its text from the search of the block around it.
function node(block, depth) {
  const dir = depth === 0 ? { dir: "auto" } : {};
  switch (block.type) {
    case "code": return codeBlock(block);
    case "heading": return h(`h${Math.min(block.level + 1, 6)}`, { ...dir, class: `h${block.level}` }, inline(block.text));
    case "rule": return h("hr");
    case "quote": return h("blockquote", dir, nodes(block.inner, depth + 1));
    case "list": {
      const props = { ...dir, class: block.loose ? "loose" : "" };
      if (block.ordered && block.from !== 1) props.start = block.from;
      return h(block.ordered ? "ol" : "ul", props, block.items.map((item) => h("li", {}, listItem(item, block.loose, depth + 1))));
    }
    case "table": {
      const row = (tag, texts) => h("tr", {}, block.align.map((a, k) =>
        h(tag, { class: a, ...(tag === "th" ? { scope: "col" } : {}) }, inline(texts[k] ?? ""))));
      // Wide tables scroll sideways by themselves, also by keyboard.
      return h("div", { class: "table", tabIndex: 0, role: "region", "aria-label": "Table" },
        h("table", dir, h("thead", {}, row("th", block.head)), h("tbody", {}, block.rows.map((r) => row("td", r)))));
    }
    default: return h("p", dir, inline(block.text));
  }
}

function listItem(lines, loose, depth) {
  const task = /^\[([ xX])\][ \t]+/.exec(lines[0]);
  const text = task ? [lines[0].slice(task[0].length), ...lines.slice(1)] : lines;
  const inner = blocks(text, depth).flatMap((b) =>
    b.type === "paragraph" && !loose ? [h("span", {}, inline(b.text))] : [node(b, depth)]);
  return task ? [task[1] === " " ? "☐ " : "☑ ", ...inner] : inner;
}

const nodes = (lines, depth) => blocks(lines, depth).map((b) => node(b, depth));

function codeBlock(block) {
  const code = h("code", {}, document.createTextNode(block.code));
  const button = iconButton("copy", "Copy code", () => copyText(code.textContent, button));
  return h("figure", { class: "code" },
    h("figcaption", {}, h("span", {}, block.language || "text"), button),
    h("pre", { tabIndex: 0, dir: "ltr" }, code));
}

/**
 * A text that grows, in an element. Every block but the last is final once another follows it, so that only the last
 * is read and built again when text comes.
 */
export class Markdown {
  constructor(el) {
    this.el = el;
    this.reset();
  }

  reset() {
    this.text = "";
    this.settled = 0; // characters of whole blocks
    this.last = []; // nodes of the block that may still grow
    this.open = null; // that block
    this.el.replaceChildren();
  }

  /** Shows `text`. */
  set(text) {
    if (text === this.text) return;
    if (!text.startsWith(this.text)) this.reset();
    this.text = text;
    const lines = text.slice(this.settled).replace(/\r\n?/g, (m) => " ".repeat(m.length - 1) + "\n").split("\n");
    const found = blocks(lines);
    const last = found.at(-1);
    // Code that only grew keeps its element: a selection, the place it is scrolled to, the focus.
    if (found.length === 1 && last.type === "code" && this.open?.type === "code" && this.open.language === last.language) {
      const data = this.last[0].querySelector("code").firstChild;
      if (last.code.startsWith(data.data)) data.appendData(last.code.slice(data.data.length)); else data.data = last.code;
      this.open = last;
      return;
    }
    // A block that begins on the line being written may yet turn out to belong to the one above: "*" can become a
    // list or bold text.
    let keep = Math.max(found.length - 1, 0);
    while (keep > 0 && found[keep].start >= lines.length - 1) keep--;
    const fresh = found.map((b) => node(b, 0));
    for (const old of this.last) old.remove();
    this.el.append(...fresh);
    this.last = fresh.slice(keep);
    this.open = this.last.length === 1 ? last : null;
    if (last) for (let i = 0; i < found[keep].start; i++) this.settled += lines[i].length + 1;
  }
}
