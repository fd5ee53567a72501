/**
 * Search: marks the matches in the terminal, and lists the matching lines of all ranks, including
 * those that are only on disk.
 *
 * xterm's search addon marks the matches. The kernel searches the files. A click on a line of the
 * list shows it in the terminal.
 */
import { h, setText } from "./dom.js";
import { plain } from "./sanitise.js";

/** @typedef {import("./panel_store.js").PanelStore} PanelStore */
/** @typedef {ReturnType<import("./terminal.js").openTerminal>} OpenTerminal */
/** @typedef {[number, number, number, string]} FoundLine rank, stream, number, text */
/**
 * @typedef {{ ok: boolean, lines: FoundLine[], counts: Record<string, number>,
 *   complete: boolean }} Found
 */

const PAUSE = 300; // milliseconds without a key before the kernel searches
const MIN_LENGTH = 2; // characters of a text that the kernel searches
const MAX_LENGTH = 120; // characters by which a line is found in the terminal
const DECORATIONS = {
  matchOverviewRuler: "#d9a648",
  activeMatchColorOverviewRuler: "#ff8c00",
  matchBackground: "#8a6d1c",
  activeMatchBackground: "#c76b00",
};

/**
 * @param {PanelStore} store
 * @param {() => number} attempt returns the attempt that is shown
 * @param {(rank: number) => void} choose
 * @param {AbortSignal} signal
 */
export function makeSearch(store, attempt, choose, signal) {
  const query = /** @type {HTMLInputElement} */ (
    h("input", {
      type: "search",
      className: "ice-search",
      placeholder: "Search",
      "aria-label": "Search in the output of all ranks",
    })
  );
  const count = h("button", {
    type: "button",
    className: "ice-tool-button ice-search-count",
    hidden: true,
    "aria-expanded": "false",
    "aria-live": "polite",
  });
  const results = h("ol", {
    className: "ice-search-results",
    hidden: true,
    "aria-label": "Lines found on all ranks",
  });
  /** @type {OpenTerminal | undefined} */
  let terminal;
  let timer = 0;
  let newest = 0; // the number of the newest search

  /** Marks the matches in the terminal. @returns whether there are any */
  function mark(/** @type {boolean} */ back, text = query.value) {
    if (!terminal) return false;
    const { search } = terminal;
    if (!text) {
      search.clearDecorations();
      return true;
    }
    const options = { decorations: DECORATIONS };
    const found = back ? search.findPrevious(text, options) : search.findNext(text, options);
    if (found) terminal.follow(false);
    return found;
  }

  function toggleResults(/** @type {boolean} */ on) {
    results.hidden = !on;
    count.setAttribute("aria-expanded", String(on));
  }

  async function searchLogs() {
    const text = query.value;
    const number = ++newest;
    if (text.length < MIN_LENGTH) {
      count.hidden = true;
      toggleResults(false);
      return;
    }
    /** @type {Found} */
    const found = await store.request({ action: "search", text, attempt: attempt() });
    if (number === newest && found.ok) show(found);
  }

  function show(/** @type {Found} */ { lines, counts, complete }) {
    const ranks = Object.keys(counts).length;
    const total = Object.values(counts).reduce((a, b) => a + b, 0);
    count.hidden = false;
    const where = total ? ` on ${ranks} rank${ranks === 1 ? "" : "s"}` : "";
    const many = `${total.toLocaleString("en")} line${total === 1 ? "" : "s"}`;
    setText(count, `${complete ? "" : "more than "}${many}${where}`);
    query.toggleAttribute("data-missing", !total);
    results.replaceChildren(...lines.map(makeRow));
    if (total > lines.length) {
      const more = `${(total - lines.length).toLocaleString("en")} more are in the files`;
      results.append(h("li", { className: "ice-muted" }, more));
    }
  }

  function makeRow(/** @type {FoundLine} */ [rank, stream, number, line]) {
    const file = stream ? "stderr" : "stdout";
    const title = `Show rank ${rank}, ${file}, line ${number}`;
    const where = `${rank}${stream ? " err" : ""}:${number}`;
    const location = h("span", { className: "ice-muted" }, where);
    const text = h("span", {}, plain(line));
    const button = h("button", { type: "button", title }, location, text);
    const showLine = () => {
      choose(rank);
      // The callback comes after everything that the terminal still has to draw.
      terminal?.term.write("", () => {
        const shown = mark(false, plain(line).trim().slice(0, MAX_LENGTH));
        button.toggleAttribute("data-missing", !shown);
        if (shown) return;
        const path = `attempt_${attempt()}/…/${file}.log`;
        button.title = `Line ${number} is on disk only, in ${path}`;
      });
    };
    button.addEventListener("click", showLine, { signal });
    return h("li", {}, button);
  }

  const onInput = () => {
    query.toggleAttribute("data-missing", !mark(true));
    clearTimeout(timer);
    timer = window.setTimeout(searchLogs, PAUSE);
  };
  const onKey = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Enter") mark(!event.shiftKey);
    if (event.key !== "Escape") return;
    query.value = "";
    query.removeAttribute("data-missing");
    mark(false);
    searchLogs();
  };
  query.addEventListener("input", onInput, { signal });
  query.addEventListener("keydown", onKey, { signal });
  count.addEventListener("click", () => toggleResults(results.hidden), { signal });
  signal.addEventListener("abort", () => clearTimeout(timer));
  return {
    query,
    count,
    results,
    /** Searches in this terminal. @param {OpenTerminal} opened */
    attach(opened) {
      terminal = opened;
    },
  };
}
