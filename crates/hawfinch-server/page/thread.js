// The messages of the open conversation. Elements are kept by message and only changed where the message changed; what
// streams in is drawn once a frame.

import { $, announce, copyText, count, h, icon, iconButton, fit, local, plural } from "./dom.js";
import { Markdown } from "./markdown.js";
import { proceed, reply, retry, send, stop } from "./chat.js";
import { emit, on, save, state } from "./state.js";
import { add, path, position, turn } from "./tree.js";

/** Elements by message id: { node, el, … }. */
const shown = new Map();
/** Set by the page: what forks a conversation and opens it. */
export const hooks = { fork: async (_node) => {} };

const editKey = (node) => `hawfinch.edit.${state.conversation.id}.${node.id}`;
const touch = matchMedia("(hover: none) and (pointer: coarse)");
let atEnd = true;
let frame = 0;
let dirty = null;

export function startThread() {
  const scroller = $("scroller");
  scroller.addEventListener("scroll", () => {
    atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
    $("to-end").hidden = atEnd;
  }, { passive: true });
  $("to-end").addEventListener("click", () => { toEnd(); $("draft").focus(); });
  // The box below grows while one types and the window changes; the end stays in view.
  new ResizeObserver(() => { if (atEnd) toEnd(); }).observe(scroller);
  on("open", () => { renderThread(); toEnd(); });
  on("tree", (conversation) => { if (conversation === state.conversation) { renderThread(); toEnd(); } });
  on("finished", ({ conversation, node }) => {
    if (conversation !== state.conversation) return;
    const follow = atEnd;
    renderThread();
    update(node);
    if (follow) toEnd();
  });
  on("stream", (node) => {
    if (!shown.has(node.id)) return;
    dirty = node;
    frame ||= requestAnimationFrame(draw);
  });
}

function draw() {
  frame = 0;
  const node = dirty;
  if (!node || !shown.has(node.id)) return;
  update(node);
  if (atEnd) toEnd();
}

export function toEnd() {
  const scroller = $("scroller");
  scroller.scrollTop = scroller.scrollHeight;
  atEnd = true;
  $("to-end").hidden = true;
}

/** Brings the list of elements in line with the open conversation. */
export function renderThread() {
  const nodes = path(state.conversation);
  const list = $("thread");
  const ids = new Set(nodes.map((n) => n.id));
  for (const [id, entry] of shown) {
    // The same id with another object is the same message read again from the store.
    const node = state.conversation.nodes[id];
    if (!ids.has(id) || entry.node !== node) { entry.el.remove(); shown.delete(id); }
  }
  nodes.forEach((node, i) => {
    let entry = shown.get(node.id);
    if (!entry) {
      entry = node.role === "user" ? userEntry(node) : assistantEntry(node);
      shown.set(node.id, entry);
      if (local.get(editKey(node)) !== null) edit(node, false);
    }
    entry.last = i === nodes.length - 1;
    entry.el.classList.toggle("last", entry.last);
    if (list.children[i] !== entry.el) list.insertBefore(entry.el, list.children[i] ?? null);
    update(node);
  });
  $("welcome").hidden = nodes.length > 0;
  list.hidden = nodes.length === 0;
}

function userEntry(node) {
  const bubble = h("div", { class: "bubble", dir: "auto" }, node.content);
  const foot = h("footer", { class: "foot" });
  const el = h("article", { class: "message user", "aria-label": "You", "data-id": node.id }, bubble, foot);
  return { node, el, body: bubble, foot };
}

function assistantEntry(node) {
  const content = h("div", { class: "prose" });
  const thoughts = h("div", { class: "prose thoughts" });
  const label = h("span");
  const fold = h("details", { class: "reasoning", hidden: true }, h("summary", {}, icon("chevron"), label), thoughts);
  const notice = h("div", { class: "notice", hidden: true });
  const foot = h("footer", { class: "foot" });
  const body = h("div", { class: "body" }, fold, content);
  const wait = h("p", { class: "waiting", hidden: true }, h("i"), h("i"), h("i"), h("span", { class: "visually-hidden" }, "Waiting for the reply"));
  const el = h("article", { class: "message assistant", "aria-label": "Reply", "data-id": node.id }, body, wait, notice, foot);
  const entry = { node, el, body, content, fold, label, notice, foot, wait, md: new Markdown(content), thoughts: new Markdown(thoughts), chosen: false };
  // Whoever folds or unfolds by hand is not overruled.
  fold.querySelector("summary").addEventListener("click", () => { entry.chosen = true; });
  return entry;
}

