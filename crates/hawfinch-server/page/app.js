// The page of `hawfinch serve`: starts the parts, opens conversations, takes in what is typed and the keys that are pressed.

import * as api from "./api.js";
import * as store from "./store.js";
import { send, stop, hooks as chatHooks } from "./chat.js";
import { $, announce, count, fit, h, local, toast } from "./dom.js";
import { closeSettings, startSettings } from "./settings.js";
import { closeOver, renderList, startSidebar, toggleSidebar, hooks as sidebarHooks } from "./sidebar.js";
import { emit, fresh, modelOf, on, save, state } from "./state.js";
import { startTheme } from "./theme.js";
import { editLast, startThread, toEnd, hooks as threadHooks } from "./thread.js";
import { fork, path, titleOf } from "./tree.js";

const draft = $("draft");
const touch = matchMedia("(hover: none) and (pointer: coarse)");
const draftKey = () => `hawfinch.draft.${state.stored ? state.conversation.id : "new"}`;

// Conversations.

function show(conversation, stored) {
  state.conversation = conversation;
  state.stored = stored;
  const hash = stored ? `#/${conversation.id}` : "#/";
  if ((location.hash || "#/") !== hash) history.pushState(null, "", hash);
  draft.value = local.get(draftKey()) ?? "";
  fit(draft);
  emit("open", conversation);
  refresh();
}

async function open(id) {
  if (id === state.conversation?.id) return;
  const conversation = state.running.get(id)?.conversation ?? await store.get(id);
  if (conversation) show(conversation, true);
  else { show(fresh(), false); if (id) toast("That conversation is not in this browser."); }
}

function newChat() {
  show(fresh(), false);
  closeOver();
  draft.focus();
}

const fromHash = () => /^#\/([\w-]{1,64})$/.exec(location.hash)?.[1] ?? null;

/** Title, buttons and model: what depends on the open conversation. */
function refresh() {
  const { conversation } = state;
  const name = titleOf(conversation);
  $("title").textContent = name;
  document.title = name === "New chat" ? "hawfinch" : `${name} – hawfinch`;
  const running = state.running.has(conversation.id);
  const had = document.activeElement === $("stop") || document.activeElement === $("send");
  $("stop").hidden = !running;
  $("send").hidden = running;
  $("send").disabled = draft.value.trim() === "";
  if (had) (running ? $("stop") : draft).focus();
  const model = modelOf(conversation);
  if (model) $("model").value = model.id;
  $("facts").textContent = facts(model);
  const changed = Object.keys(conversation.settings).length > 0;
  const label = changed ? "Settings, changed" : "Settings";
  $("settings-open").classList.toggle("changed", changed);
  $("settings-open").ariaLabel = $("settings-open").title = label;
}

function facts(model) {
  const about = model?.hawfinch;
  if (!about) return model?.id ?? "";
  const size = about.parameters >= 1e9 ? `${(about.parameters / 1e9).toPrecision(2)} billion parameters`
    : about.parameters >= 1e6 ? `${Math.round(about.parameters / 1e6)} million parameters` : about.parameters ? `${count(about.parameters)} parameters` : "";
  return [model.id, about.version && `RWKV-${about.version}`, size].filter(Boolean).join("  ·  ");
}

// Models.

let retryTimer = 0;
let tries = 0;
let read = 0;

async function loadModels() {
  clearTimeout(retryTimer);
  read = Date.now();
  try {
    const models = await api.models();
    tries = 0;
    $("banner").hidden = true;
    if (models.length === 0) banner("The server has no model; start it with one.", "Look again");
    // Lists and panels are left alone while nothing changed: someone may be using them.
    if (JSON.stringify(models) === JSON.stringify(state.models)) return;
    state.models = models;
    emit("models");
  } catch (error) {
    if (error.kind === "key") {
      if (await askKey(error.message)) return loadModels();
      return banner(error.message, "Enter the key");
    }
    banner(error.message, "Try again");
    retryTimer = setTimeout(loadModels, Math.min(3000 * 2 ** tries++, 60000));
  }
}

function banner(text, label) {
  const box = $("banner");
  if (!box.hidden && box.firstChild?.textContent === text) return;
  box.replaceChildren(h("p", {}, text), h("button", { type: "button", class: "small-button", onclick: loadModels }, label));
  box.hidden = false;
}

/** Adapters and tuned states stand under the model that they belong to. */
function listModels() {
  const bases = new Map();
  for (const model of state.models) {
    const base = model.hawfinch?.base ?? model.id;
    if (!bases.has(base)) bases.set(base, []);
    bases.get(base).push(model);
  }
  const option = (m, base) => h("option", { value: m.id },
    m.id.startsWith(`${base}+`) ? `${base} + ${m.id.slice(base.length + 1)}${m.hawfinch?.kind === "state" ? " (state)" : ""}` : m.id);
  $("model").replaceChildren(...[...bases].map(([base, models]) => {
    const sorted = models.toSorted((a, b) => (a.id !== base) - (b.id !== base));
    return models.length === 1 && models[0].id === base ? option(models[0], base) : h("optgroup", { label: base }, sorted.map((m) => option(m, base)));
  }));
}

$("model").addEventListener("change", () => {
  state.conversation.model = $("model").value;
  local.set("hawfinch.model", $("model").value);
  if (state.stored) save(state.conversation, false);
  emit("settings");
  refresh();
});

