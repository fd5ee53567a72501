/** The types of the state that the kernel sends, and the labels that follow from it. */
import { plain } from "./sanitise.js";

/** @typedef {[number, number, string, number]} RankEntry rank, local rank, device, pid */
/** @typedef {{ attempt: number, t: number, world_size: number, ranks: RankEntry[] }} Attempt */
/**
 * @typedef {{ attempt: number, rank: number | null, cause: string, failed_at: number | null,
 *   t: number }} Restart
 */
/**
 * @typedef {{ rank: number, attempt: number, time: number, kind: string, type: string,
 *   title: string, hint: string, traceback: string }} Failure
 */
/** @typedef {{ t: number, kind: string, text: string, rank: number | null }} TimelineEvent */
/** @typedef {{ where: string, who: string, why: string }} Breakpoint */
/**
 * The journal's content. `in_debugger` and `silent` (where a rank hangs) are by rank.
 * @typedef {{ run_id: string, name: string, path: string, state: string, over: boolean,
 *   started: number, end: number | null, note: string, nproc: number, max_restarts: number,
 *   attempts: Attempt[], restarts: Restart[], failures: Failure[], timeline: TimelineEvent[],
 *   kill_at: number | null, in_debugger: Record<string, Breakpoint>,
 *   silent: Record<string, string> }} RunState
 */
/**
 * A rank of the newest attempt: MB, time of the last output, whether it returned, step.
 * @typedef {[number, number, boolean, number | null]} LiveRank */
/**
 * What changes all the time.
 * @typedef {{ t: number, progress: [number, number][], flags: string[],
 *   ranks: LiveRank[] }} LiveState
 */

/** A symbol beside each state's label, so that the state shows without colour. */
export const SYMBOLS = {
  STARTING: "◌",
  RUNNING: "●",
  RESTARTING: "↻",
  STOPPING: "◍",
  SUCCEEDED: "✓",
  FAILED: "✕",
  STOPPED: "■",
  LOST: "?",
  PAUSED: "❙❙",
  "NO WORD": "?",
};

/**
 * The label of a run's state: the journal's, or PAUSED if the flags say so.
 * @param {RunState} runState
 * @param {LiveState} liveState
 */
export function stateLabel(runState, liveState) {
  return runState.state === "RUNNING" &&
    liveState.flags.includes("paused") &&
    liveState.flags.includes("pause")
    ? "PAUSED"
    : runState.state;
}

/**
 * The state of one rank. `text` describes it; `first`: this rank failed first.
 * @param {RunState} runState
 * @param {LiveState} liveState
 * @param {number} number the attempt's
 * @param {number} index among the attempt's ranks
 * @returns {{ state: string, text: string, first?: boolean }}
 */
export function rankState(runState, liveState, number, index) {
  const attempt = runState.attempts[number];
  const [rank] = attempt.ranks[index];
  const isOf = (/** @type {{ attempt: number, rank: number | null }} */ event, ahead = 0) =>
    event.rank === rank && event.attempt === attempt.attempt + ahead;
  const failure = runState.failures.find((one) => isOf(one));
  const restart = runState.restarts.find((one) => isOf(one, 1)); // its number is the next attempt's
  if (failure || restart) {
    const first = failure === runState.failures[0] || !!restart;
    return { state: "failed", text: plain(failure ? failure.title : restart?.cause), first };
  }
  const newest = number === runState.attempts.length - 1;
  const [memory = 0, , returned = false] = (newest && liveState.ranks[index]) || [];
  if (returned) return { state: "done", text: "returned" };
  if (!newest) return { state: "ended", text: "ended with its attempt" };
  if (runState.over)
    return { state: runState.state === "SUCCEEDED" ? "done" : "ended", text: "ended" };
  if (!memory && liveState.t - attempt.t > 2) return { state: "ended", text: "ended" };
  const breakpoint = runState.in_debugger[rank];
  if (breakpoint) return { state: "waiting", text: `waits at ${plain(breakpoint.where)}` };
  const where = runState.silent[rank];
  if (where !== undefined)
    return { state: "silent", text: `silent${where ? ` at ${plain(where)}` : ""}` };
  return { state: "running", text: "running" };
}
