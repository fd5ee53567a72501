/** What the ranks print: a terminal with one rank's output or all of them, and whether it follows. */
import { h, say } from "./dom.js";
import { AllRanks, OneRank } from "./screen.js";
import { makeSpoken } from "./spoken.js";
import { openTerminal } from "./terminal.js";

/** @typedef {import("./logs.js").Logs} Logs */
/** @typedef {import("./logs.js").Part} Part */

const REPLAY = 1500; // milliseconds after a rank's first lines until what a page gets that has just opened is there

/**
 * @param {Logs} logs
 * @param {(attempt: number, rank: number, before: number[]) => void} ask for what a rank printed before what is held
 * @param {AbortSignal} signal
 */
export function makeOutput(logs, ask, signal) {
  const host = h("div", { className: "ice-screen" });
  const empty = h("div", { className: "ice-empty" });
  const spoken = makeSpoken(signal);
  const element = h("div", { className: "ice-output" }, host, empty, spoken.element);
  const follow = h(
    "button",
    {
      type: "button",
      className: "ice-tool",
      "aria-pressed": "true",
      title: "Keep the newest line in view",
    },
    "Follow",
  );
  /** @type {ReturnType<typeof openTerminal> | undefined} */
  let terminal;
  /** @type {{ render: (parts: Part[], over: boolean) => string, due: () => number | undefined }} */
  let screen = new OneRank();
  let attempt = 0;
  /** @type {number | "all"} */
  let chosen = 0;
  let over = false;
  let timer = 0,
    asks = 0;
  let older = false; // lines that aren't drawn yet: somebody reads

  /** @param {Part[]} parts */
  const write = (parts) => {
    terminal?.write(screen.render(parts, over));
    clearTimeout(timer);
    const due = screen.due();
    if (due !== undefined) timer = window.setTimeout(write, due, []);
  };
  const hears = (/** @type {number} */ of, /** @type {Part[]} */ parts) => {
    const mine =
      of !== attempt ? [] : chosen === "all" ? parts : parts.filter((part) => part.rank === chosen);
    if (!mine.length) return;
    write(mine);
    empty.hidden = true;
    asks ||= window.setTimeout(askForMore, REPLAY);
  };
  function askForMore() {
    clearTimeout(asks);
    asks = 0;
    const before = chosen === "all" ? undefined : logs.begins(attempt, chosen);
    if (before) ask(attempt, Number(chosen), before);
  }
  const hearsOlder = (/** @type {number} */ of, /** @type {number} */ rank) => {
    if (of !== attempt || rank !== chosen) return;
    if (terminal?.following()) draw(attempt, chosen);
    else older = true;
  };
  logs.listeners.add(hears);
  logs.olderListeners.add(hearsOlder);
  signal.addEventListener("abort", () => {
    logs.listeners.delete(hears);
    logs.olderListeners.delete(hearsOlder);
    clearTimeout(timer);
    clearTimeout(asks);
  });

  /** Draws what there is of a rank, or of all, in an attempt. @param {number} of @param {number | "all"} rank */
  function draw(of, rank) {
    attempt = of;
    chosen = rank;
    older = false;
    spoken.names(rank);
    screen = chosen === "all" ? new AllRanks() : new OneRank();
    const parts = chosen === "all" ? logs.ofAll(attempt) : logs.of(attempt, chosen);
    terminal?.clear();
    write(parts);
    terminal?.follow(true);
    empty.hidden = parts.length > 0;
  }
  return {
    element,
    follow,
    /** To be called once `element` is in the page, which a terminal measures. */
    open() {
      const opened = (terminal = openTerminal(host, signal));
      follow.addEventListener("click", () => opened.follow(!opened.following()), { signal });
      spoken.reads(opened.term);
      opened.onFollow(() => {
        follow.setAttribute("aria-pressed", String(opened.following()));
        if (older && opened.following()) draw(attempt, chosen);
      });
      return opened;
    },
    /** @param {number} of @param {number | "all"} rank */
    draw(of, rank) {
      draw(of, rank);
      askForMore();
    },
    /** What stands there while nothing was printed. @param {boolean} started @param {boolean} ended */
    explain(started, ended) {
      if (over !== ended) {
        over = ended;
        write([]);
      }
      const who = chosen === "all" ? "The ranks have" : `Rank ${chosen} has`;
      say(
        empty,
        !started
          ? over
            ? "No rank was started."
            : "The ranks are being started."
          : `${who} printed nothing${over ? "" : " yet"}.`,
      );
    },
  };
}