// The API key.

let asking = null;

function askKey(message) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    $("key-why").textContent = message;
    $("key-value").value = "";
    let given = false;
    $("key-form").onsubmit = () => { given = true; api.setKey($("key-value").value.trim(), $("key-keep").checked); };
    $("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => {
      asking = null;
      resolve(given);
      if (given && state.models.length === 0) loadModels();
    };
    dialog.showModal();
    $("key-value").focus();
  });
  return asking;
}

// A dialog gives the focus back to where it was, but in Chromium, after a click, without the caret: keys would go nowhere.
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("close", () => {
    const back = document.activeElement;
    if (back?.matches("textarea, input")) { back.blur(); back.focus(); }
  });
}

// The message box.

function submit() {
  const { conversation } = state;
  const text = draft.value;
  if (text.trim() === "") return;
  if (state.running.has(conversation.id)) { announce("A reply is being written; Escape stops it."); return; }
  local.set(draftKey(), null);
  draft.value = "";
  fit(draft);
  const first = !state.stored;
  conversation.model ??= modelOf(conversation)?.id ?? null;
  const shown = path(conversation);
  send(conversation, shown.at(-1)?.id ?? "root", text);
  if (first) {
    state.stored = true;
    history.replaceState(null, "", `#/${conversation.id}`);
  }
  toEnd();
}

draft.addEventListener("input", () => {
  fit(draft);
  $("send").disabled = draft.value.trim() === "";
  local.set(draftKey(), draft.value);
});

draft.addEventListener("keydown", (e) => {
  // While an input method composes, Enter takes its suggestion. (Safari ends composing before the key: 229.)
  if (e.isComposing || e.keyCode === 229) return;
  if (e.key === "Enter" && !e.shiftKey && !e.altKey && (!touch.matches || e.ctrlKey || e.metaKey)) {
    e.preventDefault();
    submit();
  } else if (e.key === "ArrowUp" && draft.value === "" && editLast()) e.preventDefault();
});

$("composer").addEventListener("submit", (e) => { e.preventDefault(); submit(); });
$("composer").addEventListener("click", (e) => { if (e.target === $("composer")) draft.focus(); });
$("stop").addEventListener("click", () => stop(state.conversation));
$("new-chat").addEventListener("click", newChat);
$("shortcuts-open").addEventListener("click", () => $("shortcuts").showModal());

document.addEventListener("keydown", (e) => {
  if (e.isComposing || e.defaultPrevented) return;
  const control = e.ctrlKey || e.metaKey;
  if (document.querySelector("dialog:modal")) return;
  const typing = e.target.matches?.("textarea, select, input:not([type=range], [type=checkbox])");
  if (control && e.shiftKey && e.key.toLowerCase() === "o") newChat();
  else if (control && !e.shiftKey && e.key.toLowerCase() === "k") { toggleSidebar(true); $("search").focus(); $("search").select(); }
  else if (e.key === "Escape") {
    if (closeOver()) { /* closed */ }
    else if ($("settings").contains(document.activeElement)) closeSettings();
    else if (state.running.has(state.conversation.id)) stop(state.conversation);
    else return;
  } else if (!typing && !control && !e.altKey && e.key === "/") draft.focus();
  else if (!typing && !control && !e.altKey && e.key === "?") $("shortcuts").showModal();
  else return;
  e.preventDefault();
});

// Start.

chatHooks.askKey = askKey;
threadHooks.fork = async (node) => {
  const copy = fork(state.conversation, node.id);
  await save(copy);
  show(copy, true);
  toast("Forked; the conversation goes on here without changing the other.");
  draft.focus();
};
Object.assign(sidebarHooks, {
  open,
  renamed: refresh,
  deleted(id) { if (id === state.conversation.id) show(fresh(), false); },
});
on("models", () => { $("banner").hidden = state.models.length > 0; listModels(); });
for (const name of ["models", "tree", "finished", "branch", "settings"]) on(name, refresh);
window.addEventListener("popstate", () => { const id = fromHash(); if (id) open(id); else if (state.stored) show(fresh(), false); });
window.addEventListener("online", () => { if (state.models.length === 0) loadModels(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && Date.now() - read > 30000 && !asking) loadModels(); });
// What a running reply has so far is kept when the page goes.
window.addEventListener("pagehide", () => { for (const { conversation } of state.running.values()) save(conversation); });

// Keyboards on screens have no Shift Enter: there, Enter breaks the line.
draft.enterKeyHint = touch.matches ? "enter" : "send";
startTheme($("theme"), announce);
startThread();
startSidebar();
startSettings();
await store.open((id, conversation) => {
  renderList();
  // Another tab wrote the open conversation: show what it wrote, unless a reply is being written here.
  if (!conversation || id !== state.conversation?.id || !state.stored || state.running.has(id)) return;
  state.conversation = conversation;
  emit("tree", conversation);
});
const wanted = fromHash();
if (wanted) await open(wanted); else show(fresh(), false);
for (const key of local.keys()) {
  // Text that was typed for conversations that are gone.
  const of = /^hawfinch\.(?:draft|edit)\.([\w-]+)/.exec(key)?.[1];
  if (of && of !== "new" && !(await store.get(of))) local.set(key, null);
}
if (store.notKept) toast(store.notKept);
if (!touch.matches) draft.focus();
loadModels();
