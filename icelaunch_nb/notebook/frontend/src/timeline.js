/** Events as they came, with times: attempts, restarts, failures, pauses, checkpoints, debugger stops. */
import { clock, h } from "./dom.js";
import { plain } from "./sanitise.js";

/** @typedef {import("./story.js").Story} Story */
/** @typedef {{ t: number, text: string, kind: string }} Entry */

/** Moments that ask for an eye. */
const STANDING_OUT = /** @type {Record<string, string>} */ ({
  paused: "warn",
  stop: "warn",
  debugger_start: "warn",
  saved: "good",
  unkillable: "bad",
});

export function makeTimeline() {
  const element = h("ol", {
    className: "ice-events",
    hidden: true,
    "aria-label": "Events",
    tabindex: "0",
  });
  let drawn = "";
  return {
    element,
    /** @param {Story} story */
    show(story) {
      if (element.hidden) return;
      const entries = timeline(story);
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
 * @param {Story} story
 * @returns {Entry[]}
 */
export function timeline(story) {
  /** @type {Entry[]} */
  const events = [{ t: story.started, text: `launched ${plain(story.name)}`, kind: "" }];
  for (const attempt of story.attempts) {
    const ranks = attempt.ranks.length;
    events.push({
      t: attempt.t,
      text: `attempt ${attempt.attempt}: ${ranks} rank${ranks === 1 ? "" : "s"} started`,
      kind: "",
    });
  }
  for (const restart of story.restarts) {
    const who = restart.rank === null ? "" : `rank ${restart.rank}: `;
    if (restart.failed_at)
      events.push({ t: restart.failed_at, text: `${who}${plain(restart.cause)}`, kind: "bad" });
    events.push({
      t: restart.t,
      text: `restart ${restart.attempt} of ${story.max_restarts}`,
      kind: "warn",
    });
  }
  const last = story.attempts.at(-1)?.attempt;
  for (const failure of story.failures) {
    if (failure.attempt === last)
      events.push({
        t: failure.time,
        text: `rank ${failure.rank}: ${plain(failure.title)}`,
        kind: "bad",
      });
  }
  for (const { t, kind, text, rank } of story.moments) {
    events.push({
      t,
      text: `${rank === null ? "" : `rank ${rank}: `}${plain(text)}`,
      kind: STANDING_OUT[kind] ?? "",
    });
  }
  if (story.end)
    events.push({
      t: story.end,
      text: `${story.state.toLowerCase()}${story.note ? `: ${plain(story.note)}` : ""}`,
      kind: story.state === "SUCCEEDED" ? "good" : story.state === "STOPPED" ? "" : "bad",
    });
  return events.sort((a, b) => a.t - b.t);
}
