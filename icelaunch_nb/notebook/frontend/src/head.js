/** The head line: is it running, how far, did anything restart, and what can be done. */
import { makeBars } from "./bars.js";
import { clock, duration, h, say } from "./dom.js";
import { plain } from "./sanitise.js";
import { MARKS, wordFor } from "./story.js";

/** @typedef {import("./story.js").Story} Story */
/** @typedef {import("./story.js").Pulse} Pulse */

const UNHEARD = 700; // milliseconds after which a click that nobody answered is explained
const READ = 12_000; // and after which an answer has been read
const BUSY = "The kernel is busy with a cell and acts when that is done. Interrupt (■) ends a waiting run at once.";

/** label, title, and whether it makes sense now */
const BUTTONS = /** @type {const} */ ([
  ["pause", "Pause", "Asks the ranks to pause where they look at their events"],
  ["resume", "Resume", "Lets paused ranks go on"],
  ["checkpoint", "Save checkpoint", "Asks the ranks for a checkpoint where they look at their events"],
  ["stacks", "Stacks", "Shows where every rank is now"],
  ["stop", "Stop", "Loops over ctx.steps end together and return; other code gets SIGTERM; who is left after 30 s is killed"],
  ["kill", "Kill", "SIGKILL to the ranks, now"],
]);

/** @param {string} what @param {Story} story @param {Pulse} pulse */
function makesSense(what, story, pulse) {
  if (story.over) return false;
  const paused = pulse.flags.includes("pause");
  const stopping = story.state === "STOPPING";
  if (what === "stop") return !stopping;
  if (what === "kill") return stopping;
  if (what === "pause") return !paused && !stopping && story.attempts.length > 0;
  if (what === "resume") return paused && !stopping;
  return !stopping && story.attempts.length > 0;
}

/**
 * @param {(what: string) => Promise<{ ok: boolean, says: string }>} ask
 * @param {AbortSignal} signal
 */
export function makeHead(ask, signal) {
  const mark = h("span", { className: "ice-mark", "aria-hidden": "true" });
  const word = h("span", { className: "ice-word" });
  const state = h("span", { className: "ice-state", role: "status", "aria-live": "polite" }, mark, word);
  const name = h("span", { className: "ice-name" });
  const elapsed = h("span", { className: "ice-elapsed", title: "elapsed" });
  const countdown = h("span", { className: "ice-countdown", title: "Ranks that take longer get SIGTERM, and SIGKILL soon after" });
  const attempt = h("span", { className: "ice-attempt" });
  const buttons = h("div", { className: "ice-buttons", role: "toolbar", "aria-label": "Act on the run" });
  const bars = makeBars();
  const restart = h("div", { className: "ice-restart", hidden: true });
  const answer = h("div", { className: "ice-answer", role: "status", "aria-live": "polite", hidden: true });
  const element = h("div", { className: "ice-head" },
    h("div", { className: "ice-line" }, state, name, elapsed, countdown, attempt, h("span", { className: "ice-gap" }), buttons), bars.element, restart, answer);

  /** @type {Map<string, HTMLButtonElement>} */
  const known = new Map();
  /** The newest press: an older one's answer doesn't overwrite it. */
  let press = 0;
  const tell = (/** @type {string} */ text, /** @type {string} */ kind) => {
    answer.hidden = !text;
    answer.dataset.kind = kind;
    say(answer, text);
  };
  for (const [what, label, title] of BUTTONS) {
    const button = /** @type {HTMLButtonElement} */ (h("button", { type: "button", className: "ice-button", "data-do": what, title }, label));
    button.addEventListener("click", async () => {
      if (button.getAttribute("aria-busy") === "true") return;
      const mine = ++press;
      button.setAttribute("aria-busy", "true");
      tell(`${label}: heard …`, "heard");
      const late = setTimeout(() => mine === press && tell(`${label}: ${BUSY}`, "busy"), UNHEARD);
      const { ok, says } = await ask(what);
      clearTimeout(late);
      button.removeAttribute("aria-busy");
      if (mine !== press) return;
      tell(`${label}: ${says}`, ok ? "done" : "bad");
      if (ok) setTimeout(() => mine === press && tell("", ""), READ);
    }, { signal });
    known.set(what, button);
    buttons.append(button);
  }

  let skew = 0;
  /** @type {Story | undefined} */
  let told;
  const tick = () => {
    if (!told) return;
    const now = Date.now() / 1000 + skew;
    say(elapsed, duration((told.end ?? now) - told.started));
    const left = told.over || told.kill_at === null ? null : Math.ceil(told.kill_at - now);
    say(countdown, left === null ? "" : left > 0 ? `${duration(left)} left` : "being killed");
    countdown.hidden = left === null;
    const last = told.restarts.at(-1);
    restart.hidden = !last;
    if (last) {
      const who = last.rank === null ? "" : `rank ${last.rank}, `;
      const when = last.failed_at ?? last.t;
      say(restart, `restart ${last.attempt} of ${told.max_restarts}: ${who}${plain(last.cause)}, ${told.over ? `at ${clock(when)}` : `${duration(now - when)} ago`}`);
    }
  };
  return {
    element, tick, tell,
    /** @param {Story} story @param {Pulse} pulse */
    show(story, pulse) {
      told = story;
      if (!story.over) skew = Math.abs(pulse.t - Date.now() / 1000 - skew) > 2 ? pulse.t - Date.now() / 1000 : skew;
      const now = wordFor(story, pulse);
      element.dataset.state = now;
      say(mark, MARKS[/** @type {keyof typeof MARKS} */ (now)] ?? "·");
      say(word, now);
      say(name, plain(story.name));
      const ranks = story.nproc;
      const attempts = story.restarts.length ? ` · attempt ${Math.max(0, story.attempts.length - 1)}` : "";
      say(attempt, `${ranks} rank${ranks === 1 ? "" : "s"}${attempts}`);
      bars.show(pulse.bars);
      for (const [what, button] of known) {
        const hide = !makesSense(what, story, pulse);
        if (hide && document.activeElement === button) /** @type {HTMLElement | null} */ (buttons.querySelector("button:not([hidden])"))?.focus();
        button.hidden = hide;
      }
      if (story.over && answer.dataset.kind !== "bad") tell("", "");
      tick();
    },
  };
}
