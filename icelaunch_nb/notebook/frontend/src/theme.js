/**
 * Watches the theme of the page. One poll serves all panels, because a notebook may hold many
 * panels of finished runs.
 */

// Milliseconds between two polls. A theme's style sheet may arrive long after its name.
const INTERVAL = 500;
const NAMES = [
  "--jp-layout-color0",
  "--jp-content-font-color1",
  "--jp-ui-font-color2",
  "--jp-border-color2",
  "--jp-code-font-family",
  "--jp-code-font-size",
];

/** @type {Set<() => void>} */
const listeners = new Set();
let timer = 0;
let current = "";

function theme() {
  const style = getComputedStyle(document.body);
  return [
    document.body.dataset.jpThemeLight,
    style.color,
    style.backgroundColor,
    ...NAMES.map((name) => style.getPropertyValue(name)),
  ].join();
}

function poll() {
  const now = theme();
  if (now === current) return;
  current = now;
  for (const listener of listeners) listener();
}

/** @param {() => void} listener @param {AbortSignal} signal ends it */
export function onThemeChange(listener, signal) {
  listeners.add(listener);
  if (!timer) {
    current = theme();
    timer = window.setInterval(poll, INTERVAL);
  }
  signal.addEventListener("abort", () => {
    listeners.delete(listener);
    if (listeners.size) return;
    clearInterval(timer);
    timer = 0;
  });
}
