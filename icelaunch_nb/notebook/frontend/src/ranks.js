/** The tabs of the ranks. The rank that failed first is in front. A click shows that rank's log. */
import { duration, h, setText } from "./dom.js";
import { rankState } from "./run_state.js";

/** @typedef {import("./run_state.js").RunState} RunState */
/** @typedef {import("./run_state.js").LiveState} LiveState */
/** @typedef {import("./run_state.js").RankEntry} RankEntry */

const SYMBOLS = /** @type {Record<string, string>} */ ({
  running: "●",
  done: "✓",
  failed: "✕",
  ended: "○",
  waiting: "◆",
  silent: "◌",
});
const MAX_SILENCE = 5; // seconds; a longer silence is shown
// Steps behind the foremost rank; more are shown. Ranks in step differ by one at most, and their
// steps aren't read at the same moment.
const MAX_LAG = 2;
const FEW = 4; // up to so many ranks, each tab has room for notes
const SOME = 16; // up to so many ranks, each tab has room for symbol and number

/** @param {number} megabytes */
const formatMemory = (megabytes) =>
  megabytes < 10_000 ? `${megabytes} MB` : `${(megabytes / 1024).toFixed(1)} GB`;

/**
 * @param {(rank: number | "all") => void} choose
 * @param {AbortSignal} signal
 */
export function makeRanks(choose, signal) {
  const element = h("div", {
    className: "ice-ranks",
    role: "tablist",
    "aria-label": "Whose output is shown",
  });
  /** The first tab is for all ranks. @type {HTMLElement[]} */
  let tabs = [];
  let drawn = "";

  const onKey = (/** @type {KeyboardEvent} */ event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const visible = tabs.filter((tab) => !tab.hidden);
    const at = visible.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    if (!step || at < 0) return;
    event.preventDefault();
    const next = visible[(at + step + visible.length) % visible.length];
    next.focus();
    next.click();
  };
  element.addEventListener("keydown", onKey, { signal });

  const makeTab = (/** @type {number | "all"} */ rank) => {
    const tab = h(
      "button",
      { type: "button", className: "ice-rank", role: "tab", "data-rank": rank },
      h("span", { className: "ice-rank-symbol", "aria-hidden": "true" }),
      h("span", { className: "ice-rank-name" }),
      h("span", { className: "ice-rank-note" }),
    );
    tab.addEventListener("click", () => choose(rank), { signal });
    return tab;
  };

  /** Makes the tabs again if the ranks have changed. @param {RankEntry[]} entries */
  function makeTabs(entries) {
    const key = entries.map((entry) => entry[0]).join();
    if (key === drawn && tabs.length) return;
    drawn = key;
    tabs = [makeTab("all"), ...entries.map((entry) => makeTab(entry[0]))];
    element.replaceChildren(...tabs);
    setText(tabs[0].children[0], "≡");
    setText(tabs[0].children[1], "all");
    element.dataset.size = entries.length > SOME ? "many" : entries.length > FEW ? "some" : "few";
  }

  return {
    element,
    /**
     * @param {RunState} runState
     * @param {LiveState} liveState
     * @param {number} attempt
     * @param {number | "all"} chosen
     */
    show(runState, liveState, attempt, chosen) {
      const entries = runState.attempts[attempt]?.ranks ?? [];
      makeTabs(entries);
      tabs[0].hidden = entries.length < 2;
      const live = attempt === runState.attempts.length - 1 ? liveState.ranks : [];
      const foremost = Math.max(...live.map((rank) => rank[3] ?? 0));
      /**
       * Where ranks wait or hang. With many ranks, each location shows once.
       * @type {Set<string>}
       */
      const locations = new Set();
      entries.forEach((entry, index) => {
        const { state, text, first } = rankState(runState, liveState, attempt, index);
        const [memory = 0, wrote = 0, , step = null] = live[index] ?? [];
        const halted = state === "waiting" || state === "silent";
        const running = state === "running" || halted;
        const since = wrote || runState.attempts[attempt].t;
        const silent = running && live.length ? liveState.t - since : 0;
        const lag = running && step !== null ? foremost - step : 0;
        const behind = lag > MAX_LAG ? lag : 0;
        const repeats = entries.length > SOME && locations.has(text);
        if (halted) locations.add(text);

        const tab = tabs[index + 1];
        tab.dataset.state = state;
        tab.toggleAttribute("data-first", !!first);
        tab.toggleAttribute("data-behind", behind > 0);
        tab.toggleAttribute("data-halted", halted && !repeats);
        const [rank, localRank, device, pid] = entry;
        const notes = [
          device,
          step === null ? "" : `step ${step}`,
          memory && running ? formatMemory(memory) : "",
          silent > MAX_SILENCE ? `silent ${duration(silent)}` : "",
        ].filter(Boolean);
        let note = notes.join(" · ");
        if (state === "failed") note = text.split(":")[0];
        else if (halted) note = text;
        else if (behind && entries.length > FEW) note = `−${behind}`;
        setText(tab.children[0], SYMBOLS[state]);
        setText(tab.children[1], String(rank));
        setText(tab.children[2], note);
        const stepsBehind = behind ? `, ${behind} steps behind` : "";
        const all = [`rank ${rank}: ${text}`, `local rank ${localRank}`, `pid ${pid}`, ...notes];
        const title = all.join(", ") + stepsBehind;
        if (tab.title !== title) tab.title = title;
        const label = state === "failed" || halted ? text : state;
        tab.setAttribute("aria-label", `rank ${rank}: ${label}${stepsBehind}`);
      });
      for (const tab of tabs) {
        const on = tab.dataset.rank === String(chosen);
        tab.setAttribute("aria-selected", String(on));
        tab.tabIndex = on ? 0 : -1;
      }
    },
  };
}
