/**
 * The panel of a run. Its Python side is `notebook/panel/panel.py`.
 *
 * `run_state` (the journal's content) and `live_state` (progress and memory) are synced from
 * Python. The page alone holds the logs and metrics, which come as messages (`panel_store.js`), and
 * the state of each view.
 */
import { makeDebugger } from "./debugger.js";
import { h, setText } from "./dom.js";
import { makeFailure } from "./failure.js";
import { makeHeader } from "./header.js";
import { captureKeys } from "./keys.js";
import { mountPanel } from "./mount_points.js";
import { makeOutput } from "./output.js";
import { PanelStore } from "./panel_store.js";
import { makePlots } from "./plots.js";
import { makeRanks } from "./ranks.js";
import { makeSearch } from "./search.js";
import { makeStacks } from "./stacks.js";
import { makeTimeline } from "./timeline.js";

/** @typedef {import("./run_state.js").RunState} RunState */
/** @typedef {import("./run_state.js").LiveState} LiveState */
/** @typedef {import("./panel_store.js").ViewState} ViewState */

// Milliseconds in which the kernel has to update the saved outputs. It may be busy.
const SAVE_TIMEOUT = 500;
const TICK_INTERVAL = 500; // milliseconds

export default () => {
  /** @type {PanelStore | undefined} */
  let store;
  return {
    /** @param {{ model: any }} context */
    initialize({ model }) {
      const created = (store = new PanelStore(model));
      /** @type {(() => void) | undefined} */
      let unmount;
      const mount = () => {
        unmount ??= mountPanel(model.get("mount_class"), (el) => new View(created, el).end);
      };
      // The outputs of a page that is loaded again may be older than the run's end. The saved
      // outputs are updated before the panel shows.
      if (model.get("run_state").over) created.onSaved = mount;
      else mount();
      const timer = setTimeout(mount, SAVE_TIMEOUT);
      return () => {
        clearTimeout(timer);
        unmount?.();
        created.close();
      };
    },

    /** @param {{ model: any, el: HTMLElement }} context */
    render({ model, el }) {
      return new View(store ?? (store = new PanelStore(model)), el).end;
    },
  };
};

/** One view of a panel. */
class View {
  /** @param {PanelStore} store @param {HTMLElement} el */
  constructor(store, el) {
    this.store = store;
    this.model = store.model;
    /** @type {ViewState} */
    this.state = { ...store.viewState };
    this.drawnAttempt = -1;
    this.abort = new AbortController();
    const signal = (this.signal = this.abort.signal);

    this.header = makeHeader(this.sendAction, store.heartbeat, signal);
    this.failure = makeFailure();
    this.ranks = makeRanks(this.chooseRank, signal);
    this.plots = makePlots(signal);
    this.output = makeOutput(store.logs, this.requestOlder, signal);
    this.debugger = makeDebugger(store, this.chooseRank, signal);
    this.search = makeSearch(store, () => this.attempt, this.chooseRank, signal);
    this.timeline = makeTimeline();
    this.stacks = makeStacks(() => this.header.focus("stacks"), signal);
    this.attempts = /** @type {HTMLSelectElement} */ (
      h("select", { className: "ice-select", "aria-label": "Attempt", hidden: true })
    );
    this.metricsToggle = this.makeToggle("Metrics", "metrics", this.plots.element);
    this.timelineToggle = this.makeToggle("Events", "events", this.timeline.element);
    this.path = h("span", { className: "ice-path", title: "Where the logs are" });

    this.root = this.layOut();
    captureKeys(this.root, signal);
    el.append(this.root);
    this.search.attach(this.output.open());
    this.listen();
    this.show();
  }

  /** Ends the view. */
  end = () => this.abort.abort();

  /** @returns {RunState} */
  get runState() {
    return this.model.get("run_state");
  }

  /** @returns {LiveState} */
  get liveState() {
    return this.model.get("live_state");
  }

  /** The number of the attempt that is shown. */
  get attempt() {
    const { attempt } = this.state;
    return attempt < 0 ? Math.max(0, this.runState.attempts.length - 1) : attempt;
  }

  layOut() {
    const toolbar = h(
      "div",
      { className: "ice-toolbar" },
      this.attempts,
      this.search.query,
      this.search.count,
      this.output.follow,
      this.metricsToggle,
      this.timelineToggle,
      this.path,
    );
    return h(
      "div",
      { className: "ice-panel", role: "region", "aria-label": "Run" },
      this.header.element,
      this.failure.element,
      this.ranks.element,
      this.plots.element,
      this.output.element,
      this.debugger.element,
      toolbar,
      this.search.results,
      this.timeline.element,
      this.stacks.element,
    );
  }

  /**
   * A button that shows and hides a part.
   * @param {string} label
   * @param {"events" | "metrics"} name
   * @param {HTMLElement} part
   */
  makeToggle(label, name, part) {
    const button = h(
      "button",
      { type: "button", className: "ice-tool-button", "aria-expanded": String(this.state[name]) },
      label,
    );
    part.hidden = !this.state[name];
    const toggle = () => {
      this.state[name] = !this.state[name];
      part.hidden = !this.state[name];
      button.setAttribute("aria-expanded", String(this.state[name]));
      this.show();
    };
    button.addEventListener("click", toggle, { signal: this.signal });
    return button;
  }

