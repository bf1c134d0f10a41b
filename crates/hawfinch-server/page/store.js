// Conversations in IndexedDB, one record each. Where the browser gives no database (private windows of some), they live
// in memory and the page says so.

import { checked, merge, titleOf } from "./tree.js";

const memory = new Map();
/** What the list shows of each conversation, so that it need not read them all. */
const index = new Map();
let database = null;
/** Why conversations are not kept, or null. */
export let notKept = null;

const request = (r) => new Promise((resolve, reject) => {
  r.onsuccess = () => resolve(r.result);
  r.onerror = () => reject(r.error);
});

const store = (mode) => database.transaction("conversations", mode).objectStore("conversations");

// Other tabs of the same page hear of changes and read again.
const channel = typeof BroadcastChannel === "function" ? new BroadcastChannel("hawfinch") : null;

const note = ({ id, updated, ...rest }) => index.set(id, { id, updated, title: titleOf(rest) });

const everything = async () => database ? await request(store("readonly").getAll()) : [...memory.values()];

/** Opens the database; `changed(id, conversation)` is called when another tab wrote or deleted one. */
export async function open(changed) {
  try {
    const opening = indexedDB.open("hawfinch", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
    database = await request(opening);
  } catch (error) {
    notKept = `This browser keeps no data for the page (${error?.message ?? error}); conversations are lost when it closes.`;
  }
  for (const conversation of await everything()) note(conversation);
  if (channel) {
    channel.onmessage = async ({ data: id }) => {
      const conversation = await get(id);
      if (conversation) note(conversation); else index.delete(id);
      changed(id, conversation);
    };
  }
}

/** Every conversation as the list needs it, newest first. */
export const list = () => [...index.values()].sort((a, b) => b.updated - a.updated);

export async function get(id) {
  return (database ? await request(store("readonly").get(id)) : structuredClone(memory.get(id))) ?? null;
}

export async function put(conversation) {
  if (database) {
    // In one transaction: between reading and writing no other tab writes.
    const conversations = store("readwrite");
    const there = await request(conversations.get(conversation.id));
    if (there) merge(conversation, there);
    await request(conversations.put(conversation));
  } else memory.set(conversation.id, structuredClone(conversation));
  note(conversation);
  channel?.postMessage(conversation.id);
}

export async function remove(id) {
  if (database) await request(store("readwrite").delete(id));
  else memory.delete(id);
  index.delete(id);
  channel?.postMessage(id);
}

const folded = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLocaleLowerCase();

/** Ids of conversations that hold every word of the query, each with the line around the first find. */
export async function search(query) {
  const words = folded(query).split(/\s+/).filter(Boolean);
  const found = new Map();
  for (const conversation of await everything()) {
    const texts = [titleOf(conversation), ...Object.values(conversation.nodes).map((n) => n.content)];
    const lower = texts.map(folded);
    if (!words.every((w) => lower.some((t) => t.includes(w)))) continue;
    const at = lower.findIndex((t, i) => i > 0 && t.includes(words[0]));
    found.set(conversation.id, at === -1 ? "" : snippet(texts[at], lower[at].indexOf(words[0])));
  }
  return found;
}

function snippet(text, at) {
  const from = Math.max(0, at - 24);
  return (from > 0 ? "…" : "") + text.slice(from, at + 80).replace(/\s+/g, " ").trim();
}

const FORMAT = "hawfinch-conversations";

/** Conversations as a file: all, or the one with an id. */
export async function exported(id) {
  const all = id ? [await get(id)] : await everything();
  return JSON.stringify({ format: FORMAT, version: 1, exported: new Date().toISOString(), conversations: all.filter(Boolean) }, null, 1);
}

/** Reads such a file; returns how many conversations came in. Throws a sentence, and then nothing was written. */
export async function imported(text) {
  let file;
  try { file = JSON.parse(text); } catch { throw new Error("The file is not JSON; choose a file that this page exported."); }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) {
    throw new Error("The file does not hold conversations of this page; choose a file that it exported.");
  }
  if (file.version !== 1) throw new Error(`The file is of version ${file.version}; this page reads version 1.`);
  const read = file.conversations.map(checked);
  for (const conversation of read) {
    // What is here already is not overwritten: the import comes beside it.
    const here = await get(conversation.id);
    if (here) conversation.id = `${conversation.id.slice(0, 40)}-${Date.now().toString(36)}${Math.floor(Math.random() * 1e6).toString(36)}`;
    await put(conversation);
  }
  return read.length;
}
