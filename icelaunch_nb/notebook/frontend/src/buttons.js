/** The buttons that act on the run: which of them make sense now, and that a press is heard. */
import { h } from "./dom.js";
import { plain } from "./sanitise.js";

/** @typedef {import("./story.js").Story} Story */
/** @typedef {import("./story.js").Pulse} Pulse */
/** @typedef {(text: string, kind: string) => void} Tell */
/** What is asked, and what comes first where the answer takes its time. @typedef {(what: string, meanwhile: (says: string) => void) => Promise<any>} Ask */

const UNHEARD = 700; // milliseconds after which a click that nobody answered is explained
const READ = 12_000; // and after which an answer has been read
const SETTLES = 700; // that a button is deaf which has come to stand in another's place: a double click was meant for that one
const BUSY =
  "The kernel is busy with a cell and acts when that is done. Interrupt (■) ends a waiting run at once.";

/** label, title, and whether it makes sense now */
const BUTTONS = /** @type {const} */ ([
  ["pause", "Pause", "Asks the ranks to pause where they look at their events"],
  ["resume", "Resume", "Lets paused ranks go on"],
  [
    "checkpoint",
    "Save checkpoint",
    "Asks the ranks for a checkpoint where they look at their events",
  ],
  ["stacks", "Stacks", "Shows where every rank is now"],
  [
    "stop",
    "Stop",
    "Loops over ctx.steps end together and return; other code gets SIGTERM; who is left after 30 s is killed",
  ],
  ["kill", "Kill", "SIGKILL to the ranks, now"],
]);

/** Who comes to stand where another one stood. */
const AFTER = /** @type {Record<string, string>} */ ({
  stop: "kill",
  kill: "stop",
  pause: "resume",
  resume: "pause",
});

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
 * @param {Ask} ask
 * @param {Tell} tell
 * @param {AbortSignal} signal
 */
export function makeButtons(ask, tell, signal) {
  const element = h("div", {
    className: "ice-buttons",
    role: "toolbar",
    "aria-label": "Act on the run",
  });
  /** @type {Map<string, HTMLButtonElement>} */
  const known = new Map();
  /** The newest press: an older one's answer doesn't overwrite it. */
  let press = 0;
  /** The press of Save checkpoint that is told what came of it, and when the newest checkpoint was saved before. @type {{ press: number, before: number } | undefined} */
  let awaited;
  let saved = 0;
  for (const [what, label, title] of BUTTONS) {
    const button = /** @type {HTMLButtonElement} */ (
      h(
        "button",
        { type: "button", className: "ice-button", "data-do": what, title, hidden: true },
        label,
      )
    );
    button.addEventListener(
      "click",
      async () => {
        if (
          button.getAttribute("aria-busy") === "true" ||
          button.getAttribute("aria-disabled") === "true"
        )
          return;
        const mine = ++press;
        awaited = what === "checkpoint" ? { press: mine, before: saved } : undefined;
        button.setAttribute("aria-busy", "true");
        tell(`${label}: heard …`, "heard");
        const late = setTimeout(() => mine === press && tell(`${label}: ${BUSY}`, "busy"), UNHEARD);
        const { ok, says, lost } = await ask(what, (meanwhile) => {
          clearTimeout(late);
          if (mine === press) tell(`${label}: ${meanwhile}`, "heard");
        });
        clearTimeout(late);
        button.removeAttribute("aria-busy");
        if (mine !== press || (what === "checkpoint" && ok && !awaited)) return;
        tell(lost ? "" : `${label}: ${says}`, ok ? "done" : "bad");
        if (ok) leave(mine);
      },
      { signal },
    );
    // A key that is held down presses again and again, and the focus goes on to the button that comes next.
    button.addEventListener(
      "keydown",
      (event) => event.repeat && event.key === "Enter" && event.preventDefault(),
      { signal },
    );
    known.set(what, button);
    element.append(button);
  }

  /** An answer is there to be read for a while; that a checkpoint was asked for, until it is saved. @param {number} mine */
  function leave(mine) {
    setTimeout(() => mine === press && awaited?.press !== mine && tell("", ""), READ);
  }
  /** @param {Story} story */
  function hear(story) {
    const newest = story.moments.filter((moment) => moment.kind === "saved").at(-1);
    if (!newest || newest.t === saved) return;
    saved = newest.t;
    if (!awaited) return;
    tell(`Save checkpoint: ${plain(newest.text).replace(/^checkpoint /, "")}`, "done");
    awaited = undefined;
    leave(press);
  }

  /** @param {HTMLButtonElement} button */
  function settle(button) {
    button.setAttribute("aria-disabled", "true");
    setTimeout(() => button.removeAttribute("aria-disabled"), SETTLES);
  }

  return {
    element,
    /** @param {string} what @returns {boolean} whether it is there to be focused */
    focus(what) {
      const button = known.get(what);
      button?.focus();
      return !!button && !button.hidden;
    },
    /** @param {Story} story @param {Pulse} pulse @param {boolean} lost whether nobody is there to act */
    show(story, pulse, lost) {
      hear(story);
      const before = new Set(
        [...known].filter(([, button]) => !button.hidden).map(([what]) => what),
      );
      const focused = [...known].find(([, button]) => button === document.activeElement)?.[0];
      for (const [what, button] of known) button.hidden = lost || !makesSense(what, story, pulse);
      for (const what of before) {
        const next = known.get(AFTER[what]);
        if (!next || next.hidden || before.has(AFTER[what])) continue;
        settle(next);
        if (what === focused) next.focus();
      }
    },
  };
}
