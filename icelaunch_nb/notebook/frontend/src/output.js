/** What the ranks print: a terminal with one rank's output or all of them, and whether it follows. */
import { h, say } from "./dom.js";
import { AllRanks, OneRank } from "./screen.js";
import { openTerminal } from "./terminal.js";

/** @typedef {import("./logs.js").Logs} Logs */
/** @typedef {import("./logs.js").Part} Part */

/**
 * @param {Logs} logs
 * @param {AbortSignal} signal
 */
export function makeOutput(logs, signal) {
  const host = h("div", { className: "ice-screen" });
  const empty = h("div", { className: "ice-empty" });
  const element = h("div", { className: "ice-output" }, host, empty);
  const follow = h("button", { type: "button", className: "ice-tool", "aria-pressed": "true", title: "Keep the newest line in view" }, "Follow");
  /** @type {ReturnType<typeof openTerminal> | undefined} */
  let terminal;
  /** @type {OneRank | AllRanks} */
  let screen = new OneRank();
  let attempt = 0;
  /** @type {number | "all"} */
  let chosen = 0;
  let silence = "";

  const hears = (/** @type {number} */ of, /** @type {Part[]} */ parts) => {
    const mine = of !== attempt ? [] : chosen === "all" ? parts : parts.filter((part) => part.rank === chosen);
    if (!mine.length) return;
    terminal?.write(screen.render(mine));
    empty.hidden = true;
  };
  logs.listeners.add(hears);
  signal.addEventListener("abort", () => logs.listeners.delete(hears));
  return {
    element, follow,
    /** To be called once `element` is in the page, which a terminal measures. */
    open() {
      const opened = (terminal = openTerminal(host, signal));
      follow.addEventListener("click", () => opened.follow(!opened.following()), { signal });
      opened.onFollow(() => follow.setAttribute("aria-pressed", String(opened.following())));
      return opened;
    },
    /** Draws what there is of a rank, or of all, in an attempt. @param {number} of @param {number | "all"} rank */
    draw(of, rank) {
      attempt = of;
      chosen = rank;
      screen = chosen === "all" ? new AllRanks() : new OneRank();
      const parts = chosen === "all" ? logs.ofAll(attempt) : logs.of(attempt, chosen);
      terminal?.clear();
      terminal?.write(screen.render(parts));
      terminal?.follow(true);
      empty.hidden = parts.length > 0;
    },
    /** What stands there while nothing was printed. @param {boolean} started @param {boolean} over */
    explain(started, over) {
      const who = chosen === "all" ? "The ranks have" : `Rank ${chosen} has`;
      silence = !started ? (over ? "No rank was started." : "The ranks are being started.") : `${who} printed nothing${over ? "" : " yet"}.`;
      say(empty, silence);
    },
  };
}
