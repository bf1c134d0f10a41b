// The settings of a conversation: what there is, what it means, and what the API is sent. A setting that is absent is
// the model's own.

/** Numbers. `neutral` holds where the model names no default; `null` means that nothing is sent then. */
export const NUMBERS = [
  { key: "temperature", group: "sampling", label: "Temperature", hint: "Higher is bolder; 0 always takes the likeliest token.", min: 0, max: 2, step: 0.05, neutral: 1 },
  { key: "top_p", group: "sampling", label: "Top-p", hint: "Keeps the likeliest tokens up to this share.", min: 0, max: 1, step: 0.01, neutral: 1 },
  { key: "top_k", group: "sampling", label: "Top-k", hint: "Keeps this many of the likeliest tokens; 0 is all.", min: 0, max: 1000000, whole: true, neutral: 0 },
  { key: "min_p", group: "sampling", label: "Min-p", hint: "Drops tokens below this share of the best.", min: 0, max: 1, step: 0.01, neutral: 0 },
  { key: "presence_penalty", group: "repetition", label: "Presence penalty", hint: "Against tokens that were used at all.", min: -2, max: 2, step: 0.05, neutral: 0 },
  { key: "frequency_penalty", group: "repetition", label: "Frequency penalty", hint: "Against tokens by how often they were used.", min: -2, max: 2, step: 0.05, neutral: 0 },
  { key: "repetition_penalty", group: "repetition", label: "Repetition penalty", hint: "Divides the score of used tokens; 1 is off.", min: 0.5, max: 2, step: 0.01, neutral: 1 },
  { key: "penalty_decay", group: "repetition", label: "Penalty decay", hint: "How much of a penalty is left after each token.", min: 0, max: 1, step: 0.001, neutral: 1 },
  { key: "max_tokens", group: "length", label: "Longest reply", hint: "In tokens.", min: 1, max: 10000000, whole: true, neutral: null },
  { key: "seed", group: "length", label: "Seed", hint: "The same seed gives the same reply. Empty is random.", min: 0, max: Number.MAX_SAFE_INTEGER, whole: true, neutral: null },
];

/** What the model does by itself, or `neutral`. */
export function modelDefault(field, model) {
  const about = model?.hawfinch;
  const own = field.key === "max_tokens" ? about?.max_tokens : about?.sampler?.[field.key];
  return Number.isFinite(own) ? own : field.neutral;
}

/** Reads what was typed: `{ value }`, or `{ wrong: "a sentence" }`. */
export function read(field, typed) {
  const value = Number(typed.trim().replace(",", "."));
  if (typed.trim() === "" || Number.isNaN(value) || (field.whole && !Number.isInteger(value))) return { wrong: field.whole ? "A whole number, please." : "A number, please." };
  if (value < field.min || value > field.max) return { wrong: `Between ${field.min.toLocaleString("en")} and ${field.max.toLocaleString("en")}.` };
  return { value };
}

/** Stop strings, one a line; \n and \t stand for the characters. */
export const stops = (text) => (text ?? "").split("\n").filter((l) => l !== "")
  .map((l) => l.replace(/\\([nt\\])/g, (_, c) => ({ n: "\n", t: "\t", "\\": "\\" })[c]));

/** What the API is sent. The model's own values are sent too, so that what is shown is what is used. */
export function parameters(settings, model) {
  const sent = {};
  for (const field of NUMBERS) {
    const named = modelDefault({ ...field, neutral: undefined }, model);
    const value = settings[field.key] ?? named;
    if (Number.isFinite(value)) sent[field.key] = value;
  }
  const stop = stops(settings.stop);
  if (stop.length > 0) sent.stop = stop;
  if (settings.reasoning_effort && model?.hawfinch?.reasoning) sent.reasoning_effort = settings.reasoning_effort;
  return sent;
}
