/**
 * The form to launch from. Python's twin is `notebook/form/widget.py`.
 *
 * Synced from Python: `view` (the fields, what they hold, what is wrong), `devices` (what is free) and `stands` (how the newest run
 * stands). Of this page alone: what was typed and isn't heard yet, what is unfolded, and whether Launch was pressed in vain.
 */
import { h, say } from "./dom.js";
import { makeCode } from "./formcode.js";
import { makeField } from "./formfields.js";
import { Line } from "./formline.js";

/** @typedef {import("./formfields.js").Field} Field */
/** @typedef {{ functions: string[], function: string, fixed: boolean, doc: string, problem: string, arguments: Field[], main: Field[],
 *   advanced: Field[], says: string, python: string, cell: string, wrong: string[], missing: string[] }} View */
/** @typedef {{ state?: string, over?: boolean, results?: string, says?: string }} Stands */

const BUSY = "The kernel is busy with a cell; the form answers when that is done.";
const LOOK = 5000; // milliseconds between two questions what is free, while the pointer or the focus is here

/** A group of fields that is drawn anew only where the fields themselves are others. */
class Group {
  /** @param {string} prefix @param {(key: string, value: string | boolean, now: boolean) => void} change @param {AbortSignal} signal */
  constructor(prefix, change, signal) {
    this.element = h("div", { className: "ice-fields" });
    this.prefix = prefix;
    this.change = change;
    this.signal = signal;
    this.drawn = "";
    /** @type {Map<string, ReturnType<typeof makeField>>} */
    this.fields = new Map();
  }

  /** @param {Field[]} fields @param {(key: string) => string | boolean | undefined} typed @param {any[]} devices @param {boolean} asked */
  show(fields, typed, devices, asked) {
    const shape = JSON.stringify(
      fields.map(({ key, kind, label, choices, hint }) => [key, kind, label, choices, hint]),
    );
    if (shape !== this.drawn) {
      this.drawn = shape;
      this.fields = new Map(
        fields.map((field) => [field.key, makeField(field, this.prefix, this.change, this.signal)]),
      );
      this.element.replaceChildren(...[...this.fields.values()].map((field) => field.element));
    }
    for (const field of fields) {
      const value = typed(field.key);
      this.fields
        .get(field.key)
        ?.show(value === undefined ? field : { ...field, value }, devices, asked);
    }
  }
}

