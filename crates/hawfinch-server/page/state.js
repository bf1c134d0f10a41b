// What the parts of the page share: the models, the open conversation, the replies being written, and who hears of it.

import * as store from "./store.js";
import { local, toast } from "./dom.js";
import { newConversation } from "./tree.js";

export const state = {
  models: [],
  conversation: null,
  /** Whether the open conversation is in the store; a new one is not before its first message. */
  stored: false,
  /** Replies being written, by conversation: { controller, node, conversation }. */
  running: new Map(),
  /** Ids that were deleted here: a reply that ends late does not bring one back. */
  deleted: new Set(),
};

const bus = new EventTarget();
export const on = (name, run) => bus.addEventListener(name, (e) => run(e.detail));
/** Events: "models", "open", "tree", "stream", "finished", "list", "settings". */
export const emit = (name, detail) => bus.dispatchEvent(new CustomEvent(name, { detail }));

/** The model a conversation talks with: its own if the server still has it, else the last used, else the first. */
export function modelOf(conversation) {
  const find = (id) => id && state.models.find((m) => m.id === id);
  return find(conversation?.model) || find(local.get("hawfinch.model")) || state.models[0] || null;
}

/** A new conversation with the settings last used; not stored yet. */
export function fresh() {
  return newConversation(local.json("hawfinch.settings", {}), local.get("hawfinch.model"));
}

/** Writes a conversation; says so when the browser refuses. */
export async function save(conversation, touched = true) {
  if (state.deleted.has(conversation.id)) return;
  if (touched) conversation.updated = Date.now();
  try {
    await store.put(conversation);
    if (conversation === state.conversation) state.stored = true;
  } catch (error) {
    toast(`The browser could not keep this conversation (${error?.message ?? error}); export it if it matters.`);
  }
  emit("list");
}
