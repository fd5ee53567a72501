/** The buttons that act on the run: which of them apply now, and what came of a click. */
import { h } from "./dom.js";
import { plain } from "./sanitise.js";

/** @typedef {import("./run_state.js").RunState} RunState */
/** @typedef {import("./run_state.js").LiveState} LiveState */
/** @typedef {(text: string, kind: string) => void} ShowReply */
/**
 * Sends an action and waits for its reply; `onPending` is called first where that takes its time.
 * @typedef {(action: string, onPending: (text: string) => void) => Promise<any>} SendAction
 */

const UNANSWERED = 700; // milliseconds after which a click without a reply is explained
const READING = 12_000; // milliseconds that a reply is shown
// Milliseconds that a button ignores clicks after it took another's place: a double click was meant
// for that one.
const SETTLING = 700;
const BUSY =
  "The kernel is busy with a cell and acts when that is done. Interrupt (■) ends a waiting run at once.";

/** Action, label and title. */
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

/** The button that takes another one's place. @type {Record<string, string>} */
const NEXT = { stop: "kill", kill: "stop", pause: "resume", resume: "pause" };

/** @param {string} action @param {RunState} runState @param {LiveState} liveState */
function applies(action, runState, liveState) {
  if (runState.over) return false;
  const paused = liveState.flags.includes("pause");
  const stopping = runState.state === "STOPPING";
  if (action === "stop") return !stopping;
  if (action === "kill") return stopping;
  if (action === "pause") return !paused && !stopping && runState.attempts.length > 0;
  if (action === "resume") return paused && !stopping;
  return !stopping && runState.attempts.length > 0;
}

/**
 * @param {SendAction} sendAction
 * @param {ShowReply} showReply
 * @param {AbortSignal} signal
 */
export function makeButtons(sendAction, showReply, signal) {
  const element = h("div", {
    className: "ice-buttons",
    role: "toolbar",
    "aria-label": "Act on the run",
  });
  /** By action. @type {Map<string, HTMLButtonElement>} */
  const buttons = new Map();
  let newestClick = 0; // an older one's reply doesn't overwrite its reply
  /** The click on Save checkpoint that waits until the checkpoint is saved. */
  let awaitingSave = 0;
  let savedAt = 0; // when the newest checkpoint was saved

  /** @param {HTMLButtonElement} button @param {string} action @param {string} label */
  async function click(button, action, label) {
    if (button.getAttribute("aria-busy") === "true") return;
    if (button.getAttribute("aria-disabled") === "true") return;
    const click = ++newestClick;
    const show = (/** @type {string} */ text, /** @type {string} */ kind) => {
      if (click === newestClick) showReply(`${label}: ${text}`, kind);
    };
    awaitingSave = action === "checkpoint" ? click : 0;
    button.setAttribute("aria-busy", "true");
    show("heard …", "pending");
    const late = setTimeout(() => show(BUSY, "busy"), UNANSWERED);
    const { ok, text, lost } = await sendAction(action, (pending) => {
      clearTimeout(late);
      show(pending, "pending");
    });
    clearTimeout(late);
    button.removeAttribute("aria-busy");
    if (click !== newestClick || (action === "checkpoint" && ok && !awaitingSave)) return;
    if (lost) showReply("", "bad");
    else show(text, ok ? "done" : "bad");
    if (ok) clearLater(click);
  }

  for (const [action, label, title] of BUTTONS) {
    const button = /** @type {HTMLButtonElement} */ (
      h(
        "button",
        { type: "button", className: "ice-button", "data-action": action, title, hidden: true },
        label,
      )
    );
    button.addEventListener("click", () => click(button, action, label), { signal });
    // A key that is held down clicks again and again, and the focus moves to the next button.
    const ignoreRepeats = (/** @type {KeyboardEvent} */ event) =>
      event.repeat && event.key === "Enter" && event.preventDefault();
    button.addEventListener("keydown", ignoreRepeats, { signal });
    buttons.set(action, button);
    element.append(button);
  }

  /**
   * Clears a reply after a while. That a checkpoint was requested stays until it is saved.
   * @param {number} click
   */
  function clearLater(click) {
    const clear = () => click === newestClick && awaitingSave !== click && showReply("", "");
    setTimeout(clear, READING);
  }

  /** Shows that the checkpoint is saved that was requested here. @param {RunState} runState */
  function showSaved(runState) {
    const newest = runState.timeline.filter((event) => event.kind === "saved").at(-1);
    if (!newest || newest.t === savedAt) return;
    savedAt = newest.t;
    if (!awaitingSave) return;
    showReply(`Save checkpoint: ${plain(newest.text).replace(/^checkpoint /, "")}`, "done");
    awaitingSave = 0;
    clearLater(newestClick);
  }

  /** @param {HTMLButtonElement} button */
  function settle(button) {
    button.setAttribute("aria-disabled", "true");
    setTimeout(() => button.removeAttribute("aria-disabled"), SETTLING);
  }

  return {
    element,
    /** @param {string} action @returns {boolean} whether its button is there to be focused */
    focus(action) {
      const button = buttons.get(action);
      button?.focus();
      return !!button && !button.hidden;
    },
    /**
     * @param {RunState} runState
     * @param {LiveState} liveState
     * @param {boolean} lost whether nobody is there to act
     */
    show(runState, liveState, lost) {
      showSaved(runState);
      const visible = [...buttons].filter(([, button]) => !button.hidden);
      const before = new Set(visible.map(([action]) => action));
      const focused = visible.find(([, button]) => button === document.activeElement)?.[0];
      for (const [action, button] of buttons)
        button.hidden = lost || !applies(action, runState, liveState);
      for (const action of before) {
        const next = buttons.get(NEXT[action]);
        if (!next || next.hidden || before.has(NEXT[action])) continue;
        settle(next);
        if (action === focused) next.focus();
      }
    },
  };
}
