// The list of conversations: open, search, rename, delete with undo, export and import.

import { $, announce, h, iconButton, icon, local, toast } from "./dom.js";
import * as store from "./store.js";
import { stop } from "./chat.js";
import { on, state } from "./state.js";

/** Set by the page. */
export const hooks = { open: async (_id) => {}, deleted: (_id) => {}, renamed: () => {} };

const narrow = matchMedia("(max-width: 52rem)");
let query = "";
let turnOf = 0;
let timer = 0;
/** The conversation whose name is being changed. */
let renaming = null;

export function startSidebar() {
  $("menu-open").addEventListener("click", () => toggleSidebar());
  $("menu-close").addEventListener("click", () => toggleSidebar(false));
  $("scrim").addEventListener("click", () => toggleSidebar(false));
  $("search").addEventListener("input", () => {
    query = $("search").value.trim();
    clearTimeout(timer);
    timer = setTimeout(renderList, 120);
  });
  $("search").addEventListener("keydown", (e) => {
    if (e.key === "Escape" && $("search").value) { e.preventDefault(); e.stopPropagation(); $("search").value = query = ""; renderList(); }
    if (e.key === "ArrowDown") { e.preventDefault(); $("conversations").querySelector("button")?.focus(); }
  });
  $("export-all").addEventListener("click", () => download(null, "hawfinch-conversations.json"));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", importFile);
  $("conversations").addEventListener("keydown", walk);
  startMenu();
  on("list", later);
  on("open", () => { renaming = null; renderList(); });
  on("finished", later);
  const apply = () => {
    const open = narrow.matches ? false : local.get("hawfinch.sidebar") !== "closed";
    setSidebar(open);
  };
  narrow.addEventListener("change", apply);
  apply();
}

function setSidebar(open) {
  document.body.classList.toggle("sidebar-open", open);
  $("sidebar").inert = !open;
  $("menu-open").setAttribute("aria-expanded", String(open));
  // On a phone the page behind waits.
  for (const id of ["main"]) $(id).inert = open && narrow.matches;
}

export function toggleSidebar(open = !document.body.classList.contains("sidebar-open")) {
  setSidebar(open);
  if (!narrow.matches) local.set("hawfinch.sidebar", open ? null : "closed");
  if (open && narrow.matches) $("menu-close").focus();
  if (!open) $("menu-open").focus();
}

/** Closes the sidebar where it lies over the page; returns whether it did. */
export function closeOver() {
  if (!narrow.matches || !document.body.classList.contains("sidebar-open")) return false;
  toggleSidebar(false);
  return true;
}

// Streams save every second; the list need not follow each.
function later() {
  clearTimeout(timer);
  timer = setTimeout(renderList, 60);
}

function section(time) {
  const day = new Date();
  day.setHours(0, 0, 0, 0);
  const ago = (n) => new Date(day.getFullYear(), day.getMonth(), day.getDate() - n).getTime();
  return time >= ago(0) ? "Today" : time >= ago(1) ? "Yesterday" : time >= ago(7) ? "Last 7 days" : time >= ago(30) ? "Last 30 days" : "Earlier";
}

export async function renderList() {
  if (renaming) return;
  const mine = ++turnOf;
  const found = query ? await store.search(query) : null;
  if (mine !== turnOf || renaming) return;
  const list = $("conversations");
  const focused = list.contains(document.activeElement) ? { id: document.activeElement.closest("li")?.dataset.id, more: document.activeElement.classList.contains("more") } : null;
  const parts = [];
  let heading = null;
  let items = null;
  for (const entry of store.list()) {
    if (found && !found.has(entry.id)) continue;
    const name = section(entry.updated);
    if (name !== heading) {
      heading = name;
      const id = `section-${parts.length}`;
      items = h("ul", { "aria-labelledby": id });
      parts.push(h("h3", { id }, name), items);
    }
    items.append(item(entry, found?.get(entry.id)));
  }
  if (parts.length === 0) parts.push(h("p", { class: "none" }, query ? "Nothing found." : "Conversations appear here. They are kept in this browser only."));
  list.replaceChildren(...parts);
  if (query) announce(`${found.size} found.`);
  if (focused?.id) list.querySelector(`li[data-id="${focused.id}"] ${focused.more ? ".more" : ".open"}`)?.focus();
}

function item(entry, snippet) {
  const current = entry.id === state.conversation?.id;
  const running = state.running.has(entry.id);
  const open = h("button", { type: "button", class: "open", "aria-current": current ? "page" : null, onclick: async () => { await hooks.open(entry.id); closeOver(); } },
    h("span", { class: "title", dir: "auto" }, entry.title), snippet ? h("span", { class: "snippet", dir: "auto" }, snippet) : "",
    running ? h("span", { class: "running", title: "A reply is being written" }, h("span", { class: "visually-hidden" }, "(replying)")) : "");
  const more = iconButton("more", `More about ${entry.title}`, () => showMenu(more, entry), { class: "icon-button more", "aria-haspopup": "menu", title: "More" });
  return h("li", { "data-id": entry.id, class: current ? "current" : "" }, open, more);
}

