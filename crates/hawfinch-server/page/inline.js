// What stands within a line of Markdown: code, emphasis, links. Returns DOM nodes.

import { h } from "./dom.js";

const ESCAPABLE = /[\\`*_{}#+\-.!|~<>"']/;
const URL_START = /^https?:\/\/[^\s<>\u3000-\u303f\uff00-\uffef]+/i;
const WORD = /[\p{L}\p{N}]/u;

/** The address, if it is one a reply may link to. */
function safe(address) {
  try {
    const url = new URL(address);
    return url.protocol === "https:" || url.protocol === "http:" ? url.href : null;
  } catch { return null; }
}

const link = (href, children) => h("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, children);

/** Where the bracket opened before `i` closes, or -1. */
function closing(text, i, open, close, limit) {
  let depth = 1;
  for (let k = i; k < text.length && k < i + limit; k++) {
    if (text[k] === "\\") k++;
    else if (text[k] === open) depth++;
    else if (text[k] === close && --depth === 0) return k;
  }
  return -1;
}

/** `[text](address "title")` at `i`, as `{ label, href, end }`. */
function readLink(text, i) {
  const end = closing(text, i + 1, "[", "]", 2000);
  if (end === -1 || text[end + 1] !== "(") return null;
  const stop = closing(text, end + 2, "(", ")", 4000);
  if (stop === -1) return null;
  const target = /^\s*<?([^\s>]*)>?(?:\s+(?:"[^"]*"|'[^']*'))?\s*$/.exec(text.slice(end + 2, stop));
  if (!target) return null;
  return { label: text.slice(i + 1, end), href: safe(target[1]), end: stop + 1 };
}

/** A bare address without the punctuation that ends the sentence around it. */
function trimUrl(url) {
  for (;;) {
    const last = url.at(-1);
    if (/[.,;:!?'"*_~]/.test(last)) url = url.slice(0, -1);
    else if (last === ")" && url.split(")").length > url.split("(").length) url = url.slice(0, -1);
    else return url;
  }
}

/** Splits a text into nodes and runs of delimiters (`{ mark, n, open, close }`). */
function scan(text, links) {
  const out = [];
  let plain = "";
  const flush = () => { if (plain) out.push(plain); plain = ""; };
  const push = (node) => { flush(); out.push(node); };
  for (let i = 0; i < text.length;) {
    const c = text[i];
    if (c === "\\" && text[i + 1] === "\n") { push(h("br")); i += 2; }
    else if (c === "\\" && i + 1 < text.length && ESCAPABLE.test(text[i + 1])) { plain += text[i + 1]; i += 2; }
    else if (c === "\n") { plain = plain.trimEnd(); push(h("br")); i++; }
    else if (c === "`") {
      const ticks = /^`+/.exec(text.slice(i, i + 64))[0];
      let end = text.indexOf(ticks, i + ticks.length);
      while (end !== -1 && text[end + ticks.length] === "`") {
        while (text[end] === "`") end++;
        end = text.indexOf(ticks, end);
      }
      if (end === -1) { plain += ticks; i += ticks.length; continue; }
      const code = text.slice(i + ticks.length, end).replace(/\n/g, " ");
      push(h("code", { dir: "ltr" }, /^ .*\S.* $/.test(code) ? code.slice(1, -1) : code));
      i = end + ticks.length;
    } else if (links && (c === "[" || (c === "!" && text[i + 1] === "["))) {
      const found = readLink(text, c === "!" ? i + 1 : i);
      if (!found) { plain += c; i++; continue; }
      // An address of another kind stays readable but is no link.
      if (found.href) push(link(found.href, inline(found.label, false)));
      else { flush(); plain = text.slice(i, found.end); }
      i = found.end;
    } else if (links && c === "<" && /^<https?:\/\/[^\s<>]+>/i.test(text.slice(i, i + 2000))) {
      const end = text.indexOf(">", i);
      const address = text.slice(i + 1, end);
      push(safe(address) ? link(safe(address), [address]) : address);
      i = end + 1;
    } else if (links && (c === "h" || c === "H") && !WORD.test(text[i - 1] ?? " ") && URL_START.test(text.slice(i, i + 2000))) {
      const address = trimUrl(URL_START.exec(text.slice(i, i + 2000))[0]);
      const href = safe(address);
      if (href) push(link(href, [address])); else plain += address;
      i += address.length;
    } else if (c === "*" || c === "_" || (c === "~" && text[i + 1] === "~")) {
      let n = 1;
      while (text[i + n] === c) n++;
      const before = text[i - 1] ?? " ";
      const after = text[i + n] ?? " ";
      let open = !/\s/.test(after);
      let close = !/\s/.test(before);
      if (c === "_") {
        open = open && !WORD.test(before);
        close = close && !WORD.test(after);
      }
      push({ mark: c, n, open, close });
      i += n;
    } else { plain += c; i++; }
  }
  flush();
  return out;
}

/** Pairs delimiters, innermost first, as CommonMark does. */
function pair(parts) {
  for (let k = 0; k < parts.length; k++) {
    const closer = parts[k];
    if (!closer.mark || !closer.close) continue;
    let j = k - 1;
    // A text of nothing but delimiters must not take quadratic time.
    const far = Math.max(0, k - 400);
    while (j >= far && !(parts[j].mark === closer.mark && parts[j].open && parts[j].n > 0
      && !(closer.mark === "~" && (parts[j].n < 2 || closer.n < 2)))) j--;
    if (j < far || closer.n === 0) continue;
    const opener = parts[j];
    const n = opener.n >= 2 && closer.n >= 2 ? 2 : 1;
    const inside = parts.slice(j + 1, k).map(solid);
    if (inside.length === 0) continue;
    opener.n -= n;
    closer.n -= n;
    const tag = closer.mark === "~" ? "s" : n === 2 ? "strong" : "em";
    parts.splice(j + 1, k - j - 1, h(tag, {}, inside));
    k = closer.n > 0 ? j + 1 : j + 2;
  }
  return parts.map(solid).filter((p) => p !== "");
}

const solid = (part) => part.mark ? part.mark.repeat(part.n) : part;

/** The nodes of a text; `links` is false within a link. */
export const inline = (text, links = true) => pair(scan(text, links));
