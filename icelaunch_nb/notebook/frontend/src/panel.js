/**
 * The panel of a run. Python's twin is `notebook/panel.py`.
 *
 * Two kinds of state. Synced from Python: `story` (what the journal says) and `pulse` (what moves all the time). Of this page alone:
 * the logs that came as messages, and what each view shows of them.
 */
import { clock, h, say } from "./dom.js";
import { makeHead } from "./head.js";
import { makeRanks } from "./ranks.js";
import { plain } from "./sanitise.js";
import { AllRanks, OneRank } from "./screen.js";
import { Shared } from "./shared.js";
import { timeline } from "./story.js";
import { openTerminal } from "./terminal.js";

/** @typedef {import("./story.js").Story} Story */
/** @typedef {import("./story.js").Pulse} Pulse */

export default () => {
  /** @type {Shared | undefined} */
  let shared;
  return {
    /** @param {{ model: any }} context */
    initialize({ model }) {
      shared = new Shared(model);
      return () => shared?.close();
    },

    /** @param {{ model: any, el: HTMLElement }} context */
    render({ model, el }) {
      const views = new AbortController();
      const { signal } = views;
      const common = /** @type {Shared} */ (shared ?? (shared = new Shared(model)));
      const story = () => /** @type {Story} */ (model.get("story"));
      const pulse = () => /** @type {Pulse} */ (model.get("pulse"));

      let { chosen, byHand: chosenByHand, attempt, forward: broughtForward } = common.look; // attempt -1: the newest
      const number = () => (attempt < 0 ? Math.max(0, story().attempts.length - 1) : attempt);

      // What stands where.
      const host = h("div", { className: "ice-screen" });
      const empty = h("div", { className: "ice-empty" });
      const query = /** @type {HTMLInputElement} */ (h("input", { type: "search", className: "ice-search", placeholder: "Search", "aria-label": "Search in the output shown" }));
      const attempts = /** @type {HTMLSelectElement} */ (h("select", { className: "ice-select", "aria-label": "Attempt", hidden: true }));
      const follow = h("button", { type: "button", className: "ice-tool", "aria-pressed": "true", title: "Keep the newest line in view" }, "Follow");
      const eventsButton = h("button", { type: "button", className: "ice-tool", "aria-expanded": String(common.look.events) }, "Events");
      const path = h("span", { className: "ice-path", title: "Where the logs are" });
      const events = h("ol", { className: "ice-events", hidden: !common.look.events, "aria-label": "Events", tabindex: "0" });
      const stacks = h("div", { className: "ice-stacks", hidden: true, role: "region", "aria-label": "Stacks" });
      const failure = h("div", { className: "ice-failure", hidden: true, role: "alert" });
      const tools = h("div", { className: "ice-tools" }, attempts, query, follow, eventsButton, path);

      const head = makeHead(async (what) => {
        const answer = await common.ask({ do: what });
        if (what === "stacks" && answer.ok) showStacks(answer.stacks);
        return answer;
      }, signal);
      const ranks = makeRanks((rank) => {
        chosenByHand = true;
        choose(rank);
      }, signal);
      const root = h("div", { className: "ice-panel", "data-lm-suppress-shortcuts": "true", role: "region", "aria-label": "Run" },
        head.element, failure, ranks.element, h("div", { className: "ice-output" }, host, empty), tools, events, stacks);
      el.append(root);
      const terminal = openTerminal(host, signal);

      // What the terminal shows.
      /** @type {OneRank | AllRanks} */
      let screen = new OneRank();
      function redraw() {
        terminal.clear();
        screen = chosen === "all" ? new AllRanks() : new OneRank();
        const parts = chosen === "all" ? common.logs.ofAll(number()) : common.logs.of(number(), chosen);
        terminal.write(screen.render(parts));
        terminal.follow(true);
        sayWhatIsMissing(parts.length > 0);
      }
      function sayWhatIsMissing(/** @type {boolean} */ something) {
        empty.hidden = something;
        const who = chosen === "all" ? "The ranks have" : `Rank ${chosen} has`;
        say(empty, story().attempts.length ? `${who} printed nothing${story().over ? "" : " yet"}.` : "The ranks are being started.");
      }
      function choose(/** @type {number | "all"} */ rank) {
        chosen = rank;
        redraw();
        show();
      }
      const hears = (/** @type {number} */ of, /** @type {import("./logs.js").Part[]} */ parts) => {
        if (of !== number()) return;
        const mine = chosen === "all" ? parts : parts.filter((part) => part.rank === chosen);
        if (!mine.length) return;
        terminal.write(screen.render(mine));
        sayWhatIsMissing(true);
      };
      common.logs.listeners.add(hears);

      // What the head, the ranks and the rest show.
      let drawnAttempt = -1;
      function show() {
        const now = story();
        common.logs.path = now.path;
        const newest = now.attempts.at(-1)?.attempt;
        const first = now.failures[0]?.attempt === newest ? now.failures[0] : undefined;
        const key = first && `${first.attempt}/${first.rank}`;
        // A rank that fails brings itself forward; whoever looks at one by choice is left there until the run is over.
        if (first && key && key !== broughtForward && (!chosenByHand || now.over)) {
          broughtForward = key;
          chosen = first.rank;
          drawnAttempt = -2;
        }
        if (drawnAttempt !== number()) {
          drawnAttempt = number();
          redraw();
        }
        head.show(now, pulse());
        ranks.show(now, pulse(), number(), chosen);
        root.dataset.state = head.element.dataset.state;
        failure.hidden = !(first && first.attempt === now.attempts[number()]?.attempt);
        if (!failure.hidden) {
          const told = `${first.attempt}/${first.rank}`;
          if (failure.dataset.told !== told) {
            failure.dataset.told = told; // drawn once: its traceback may have been opened
            const lines = first.traceback.split("\n").map(plain).join("\n");
            failure.replaceChildren(h("b", {}, `rank ${first.rank}: ${plain(first.title)}`), first.hint ? h("div", {}, plain(first.hint)) : "",
              lines ? h("details", {}, h("summary", {}, "Traceback"), h("pre", { tabindex: "0" }, lines)) : "");
          }
        }
        if (failure.hidden && now.note && (now.state === "FAILED" || now.state === "LOST")) {
          failure.hidden = false;
          if (failure.dataset.told !== "note") failure.replaceChildren(h("div", {}, now.note.slice(0, 2000).split("\n").map(plain).join("\n")));
          failure.dataset.told = "note";
        }
        attempts.hidden = now.attempts.length < 2;
        if (attempts.options.length !== now.attempts.length) {
          attempts.replaceChildren(...now.attempts.map((one) => h("option", { value: one.attempt }, `attempt ${one.attempt}`)));
        }
        attempts.value = String(number());
        say(path, now.path);
        if (!events.hidden) showEvents();
        common.look = { chosen, byHand: chosenByHand, attempt, events: !events.hidden, forward: broughtForward };
      }
      function showEvents() {
        events.replaceChildren(...timeline(story()).map((event) =>
          h("li", { "data-kind": event.kind }, h("time", {}, clock(event.t)), h("span", {}, event.text))));
      }
      function showStacks(/** @type {Record<string, string>} */ texts) {
        stacks.hidden = false;
        const close = h("button", { type: "button", className: "ice-tool" }, "Close");
        close.addEventListener("click", () => (stacks.hidden = true), { signal });
        /** Ranks at the same place are told once. @type {Map<string, string[]>} */
        const places = new Map();
        for (const [rank, text] of Object.entries(texts)) {
          const same = text.replace(/0x[0-9a-f]+/g, "0x…");
          places.set(same, [...(places.get(same) ?? []), rank]);
        }
        stacks.replaceChildren(h("div", { className: "ice-stacks-head" }, h("b", {}, `Stacks at ${clock(Date.now() / 1000)}`), close),
          ...[...places].map(([text, who]) => h("details", { open: true }, h("summary", {}, `rank ${who.join(", ")}`),
            h("pre", { tabindex: "0" }, text ? text.split("\n").map(plain).join("\n") : "no answer: the rank was not ready for the signal, or is stopped"))));
        close.focus();
      }

      // What is done with it.
      follow.addEventListener("click", () => terminal.follow(!terminal.following()), { signal });
      terminal.onFollow(() => follow.setAttribute("aria-pressed", String(terminal.following())));
      attempts.addEventListener("change", () => {
        const newest = story().attempts.length - 1;
        attempt = Number(attempts.value) === newest ? -1 : Number(attempts.value);
        if (!common.logs.has(number())) common.model.send({ do: "attempt", attempt: number() });
        show();
      }, { signal });
      eventsButton.addEventListener("click", () => {
        events.hidden = !events.hidden;
        eventsButton.setAttribute("aria-expanded", String(!events.hidden));
        show();
      }, { signal });
      const find = (/** @type {boolean} */ back) => {
        const options = { decorations: { matchOverviewRuler: "#d9a648", activeMatchColorOverviewRuler: "#ff8c00", matchBackground: "#8a6d1c", activeMatchBackground: "#c76b00" } };
        const found = query.value ? (back ? terminal.search.findPrevious(query.value, options) : terminal.search.findNext(query.value, options)) : true;
        query.toggleAttribute("data-missing", !found);
        if (!query.value) terminal.search.clearDecorations();
        else if (found) terminal.follow(false);
      };
      query.addEventListener("input", () => find(true), { signal });
      query.addEventListener("keydown", (event) => {
        if (event.key === "Enter") find(!event.shiftKey);
        if (event.key === "Escape") {
          query.value = "";
          find(false);
        }
      }, { signal });

      model.on("change:story", show);
      model.on("change:pulse", show);
      const ticking = setInterval(() => {
        head.tick();
        terminal.restyle();
      }, 500);
      redraw();
      show();
      return () => {
        views.abort();
        clearInterval(ticking);
        common.logs.listeners.delete(hears);
        model.off("change:story", show);
        model.off("change:pulse", show);
      };
    },
  };
};
