/** The terminal: xterm.js, read only, in the theme of the page. */
import { FitAddon } from "@xterm/addon-fit";
import { SearchAddon } from "@xterm/addon-search";
import { Unicode11Addon } from "@xterm/addon-unicode11";
import { Terminal } from "@xterm/xterm";
import { suppressShortcuts } from "./keys.js";
import { SCROLLBACK } from "./log_renderer.js";
import { onThemeChange } from "./theme.js";

const LIGHT = {
  black: "#24292f",
  red: "#b42318",
  green: "#1a7f37",
  yellow: "#8a5a00",
  blue: "#0b5cad",
  magenta: "#7a3fb0",
  cyan: "#0f6e7c",
  white: "#57606a",
  brightBlack: "#6e7781",
  brightRed: "#a40e26",
  brightGreen: "#116329",
  brightYellow: "#6f4a00",
  brightBlue: "#0a4a8f",
  brightMagenta: "#622f92",
  brightCyan: "#0b5763",
  brightWhite: "#24292f",
};
const DARK = {
  black: "#484f58",
  red: "#ff7b72",
  green: "#5fc77a",
  yellow: "#d9a648",
  blue: "#79b8ff",
  magenta: "#d2a8ff",
  cyan: "#56d4dd",
  white: "#c9d1d9",
  brightBlack: "#8b949e",
  brightRed: "#ffa198",
  brightGreen: "#7ee787",
  brightYellow: "#f2cc60",
  brightBlue: "#a5d6ff",
  brightMagenta: "#e2c5ff",
  brightCyan: "#a2e9f0",
  brightWhite: "#f0f6fc",
};

const DISPOSE_DELAY = 1000; // milliseconds

/** @param {HTMLElement} element */
function themeOf(element) {
  const style = getComputedStyle(element);
  const [r = 255, g = 255, b = 255] = (style.backgroundColor.match(/[\d.]+/g) ?? []).map(Number);
  const dark = 0.299 * r + 0.587 * g + 0.114 * b < 128;
  const hex = (/** @type {number[]} */ rgb) =>
    `#${rgb.map((part) => Math.round(part).toString(16).padStart(2, "0")).join("")}`;
  const background = hex([r, g, b]);
  const foreground = hex((style.color.match(/[\d.]+/g) ?? ["0", "0", "0"]).slice(0, 3).map(Number));
  return {
    ...(dark ? DARK : LIGHT),
    background,
    foreground,
    cursor: background,
    cursorAccent: background,
    selectionBackground: dark ? "#3b5b86" : "#b6d6fb",
    scrollbarSliderBackground: dark ? "#ffffff30" : "#00000026",
  };
}

/**
 * The page's font and colours; undefined before the element is in the page.
 * @param {HTMLElement} host
 */
function appearanceOf(host) {
  const { backgroundColor, color, fontFamily, fontSize } = getComputedStyle(host);
  if (!backgroundColor) return undefined;
  const options = {
    fontFamily: fontFamily || "monospace",
    fontSize: parseFloat(fontSize) || 13,
    theme: themeOf(host),
  };
  return { key: backgroundColor + color + fontFamily + fontSize, options };
}

/**
 * @param {HTMLElement} host
 * @param {AbortSignal} signal
 */