export default () => ({
  /** @param {{ model: any, el: HTMLElement }} context */
  render({ model, el }) {
    const ends = new AbortController();
    const { signal } = ends;
    const line = new Line(model, signal);
    const view = () => /** @type {View} */ (model.get("view"));
    const stands = () => /** @type {Stands} */ (model.get("stands"));
    const prefix = `ice-${line.me}`;
    let asked = false; // whether Launch was pressed in vain: then what is missing is told as loudly as what is wrong
    let asking = false; // whether it was pressed and the kernel hasn't answered: it may be busy

    // What stands where.
    const chooser = /** @type {HTMLSelectElement} */ (
      h("select", {
        className: "ice-input",
        id: `${prefix}-function`,
        "aria-describedby": `${prefix}-doc`,
      })
    );
    const title = h("label", { className: "ice-title", for: `${prefix}-function` }, "Launch");
    const fixed = h("code", { className: "ice-function" });
    const doc = h("span", { className: "ice-doc", id: `${prefix}-doc` });
    const problem = h("div", { className: "ice-error", role: "alert", hidden: true });
    const change = (
      /** @type {string} */ key,
      /** @type {string | boolean} */ value,
      /** @type {boolean} */ now,
    ) => line.type(key, value, now);
    const args = new Group(`${prefix}-a`, change, signal);
    const main = new Group(`${prefix}-m`, change, signal);
    const advanced = new Group(`${prefix}-x`, change, signal);
    const argsHead = h("h4", { className: "ice-group" }, "Arguments");
    const none = h("div", { className: "ice-hint" }, "It takes none.");
    const changed = h("span", { className: "ice-hint" });
    const fold = h(
      "details",
      { className: "ice-advanced" },
      h("summary", {}, "Advanced ", changed),
      advanced.element,
    );
    const launch = /** @type {HTMLButtonElement} */ (
      h(
        "button",
        { type: "button", className: "ice-launch", title: "Ctrl+Enter in a field does the same" },
        "Launch",
      )
    );
    const status = h("div", { className: "ice-status", role: "status", "aria-live": "polite" });
    const code = makeCode(signal);
    const reset = h(
      "button",
      { type: "button", className: "ice-tool", title: "Puts every field back to its default" },
      "Defaults",
    );
    const note = h("div", { className: "ice-note", role: "alert", hidden: true });
    const root = h(
      "div",
      {
        className: "ice-form",
        "data-lm-suppress-shortcuts": "true",
        role: "form",
        "aria-label": "Launch a function",
      },
      h("div", { className: "ice-top" }, title, chooser, fixed, doc),
      problem,
      h(
        "div",
        { className: "ice-columns" },
        h("section", { "aria-label": "Arguments" }, argsHead, args.element, none),
        h(
          "section",
          { "aria-label": "Ranks and devices" },
          h("h4", { className: "ice-group" }, "Ranks and devices"),
          main.element,
        ),
      ),
      fold,
      note,
      h(
        "div",
        { className: "ice-bottom" },
        launch,
        status,
        h("span", { className: "ice-gap" }),
        reset,
        code.button,
      ),
      code.element,
    );
    el.append(root);

    function show() {
      const now = view();
      const run = stands();
      const typed = (/** @type {string} */ key) => line.typed(key);
      chooser.hidden = now.fixed;
      fixed.hidden = !now.fixed;
      if (now.fixed) title.removeAttribute("for");
      say(fixed, now.function);
      if ([...chooser.options].map((one) => one.value).join("\n") !== now.functions.join("\n")) {
        chooser.replaceChildren(...now.functions.map((name) => h("option", { value: name }, name)));
      }
      chooser.value = String(typed("function") ?? now.function);
      chooser.disabled = now.functions.length === 0;
      say(doc, now.doc);
      problem.hidden = !now.problem;
      problem.toggleAttribute("data-missing", now.missing.includes("function"));
      say(problem, now.problem);
      none.hidden = now.arguments.length > 0 || Boolean(now.problem);
      for (const [group, fields] of /** @type {[Group, Field[]][]} */ ([
        [args, now.arguments],
        [main, now.main],
        [advanced, now.advanced],
      ])) {
        group.show(fields, typed, model.get("devices"), asked);
      }
      const others = now.advanced.filter(
        (field) => field.value !== field.default && field.value !== "",
      ).length;
      const wrong = now.advanced.filter((field) => field.error).length;
      say(
        changed,
        [others ? `${others} changed` : "", wrong ? `${wrong} to look at` : ""]
          .filter(Boolean)
          .join(", "),
      );
      changed.toggleAttribute("data-wrong", wrong > 0);
      code.show(now.python, now.cell);
      showStatus(now, run);
      note.hidden = !run.says;
      say(note, run.says ?? "");
    }

    function showStatus(/** @type {View} */ now, /** @type {Stands} */ run) {
      const lives = run.state !== undefined && !run.over;
      launch.disabled = lives || asking;
      say(launch, lives ? "Running …" : run.state ? "Launch again" : "Launch");
      const loud = now.wrong.filter((key) => asked || !now.missing.includes(key)).map(nameOf);
      status.dataset.kind = "";
      if (line.late) say(status, BUSY);
      else if (loud.length) {
        status.dataset.kind = "bad";
        say(status, `Look at ${loud.join(", ")}.`);
      } else if (lives) say(status, `${run.state}; its panel is below.`);
      else if (now.missing.length) say(status, `Needs ${now.missing.map(nameOf).join(", ")}.`);
      else
        say(
          status,
          run.state
            ? `${run.state}${run.state === "SUCCEEDED" && run.results ? `: ${run.results}` : ""} · next: ${now.says}`
            : now.says,
        );
    }

    function nameOf(/** @type {string} */ key) {
      const now = view();
      return (
        [...now.arguments, ...now.main, ...now.advanced].find((field) => field.key === key)
          ?.label ?? (key === "function" ? "a function" : key)
      );
    }

    function goToWrong() {
      const [first] = view().wrong;
      if (!first) return;
      if (advanced.fields.has(first)) /** @type {HTMLDetailsElement} */ (fold).open = true;
      const field = args.fields.get(first) ?? main.fields.get(first) ?? advanced.fields.get(first);
      if (field) field.focus();
      else chooser.focus();
    }

    // What is done with it.
    chooser.addEventListener(
      "change",
      () => {
        asked = false;
        line.type("function", chooser.value, true);
      },
      { signal },
    );
    async function press() {
      if (launch.disabled) return;
      launch.disabled = asking = true;
      await line.ask("launch");
      asking = false;
      asked = view().wrong.length > 0;
      show();
      goToWrong();
    }
    launch.addEventListener("click", press, { signal });
    reset.addEventListener(
      "click",
      () => {
        asked = false;
        line.ask("reset");
      },
      { signal },
    );
    root.addEventListener(
      "keydown",
      (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
          event.preventDefault();
          event.stopPropagation();
          press();
        }
      },
      { signal },
    );
    let looked = Date.now();
    const look = () => {
      if (Date.now() - looked < LOOK) return;
      looked = Date.now();
      line.ask("look");
    };
    root.addEventListener("pointermove", look, { signal, passive: true });
    root.addEventListener("focusin", look, { signal });

    line.onNews = show;
    for (const name of ["view", "devices", "stands"]) model.on(`change:${name}`, show);
    show();
    return () => {
      ends.abort();
      line.close();
      for (const name of ["view", "devices", "stands"]) model.off(`change:${name}`, show);
    };
  },
});
