/** The output of the ranks: a terminal that shows one rank or all ranks. */
import { h, setText } from "./dom.js";
import { makeLiveRegion } from "./live_region.js";
import { AllRanksRenderer, RankRenderer } from "./log_renderer.js";
import { openTerminal } from "./terminal.js";

/** @typedef {import("./logs.js").Logs} Logs */
/** @typedef {import("./logs.js").Part} Part */
/**
 * @typedef {{ render: (parts: Part[], over: boolean) => string,
 *   due: () => number | undefined }} Renderer
 */

// Milliseconds from a rank's first lines to the end of the replay, which a page gets when it opens
// the panel.
const REPLAY_TIME = 1500;

/**
 * @param {Logs} logs
 * @param {(attempt: number, rank: number, before: number[]) => void} requestOlder requests the text
 *   before these offsets of a rank's streams
 * @param {AbortSignal} signal
 */
export function makeOutput(logs, requestOlder, signal) {
  const host = h("div", { className: "ice-terminal" });
  const placeholder = h("div", { className: "ice-placeholder" });
  const liveRegion = makeLiveRegion(signal);
  const element = h("div", { className: "ice-output" }, host, placeholder, liveRegion.element);
  const follow = h(
    "button",
    {
      type: "button",
      className: "ice-tool-button",
      "aria-pressed": "true",
      title: "Keep the newest line in view",
    },
    "Follow",
  );
  /** @type {ReturnType<typeof openTerminal> | undefined} */
  let terminal;
  /** @type {Renderer} */
  let renderer = new RankRenderer();
  let attempt = 0;
  /** @type {number | "all"} */
  let shown = 0;
  let over = false;
  let renderTimer = 0;
  let olderTimer = 0;
  let olderPending = false; // whether older lines are drawn only once the terminal follows again

  /** @param {Part[]} parts */
  function write(parts) {
    terminal?.write(renderer.render(parts, over));
    clearTimeout(renderTimer);
    const due = renderer.due();
    if (due !== undefined) renderTimer = window.setTimeout(write, due, []);
  }

  /** @param {number} of an attempt's number @param {Part[]} parts */
  function onParts(of, parts) {
    if (of !== attempt) return;
    const ours = shown === "all" ? parts : parts.filter((part) => part.rank === shown);
    if (!ours.length) return;
    write(ours);
    placeholder.hidden = true;
    olderTimer ||= window.setTimeout(loadOlder, REPLAY_TIME);
  }

  /** Requests older lines where the page holds few. */
  function loadOlder() {
    clearTimeout(olderTimer);
    olderTimer = 0;
    if (shown === "all") return;
    const before = logs.missingBefore(attempt, shown);
    if (before) requestOlder(attempt, shown, before);
  }

  /** @param {number} of an attempt's number @param {number} rank */
  function onOlder(of, rank) {
    if (of !== attempt || rank !== shown) return;
    if (terminal?.following()) draw(attempt, shown);
    else olderPending = true;
  }

  /**
   * Draws the text that the page holds of a rank, or of all ranks.
   * @param {number} of an attempt's number
   * @param {number | "all"} rank
   */
  function draw(of, rank) {
    attempt = of;
    shown = rank;
    olderPending = false;
    liveRegion.setRank(rank);
    renderer = shown === "all" ? new AllRanksRenderer() : new RankRenderer();
    const parts = shown === "all" ? logs.ofAll(attempt) : logs.of(attempt, shown);
    terminal?.clear();
    write(parts);
    terminal?.follow(true);
    placeholder.hidden = parts.length > 0;
  }

  logs.listeners.add(onParts);
  logs.olderListeners.add(onOlder);
  signal.addEventListener("abort", () => {
    logs.listeners.delete(onParts);
    logs.olderListeners.delete(onOlder);
    clearTimeout(renderTimer);
    clearTimeout(olderTimer);
  });

  return {
    element,
    follow,
    /** Opens the terminal. It measures `element`, which must be in the page. */
    open() {
      const opened = (terminal = openTerminal(host, signal));
      follow.addEventListener("click", () => opened.follow(!opened.following()), { signal });
      liveRegion.attach(opened.term);
      opened.onFollow(() => {
        follow.setAttribute("aria-pressed", String(opened.following()));
        if (olderPending && opened.following()) draw(attempt, shown);
      });
      return opened;
    },
    /** @param {number} of @param {number | "all"} rank */
    draw(of, rank) {
      draw(of, rank);
      loadOlder();
    },
    /**
     * Explains why the terminal is empty.
     * @param {boolean} started
     * @param {boolean} ended
     */
    explain(started, ended) {
      if (over !== ended) {
        over = ended;
        write([]);
      }
      const who = shown === "all" ? "The ranks have" : `Rank ${shown} has`;
      const printed = `${who} printed nothing${over ? "" : " yet"}.`;
      const starting = over ? "No rank was started." : "The ranks are being started.";
      setText(placeholder, started ? printed : starting);
    },
  };
}