/** Draws what changed of a message. */
function update(node) {
  const entry = shown.get(node.id);
  if (!entry) return;
  const streaming = node.status === "streaming";
  const live = state.running.get(state.conversation.id)?.node === node;
  if (node.role === "assistant") {
    entry.md.set(node.content);
    entry.content.hidden = node.content === "";
    if (node.reasoning) {
      entry.fold.hidden = false;
      entry.thoughts.set(node.reasoning);
      const thinking = streaming && node.content === "";
      entry.label.textContent = thinking ? "Reasoning…" : node.thought > 100 ? `Reasoned for ${duration(node.thought)}` : "Reasoning";
      if (!entry.chosen) entry.fold.open = thinking;
    } else {
      entry.fold.hidden = true;
      entry.thoughts.set("");
    }
    entry.el.classList.toggle("streaming", streaming && live);
    entry.el.setAttribute("aria-busy", String(streaming && live));
    entry.el.setAttribute("aria-label", node.model ? `Reply of ${node.model}` : "Reply");
    entry.wait.hidden = !(streaming && live && !node.content && !node.reasoning);
    drawNotice(entry, live);
  }
  drawFoot(entry, streaming && live);
}

const duration = (ms) => ms < 9950 ? `${(ms / 1000).toFixed(1)} s` : ms < 60000 ? `${Math.round(ms / 1000)} s` : `${Math.floor(ms / 60000)} min ${Math.round(ms / 1000) % 60} s`;

/** The sentence under a reply that did not end by itself, with what can be done. */
function drawNotice(entry, live) {
  const { node, notice } = entry;
  const { conversation } = state;
  let kind = null;
  let text = "";
  if (node.status === "error") { kind = "error"; text = node.error; }
  else if (node.status === "stopped") { kind = "calm"; text = "Stopped."; }
  else if (node.status === "streaming" && !live) { kind = "calm"; text = "This reply was interrupted when the page closed."; }
  else if (node.finish === "length" && node.status === "done") { kind = "calm"; text = node.content ? "The reply reached its longest length." : "The longest length was reached before the answer began; allow longer replies in the settings."; }
  else if (node.status === "done" && node.content === "") { kind = "calm"; text = "The model said nothing."; }
  const stamp = `${kind}${text}${node.content === ""}${entry.last}`;
  if (entry.noticed === stamp) return;
  entry.noticed = stamp;
  notice.hidden = kind === null;
  notice.className = `notice ${kind ?? ""}`;
  notice.replaceChildren();
  if (kind === null) return;
  const button = (label, run, name) => h("button", { type: "button", class: "small-button", onclick: run }, icon(name), label);
  notice.append(h("p", {}, text));
  const actions = h("div", { class: "notice-actions" });
  if (node.content && node.children.length === 0) actions.append(button("Continue", () => { proceed(conversation, node); focusDraft(); }, "continue"));
  if (kind === "error") {
    const again = button("Retry", () => { retry(conversation, node); focusDraft(); }, "retry");
    actions.append(again);
    countDown(again, node.wait ?? 0);
  }
  else if (!node.content) actions.append(button("Try again", () => { retry(conversation, node); focusDraft(); }, "retry"));
  if (actions.children.length > 0) notice.append(actions);
}

/** Says on a button how long the server asks to wait. It can be pressed before: the server decides. */
function countDown(button, until) {
  const left = Math.ceil((until - Date.now()) / 1000);
  button.lastChild.data = left > 0 ? `Retry in ${left} s` : "Retry";
  if (left > 0) setTimeout(() => { if (button.isConnected) countDown(button, until); }, 250);
}

// The button that was pressed goes away with its notice; the focus goes where one writes next (not on phones, where that
// would open the keyboard).
const focusDraft = () => { if (!touch.matches) $("draft").focus(); };

function drawFoot(entry, busy) {
  const { node, foot } = entry;
  const { index, of } = position(state.conversation, node);
  const unanswered = node.role === "user" && node.children.length === 0;
  const stamp = JSON.stringify([busy, unanswered, index, of, entry.editing, node.usage, node.timings, node.model, node.status]);
  if (entry.footed === stamp) return;
  entry.footed = stamp;
  foot.replaceChildren();
  foot.hidden = Boolean(entry.editing);
  if (busy || entry.editing) return;
  if (of > 1) {
    const step = (by) => () => show(turn(state.conversation, node, by), by);
    foot.append(h("div", { class: "branches", role: "group", "aria-label": "Branches" },
      iconButton("left", "Branch before", step(-1), { disabled: index === 0, "data-step": "-1" }),
      h("span", {}, h("span", { class: "visually-hidden" }, "Branch "), `${index + 1}/${of}`),
      iconButton("right", "Next branch", step(1), { disabled: index === of - 1, "data-step": "1" })));
  }
  // A reply that came to nothing has only its notice.
  if (node.role === "assistant" && !node.content && !node.reasoning) return;
  const actions = h("div", { class: "actions" });
  const copy = iconButton("copy", node.role === "user" ? "Copy message" : "Copy reply", () => copyText(node.content, copy));
  actions.append(copy, iconButton("edit", node.role === "user" ? "Edit message" : "Edit reply", () => edit(node)));
  if (node.role === "assistant") actions.append(iconButton("retry", "Regenerate", () => { reply(state.conversation, node.parent); focusDraft(); }));
  actions.append(iconButton("fork", "Fork here", () => hooks.fork(node)));
  if (unanswered) foot.append(h("button", { type: "button", class: "small-button", onclick: () => { reply(state.conversation, node.id); focusDraft(); } }, icon("continue"), "Get a reply"));
  foot.append(actions);
  if (node.role === "assistant") {
    const told = meta(node);
    if (told.length > 0) foot.append(h("p", { class: "meta" }, told.map((t) => h("span", {}, t))));
  }
}

