/**
 * The form to launch from. Its Python side is `notebook/form/widget.py`.
 *
 * `form_state` (the fields with their values and errors), `devices` (with their free memory) and
 * `run_status` (of the newest run) are synced from Python. The page alone holds the text that the
 * kernel hasn't received yet, which parts are unfolded, and whether Launch was clicked while a
 * value was missing or wrong.
 */
import { h, setText } from "./dom.js";
import { FormChannel } from "./form_channel.js";
import { makeCode } from "./form_code.js";
import { makeField } from "./form_fields.js";
import { captureKeys } from "./keys.js";

/** @typedef {import("./form_fields.js").Field} Field */
/** @typedef {import("./form_fields.js").Change} Change */
/**
 * @typedef {{ functions: string[], function: string, fixed: boolean, doc: string, problem: string,
 *   arguments: Field[], main: Field[], advanced: Field[], summary: string, python: string,
 *   cell: string, invalid: string[], missing: string[] }} FormState
 */
/** @typedef {{ state?: string, over?: boolean, result_code?: string, error?: string }} RunStatus */

const BUSY = "The kernel is busy with a cell; the form answers when that is done.";
const GONE =
  "The kernel of this form has ended, and with it what it launched, unless that was detached. " +
  "Run the form's cell again.";
// Milliseconds between two refreshes of the devices, while the pointer or the focus is in the form.
const REFRESH_INTERVAL = 5000;
const SYNCED = ["form_state", "devices", "run_status"];

export default () => ({
  /** @param {{ model: any, el: HTMLElement }} context */
  render: ({ model, el }) => new Form(model, el).end,
});

/** A group of fields. It is drawn again only if there are other fields. */
class Group {
  /** @param {string} prefix @param {Change} change @param {AbortSignal} signal */
  constructor(prefix, change, signal) {
    this.element = h("div", { className: "ice-fields" });
    this.prefix = prefix;
    this.change = change;
    this.signal = signal;
    this.drawn = "";
    /** @type {Map<string, ReturnType<typeof makeField>>} */
    this.fields = new Map();
  }

  /**
   * @param {Field[]} fields
   * @param {(key: string) => string | boolean | undefined} unsent
   * @param {any[]} devices
   * @param {boolean} strict whether a missing value shows as an error
   */
  show(fields, unsent, devices, strict) {
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
      const value = unsent(field.key);
      this.fields
        .get(field.key)
        ?.show(value === undefined ? field : { ...field, value }, devices, strict);
    }
  }
}

class Form {
  /** @param {any} model @param {HTMLElement} el */
  constructor(model, el) {
    this.model = model;
    this.abort = new AbortController();
    const signal = (this.signal = this.abort.signal);
    this.channel = new FormChannel(model, signal);
    this.strict = false; // a launch was refused, so a missing value shows as an error
    this.gone = false; // the form's kernel has ended
    this.launching = false; // Launch was clicked, and the kernel hasn't answered
    this.refreshed = Date.now(); // when the devices were last refreshed

    const prefix = `ice-${this.channel.id}`;
    this.chooser = /** @type {HTMLSelectElement} */ (
      h("select", {
        className: "ice-input",
        id: `${prefix}-function`,
        "aria-describedby": `${prefix}-doc`,
      })
    );
    this.title = h("label", { className: "ice-title", for: this.chooser.id }, "Launch");
    this.fixed = h("code", { className: "ice-function" });
    this.doc = h("span", { className: "ice-doc", id: `${prefix}-doc` });
    this.problem = h("div", { className: "ice-error", role: "alert", hidden: true });
    /** @type {Change} */
    const change = (key, value, now) => this.channel.set(key, value, now);
    this.arguments = new Group(`${prefix}-a`, change, signal);
    this.main = new Group(`${prefix}-m`, change, signal);
    this.advanced = new Group(`${prefix}-x`, change, signal);
    this.noArguments = h("div", { className: "ice-hint" }, "It takes none.");
    this.changed = h("span", { className: "ice-hint" });
    this.advancedDetails = /** @type {HTMLDetailsElement} */ (
      h(
        "details",
        { className: "ice-advanced" },
        h("summary", {}, "Advanced ", this.changed),
        this.advanced.element,
      )
    );
    this.error = h("div", { className: "ice-form-error", role: "alert", hidden: true });
    this.launchButton = /** @type {HTMLButtonElement} */ (
      h(
        "button",
        { type: "button", className: "ice-launch", title: "Ctrl+Enter in a field does the same" },
        "Launch",
      )
    );
    this.status = h("div", { className: "ice-status", role: "status", "aria-live": "polite" });
    this.resetButton = h(
      "button",
      {
        type: "button",
        className: "ice-tool-button",
        title: "Puts every field back to its default",
      },
      "Defaults",
    );
    this.code = makeCode(signal);
    this.root = this.layOut();
    captureKeys(this.root, signal);
    el.append(this.root);
    this.listen();
    this.show();
  }

