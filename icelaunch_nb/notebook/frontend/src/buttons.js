/** The buttons that act on the run. Those that don't apply now are hidden. */
import { h } from "./dom.js";
import { plain } from "./sanitise.js";

/** @typedef {import("./run_state.js").RunState} RunState */
/** @typedef {import("./run_state.js").LiveState} LiveState */
/** @typedef {(text: string, kind: string) => void} ShowReply */
/**
 * Sends an action and waits for its reply. `onPending` is called first where the reply takes long.
 * @typedef {(action: string, onPending: (text: string) => void) => Promise<any>} SendAction
 */

const REPLY_TIMEOUT = 700; // milliseconds after which a click without a reply is explained
const REPLY_SHOWN = 12_000; // milliseconds
// Milliseconds in which a button that replaces another one ignores clicks. The second click of a
// double click was meant for the other one.
const CLICKS_IGNORED = 700;
const BUSY =
  "The kernel is busy with a cell and acts when that is done. " +
  "Interrupt (■) ends a waiting run at once.";

/** Action, label and title. */
const BUTTONS = /** @type {const} */ ([
  ["pause", "Pause", "Asks the ranks to pause where they check their events"],
  ["resume", "Resume", "Lets paused ranks go on"],
  [
    "checkpoint",
    "Save checkpoint",
    "Asks the ranks for a checkpoint where they check their events",
  ],
  ["stacks", "Stacks", "Shows where every rank is now"],
  [
    "stop",
    "Stop",
    "Loops over ctx.steps end together and return; other code gets SIGTERM; " +
      "who is left after 30 s is killed",
  ],
  ["kill", "Kill", "SIGKILL to the ranks, now"],
]);

/** The button that replaces each button. @type {Record<string, string>} */
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
  let newestClick = 0; // the number of the newest click: only its reply is shown
  /** The number of the click on Save checkpoint whose checkpoint isn't saved yet; 0: none. */
  let awaitingSave = 0;
  let savedAt = 0; // when the newest checkpoint was saved, in seconds since the epoch

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
    show("sent …", "pending");
    const late = setTimeout(() => show(BUSY, "busy"), REPLY_TIMEOUT);
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
    // A key that is held down clicks repeatedly, while the focus moves to the next button.
    const ignoreRepeats = (/** @type {KeyboardEvent} */ event) =>
      event.repeat && event.key === "Enter" && event.preventDefault();
    button.addEventListener("keydown", ignoreRepeats, { signal });
    buttons.set(action, button);
    element.append(button);
  }

  /**
   * Clears a reply after a while. The reply to a checkpoint request stays until the checkpoint is
   * saved.
   * @param {number} click
   */
  function clearLater(click) {
    const clear = () => click === newestClick && awaitingSave !== click && showReply("", "");
    setTimeout(clear, REPLY_SHOWN);
  }

  /** Shows that the requested checkpoint is saved. @param {RunState} runState */
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
  function ignoreClicks(button) {
    button.setAttribute("aria-disabled", "true");
    setTimeout(() => button.removeAttribute("aria-disabled"), CLICKS_IGNORED);
  }

  return {
    element,
    /** Focuses a button. @param {string} action @returns {boolean} whether it is visible */
    focus(action) {
      const button = buttons.get(action);
      button?.focus();
      return !!button && !button.hidden;
    },
    /**
     * @param {RunState} runState
     * @param {LiveState} liveState
     * @param {boolean} lost whether the kernel is lost
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
        ignoreClicks(next);
        if (action === focused) next.focus();
      }
    },
  };
}
