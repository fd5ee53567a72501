/**
 * The last lines of a terminal as text that a screen reader finds; what xterm draws is hidden from
 * it.
 *
 * The lines are updated once a second, and read aloud as they come while the terminal has the
 * focus.
 */
import { h, setText } from "./dom.js";

/** @typedef {import("@xterm/xterm").Terminal} Terminal */

const LINES = 50;
const INTERVAL = 1000; // milliseconds

/** @param {Terminal} term */
function lastLines(term) {
  const buffer = term.buffer.active;
  const lines = [];
  let line = "";
  for (let at = buffer.baseY + term.rows - 1; at >= 0 && lines.length < LINES; at -= 1) {
    const row = buffer.getLine(at);
    line = (row?.translateToString(true) ?? "") + line;
    if (row?.isWrapped) continue;
    if (line || lines.length) lines.unshift(line); // there is nothing below the cursor
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
   * Lines that are still there stay the same elements, so that only new ones are read.
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
    /** Shows what this terminal shows. @param {Terminal} term */
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