export function openTerminal(host, signal) {
  let appearance = appearanceOf(host);
  const term = new Terminal({
    // An option that changes later makes xterm measure again, and the page restyle all its
    // elements.
    ...appearance?.options,
    convertEol: true,
    disableStdin: true,
    scrollback: SCROLLBACK,
    cursorBlink: false,
    cursorInactiveStyle: "none",
    allowProposedApi: true,
    lineHeight: 1.15,
    screenReaderMode: false,
    minimumContrastRatio: 4.5,
    rows: 14,
  });
  const fit = new FitAddon();
  const search = new SearchAddon({ highlightLimit: 500 });
  term.loadAddon(fit);
  term.loadAddon(search);
  // xterm's own table of widths is from 2010. An emoji has one cell in it.
  term.loadAddon(new Unicode11Addon());
  term.unicode.activeVersion = "11";
  // The sanitiser drops all of these. This is a second barrier.
  for (const code of [0, 1, 2, 4, 8, 9, 10, 11, 12, 52, 104, 133, 777, 1337])
    term.parser.registerOscHandler(code, () => true);
  term.open(host);
  term.textarea?.setAttribute("aria-label", "Output of the ranks, read only");
  term.textarea?.setAttribute("readonly", "");
  if (term.textarea) suppressShortcuts(term.textarea);

  const state = { following: true, term, search };
  /** @type {Set<() => void>} */
  const listeners = new Set();
  const atTheEnd = () => term.buffer.active.viewportY >= term.buffer.active.baseY;
  const follow = (/** @type {boolean} */ on) => {
    if (on) term.scrollToBottom();
    if (state.following !== on) {
      state.following = on;
      for (const listener of listeners) listener();
    }
  };
  let scrolling = false; // meanwhile, new output doesn't scroll back to the end
  const afterScroll = () => {
    scrolling = true;
    requestAnimationFrame(() => {
      scrolling = false;
      follow(atTheEnd());
    });
  };
  // The capture phase is needed, because xterm stops the events that scroll it.
  const capturing = { signal, passive: true, capture: true };
  for (const name of ["wheel", "touchend"]) host.addEventListener(name, afterScroll, capturing);
  host.addEventListener(
    "pointerdown",
    () => {
      scrolling = true; // the scroll bar may be released anywhere on the page
      for (const name of ["pointerup", "pointercancel"])
        window.addEventListener(name, afterScroll, { ...capturing, once: true });
    },
    capturing,
  );

  term.attachCustomKeyEventHandler((event) => {
    if (event.type === "keydown" && (event.ctrlKey || event.metaKey) && event.key === "a") {
      term.selectAll();
      event.preventDefault();
    }
    if (event.type !== "keydown" || event.ctrlKey || event.metaKey || event.altKey) return false;
    const page = Math.max(1, term.rows - 1);
    /** @type {Record<string, () => void>} */
    const moves = {
      ArrowUp: () => term.scrollLines(-1),
      ArrowDown: () => term.scrollLines(1),
      PageUp: () => term.scrollLines(-page),
      PageDown: () => term.scrollLines(page),
      Home: () => term.scrollToTop(),
      End: () => term.scrollToBottom(),
    };
    if (moves[event.key]) {
      afterScroll();
      moves[event.key]();
      event.preventDefault();
    }
    return false; // Tab moves to the next control, and Ctrl+C copies
  });

  const restyle = () => {
    const now = appearanceOf(host);
    if (!now || now.key === appearance?.key) return;
    appearance = now;
    term.options = now.options;
  };
  const refit = () => {
    restyle();
    if (host.clientWidth > 40) fit.fit();
  };
  const sizes = new ResizeObserver(() => requestAnimationFrame(refit));
  sizes.observe(host);
  onThemeChange(restyle, signal);
  signal.addEventListener("abort", () => {
    sizes.disconnect();
    // xterm's first timers fail in a disposed terminal.
    setTimeout(() => term.dispose(), DISPOSE_DELAY);
  });
  refit();
  return {
    term,
    search,
    follow,
    following: () => state.following,
    onFollow: (/** @type {() => void} */ listener) => listeners.add(listener),
    /** Writes. A terminal that follows scrolls to its end; xterm doesn't after a scroll upwards. */
    write(/** @type {string} */ text) {
      if (text) term.write(text, () => state.following && !scrolling && term.scrollToBottom());
    },
    /** Clears after what was written and isn't drawn yet; `reset()` would clear before that. */
    clear() {
      term.write("\x1bc");
    },
  };
}
