/** The strip of ranks: one mark each, those that failed first to the eye; a click shows that rank's log. */
import { duration, h, say } from "./dom.js";
import { rankState } from "./story.js";

/** @typedef {import("./story.js").Story} Story */
/** @typedef {import("./story.js").Pulse} Pulse */

const MARKS = /** @type {Record<string, string>} */ ({
  running: "●",
  done: "✓",
  failed: "✕",
  ended: "○",
  waiting: "◆",
  silent: "◌",
});
const QUIET = 5; // seconds of silence that are worth a word
const BEHIND = 2; // steps behind the foremost rank that are; ranks in step are one apart at most, and are not read at the same moment
const FEW = 4,
  SOME = 16; // ranks up to which each has room for its notes, and for its mark and number

/** @param {number} megabytes */
const inMemory = (megabytes) =>
  megabytes < 10_000 ? `${megabytes} MB` : `${(megabytes / 1024).toFixed(1)} GB`;

/**
 * @param {(rank: number | "all") => void} choose
 * @param {AbortSignal} signal
 */
export function makeRanks(choose, signal) {
  const element = h("div", {
    className: "ice-ranks",
    role: "tablist",
    "aria-label": "Whose output is shown",
  });
  /** @type {HTMLElement[]} */
  let marks = [];
  let drawn = "";
  element.addEventListener(
    "keydown",
    (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const shown = marks.filter((mark) => !mark.hidden);
      const at = shown.indexOf(/** @type {HTMLElement} */ (document.activeElement));
      if (!step || at < 0) return;
      event.preventDefault();
      const next = shown[(at + step + shown.length) % shown.length];
      next.focus();
      next.click();
    },
    { signal },
  );

  const tab = (/** @type {number | "all"} */ rank) => {
    const mark = h(
      "button",
      { type: "button", className: "ice-rank", role: "tab", "data-rank": rank },
      h("span", { className: "ice-rank-mark", "aria-hidden": "true" }),
      h("span", { className: "ice-rank-name" }),
      h("span", { className: "ice-rank-note" }),
    );
    mark.addEventListener("click", () => choose(rank), { signal });
    return mark;
  };
  return {
    element,
    /** @param {Story} story @param {Pulse} pulse @param {number} attempt @param {number | "all"} chosen */
    show(story, pulse, attempt, chosen) {
      const entries = story.attempts[attempt]?.ranks ?? [];
      const key = entries.map((entry) => entry[0]).join();
      if (key !== drawn || !marks.length) {
        drawn = key;
        marks = [tab("all"), ...entries.map((entry) => tab(entry[0]))];
        element.replaceChildren(...marks);
        say(marks[0].children[0], "≡");
        say(marks[0].children[1], "all");
        element.dataset.size =
          entries.length > SOME ? "many" : entries.length > FEW ? "some" : "few";
      }
      marks[0].hidden = entries.length < 2;
      const beats = attempt === story.attempts.length - 1 ? pulse.ranks : [];
      /** Where ranks wait or hang: with many of them each place is told once. @type {Set<string>} */
      const told = new Set();
      const foremost = Math.max(...beats.map((beat) => beat[3] ?? 0));
      entries.forEach(([rank, local, device, pid], place) => {
        const mark = marks[place + 1];
        const { state, word, first } = rankState(story, pulse, attempt, place);
        const [memory = 0, wrote = 0, , step = null] = beats[place] ?? [];
        const stands = state === "waiting" || state === "silent";
        const running = state === "running" || stands;
        const silent = running && beats.length ? pulse.t - (wrote || story.attempts[attempt].t) : 0;
        const behind = running && step !== null && foremost - step > BEHIND ? foremost - step : 0;
        mark.dataset.state = state;
        mark.toggleAttribute("data-first", first);
        mark.toggleAttribute("data-behind", behind > 0);
        mark.toggleAttribute("data-stands", stands && !(entries.length > SOME && told.has(word)));
        if (stands) told.add(word);
        say(mark.children[0], MARKS[state]);
        say(mark.children[1], String(rank));
        const quiet = silent > QUIET ? `silent ${duration(silent)}` : "";
        const notes = [
          device,
          step === null ? "" : `step ${step}`,
          memory && running ? inMemory(memory) : "",
          quiet,
        ].filter(Boolean);
        say(
          mark.children[2],
          state === "failed"
            ? word.split(":")[0]
            : stands
              ? word
              : behind && entries.length > FEW
                ? `−${behind}`
                : notes.join(" · "),
        );
        const full = [
          `rank ${rank}: ${word}`,
          `local rank ${local}`,
          `pid ${pid}`,
          ...notes,
          behind ? `${behind} steps behind` : "",
        ]
          .filter(Boolean)
          .join(", ");
        if (mark.title !== full) mark.title = full;
        mark.setAttribute(
          "aria-label",
          `rank ${rank}: ${state === "failed" || stands ? word : state}${behind ? `, ${behind} steps behind` : ""}`,
        );
      });
      for (const mark of marks) {
        const on = mark.dataset.rank === String(chosen);
        mark.setAttribute("aria-selected", String(on));
        mark.tabIndex = on ? 0 : -1;
      }
    },
  };
}