function walk(e) {
  if (e.key === "F2" && e.target.matches("button")) { e.preventDefault(); rename(e.target.closest("li").dataset.id); return; }
  if (e.key === "Delete" && e.target.matches("button")) { e.preventDefault(); remove(e.target.closest("li").dataset.id); return; }
  if ((e.key !== "ArrowDown" && e.key !== "ArrowUp") || !e.target.matches("button")) return;
  e.preventDefault();
  const all = [...$("conversations").querySelectorAll(".open")];
  const at = all.indexOf(e.target.closest("li").querySelector(".open")) + (e.key === "ArrowDown" ? 1 : -1);
  (at < 0 ? $("search") : all[Math.min(at, all.length - 1)]).focus();
}

// The menu of a conversation.

let menuFor = null;

function startMenu() {
  const menu = $("menu");
  menu.addEventListener("keydown", (e) => {
    const items = [...menu.querySelectorAll("button")];
    const at = items.indexOf(document.activeElement);
    const go = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[e.key];
    if (go !== undefined) { e.preventDefault(); items.at(go % items.length).focus(); }
    if (e.key === "Escape" || e.key === "Tab") { e.preventDefault(); e.stopPropagation(); hideMenu(true); }
  });
  document.addEventListener("pointerdown", (e) => { if (!menu.hidden && !menu.contains(e.target) && !menuFor.contains(e.target)) hideMenu(false); });
  $("conversations").addEventListener("scroll", () => hideMenu(false), { passive: true });
}

function hideMenu(back) {
  if ($("menu").hidden) return;
  $("menu").hidden = true;
  menuFor?.setAttribute("aria-expanded", "false");
  if (back) menuFor?.focus();
}

function showMenu(button, entry) {
  const menu = $("menu");
  if (!menu.hidden && menuFor === button) return hideMenu(true);
  hideMenu(false);
  menuFor = button;
  const choice = (name, label, run) => h("button", { type: "button", role: "menuitem", tabIndex: -1, onclick: () => { hideMenu(true); run(); } }, icon(name), label);
  menu.replaceChildren(
    choice("edit", "Rename", () => rename(entry.id)),
    choice("export", "Export", () => download(entry.id, `${entry.title.replace(/[^\p{L}\p{N} _-]/gu, "").trim().slice(0, 40) || "conversation"}.json`)),
    choice("delete", "Delete", () => remove(entry.id)));
  menu.hidden = false;
  const at = button.getBoundingClientRect();
  menu.style.left = `${Math.min(at.left, innerWidth - menu.offsetWidth - 8)}px`;
  menu.style.top = `${at.bottom + menu.offsetHeight + 8 > innerHeight ? at.top - menu.offsetHeight - 4 : at.bottom + 4}px`;
  button.setAttribute("aria-expanded", "true");
  menu.firstChild.focus();
}

/** A conversation as it is now: the open one and those with a running reply are newer than the store. */
const current = async (id) => id === state.conversation?.id ? state.conversation : state.running.get(id)?.conversation ?? await store.get(id);

function rename(id) {
  const row = $("conversations").querySelector(`li[data-id="${id}"]`);
  const title = row.querySelector(".title").textContent;
  renaming = id;
  const input = h("input", { class: "rename", "aria-label": "Name of the conversation", value: title, dir: "auto", maxLength: 200 });
  const end = async (keep) => {
    if (renaming !== id) return;
    const text = input.value.trim();
    if (keep && text !== title) {
      const conversation = await current(id);
      if (conversation) {
        conversation.title = text; // empty: named after the first message again
        await store.put(conversation);
        if (conversation === state.conversation) hooks.renamed();
      }
    }
    renaming = null;
    await renderList();
    if (document.activeElement === document.body) $("conversations").querySelector(`li[data-id="${id}"] .open`)?.focus();
  };
  input.addEventListener("keydown", (e) => {
    if (e.isComposing || e.keyCode === 229) return;
    if (e.key === "Enter") { e.preventDefault(); end(true); }
    if (e.key === "Escape") { e.preventDefault(); e.stopPropagation(); end(false); }
  });
  input.addEventListener("blur", () => end(true));
  row.replaceChildren(input);
  input.focus();
  input.select();
}

async function remove(id) {
  const conversation = await current(id);
  if (!conversation) return;
  const title = $("conversations").querySelector(`li[data-id="${id}"] .title`)?.textContent ?? "Conversation";
  const next = $("conversations").querySelector(`li[data-id="${id}"]`);
  const all = [...$("conversations").querySelectorAll("li")];
  const neighbour = all[all.indexOf(next) + 1] ?? all[all.indexOf(next) - 1];
  state.deleted.add(id);
  stop(conversation);
  await store.remove(id);
  hooks.deleted(id);
  await renderList();
  ($("conversations").querySelector(`li[data-id="${neighbour?.dataset.id}"] .open`) ?? $("new-chat")).focus();
  toast(`Deleted “${title}”.`, { label: "Undo", run: async () => {
    state.deleted.delete(id);
    await store.put(conversation);
    await hooks.open(id);
    await renderList();
    $("conversations").querySelector(`li[data-id="${id}"] .open`)?.focus();
  } });
}

async function download(id, name) {
  const url = URL.createObjectURL(new Blob([await store.exported(id)], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

async function importFile() {
  const input = $("import-file");
  const [file] = input.files;
  if (!file) return;
  try {
    const n = await store.imported(await file.text());
    toast(n === 1 ? "One conversation was imported." : `${n} conversations were imported.`);
  } catch (error) {
    toast(error.message);
  }
  input.value = "";
  renderList();
}