  /** Ends the view. */
  end = () => this.abort.abort();

  layOut() {
    const heading = (/** @type {string} */ text) =>
      h("h4", { className: "ice-section-title" }, text);
    const section = (/** @type {string} */ label, /** @type {HTMLElement[]} */ ...parts) =>
      h("section", { "aria-label": label }, heading(label), ...parts);
    const { title, chooser, fixed, doc, launchButton, status, resetButton, code } = this;
    return h(
      "div",
      { className: "ice-form", role: "form", "aria-label": "Launch a function" },
      h("div", { className: "ice-form-header" }, title, chooser, fixed, doc),
      this.problem,
      h(
        "div",
        { className: "ice-columns" },
        section("Arguments", this.arguments.element, this.noArguments),
        section("Ranks and devices", this.main.element),
      ),
      this.advancedDetails,
      this.error,
      h(
        "div",
        { className: "ice-form-footer" },
        launchButton,
        status,
        h("span", { className: "ice-spacer" }),
        resetButton,
        code.button,
      ),
      code.element,
    );
  }

  listen() {
    const { model, root, signal } = this;
    this.chooser.addEventListener("change", this.chooseFunction, { signal });
    this.launchButton.addEventListener("click", this.launch, { signal });
    this.resetButton.addEventListener("click", this.reset, { signal });
    root.addEventListener("keydown", this.onKey, { signal });
    root.addEventListener("pointermove", this.refreshDevices, { signal, passive: true });
    root.addEventListener("focusin", this.refreshDevices, { signal });
    this.channel.onChange = this.show;
    model.on("comm_live_update", this.onKernelEnd);
    for (const name of SYNCED) model.on(`change:${name}`, this.show);
    signal.addEventListener("abort", () => {
      model.off("comm_live_update", this.onKernelEnd);
      for (const name of SYNCED) model.off(`change:${name}`, this.show);
    });
  }

  /** @returns {FormState} */
  get formState() {
    return this.model.get("form_state");
  }

  /** @returns {RunStatus} */
  get runStatus() {
    return this.model.get("run_status");
  }

  /** Whether the newest run goes on. */
  get running() {
    return this.runStatus.state !== undefined && !this.runStatus.over;
  }

  // The user's actions.

  chooseFunction = () => {
    this.strict = false;
    this.channel.set("function", this.chooser.value, true);
  };

  launch = async () => {
    if (this.launchButton.disabled) return;
    this.launchButton.disabled = this.launching = true;
    await this.channel.request("launch");
    this.launching = false;
    this.strict = this.formState.invalid.length > 0;
    this.show();
    this.focusInvalid();
  };

  reset = () => {
    this.strict = false;
    this.channel.request("reset");
  };

