/** Why the run failed: the error of the first failed rank, or the note of the run's end. */
import { h } from "./dom.js";
import { plain } from "./sanitise.js";

/** @typedef {import("./run_state.js").RunState} RunState */
/** @typedef {import("./run_state.js").Failure} Failure */

const MAX_NOTE_LENGTH = 2000; // characters

export function makeFailure() {
  const element = h("div", { className: "ice-failure", hidden: true, role: "alert" });
  let drawn = "";
  return {
    element,
    /** @param {RunState} runState @param {number} attempt the one that is shown */
    show(runState, attempt) {
      const number = runState.attempts[attempt]?.attempt;
      const first = runState.failures.find((failure) => failure.attempt === number);
      const failed = runState.state === "FAILED" || runState.state === "LOST";
      const note = failed ? runState.note.slice(0, MAX_NOTE_LENGTH) : "";
      const unkillable = runState.timeline
        .filter((event) => event.kind === "unkillable")
        .map(({ rank, text }) => `${rank === null ? "" : `rank ${rank}: `}${plain(text)}`);
      element.hidden = !first && !note && !unkillable.length;
      const key = JSON.stringify([first ? [first.attempt, first.rank] : note, unkillable]);
      if (key === drawn) return; // a traceback that is unfolded stays so
      drawn = key;
      element.replaceChildren(
        ...(first ? describe(first) : note ? [h("div", {}, inLines(note))] : []),
      );
      element.append(...unkillable.map((text) => h("div", {}, text)));
    },
  };
}

/** @param {Failure} failure */
function describe({ rank, title, hint, traceback }) {
  const parts = [h("b", {}, `rank ${rank}: ${plain(title)}`)];
  if (hint) parts.push(h("div", {}, plain(hint)));
  const lines = inLines(traceback);
  if (lines) {
    const text = h("pre", { tabindex: "0" }, lines);
    parts.push(h("details", {}, h("summary", {}, "Traceback"), text));
  }
  return parts;
}

/** @param {string} text */
const inLines = (text) => text.split("\n").map(plain).join("\n");
