/**
 * Search: marks what is found in the output that is shown, and says what there is on all ranks, on disk too.
 *
 * The first is the terminal's own search. The second asks the kernel, which reads the files; a line that it found is a click away.
 */
import { h, say } from "./dom.js";
import { plain } from "./sanitise.js";

/** @typedef {import("./shared.js").Shared} Shared */
/** @typedef {{ ok: boolean, lines: [number, number, number, string][], counts: Record<string, number>, whole: boolean }} Found */

const PAUSE = 300; // milliseconds without a key before the disk is asked
const SHORTEST = 2;
const DECORATIONS = {
  matchOverviewRuler: "#d9a648",
  activeMatchColorOverviewRuler: "#ff8c00",
  matchBackground: "#8a6d1c",
  activeMatchBackground: "#c76b00",
};

/**
 * @param {Shared} shared
 * @param {() => number} attempt whose logs are shown
 * @param {(rank: number) => void} choose
 * @param {AbortSignal} signal
 */
export function makeSearch(shared, attempt, choose, signal) {
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
    className: "ice-tool ice-found",
    hidden: true,
    "aria-expanded": "false",
    "aria-live": "polite",
  });
  const results = h("ol", {
    className: "ice-results",
    hidden: true,
    "aria-label": "Lines found on all ranks",
  });
  /** @type {ReturnType<import("./terminal.js").openTerminal> | undefined} */
  let terminal;
  let due = 0,
    asked = 0;

  const mark = (/** @type {boolean} */ back, text = query.value) => {
    if (!terminal) return false;
    if (!text) terminal.search.clearDecorations();
    const found =
      !text ||
      (back
        ? terminal.search.findPrevious(text, { decorations: DECORATIONS })
        : terminal.search.findNext(text, { decorations: DECORATIONS }));
    if (text && found) terminal.follow(false);
    return found;
  };
  const open = (/** @type {boolean} */ on) => {
    results.hidden = !on;
    count.setAttribute("aria-expanded", String(on));
  };
  async function ask() {
    const text = query.value,
      mine = ++asked;
    if (text.length < SHORTEST) {
      count.hidden = true;
      open(false);
      return;
    }
    /** @type {Found} */
    const found = await shared.ask({ do: "search", text, attempt: attempt() });
    if (mine !== asked || !found.ok) return;
    const ranks = Object.keys(found.counts).length;
    const total = Object.values(found.counts).reduce((a, b) => a + b, 0);
    count.hidden = false;
    say(
      count,
      `${found.whole ? "" : "more than "}${total.toLocaleString("en")} line${total === 1 ? "" : "s"}${total ? ` on ${ranks} rank${ranks === 1 ? "" : "s"}` : ""}`,
    );
    query.toggleAttribute("data-missing", !total);
    results.replaceChildren(
      ...found.lines.map((line) => row(line)),
      ...(total > found.lines.length
        ? [
            h(
              "li",
              { className: "ice-quiet" },
              `${(total - found.lines.length).toLocaleString("en")} more are in the files`,
            ),
          ]
        : []),
    );
  }
  /** @param {[number, number, number, string]} line */
  function row([rank, stream, number, words]) {
    const button = h(
      "button",
      {
        type: "button",
        title: `Show rank ${rank}, ${stream ? "stderr" : "stdout"}, line ${number}`,
      },
      h("span", { className: "ice-quiet" }, `${rank}${stream ? " err" : ""}:${number}`),
      h("span", {}, plain(words)),
    );
    button.addEventListener(
      "click",
      () => {
        choose(rank);
        // Behind what the terminal has still to draw.
        terminal?.term.write("", () => {
          const shown = mark(false, plain(words).trim().slice(0, 120));
          button.toggleAttribute("data-missing", !shown);
          if (!shown)
            button.title = `Line ${number} is on disk only, in attempt_${attempt()}/…/${stream ? "stderr" : "stdout"}.log`;
        });
      },
      { signal },
    );
    return h("li", {}, button);
  }

  query.addEventListener(
    "input",
    () => {
      query.toggleAttribute("data-missing", !mark(true));
      clearTimeout(due);
      due = window.setTimeout(ask, PAUSE);
    },
    { signal },
  );
  query.addEventListener(
    "keydown",
    (event) => {
      if (event.key === "Enter") mark(!event.shiftKey);
      if (event.key !== "Escape") return;
      query.value = "";
      query.removeAttribute("data-missing");
      mark(false);
      ask();
    },
    { signal },
  );
  count.addEventListener("click", () => open(results.hidden), { signal });
  signal.addEventListener("abort", () => clearTimeout(due));
  return {
    query,
    count,
    results,
    /** @param {ReturnType<import("./terminal.js").openTerminal>} opened */
    searches(opened) {
      terminal = opened;
    },
  };
}
