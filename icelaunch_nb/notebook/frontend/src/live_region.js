/**
 * The last lines of a terminal as text that a screen reader finds, since what xterm draws is hidden from it.
 *
 * They are brought up to date once a second, and read aloud as they come while the terminal has the focus.
 */
import { h, say } from "./dom.js";

/** @typedef {import("@xterm/xterm").Terminal} Terminal */

const LINES = 50;
const EVERY = 1000; // milliseconds

/** @param {Terminal} term */
function lastLines(term) {
  const buffer = term.buffer.active;
  const lines = [];
  let line = "";
  for (let at = buffer.baseY + term.rows - 1; at >= 0 && lines.length < LINES; at -= 1) {
    const row = buffer.getLine(at);
    line = (row?.translateToString(true) ?? "") + line;
    if (row?.isWrapped) continue;
    if (line || lines.length) lines.unshift(line); // nothing stands below the cursor
    line = "";
  }
  return lines;
}

/** @param {AbortSignal} signal */
export function makeSpoken(signal) {
  const element = h("div", { className: "ice-spoken", role: "log", "aria-live": "off" });
  let timer = 0;
  signal.addEventListener("abort", () => clearTimeout(timer));

  /** Lines that are still there stay the same elements: only new ones are read. @param {string[]} lines */
  function show(lines) {
    const before = [...element.children];
    let gone = 0;
    while (
      gone < before.length &&
      !before.slice(gone, -1).every((one, at) => one.textContent === lines[at])
    )
      gone += 1;
    for (const one of before.splice(0, gone)) one.remove();
    for (const extra of before.splice(lines.length)) extra.remove();
    lines.forEach((line, at) =>
      before[at] ? say(before[at], line) : element.append(h("div", {}, line)),
    );
  }

  return {
    element,
    /** @param {Terminal} term */
    reads(term) {
      term.onWriteParsed(() => {
        timer ||= window.setTimeout(() => {
          timer = 0;
          show(lastLines(term));
        }, EVERY);
      });
      term.textarea?.addEventListener("focus", () => element.setAttribute("aria-live", "polite"), {
        signal,
      });
      term.textarea?.addEventListener("blur", () => element.setAttribute("aria-live", "off"), {
        signal,
      });
    },
    /** @param {number | "all"} rank */
    names(rank) {
      element.setAttribute(
        "aria-label",
        rank === "all" ? "Last lines of all ranks" : `Last lines of rank ${rank}`,
      );
    },
  };
}
