/** The header: the run's state, its progress, its last restart, and the buttons to act on it. */
import { makeButtons } from "./buttons.js";
import { clock, duration, h, setText } from "./dom.js";
import { makeProgress } from "./progress.js";
import { plain } from "./sanitise.js";
import { SYMBOLS, stateLabel } from "./run_state.js";

/** @typedef {import("./run_state.js").RunState} RunState */
/** @typedef {import("./run_state.js").LiveState} LiveState */
/** @typedef {import("./heartbeat.js").Heartbeat} Heartbeat */

const GRACE = "Ranks that take longer get SIGTERM, and SIGKILL soon after";

/**
 * @param {import("./buttons.js").SendAction} sendAction
 * @param {Heartbeat} heartbeat
 * @param {AbortSignal} signal
 */
export function makeHeader(sendAction, heartbeat, signal) {
  const symbol = h("span", { className: "ice-state-symbol", "aria-hidden": "true" });
  const label = h("span", { className: "ice-state-label" });
  const state = h(
    "span",
    { className: "ice-state", role: "status", "aria-live": "polite" },
    symbol,
    label,
  );
  const name = h("span", { className: "ice-name" });
  const elapsed = h("span", { className: "ice-elapsed", title: "elapsed" });
  const countdown = h("span", { className: "ice-countdown", title: GRACE });
  const attempt = h("span", { className: "ice-attempt" });
  const progress = makeProgress();
  const restart = h("div", { className: "ice-restart", hidden: true });
  const message = { role: "status", "aria-live": "polite", hidden: true };
  const reply = h("div", { className: "ice-reply", ...message });
  const connectionLost = h("div", { className: "ice-connection-lost", ...message });
  const showReply = (/** @type {string} */ text, /** @type {string} */ kind) => {
    reply.hidden = !text;
    reply.dataset.kind = kind;
    setText(reply, text);
  };
  const buttons = makeButtons(sendAction, showReply, signal);
  const spacer = h("span", { className: "ice-spacer" });
  const element = h(
    "div",
    { className: "ice-header", tabindex: "-1" },
    h(
      "div",
      { className: "ice-header-row" },
      ...[state, name, elapsed, countdown, attempt, spacer, buttons.element],
    ),
    ...[progress.element, restart, reply, connectionLost],
  );

  let clockSkew = 0; // seconds that the kernel's clock is ahead of the page's
  /** @type {RunState | undefined} */
  let shown;
  // A kernel sends nothing about a run that is over, so it isn't lost then.
  const lost = () => heartbeat.lost && !shown?.over;

  /** Updates what changes with time alone. */
  function tick() {
    if (!shown) return;
    const now = (lost() ? heartbeat.at : Date.now()) / 1000 + clockSkew;
    setText(elapsed, duration((shown.end ?? now) - shown.started));
    const killAt = shown.over ? null : shown.kill_at;
    const left = killAt === null ? null : Math.ceil(killAt - now);
    setText(countdown, left === null ? "" : left > 0 ? `${duration(left)} left` : "being killed");
    countdown.hidden = left === null;
    const last = shown.restarts.at(-1);
    restart.hidden = !last;
    if (!last) return;
    const who = last.rank === null ? "" : `rank ${last.rank}, `;
    const failedAt = last.failed_at ?? last.t;
    const when = shown.over ? `at ${clock(failedAt)}` : `${duration(now - failedAt)} ago`;
    const number = `restart ${last.attempt} of ${shown.max_restarts}`;
    setText(restart, `${number}: ${who}${plain(last.cause)}, ${when}`);
  }

  /** @param {RunState} runState @param {LiveState} liveState */
  function showConnection(runState, liveState) {
    connectionLost.hidden = !lost();
    const since = `No word from the kernel since ${clock(heartbeat.at / 1000)}`;
    const before = `when the run was ${stateLabel(runState, liveState)}`;
    const attach = `Where it goes on, ice.attach("${plain(runState.run_id)}") shows it.`;
    setText(connectionLost, lost() ? `${since}, ${before}. ${attach}` : "");
  }

  return {
    element,
    tick,
    /**
     * Takes the focus, so that keys still reach the panel.
     * @param {string} [action] its button gets the focus, if it is visible
     */
    focus(action = "") {
      if (!buttons.focus(action)) element.focus({ preventScroll: true });
    },
    /** @param {RunState} runState @param {LiveState} liveState */
    show(runState, liveState) {
      shown = runState;
      const ahead = liveState.t - Date.now() / 1000;
      if (!runState.over && !lost() && Math.abs(ahead - clockSkew) > 2) clockSkew = ahead;
      const now = lost() ? "NO WORD" : stateLabel(runState, liveState);
      element.dataset.state = now;
      setText(symbol, SYMBOLS[/** @type {keyof typeof SYMBOLS} */ (now)] ?? "·");
      setText(label, now);
      setText(name, plain(runState.name));
      const ranks = `${runState.nproc} rank${runState.nproc === 1 ? "" : "s"}`;
      const newest = Math.max(0, runState.attempts.length - 1);
      setText(attempt, runState.restarts.length ? `${ranks} · attempt ${newest}` : ranks);
      progress.show(liveState.progress);
      buttons.show(runState, liveState, lost());
      showConnection(runState, liveState);
      if (runState.over && reply.dataset.kind !== "bad") showReply("", "");
      tick();
    },
  };
}
