/** Why it failed, in one place and in red: the first rank's error, or what the agent says. */
import { h } from "./dom.js";
import { plain } from "./sanitise.js";

/** @typedef {import("./story.js").Story} Story */

const NOTE = 2000; // characters

export function makeTrouble() {
  const element = h("div", { className: "ice-failure", hidden: true, role: "alert" });
  let told = "";
  return {
    element,
    /** @param {Story} story @param {number} attempt the one that is looked at */
    show(story, attempt) {
      const first = story.failures.find(
        (failure) => failure.attempt === story.attempts[attempt]?.attempt,
      );
      const note =
        story.state === "FAILED" || story.state === "LOST" ? story.note.slice(0, NOTE) : "";
      const left = story.moments
        .filter((moment) => moment.kind === "unkillable")
        .map(({ rank, text }) => `${rank === null ? "" : `rank ${rank}: `}${plain(text)}`);
      element.hidden = !first && !note && !left.length;
      const now = JSON.stringify([first ? [first.attempt, first.rank] : note, left]);
      if (now === told) return; // drawn once: its traceback may have been opened
      told = now;
      if (first) {
        const lines = inLines(first.traceback);
        element.replaceChildren(
          h("b", {}, `rank ${first.rank}: ${plain(first.title)}`),
          first.hint ? h("div", {}, plain(first.hint)) : "",
          lines
            ? h("details", {}, h("summary", {}, "Traceback"), h("pre", { tabindex: "0" }, lines))
            : "",
        );
      } else element.replaceChildren(note ? h("div", {}, inLines(note)) : "");
      element.append(...left.map((words) => h("div", {}, words)));
    },
  };
}

/** @param {string} text */
const inLines = (text) => text.split("\n").map(plain).join("\n");
