/**
 * The panel of a run. Python's twin is `notebook/panel/panel.py`.
 *
 * Two kinds of state. Synced from Python: `story` (what the journal says) and `pulse` (what moves all the time). Of this page alone:
 * the logs and metrics that came as messages (`shared.js`), and what each view shows of them.
 */
import { makeDebugger } from "./debugger.js";
import { h, say } from "./dom.js";
import { makeHead } from "./head.js";
import { makeOutput } from "./output.js";
import { fillPlaces } from "./places.js";
import { makePlots } from "./plots.js";
import { makeRanks } from "./ranks.js";
import { makeSearch } from "./search.js";
import { Shared } from "./shared.js";
import { makeStacks } from "./stacks.js";
import { makeTimeline } from "./timeline.js";
import { makeTrouble } from "./trouble.js";

/** @typedef {import("./story.js").Story} Story */
/** @typedef {import("./story.js").Pulse} Pulse */

export default () => {
  /** @type {Shared | undefined} */
  let shared;
  return {
    /** @param {{ model: any }} context */
    initialize({ model }) {
      const common = (shared = new Shared(model));
      const leave = fillPlaces(model.get("place"), (el) => show(common, el));
      return () => {
        leave();
        common.close();
      };
    },

    /** @param {{ model: any, el: HTMLElement }} context */
    render({ model, el }) {
      return show(shared ?? (shared = new Shared(model)), el);
    },
  };
};