/** What a reply cost, from the last chunk of its stream. */
function meta(node) {
  const told = [];
  if (node.model) told.push(node.model);
  const { usage, timings } = node;
  if (usage) {
    const thought = usage.completion_tokens_details?.reasoning_tokens;
    told.push(plural(usage.completion_tokens, "token") + (thought ? `, ${count(thought)} of them reasoning` : ""));
  }
  const speed = timings?.predicted_per_second;
  if (Number.isFinite(speed) && speed > 0) told.push(`${speed < 100 ? speed.toFixed(1) : count(speed)} tokens/s`);
  const cached = usage?.prompt_tokens_details?.cached_tokens;
  if (usage && Number.isFinite(cached)) told.push(cached > 0 ? `${count(cached)} of ${count(usage.prompt_tokens)} prompt tokens from the state` : plural(usage.prompt_tokens, "prompt token"));
  return told;
}

/** Shows another branch and keeps the keyboard where it was. */
function show(node, step) {
  const { conversation } = state;
  save(conversation, false);
  const scroller = $("scroller");
  const top = scroller.scrollTop;
  renderThread();
  scroller.scrollTop = top;
  emit("branch");
  const { index, of } = position(conversation, node);
  announce(`Branch ${index + 1} of ${of}.`);
  const el = shown.get(node.id).el;
  const button = el.querySelector(`[data-step="${step}"]:not(:disabled)`) ?? el.querySelector("[data-step]:not(:disabled)");
  button?.focus({ preventScroll: true });
}

/** Opens a box in place of a message. What is typed there survives a reload. */
export function edit(node, focus = true) {
  const entry = shown.get(node.id);
  if (!entry || entry.editing) { entry?.editing?.querySelector("textarea").focus(); return; }
  const { conversation } = state;
  const area = h("textarea", { dir: "auto", "aria-label": node.role === "user" ? "Edit message" : "Edit reply", value: local.get(editKey(node)) ?? node.content });
  const close = () => {
    local.set(editKey(node), null);
    entry.editing.remove();
    entry.editing = null;
    entry.body.hidden = false;
    entry.el.classList.remove("editing");
    update(node);
    entry.foot.querySelector('[aria-label^="Edit"]')?.focus();
  };
  const submit = () => {
    const text = area.value;
    if (text.trim() === "" || (node.role === "assistant" && text === node.content)) return close();
    close();
    if (node.role === "user") { send(conversation, node.parent, text); focusDraft(); return; }
    stop(conversation);
    const kept = add(conversation, node.parent, { role: "assistant", content: text, model: node.model });
    save(conversation);
    renderThread();
    emit("branch");
    shown.get(kept.id).el.querySelector("button:not(:disabled)")?.focus();
  };
  area.addEventListener("input", () => { fit(area); local.set(editKey(node), area.value); });
  area.addEventListener("keydown", (e) => {
    if (e.isComposing || e.keyCode === 229) return;
    if (e.key === "Escape") { e.preventDefault(); e.stopPropagation(); close(); }
    else if (e.key === "Enter" && !e.shiftKey && ((node.role === "user" && !touch.matches) || e.ctrlKey || e.metaKey)) { e.preventDefault(); submit(); }
  });
  entry.editing = h("div", { class: "editor" }, area, h("div", { class: "editor-actions" },
    h("span", { class: "hint" }, node.role === "user" ? "A new branch; the message as it was stays." : "A new branch; Ctrl+Enter saves."),
    h("button", { type: "button", class: "small-button", onclick: close }, "Cancel"),
    h("button", { type: "button", class: "small-button primary", onclick: submit }, node.role === "user" ? "Send" : "Save")));
  entry.body.hidden = true;
  entry.el.classList.add("editing");
  entry.body.after(entry.editing);
  update(node);
  fit(area);
  if (focus) { area.focus(); area.setSelectionRange(area.value.length, area.value.length); }
}

/** Edits the last message of the user; returns whether there is one. */
export function editLast() {
  const last = path(state.conversation).findLast((n) => n.role === "user");
  if (!last) return false;
  edit(last);
  return true;
}

