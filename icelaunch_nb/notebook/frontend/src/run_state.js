/** What the kernel tells, and what follows from it. */
import { plain } from "./sanitise.js";

/** @typedef {[number, number, string, number]} RankEntry rank, local rank, device, pid */
/** @typedef {{ attempt: number, t: number, world_size: number, ranks: RankEntry[] }} Attempt */
/** @typedef {{ attempt: number, rank: number | null, cause: string, failed_at: number | null, t: number }} Restart */
/** @typedef {{ rank: number, attempt: number, time: number, kind: string, type: string, title: string, hint: string, traceback: string }} Failure */
/** @typedef {{ t: number, kind: string, text: string, rank: number | null }} Moment */
/** @typedef {{ run_id: string, name: string, path: string, state: string, over: boolean, started: number, end: number | null, note: string,
 *   nproc: number, max_restarts: number, attempts: Attempt[], restarts: Restart[], failures: Failure[], moments: Moment[], kill_at: number | null,
 *   debugged: Record<string, { where: string, who: string, why: string }>, silent: Record<string, string> }} Story by rank: who is in the debugger, who hangs */
/** @typedef {{ t: number, bars: [number, number][], flags: string[], ranks: [number, number, boolean, number | null][] }} Pulse ranks: MB, last word, returned, step */

/** A mark beside each state's word, so that it is told without colour. */
export const MARKS = {
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
 * The word for a run's state: the journal's, or PAUSED where its ranks say so.
 * @param {Story} story
 * @param {Pulse} pulse
 */
export function wordFor(story, pulse) {
  return story.state === "RUNNING" &&
    pulse.flags.includes("paused") &&
    pulse.flags.includes("pause")
    ? "PAUSED"
    : story.state;
}

/**
 * @param {Story} story
 * @param {Pulse} pulse
 * @param {number} attempt
 * @param {number} place among the attempt's ranks
 */
export function rankState(story, pulse, attempt, place) {
  const entry = story.attempts[attempt].ranks[place];
  const failure = story.failures.find(
    (one) => one.rank === entry[0] && one.attempt === story.attempts[attempt].attempt,
  );
  const restart = story.restarts.find(
    (one) => one.attempt === story.attempts[attempt].attempt + 1 && one.rank === entry[0],
  );
  if (failure || restart)
    return {
      state: "failed",
      word: failure ? plain(failure.title) : plain(restart?.cause),
      first: failure === story.failures[0] || !!restart,
    };
  const newest = attempt === story.attempts.length - 1;
  const [memory = 0, , returned = false] = (newest && pulse.ranks[place]) || [];
  if (returned) return { state: "done", word: "returned", first: false };
  if (!newest) return { state: "ended", word: "ended with its attempt", first: false };
  if (story.over)
    return story.state === "SUCCEEDED"
      ? { state: "done", word: "ended", first: false }
      : { state: "ended", word: "ended", first: false };
  if (!memory && pulse.t - story.attempts[attempt].t > 2)
    return { state: "ended", word: "ended", first: false };
  const waits = story.debugged[entry[0]];
  if (waits) return { state: "waiting", word: `waits at ${plain(waits.where)}`, first: false };
  const hangs = story.silent[entry[0]];
  if (hangs !== undefined)
    return { state: "silent", word: `silent${hangs ? ` at ${plain(hangs)}` : ""}`, first: false };
  return { state: "running", word: "running", first: false };
}
