// The panel of settings, at the side where there is room and over the page where there is not.

import { $, announce, count, h, icon, iconButton, local } from "./dom.js";
import { modelDefault, NUMBERS, read } from "./parameters.js";
import { emit, modelOf, on, save, state } from "./state.js";

/** The model whose defaults the panel shows. */
let shown;
const wide = matchMedia("(min-width: 72rem)");

/** Changes one setting of the open conversation; undefined gives it back to the model. */
function change(key, value) {
  const { conversation } = state;
  if (value === undefined) delete conversation.settings[key]; else conversation.settings[key] = value;
  local.set("hawfinch.settings", JSON.stringify(conversation.settings));
  if (state.stored) save(conversation, false);
  $("settings-reset").disabled = Object.keys(conversation.settings).length === 0;
  emit("settings");
}

function numberField(field, model) {
  const own = modelDefault(field, model);
  const id = `set-${field.key}`;
  const given = () => state.conversation.settings[field.key];
  const show = () => given() ?? own ?? "";
  const complaint = h("p", { class: "complaint", id: `${id}-wrong`, hidden: true });
  const number = h("input", {
    id, type: "text", inputMode: field.whole ? "numeric" : "decimal", autocomplete: "off", value: show(),
    placeholder: own === null ? (field.key === "seed" ? "random" : "no limit") : String(own), "aria-describedby": `${id}-hint ${id}-wrong`,
  });
  const slider = field.step && h("input", {
    type: "range", min: field.min, max: field.max, step: field.step, "aria-label": `${field.label}, slider`, tabIndex: -1,
  });
  if (slider) slider.value = show();
  const reset = iconButton("reset", `${field.label}: back to the model's ${own ?? "own"}`, () => { take(undefined); number.value = show(); number.focus(); }, { class: "icon-button reset" });
  const row = h("div", { class: "field" },
    h("div", { class: "field-line" }, h("label", { for: id }, field.label), reset, number), slider,
    h("p", { class: "hint", id: `${id}-hint` }, field.hint), complaint);
  const mark = () => {
    row.classList.toggle("changed", given() !== undefined);
    reset.disabled = given() === undefined;
    if (slider) slider.value = show();
  };
  const take = (value) => {
    complaint.hidden = true;
    number.removeAttribute("aria-invalid");
    change(field.key, value === own ? undefined : value);
    mark();
  };
  number.addEventListener("input", () => {
    if (number.value.trim() === "") return take(undefined);
    const { value, wrong } = read(field, number.value);
    if (!wrong) return take(value);
    complaint.textContent = wrong;
    complaint.hidden = false;
    number.setAttribute("aria-invalid", "true");
  });
  // What cannot be used is not left standing as if it were.
  number.addEventListener("change", () => {
    if (number.value.trim() === "" || complaint.hidden === false) number.value = show();
    if (!complaint.hidden) announce(`${field.label}: ${complaint.textContent}`, true);
    number.removeAttribute("aria-invalid");
  });
  number.addEventListener("keydown", (e) => {
    const step = field.step ?? (field.whole && 1);
    if (e.key !== "ArrowUp" && e.key !== "ArrowDown") return;
    e.preventDefault();
    const at = Number(show() || 0) + (e.key === "ArrowUp" ? step : -step);
    const next = Number(Math.min(field.max, Math.max(field.min, at)).toFixed(6));
    take(next);
    number.value = show();
  });
  slider?.addEventListener("input", () => { take(Number(slider.value)); number.value = show(); });
  mark();
  return row;
}

function textField(key, label, hint, placeholder, rows) {
  const id = `set-${key}`;
  const area = h("textarea", { id, rows, placeholder, dir: "auto", value: state.conversation.settings[key] ?? "", "aria-describedby": `${id}-hint` });
  area.addEventListener("input", () => change(key, area.value === "" ? undefined : area.value));
  return h("div", { class: "field" }, h("label", { for: id }, label), area, h("p", { class: "hint", id: `${id}-hint` }, hint));
}

