/**
 * Watches the theme of the page. One poll serves all panels: a notebook holds many that ended long
 * ago.
 */

// Milliseconds between two polls: a theme's style sheet may arrive long after its name.
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
let seen = "";

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
  if (now === seen) return;
  seen = now;
  for (const listener of listeners) listener();
}

/** @param {() => void} listener @param {AbortSignal} signal ends it */
export function onThemeChange(listener, signal) {
  listeners.add(listener);
  if (!timer) {
    seen = theme();
    timer = window.setInterval(poll, INTERVAL);
  }
  signal.addEventListener("abort", () => {
    listeners.delete(listener);
    if (listeners.size) return;
    clearInterval(timer);
    timer = 0;
  });
}
