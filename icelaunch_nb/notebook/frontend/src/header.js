/** The head line: is it running, how far, did anything restart, and what can be done. */
import { makeBars } from "./bars.js";
import { makeButtons } from "./buttons.js";
import { clock, duration, h, say } from "./dom.js";
import { plain } from "./sanitise.js";
import { MARKS, wordFor } from "./story.js";

/** @typedef {import("./story.js").Story} Story */
/** @typedef {import("./story.js").Pulse} Pulse */
/** @typedef {import("./hearing.js").Hearing} Hearing */

/**
 * @param {import("./buttons.js").Ask} ask
 * @param {Hearing} hearing
 * @param {AbortSignal} signal
 */
export function makeHead(ask, hearing, signal) {
  const mark = h("span", { className: "ice-mark", "aria-hidden": "true" });
  const word = h("span", { className: "ice-word" });
  const state = h(
    "span",
    { className: "ice-state", role: "status", "aria-live": "polite" },
    mark,
    word,
  );
  const name = h("span", { className: "ice-name" });
  const elapsed = h("span", { className: "ice-elapsed", title: "elapsed" });
  const countdown = h("span", {
    className: "ice-countdown",
    title: "Ranks that take longer get SIGTERM, and SIGKILL soon after",
  });
  const attempt = h("span", { className: "ice-attempt" });
  const bars = makeBars();
  const restart = h("div", { className: "ice-restart", hidden: true });
  const answer = h("div", {
    className: "ice-answer",
    role: "status",
    "aria-live": "polite",
    hidden: true,
  });
  const silence = h("div", {
    className: "ice-silence",
    role: "status",
    "aria-live": "polite",
    hidden: true,
  });
  const tell = (/** @type {string} */ text, /** @type {string} */ kind) => {
    answer.hidden = !text;
    answer.dataset.kind = kind;
    say(answer, text);
  };
  const buttons = makeButtons(ask, tell, signal);
  const element = h(
    "div",
    { className: "ice-head", tabindex: "-1" },
    h(
      "div",
      { className: "ice-line" },
      state,
      name,
      elapsed,
      countdown,
      attempt,
      h("span", { className: "ice-gap" }),
      buttons.element,
    ),
    bars.element,
    restart,
    answer,
    silence,
  );

  let skew = 0;
  /** @type {Story | undefined} */
  let told;
  const lost = () => hearing.lost && !told?.over; // of one that is over nothing more is to be heard
  const tick = () => {
    if (!told) return;
    const now = (lost() ? hearing.at : Date.now()) / 1000 + skew;
    say(elapsed, duration((told.end ?? now) - told.started));
    const left = told.over || told.kill_at === null ? null : Math.ceil(told.kill_at - now);
    say(countdown, left === null ? "" : left > 0 ? `${duration(left)} left` : "being killed");
    countdown.hidden = left === null;
    const last = told.restarts.at(-1);
    restart.hidden = !last;
    if (last) {
      const who = last.rank === null ? "" : `rank ${last.rank}, `;
      const when = last.failed_at ?? last.t;
      say(
        restart,
        `restart ${last.attempt} of ${told.max_restarts}: ${who}${plain(last.cause)}, ${told.over ? `at ${clock(when)}` : `${duration(now - when)} ago`}`,
      );
    }
  };
  return {
    element,
    tick,
    tell,
    /** Takes the focus, so that a key goes on to reach the panel. @param {string} [what] the button that it goes to, if that is there */
    focus(what = "") {
      if (!buttons.focus(what)) element.focus({ preventScroll: true });
    },
    /** @param {Story} story @param {Pulse} pulse */
    show(story, pulse) {
      told = story;
      if (!story.over && !lost())
        skew =
          Math.abs(pulse.t - Date.now() / 1000 - skew) > 2 ? pulse.t - Date.now() / 1000 : skew;
      const now = lost() ? "NO WORD" : wordFor(story, pulse);
      element.dataset.state = now;
      say(mark, MARKS[/** @type {keyof typeof MARKS} */ (now)] ?? "·");
      say(word, now);
      say(name, plain(story.name));
      const ranks = story.nproc;
      const attempts = story.restarts.length
        ? ` · attempt ${Math.max(0, story.attempts.length - 1)}`
        : "";
      say(attempt, `${ranks} rank${ranks === 1 ? "" : "s"}${attempts}`);
      bars.show(pulse.bars);
      buttons.show(story, pulse, lost());
      silence.hidden = !lost();
      say(
        silence,
        lost()
          ? `No word from the kernel since ${clock(hearing.at / 1000)}, when the run was ${wordFor(story, pulse)}. ` +
              `Where it goes on, ice.attach("${plain(story.run_id)}") shows it.`
          : "",
      );
      if (story.over && answer.dataset.kind !== "bad") tell("", "");
      tick();
    },
  };
}
