// Light, dark, or as the system has it. Loaded before the rest so that the page does not flash.

const KEY = "hawfinch.theme";
const NAMES = { auto: "as the system", light: "light", dark: "dark" };

const stored = () => { try { return localStorage.getItem(KEY) ?? "auto"; } catch { return "auto"; } };

function apply(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

apply(stored());

/** Makes a button go through the three. */
export function startTheme(button, said) {
  let theme = stored() in NAMES ? stored() : "auto";
  const show = () => {
    const label = `Theme: ${NAMES[theme]}`;
    button.setAttribute("aria-label", label);
    button.title = label;
    button.querySelector("use").setAttribute("href", `#i-${theme}`);
  };
  button.addEventListener("click", () => {
    theme = { auto: "light", light: "dark", dark: "auto" }[theme];
    try { localStorage.setItem(KEY, theme); } catch { /* for this visit only */ }
    apply(theme);
    show();
    said(`Theme: ${NAMES[theme]}.`);
  });
  show();
}