/** One view of it. @param {Shared} shared @param {HTMLElement} el @returns {() => void} ends the view */
function show(shared, el) {
  const { model, logs, curves, hearing } = shared;
  const look = { ...shared.look };
  const views = new AbortController();
  const { signal } = views;
  const story = () => /** @type {Story} */ (model.get("story"));
  const pulse = () => /** @type {Pulse} */ (model.get("pulse"));
  const number = () => (look.attempt < 0 ? Math.max(0, story().attempts.length - 1) : look.attempt);

  // What stands where.
  const stacks = makeStacks(() => head.focus("stacks"), signal);
  const head = makeHead(
    async (what, meanwhile) => {
      const answer = await shared.ask({ do: what }, meanwhile);
      if (what === "stacks" && answer.ok) stacks.show(answer.stacks);
      return answer;
    },
    hearing,
    signal,
  );
  const trouble = makeTrouble();
  const ranks = makeRanks((rank) => {
    look.byHand = true;
    choose(rank);
  }, signal);
  const plots = makePlots(signal);
  const output = makeOutput(
    logs,
    (attempt, rank, before) => model.send({ do: "older", attempt, rank, before }),
    signal,
  );
  const prompt = makeDebugger(
    shared,
    (rank) => {
      look.byHand = true;
      choose(rank);
    },
    signal,
  );
  const timeline = makeTimeline();
  const search = makeSearch(
    shared,
    number,
    (rank) => {
      look.byHand = true;
      choose(rank);
    },
    signal,
  );
  const attempts = /** @type {HTMLSelectElement} */ (
    h("select", { className: "ice-select", "aria-label": "Attempt", hidden: true })
  );
  const events = toggle("Events", "events", timeline.element);
  const metrics = toggle("Metrics", "metrics", plots.element);
  const path = h("span", { className: "ice-path", title: "Where the logs are" });
  const tools = h(
    "div",
    { className: "ice-tools" },
    attempts,
    search.query,
    search.count,
    output.follow,
    metrics,
    events,
    path,
  );
  const root = h(
    "div",
    {
      className: "ice-panel",
      "data-lm-suppress-shortcuts": "true",
      role: "region",
      "aria-label": "Run",
    },
    head.element,
    trouble.element,
    ranks.element,
    plots.element,
    output.element,
    prompt.element,
    tools,
    search.results,
    timeline.element,
    stacks.element,
  );
  el.append(root);
  const terminal = output.open();
  search.searches(terminal);

  /** A button that shows and hides a part. @param {string} label @param {"events" | "metrics"} what @param {HTMLElement} part */
  function toggle(label, what, part) {
    const button = h(
      "button",
      { type: "button", className: "ice-tool", "aria-expanded": String(look[what]) },
      label,
    );
    part.hidden = !look[what];
    button.addEventListener(
      "click",
      () => {
        look[what] = !look[what];
        part.hidden = !look[what];
        button.setAttribute("aria-expanded", String(look[what]));
        showAll();
      },
      { signal },
    );
    return button;
  }

  /** @param {number | "all"} rank */
  function choose(rank) {
    look.chosen = rank;
    output.draw(number(), rank);
    showAll();
  }

  let drawn = -1;
  function showAll() {
    const now = story(),
      focused = root.contains(document.activeElement);
    const first = now.failures.find((failure) => failure.attempt === now.attempts.at(-1)?.attempt);
    const key = first && `${first.attempt}/${first.rank}`;
    // A rank that fails brings itself forward; whoever looks at one by choice is left there until the run is over.
    const byHand = look.byHand || look.attempt >= 0;
    if (first && key && key !== look.forward && (!byHand || now.over)) {
      look.forward = key;
      look.attempt = -1;
      look.chosen = first.rank;
      drawn = -1;
    }
    // So does one that comes to a breakpoint.
    const waits = Object.keys(now.debugged)
      .map(Number)
      .sort((a, b) => a - b)[0];
    if (waits !== undefined && look.forward !== `debugger ${waits}` && !byHand && !first) {
      look.forward = `debugger ${waits}`;
      look.chosen = waits;
      drawn = -1;
    } else if (waits === undefined && look.forward.startsWith("debugger")) look.forward = "";
    if (drawn !== number()) {
      drawn = number();
      output.draw(drawn, look.chosen);
    }
    output.explain(now.attempts.length > 0, now.over || number() < now.attempts.length - 1);
    head.show(now, pulse());
    ranks.show(now, pulse(), number(), look.chosen);
    root.dataset.state = head.element.dataset.state;
    trouble.show(now, number());
    prompt.show(now, number(), look.chosen);
    if (hearing.lost) prompt.element.hidden = true;
    attempts.hidden = now.attempts.length < 2;
    if (attempts.options.length !== now.attempts.length) {
      attempts.replaceChildren(
        ...now.attempts.map((one) => h("option", { value: one.attempt }, `attempt ${one.attempt}`)),
      );
    }
    attempts.value = String(number());
    say(path, now.path);
    timeline.show(now);
    showPlots();
    // What had the focus may be gone; elsewhere on the page the next key would be a shortcut.
    if (
      focused &&
      (!root.contains(document.activeElement) || document.activeElement?.closest("[hidden]"))
    )
      head.focus();
    shared.look = { ...look };
  }
  function showPlots() {
    const reported = curves.of(number());
    metrics.hidden = !reported.length;
    plots.element.hidden = !look.metrics || !reported.length;
    if (!plots.element.hidden)
      plots.show(
        reported,
        curves.leftOut,
        story().attempts[number()]?.ranks.map((entry) => entry[0]) ?? [],
      );
  }

  // What is done with it.
  attempts.addEventListener(
    "change",
    () => {
      const newest = story().attempts.length - 1;
      look.attempt = Number(attempts.value) === newest ? -1 : Number(attempts.value);
      if (!logs.has(number()) || !curves.of(number()).length)
        model.send({ do: "attempt", attempt: number() });
      showAll();
    },
    { signal },
  );
  model.on("change:story", showAll);
  model.on("change:pulse", showAll);
  curves.listeners.add(showPlots);
  hearing.listeners.add(showAll);
  const ticking = setInterval(() => {
    if (story().over) return;
    hearing.look();
    head.tick();
  }, 500);
  showAll();
  return () => {
    views.abort();
    clearInterval(ticking);
    curves.listeners.delete(showPlots);
    hearing.listeners.delete(showAll);
    model.off("change:story", showAll);
    model.off("change:pulse", showAll);
  };
}
