/**
 * A prompt for ranks that wait in the debugger. Commands go to the rank. Its answers are in its
 * log, which the terminal above shows. The Python sides are `worker/debug_server.py` in the rank
 * and `client/debug_client.py` in the kernel.
 */
import { h, setText } from "./dom.js";
import { plain } from "./sanitise.js";

/** @typedef {import("./run_state.js").RunState} RunState */
/** @typedef {import("./panel_store.js").PanelStore} PanelStore */

/** Label, pdb's command and title. */
const BUTTONS = /** @type {const} */ ([
  ["Next", "n", "Goes on to the next line of this function"],
  ["Step", "s", "Goes on to the next line, into the function that is called"],
  ["Up", "u", "Looks at the caller"],
  ["Down", "d", "Looks back at what was called"],
  ["Continue", "c", "Lets the rank go on"],
]);
const MAX_OTHERS = 4; // other waiting ranks that have a link
const MAX_COMPLETIONS = 60; // completions that are shown

/** The longest prefix of all words. @param {string[]} words */
export function commonPrefix(words) {
  let prefix = words[0] ?? "";
  for (const word of words) while (!word.startsWith(prefix)) prefix = prefix.slice(0, -1);
  return prefix;
}

/**
 * @param {PanelStore} store
 * @param {(rank: number) => void} choose
 * @param {AbortSignal} signal
 */
export function makeDebugger(store, choose, signal) {
  const where = h("span", {
    className: "ice-debug-location",
    role: "status",
    "aria-live": "polite",
  });
  const buttons = h("span", {
    className: "ice-debug-buttons",
    role: "toolbar",
    "aria-label": "Debugger",
  });
  const line = /** @type {HTMLInputElement} */ (
    h("input", {
      className: "ice-debug-line",
      type: "text",
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: "false",
      "aria-label": "Debugger command",
      placeholder: "p loss, w, !x = 1, … (h: help)",
    })
  );
  const completionList = h("div", {
    className: "ice-debug-completions",
    hidden: true,
    role: "status",
  });
  const row = h(
    "label",
    { className: "ice-debug-row" },
    h("span", { "aria-hidden": "true" }, "(Pdb)"),
    line,
  );
  const others = h("span", { className: "ice-debug-others" });
  const element = h(
    "div",
    { className: "ice-debug", hidden: true, role: "group", "aria-label": "Debugger" },
    h("div", { className: "ice-debug-header" }, where, others, buttons),
    row,
    completionList,
  );

  let rank = -1;
  let at = 0; // index in the history
  const { history } = store;
  const showCompletions = (/** @type {string} */ text) => {
    completionList.hidden = !text;
    setText(completionList, text);
  };
  const send = async (/** @type {string} */ command) => {
    const { ok, text } = await store.request({ action: "debug", rank, command });
    showCompletions(ok ? "" : text);
  };
  for (const [label, command, title] of BUTTONS) {
    const button = h(
      "button",
      {
        type: "button",
        className: "ice-tool-button",
        title: `${title} (${command})`,
        "data-command": command,
      },
      label,
    );
    button.addEventListener("click", () => send(command), { signal });
    buttons.append(button);
  }

  /** Completes the line as far as possible, and shows the possible completions. */
  async function complete() {
    const end = line.selectionStart ?? line.value.length;
    const before = line.value.slice(0, end);
    const {
      ok,
      completions = [],
      start = end,
      text,
    } = await store.request({ action: "complete", rank, line: before });
    if (line.value.slice(0, end) !== before) return; // the line has changed meanwhile
    if (!ok) return showCompletions(text);
    const words = /** @type {string[]} */ (completions).map(plain);
    const prefix = commonPrefix(words);
    if (prefix.length > before.length - start) line.setRangeText(prefix, start, end, "end");
    showCompletions(
      words.length > 1
        ? words.slice(0, MAX_COMPLETIONS).join("   ") +
            (words.length > MAX_COMPLETIONS ? "   …" : "")
        : "",
    );
  }

  /** @param {number} step */
  function recall(step) {
    at = Math.max(0, Math.min(history.length, at + step));
    line.value = history[at] ?? "";
  }

  line.addEventListener(
    "keydown",
    (event) => {
      if (event.key === "Enter" && !event.isComposing) {
        const command = line.value;
        if (command.trim() && command !== history.at(-1)) history.push(command);
        at = history.length;
        line.value = "";
        send(command); // an empty command repeats the last one, as in pdb
      } else if (event.key === "ArrowUp") recall(-1);
      else if (event.key === "ArrowDown") recall(1);
      else if (event.key === "Tab" && !event.shiftKey && line.value.trim())
        complete(); // in an empty line, TAB moves the focus to the next control
      else return;
      event.preventDefault();
    },
    { signal },
  );

  /** @param {number} other */
  const link = (other, /** @type {string} */ text) => {
    const button = h("button", { type: "button", className: "ice-debug-link" }, text);
    button.addEventListener("click", () => choose(other), { signal });
    return button;
  };
  let drawn = "";
  return {
    element,
    /** @param {RunState} runState @param {number} attempt @param {number | "all"} chosen */
    show(runState, attempt, chosen) {
      const waiting =
        attempt === runState.attempts.length - 1 && !runState.over ? runState.in_debugger : {};
      const ranks = Object.keys(waiting)
        .map(Number)
        .sort((a, b) => a - b);
      element.hidden = !ranks.length;
      const here = typeof chosen === "number" && chosen in waiting ? waiting[chosen] : undefined;
      if (here && rank !== chosen) {
        rank = /** @type {number} */ (chosen);
        line.value = "";
        showCompletions("");
      }
      if (!here) rank = -1;
      buttons.hidden = row.hidden = !here;
      if (!here) showCompletions("");
      const why = here && here.why !== "breakpoint" ? ` · ${plain(here.why)}` : "";
      const who = here?.who ? `, ${plain(here.who)}` : "";
      setText(where, here ? `rank ${rank} waits at ${plain(here.where)}${who}${why}` : "");
      const rest = ranks.filter((one) => one !== rank);
      const key = `${rank}|${rest.map((one) => `${one}@${waiting[one].where}`).join()}`;
      if (key === drawn) return;
      drawn = key;
      others.replaceChildren(
        ...rest
          .slice(0, MAX_OTHERS)
          .map((one) =>
            link(
              one,
              here ? `rank ${one} too` : `rank ${one} waits at ${plain(waiting[one].where)}`,
            ),
          ),
        rest.length > MAX_OTHERS ? `and ${rest.length - MAX_OTHERS} more` : "",
      );
    },
  };
}
