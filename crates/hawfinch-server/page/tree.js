// A conversation is a tree of messages. Every message knows its parent, its children and which child is shown, so that
// an edit or another try is a sibling, and nothing that was written goes away.
//
//   conversation: { id, title, created, updated, model, settings, nodes: { root, … } }
//   message: { id, parent, children: [id], pick, role, content, reasoning?, model?, created, status, error?, finish?, usage?, timings? }
//   status: "done" | "streaming" | "stopped" | "error"

import { newId } from "./dom.js";

export function newConversation(settings = {}, model = null) {
  const now = Date.now();
  return {
    id: newId(), title: "", created: now, updated: now, model, settings: structuredClone(settings),
    nodes: { root: { id: "root", parent: null, children: [], pick: 0, role: "root", content: "" } },
  };
}

/** The messages that are shown, first to last. */
export function path(conversation) {
  const found = [];
  let node = conversation.nodes.root;
  while (node.children.length > 0) {
    node = conversation.nodes[node.children[Math.min(node.pick, node.children.length - 1)]];
    found.push(node);
  }
  return found;
}

/** Adds a message under `parent` and shows it. */
export function add(conversation, parent, message) {
  const node = { id: newId(), parent, children: [], pick: 0, created: Date.now(), status: "done", ...message };
  conversation.nodes[node.id] = node;
  const above = conversation.nodes[parent];
  above.children.push(node.id);
  above.pick = above.children.length - 1;
  return node;
}

/** The messages from the first to `id`. */
export function ancestors(conversation, id) {
  const found = [];
  for (let node = conversation.nodes[id]; node && node.parent !== null; node = conversation.nodes[node.parent]) found.unshift(node);
  return found;
}

/** Position of a message among its siblings: `{ index, of }`. */
export function position(conversation, node) {
  const { children } = conversation.nodes[node.parent];
  return { index: children.indexOf(node.id), of: children.length };
}

/** Shows the sibling `step` away. */
export function turn(conversation, node, step) {
  const parent = conversation.nodes[node.parent];
  parent.pick = Math.max(0, Math.min(parent.children.length - 1, parent.children.indexOf(node.id) + step));
  return conversation.nodes[parent.children[parent.pick]];
}

/** A new conversation of what leads to `id`, with the branches left behind. */
export function fork(conversation, id) {
  const copy = newConversation(conversation.settings, conversation.model);
  let parent = "root";
  for (const node of ancestors(conversation, id)) {
    const { id: _, parent: __, children: ___, pick: ____, ...rest } = structuredClone(node);
    if (rest.status === "streaming") rest.status = "stopped";
    parent = add(copy, parent, rest).id;
  }
  copy.title = titleOf(conversation).replace(/( \(fork\))?$/, " (fork)");
  return copy;
}

/** Whether a message came to nothing, so that another try may take its place. */
export const empty = (node) => node.content === "" && !node.reasoning && node.children.length === 0;

/**
 * Takes over what another tab wrote into the same conversation: messages that are not here, and of those that are the longer text
 * (texts only grow: edits are messages of their own), or the one that has ended. What is shown stays.
 */
export function merge(conversation, other) {
  const written = (node) => node.content.length + (node.reasoning ?? "").length;
  const going = (node) => node.status === "streaming";
  const { nodes } = conversation;
  const rest = Object.values(other.nodes).filter((node) => !(empty(node) && !going(node)) || nodes[node.id]);
  for (const node of rest) {
    const here = nodes[node.id];
    if (!here) nodes[node.id] = { ...structuredClone(node), children: [], pick: 0 };
    else if (written(node) > written(here) || (written(node) === written(here) && going(here) && !going(node))) {
      Object.assign(here, structuredClone(node), { children: here.children, pick: here.pick });
    }
  }
  for (const { id, parent } of rest) {
    const siblings = nodes[parent]?.children;
    if (siblings && !siblings.includes(id)) siblings.push(id);
  }
}

/** What the API is sent for the conversation up to `id`: content exactly as it was received, without reasoning. */
export function messages(conversation, id, system) {
  const sent = ancestors(conversation, id)
    .filter((n) => n.role === "user" || n.content !== "")
    .map((n) => ({ role: n.role, content: n.content }));
  return system ? [{ role: "system", content: system }, ...sent] : sent;
}

/** A title from the first words of the first message. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = path(conversation).find((n) => n.role === "user");
  const text = (first?.content ?? "").trim().split("\n")[0].replace(/\s+/g, " ");
  const letters = Array.from(text);
  return letters.length > 60 ? `${letters.slice(0, 58).join("").trimEnd()}…` : text || "New chat";
}

/** A conversation read from a file: everything is checked and copied field by field. Throws a sentence. */
export function checked(value) {
  const fail = (what) => { throw new Error(`The file holds a conversation that cannot be read: ${what}.`); };
  const text = (v, max = 1e8) => typeof v === "string" ? v.slice(0, max) : "";
  const time = (v) => Number.isFinite(v) && v > 0 && v < 8.64e15 ? v : Date.now();
  const object = (v) => v !== null && typeof v === "object" && !Array.isArray(v) ? v : null;
  if (!object(value) || !object(value.nodes) || !object(value.nodes.root)) fail("it has no messages");
  const conversation = newConversation(object(value.settings) ?? {}, typeof value.model === "string" ? value.model : null);
  if (/^[\w-]{1,64}$/.test(value.id)) conversation.id = value.id;
  Object.assign(conversation, { title: text(value.title, 500), created: time(value.created), updated: time(value.updated) });
  const seen = new Map([["root", "root"]]);
  const queue = ["root"];
  while (queue.length > 0) {
    const from = queue.pop();
    const old = value.nodes[from];
    if (!Array.isArray(old.children)) fail("a message does not say what follows it");
    const made = conversation.nodes[seen.get(from)];
    for (const child of old.children) {
      const node = Object.hasOwn(value.nodes, child) ? object(value.nodes[child]) : null;
      if (!node || seen.has(child)) fail("its messages are not a tree");
      if (!["user", "assistant"].includes(node.role)) fail("a message is neither of a user nor of an assistant");
      const fresh = { role: node.role, content: text(node.content), created: time(node.created), status: "done" };
      if (node.reasoning) fresh.reasoning = text(node.reasoning);
      if (node.model) fresh.model = text(node.model, 500);
      if (["stopped", "error", "streaming"].includes(node.status)) fresh.status = "stopped";
      if (typeof node.finish === "string") fresh.finish = text(node.finish, 50);
      for (const key of ["usage", "timings"]) if (object(node[key])) fresh[key] = structuredClone(node[key]);
      seen.set(child, add(conversation, made.id, fresh).id);
      queue.push(child);
    }
    made.pick = Number.isInteger(old.pick) && old.pick >= 0 && old.pick < Math.max(made.children.length, 1) ? old.pick : 0;
  }
  return conversation;
}
