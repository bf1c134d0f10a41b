// Small helpers for building the page. Text always becomes text nodes, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An element: `h("p", { class: "x", onclick: f, "aria-label": "y" }, child, …)`. */
export function h(tag, props = {}, ...children) {
  const el = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) el.addEventListener(key.slice(2), value);
    else if (key === "class") el.className = value;
    else if (key in el && !key.startsWith("aria") && key !== "list" && key !== "form") el[key] = value;
    else el.setAttribute(key, value === true ? "" : value);
  }
  el.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return el;
}

/** A symbol of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon only; its label is its name and its tooltip. */
export function iconButton(name, label, onclick, props = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

/** Reads a text to users of screen readers; `urgent` interrupts. */
export function announce(text, urgent = false) {
  const region = $(urgent ? "alerts" : "status");
  region.textContent = "";
  // A region whose text is replaced by the same text is not read again unless it was empty between.
  requestAnimationFrame(() => { region.textContent = text; });
}

let toastTimer = 0;

/** A line at the bottom that goes away by itself, with one action where there is something to undo. */
export function toast(text, action) {
  const box = $("toast");
  announce(text);
  clearTimeout(toastTimer);
  const close = () => { clearTimeout(toastTimer); box.replaceChildren(); box.hidden = true; };
  box.replaceChildren(h("span", {}, text));
  if (action) {
    box.append(h("button", { type: "button", class: "text-button", onclick: () => { close(); action.run(); } }, action.label));
  }
  box.append(iconButton("close", "Dismiss", close));
  box.hidden = false;
  const wait = () => { clearTimeout(toastTimer); toastTimer = setTimeout(close, action ? 10000 : 5000); };
  box.onmouseenter = box.onfocusin = () => clearTimeout(toastTimer);
  box.onmouseleave = box.onfocusout = wait;
  wait();
}

/** Puts text on the clipboard and says so on the button that asked for it. */
export async function copyText(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages that are not on https or localhost have no clipboard interface; the old way still works there.
    const area = h("textarea", { class: "visually-hidden", value: text, "aria-hidden": "true" });
    (button.closest("dialog") ?? document.body).append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  announce(done ? "Copied." : "The text could not be copied.");
  if (!done) { toast("The browser did not let the page copy; select the text and copy it by hand."); return; }
  const use = button.querySelector("use");
  use?.setAttribute("href", "#i-check");
  setTimeout(() => use?.setAttribute("href", "#i-copy"), 1500);
}

/** Makes a text area as high as its text; style sheets bound it. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

export const count = (n) => Math.round(n).toLocaleString("en");
export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(9)), (b) => b.toString(36).padStart(2, "0")).join("");

/** Local storage that never throws: it can be full, or forbidden. */
export const local = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) {
    try {
      if (value === null || value === "") localStorage.removeItem(key); else localStorage.setItem(key, value);
      return true;
    } catch { return false; }
  },
  keys() { try { return Object.keys(localStorage); } catch { return []; } },
  json(key, otherwise) { try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; } },
};
