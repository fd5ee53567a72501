/** The timeline: attempts, restarts, failures, pauses, checkpoints and debugger stops. */
import { clock, h } from "./dom.js";
import { plain } from "./sanitise.js";

/** @typedef {import("./run_state.js").RunState} RunState */
/** @typedef {{ t: number, text: string, kind: string }} Entry */

/** The kinds that have a colour. */
const COLOURS = /** @type {Record<string, string>} */ ({
  paused: "warn",
  stop: "warn",
  debugger_start: "warn",
  saved: "good",
  unkillable: "bad",
});

export function makeTimeline() {
  const element = h("ol", {
    className: "ice-timeline",
    hidden: true,
    "aria-label": "Events",
    tabindex: "0",
  });
  let drawn = "";
  return {
    element,
    /** @param {RunState} runState */
    show(runState) {
      if (element.hidden) return;
      const entries = listEvents(runState);
      const key = JSON.stringify(entries);
      if (key === drawn) return;
      drawn = key;
      const atTheEnd = element.scrollTop + element.clientHeight >= element.scrollHeight - 4;
      element.replaceChildren(
        ...entries.map((entry) =>
          h(
            "li",
            { "data-kind": entry.kind },
            h("time", {}, clock(entry.t)),
            h("span", {}, entry.text),
          ),
        ),
      );
      if (atTheEnd) element.scrollTop = element.scrollHeight;
    },
  };
}

/**
 * @param {RunState} runState
 * @returns {Entry[]}
 */
export function listEvents(runState) {
  /** @type {Entry[]} */
  const events = [{ t: runState.started, text: `launched ${plain(runState.name)}`, kind: "" }];
  for (const attempt of runState.attempts) {
    const ranks = attempt.ranks.length;
    events.push({
      t: attempt.t,
      text: `attempt ${attempt.attempt}: ${ranks} rank${ranks === 1 ? "" : "s"} started`,
      kind: "",
    });
  }
  for (const restart of runState.restarts) {
    const who = restart.rank === null ? "" : `rank ${restart.rank}: `;
    if (restart.failed_at)
      events.push({ t: restart.failed_at, text: `${who}${plain(restart.cause)}`, kind: "bad" });
    events.push({
      t: restart.t,
      text: `restart ${restart.attempt} of ${runState.max_restarts}`,
      kind: "warn",
    });
  }
  const last = runState.attempts.at(-1)?.attempt;
  for (const failure of runState.failures) {
    if (failure.attempt === last)
      events.push({
        t: failure.time,
        text: `rank ${failure.rank}: ${plain(failure.title)}`,
        kind: "bad",
      });
  }
  for (const { t, kind, text, rank } of runState.timeline) {
    events.push({
      t,
      text: `${rank === null ? "" : `rank ${rank}: `}${plain(text)}`,
      kind: COLOURS[kind] ?? "",
    });
  }
  if (runState.end)
    events.push({
      t: runState.end,
      text: `${runState.state.toLowerCase()}${runState.note ? `: ${plain(runState.note)}` : ""}`,
      kind: runState.state === "SUCCEEDED" ? "good" : runState.state === "STOPPED" ? "" : "bad",
    });
  return events.sort((a, b) => a.t - b.t);
}
