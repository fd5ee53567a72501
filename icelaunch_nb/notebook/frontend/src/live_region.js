/**
 * The last lines of a terminal as text for screen readers, which can't read what xterm draws.
 *
 * The lines are updated once a second. While the terminal has the focus, new lines are read aloud.
 */
import { h, setText } from "./dom.js";

/** @typedef {import("@xterm/xterm").Terminal} Terminal */

const MAX_LINES = 50;
const INTERVAL = 1000; // milliseconds

/** @param {Terminal} term */
function lastLines(term) {
  const buffer = term.buffer.active;
  const lines = [];
  let line = "";
  for (let at = buffer.baseY + term.rows - 1; at >= 0 && lines.length < MAX_LINES; at -= 1) {
    const row = buffer.getLine(at);
    line = (row?.translateToString(true) ?? "") + line;
    if (row?.isWrapped) continue;
    if (line || lines.length) lines.unshift(line); // empty lines at the end are left out
    line = "";
  }
  return lines;
}

/** @param {AbortSignal} signal */
export function makeLiveRegion(signal) {
  const element = h("div", { className: "ice-live-region", role: "log", "aria-live": "off" });
  let timer = 0;
  signal.addEventListener("abort", () => clearTimeout(timer));

  /**
   * Lines that are still shown keep their elements, so that only new lines are read.
   * @param {string[]} lines
   */
  function show(lines) {
    const before = [...element.children];
    const matches = (/** @type {number} */ from) =>
      before.slice(from, -1).every((one, at) => one.textContent === lines[at]);
    let gone = 0;
    while (gone < before.length && !matches(gone)) gone += 1;
    for (const one of before.splice(0, gone)) one.remove();
    for (const extra of before.splice(lines.length)) extra.remove();
    lines.forEach((line, at) =>
      before[at] ? setText(before[at], line) : element.append(h("div", {}, line)),
    );
  }

  return {
    element,
    /** Shows the last lines of this terminal. @param {Terminal} term */
    attach(term) {
      const update = () => {
        timer = 0;
        show(lastLines(term));
      };
      term.onWriteParsed(() => {
        timer ||= window.setTimeout(update, INTERVAL);
      });
      const setLive = (/** @type {string} */ live) => () => element.setAttribute("aria-live", live);
      term.textarea?.addEventListener("focus", setLive("polite"), { signal });
      term.textarea?.addEventListener("blur", setLive("off"), { signal });
    },
    /** @param {number | "all"} rank */
    setRank(rank) {
      const whose = rank === "all" ? "all ranks" : `rank ${rank}`;
      element.setAttribute("aria-label", `Last lines of ${whose}`);
    },
  };
}