  listen() {
    const { model, store, signal } = this;
    this.attempts.addEventListener("change", this.chooseAttempt, { signal });
    model.on("change:run_state", this.show);
    model.on("change:live_state", this.show);
    store.metricBins.listeners.add(this.showPlots);
    store.heartbeat.listeners.add(this.show);
    const ticks = setInterval(() => {
      if (this.runState.over) return;
      store.heartbeat.check();
      this.header.tick();
    }, TICK_INTERVAL);
    signal.addEventListener("abort", () => {
      clearInterval(ticks);
      store.metricBins.listeners.delete(this.showPlots);
      store.heartbeat.listeners.delete(this.show);
      model.off("change:run_state", this.show);
      model.off("change:live_state", this.show);
    });
  }

  // The user's actions.

  /** @type {import("./buttons.js").SendAction} */
  sendAction = async (action, onPending) => {
    const reply = await this.store.request({ action }, onPending);
    if (action === "stacks" && reply.ok) this.stacks.show(reply.stacks);
    return reply;
  };

  requestOlder = (
    /** @type {number} */ attempt,
    /** @type {number} */ rank,
    /** @type {number[]} */ before,
  ) => this.model.send({ action: "load_older", attempt, rank, before });

  chooseRank = (/** @type {number | "all"} */ rank) => {
    this.state.chosen = true;
    this.state.rank = rank;
    this.output.draw(this.attempt, rank);
    this.show();
  };

  chooseAttempt = () => {
    const newest = this.runState.attempts.length - 1;
    const chosen = Number(this.attempts.value);
    this.state.attempt = chosen === newest ? -1 : chosen;
    const { logs, metricBins } = this.store;
    if (!logs.has(this.attempt) || !metricBins.of(this.attempt).length)
      this.model.send({ action: "show_attempt", attempt: this.attempt });
    this.show();
  };

  // Drawing.

  show = () => {
    const { runState, liveState, root, state, store } = this;
    const focused = root.contains(document.activeElement);
    this.showUrgentRank();
    const { attempt } = this;
    if (this.drawnAttempt !== attempt) {
      this.drawnAttempt = attempt;
      this.output.draw(attempt, state.rank);
    }
    const newest = runState.attempts.length - 1;
    this.output.explain(runState.attempts.length > 0, runState.over || attempt < newest);
    this.header.show(runState, liveState);
    this.ranks.show(runState, liveState, attempt, state.rank);
    root.dataset.state = this.header.element.dataset.state;
    this.failure.show(runState, attempt);
    this.debugger.show(runState, attempt, state.rank);
    if (store.heartbeat.lost) this.debugger.element.hidden = true;
    this.showAttempts();
    setText(this.path, runState.path);
    this.timeline.show(runState);
    this.showPlots();
    if (focused) this.keepFocus();
    store.viewState = { ...state };
  };

  /** Shows a rank that has failed, or that waits at a breakpoint. */
  showUrgentRank() {
    const { runState, state } = this;
    const newest = runState.attempts.at(-1)?.attempt;
    const first = runState.failures.find((failure) => failure.attempt === newest);
    const failed = first && `${first.attempt}/${first.rank}`;
    // A rank or an attempt that the user chose stays until the run is over.
    const chosen = state.chosen || state.attempt >= 0;
    if (first && failed && failed !== state.shownFor && (!chosen || runState.over)) {
      state.attempt = -1;
      this.showRank(first.rank, failed);
    }
    const [waiting] = Object.keys(runState.in_debugger)
      .map(Number)
      .sort((a, b) => a - b);
    const inDebugger = `debugger ${waiting}`;
    if (waiting !== undefined && inDebugger !== state.shownFor && !chosen && !first)
      this.showRank(waiting, inDebugger);
    else if (waiting === undefined && state.shownFor.startsWith("debugger")) state.shownFor = "";
  }

  /** @param {number} rank @param {string} reason why it is shown */
  showRank(rank, reason) {
    this.state.shownFor = reason;
    this.state.rank = rank;
    this.drawnAttempt = -1;
  }

  showAttempts() {
    const { attempts } = this.runState;
    this.attempts.hidden = attempts.length < 2;
    if (this.attempts.options.length !== attempts.length) {
      const option = (/** @type {number} */ number) =>
        h("option", { value: number }, `attempt ${number}`);
      this.attempts.replaceChildren(...attempts.map((one) => option(one.attempt)));
    }
    this.attempts.value = String(this.attempt);
  }

  showPlots = () => {
    const { metricBins } = this.store;
    const metrics = metricBins.of(this.attempt);
    this.metricsToggle.hidden = !metrics.length;
    this.plots.element.hidden = !this.state.metrics || !metrics.length;
    if (this.plots.element.hidden) return;
    const ranks = this.runState.attempts[this.attempt]?.ranks.map((entry) => entry[0]) ?? [];
    this.plots.show(metrics, metricBins.leftOut, ranks);
  };

  /**
   * Focuses the header if the focused element is gone. Otherwise the next key would be a shortcut
   * of the notebook.
   */
  keepFocus() {
    const { activeElement } = document;
    if (!this.root.contains(activeElement) || activeElement?.closest("[hidden]"))
      this.header.focus();
  }
}
