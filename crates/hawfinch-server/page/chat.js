// Replies: asking the server for one, taking in its stream, stopping it, trying again.

import * as api from "./api.js";
import { announce } from "./dom.js";
import { parameters } from "./parameters.js";
import { emit, modelOf, save, state } from "./state.js";
import { add, empty, messages } from "./tree.js";

/** Asks for an API key and resolves to whether one was given; set by the page. */
export const hooks = { askKey: async (_message) => false };

/** Ends the reply being written in a conversation, if there is one. What has come stays. */
export function stop(conversation) {
  state.running.get(conversation.id)?.controller.abort();
}

/** Adds what the user said and asks for a reply. */
export function send(conversation, parent, content) {
  stop(conversation);
  const said = add(conversation, parent, { role: "user", content });
  return reply(conversation, said.id);
}

/** Asks for a reply to the message `parent`, as a new branch if there are others. */
export function reply(conversation, parent) {
  stop(conversation);
  const node = add(conversation, parent, { role: "assistant", content: "", status: "streaming" });
  emit("tree", conversation);
  return run(conversation, node, false);
}

/** Another try: in place of a reply that came to nothing, else beside it. */
export function retry(conversation, node) {
  if (!empty(node)) return reply(conversation, node.parent);
  stop(conversation);
  return run(conversation, node, false);
}

/** Goes on with a reply that was cut off. */
export function proceed(conversation, node) {
  stop(conversation);
  return run(conversation, node, true);
}

async function run(conversation, node, proceeding) {
  const controller = new AbortController();
  const mine = { controller, node, conversation };
  state.running.set(conversation.id, mine);
  node.status = "streaming";
  const before = proceeding ? node.usage : null;
  for (const key of ["error", "wait", "finish"]) delete node[key];
  await save(conversation);
  emit("tree", conversation);

  let saved = Date.now();
  let thinking = 0;
  const began = performance.now();
  let first = 0;
  const take = (part) => {
    if (part.reasoning) {
      thinking ||= performance.now();
      node.reasoning = (node.reasoning ?? "") + part.reasoning;
    }
    if (part.content) {
      if (thinking && !node.content) node.thought = performance.now() - thinking;
      node.content += part.content;
    }
    if (part.reasoning || part.content) first ||= performance.now();
    if (part.finish) node.finish = part.finish;
    if (part.usage) {
      const { usage } = part;
      if (before?.completion_tokens) usage.completion_tokens += before.completion_tokens;
      node.usage = usage;
      node.timings = part.timings ?? { predicted_per_second: first ? part.usage.completion_tokens / Math.max((performance.now() - first) / 1000, 0.001) : undefined };
    }
    emit("stream", node);
    // A page that is closed loses a second at most.
    if (Date.now() - saved > 1000) { saved = Date.now(); save(conversation); }
  };

  for (;;) {
    try {
      if (state.models.length === 0) {
        // The page came up without the server: what is wrong now is what it says now.
        state.models = await api.models();
        emit("models");
      }
      const model = modelOf(conversation);
      if (!model) throw new api.ApiError("request", "The server has no model; start it with one, then try again.");
      if (!proceeding || !node.model) node.model = model.id;
      const { settings } = conversation;
      await api.chat({
        model: model.id,
        messages: messages(conversation, proceeding ? node.id : node.parent, settings.system),
        ...parameters(settings, model),
        ...(proceeding ? { continue_final_message: true, add_generation_prompt: false } : {}),
      }, controller.signal, take);
      node.status = "done";
    } catch (error) {
      if (controller.signal.aborted || error.name === "AbortError") node.status = "stopped";
      else if (error.kind === "key" && await hooks.askKey(error.message)) continue;
      else {
        node.status = "error";
        node.error = error instanceof api.ApiError ? error.message : `Something in this page failed: ${error.message}.`;
        if (error.wait) node.wait = Date.now() + error.wait * 1000;
        if (!(error instanceof api.ApiError)) console.error(error);
      }
    }
    break;
  }
  node.elapsed = performance.now() - began;
  if (state.running.get(conversation.id) === mine) state.running.delete(conversation.id);
  await save(conversation);
  emit("finished", { conversation, node });
  if (conversation === state.conversation) tell(node);
}

/** The end of a reply for screen readers; the tokens on the way are not read. */
function tell(node) {
  if (node.status === "error") announce(node.error, true);
  else if (node.status === "stopped") announce("Stopped.");
  else announce(`Reply finished. ${node.content.slice(0, 2000)}`);
}