  onKey = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation();
    this.launch();
  };

  refreshDevices = () => {
    if (Date.now() - this.refreshed < REFRESH_INTERVAL) return;
    this.refreshed = Date.now();
    this.channel.request("refresh_devices");
  };

  onKernelEnd = async () => {
    this.gone = true;
    this.show();
    await this.channel.request("refresh_devices");
    this.gone = false; // only the connection has ended
    this.show();
  };

  // Drawing.

  show = () => {
    this.showFunction();
    this.showFields();
    this.showLaunchButton();
    this.showStatus();
    this.code.show(this.formState.python, this.formState.cell);
    const { error } = this.runStatus;
    this.error.hidden = !error;
    setText(this.error, error ?? "");
  };

  showFunction() {
    const { formState, chooser, problem } = this;
    chooser.hidden = formState.fixed;
    this.fixed.hidden = !formState.fixed;
    if (formState.fixed) this.title.removeAttribute("for");
    setText(this.fixed, formState.function);
    const offered = [...chooser.options].map((option) => option.value);
    if (offered.join("\n") !== formState.functions.join("\n")) {
      const options = formState.functions.map((name) => h("option", { value: name }, name));
      chooser.replaceChildren(...options);
    }
    chooser.value = String(this.channel.unsent("function") ?? formState.function);
    chooser.disabled = formState.functions.length === 0;
    setText(this.doc, formState.doc);
    problem.hidden = !formState.problem;
    problem.toggleAttribute("data-missing", formState.missing.includes("function"));
    setText(problem, formState.problem);
  }

  showFields() {
    const { formState } = this;
    const unsent = (/** @type {string} */ key) => this.channel.unsent(key);
    const devices = this.model.get("devices");
    this.arguments.show(formState.arguments, unsent, devices, this.strict);
    this.main.show(formState.main, unsent, devices, this.strict);
    this.advanced.show(formState.advanced, unsent, devices, this.strict);
    this.noArguments.hidden = formState.arguments.length > 0 || Boolean(formState.problem);
    const isChanged = (/** @type {Field} */ field) =>
      field.value !== field.default && field.value !== "";
    const changed = formState.advanced.filter(isChanged).length;
    const invalid = formState.advanced.filter((field) => field.error).length;
    const notes = [];
    if (changed) notes.push(`${changed} changed`);
    if (invalid) notes.push(`${invalid} to look at`);
    setText(this.changed, notes.join(", "));
    this.changed.toggleAttribute("data-invalid", invalid > 0);
  }

  showLaunchButton() {
    const { launchButton, running } = this;
    launchButton.disabled = running || this.launching || this.gone;
    const again = this.runStatus.state ? "Launch again" : "Launch";
    setText(launchButton, running && !this.gone ? "Running …" : again);
  }

  showStatus() {
    const { invalid, missing } = this.formState;
    const errors = invalid.filter((key) => this.strict || !missing.includes(key));
    const listed = (/** @type {string[]} */ keys) =>
      keys.map((key) => this.labelOf(key)).join(", ");
    let text = this.launchText;
    let kind = "";
    if (this.gone) text = GONE;
    else if (this.channel.late) text = BUSY;
    else if (errors.length) {
      kind = "bad";
      text = `Look at ${listed(errors)}.`;
    } else if (this.running) text = `${this.runStatus.state}; its panel is below.`;
    else if (missing.length) text = `Needs ${listed(missing)}.`;
    this.status.dataset.kind = kind;
    setText(this.status, text);
  }

  /** The newest run's end, and a summary of the next launch. */
  get launchText() {
    const { summary } = this.formState;
    const { state, result_code: code } = this.runStatus;
    if (!state) return summary;
    const results = state === "SUCCEEDED" && code ? `: ${code}` : "";
    return `${state}${results} · next: ${summary}`;
  }

  /** @param {string} key the field's key */
  labelOf(key) {
    const { formState } = this;
    const fields = [...formState.arguments, ...formState.main, ...formState.advanced];
    const label = fields.find((field) => field.key === key)?.label;
    return label ?? (key === "function" ? "a function" : key);
  }

  focusInvalid() {
    const [first] = this.formState.invalid;
    if (!first) return;
    if (this.advanced.fields.has(first)) this.advancedDetails.open = true;
    const groups = [this.arguments, this.main, this.advanced];
    const group = groups.find(({ fields }) => fields.has(first));
    (group?.fields.get(first) ?? this.chooser).focus();
  }
}