function effortField() {
  const select = h("select", { id: "set-reasoning_effort" },
    [["", "As the model is set up"], ["none", "None"], ["low", "Low"], ["medium", "Medium"], ["high", "High"]].map(([value, text]) => h("option", { value }, text)));
  select.value = state.conversation.settings.reasoning_effort ?? "";
  select.addEventListener("change", () => change("reasoning_effort", select.value || undefined));
  return h("div", { class: "field" }, h("div", { class: "field-line" }, h("label", { for: select.id }, "Reasoning"),
    h("span", { class: "select" }, select, icon("chevron"))));
}

function about(model) {
  const a = model?.hawfinch ?? {};
  const size = (n) => n >= 1e9 ? `${(n / 1e9).toPrecision(2)} billion` : n >= 1e6 ? `${Math.round(n / 1e6)} million` : count(n);
  const rows = [
    ["Name", model?.id],
    ["Kind", { model: "Model", adapter: "Adapter (LoRA)", state: "Tuned state" }[a.kind]],
    ["Architecture", a.version && `RWKV-${a.version}`],
    ["Parameters", a.parameters && size(a.parameters)],
    ["Size", a.layers && a.width && `${a.layers} layers of ${count(a.width)}`],
    ["Vocabulary", a.vocab && count(a.vocab)],
    ["Chat template", a.template],
  ].filter(([, v]) => v);
  return h("dl", { class: "about" }, rows.map(([k, v]) => h("div", {}, h("dt", {}, k), h("dd", {}, String(v)))));
}

/** Builds the panel anew for the open conversation and its model. */
export function renderSettings() {
  const model = modelOf(state.conversation);
  shown = model?.id;
  const group = (title, ...children) => h("fieldset", {}, h("legend", {}, title), ...children);
  const numbers = (name) => NUMBERS.filter((f) => f.group === name).map((f) => numberField(f, model));
  $("settings-body").replaceChildren(
    textField("system", "System prompt", "Said to the model before the conversation.", "None", 4),
    model?.hawfinch?.reasoning ? effortField() : "",
    group("Sampling", numbers("sampling")),
    group("Repetition", numbers("repetition")),
    group("Length", numbers("length"),
      textField("stop", "Stop strings", "One a line; \\n stands for a line break. A reply ends where one appears.", "None", 2)),
    group("Model", about(model)));
  $("settings-reset").disabled = Object.keys(state.conversation.settings).length === 0;
}

export function openSettings(focus = true) {
  const panel = $("settings");
  if (panel.open) return;
  renderSettings();
  if (wide.matches) panel.show(); else panel.showModal();
  $("settings-open").setAttribute("aria-expanded", "true");
  if (focus) $("settings-title").focus(); else document.activeElement?.blur();
}

export function closeSettings() {
  if ($("settings").open) $("settings").close();
}

export function startSettings() {
  const panel = $("settings");
  $("settings-open").addEventListener("click", () => panel.open ? closeSettings() : openSettings());
  $("settings-close").addEventListener("click", closeSettings);
  panel.addEventListener("close", () => {
    if (panel.open) return; // opened again in its other form
    $("settings-open").setAttribute("aria-expanded", "false");
    $("settings-open").focus();
  });
  // A click beside a panel that lies over the page closes it.
  panel.addEventListener("click", (e) => { if (e.target === panel && !wide.matches) closeSettings(); });
  wide.addEventListener("change", () => { if (panel.open) { panel.close(); openSettings(false); } });
  $("settings-reset").addEventListener("click", () => {
    state.conversation.settings = {};
    local.set("hawfinch.settings", null);
    if (state.stored) save(state.conversation, false);
    renderSettings();
    emit("settings");
    announce("All settings are the model's own again.");
    $("settings-title").focus();
  });
  for (const name of ["open", "models"]) on(name, () => { if (panel.open) renderSettings(); });
  // Another model has other defaults.
  on("settings", () => { if (panel.open && modelOf(state.conversation)?.id !== shown) renderSettings(); });
}
