/** A field of the form: a label, a control of the field's kind, and an error. */
import { h, setText } from "./dom.js";
import { makeDevices } from "./form_devices.js";

/**
 * A field's state from Python. `deferred`: its expression is evaluated at launch.
 * @typedef {{ key: string, label: string, kind: string, value: string | boolean,
 *   default: string | boolean, hint: string, choices: string[], description: string,
 *   error: string, missing: boolean, deferred: boolean }} Field
 */
/** @typedef {(key: string, value: string | boolean, now: boolean) => void} Change */
/** @typedef {(value: string | boolean, now: boolean) => void} ChangeValue */
/**
 * @typedef {{ element: HTMLElement, target: HTMLElement,
 *   show: (field: Field, devices: any[]) => void }} Control
 */
/** @typedef {(field: Field, change: ChangeValue, signal: AbortSignal) => Control} MakeControl */

/**
 * @param {Field} field
 * @param {string} prefix
 * @param {Change} change
 * @param {AbortSignal} signal
 */
export function makeField(field, prefix, change, signal) {
  const id = `${prefix}-${field.key}`;
  const control = (CONTROLS[field.kind] ?? makeText)(
    field,
    (value, now) => change(field.key, value, now),
    signal,
  );
  control.target.id = id;
  control.target.setAttribute("aria-describedby", `${id}-error ${id}-hint`);
  const argumentTitle = [field.hint, field.default === "" ? "" : `default ${field.default}`]
    .filter(Boolean)
    .join(", ");
  const label = h(
    "label",
    {
      className: "ice-label",
      for: id,
      title: field.description || [field.label, argumentTitle].filter(Boolean).join(": "),
    },
    field.label,
  );
  const error = h("div", { className: "ice-error", id: `${id}-error`, "aria-live": "polite" });
  const hint = h("div", { className: "ice-hint", id: `${id}-hint` });
  const element = h(
    "div",
    { className: "ice-field", "data-kind": field.kind, "data-key": field.key },
    label,
    h("div", { className: "ice-control" }, control.element, error, hint),
  );
  return {
    element,
    focus: () => control.target.focus(),
    /** @param {Field} now @param {any[]} devices @param {boolean} strict */
    show(now, devices, strict) {
      control.show(now, devices);
      const shown = now.error && (strict || !now.missing) ? now.error : "";
      setText(error, shown);
      control.target.setAttribute("aria-invalid", String(Boolean(shown)));
      if (now.missing) control.target.setAttribute("aria-required", "true");
      element.toggleAttribute("data-invalid", Boolean(shown));
      element.toggleAttribute("data-changed", now.value !== now.default && now.value !== "");
      setText(hint, now.deferred ? "evaluated at launch" : now.description);
    },
  };
}

/** By kind. @type {Record<string, MakeControl>} */
const CONTROLS = {
  checkbox: makeCheckbox,
  select: makeSelect,
  streams: makeStreams,
  devices: makeDevices,
  number: makeText,
  text: makeText,
  expression: makeText,
};

/** @type {MakeControl} */
function makeText(field, change, signal) {
  // With type="number", Python wouldn't get a text that is no number, and couldn't explain the
  // error.
  const input = /** @type {HTMLInputElement} */ (
    h("input", {
      type: "text",
      className: "ice-input",
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: "false",
      placeholder: field.hint,
      inputmode: field.kind === "number" ? "decimal" : null,
    })
  );
  input.addEventListener("input", () => change(input.value, false), { signal });
  input.addEventListener("change", () => change(input.value, true), { signal });
  if (field.kind === "number") {
    input.addEventListener(
      "keydown",
      (event) => {
        const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
        if (!by || !/^(-?\d+|auto|)$/.test(input.value.trim())) return;
        event.preventDefault();
        input.value = String(
          Math.max(Number(field.default) < 0 ? -1 : 0, (parseInt(input.value, 10) || 0) + by),
        );
        change(input.value, false);
      },
      { signal },
    );
  }
  return {
    element: input,
    target: input,
    show({ value }) {
      if (input.value !== value) input.value = String(value);
    },
  };
}

/** @type {MakeControl} */
function makeCheckbox(_field, change, signal) {
  const input = /** @type {HTMLInputElement} */ (
    h("input", { type: "checkbox", className: "ice-checkbox" })
  );
  input.addEventListener("change", () => change(input.checked, true), { signal });
  return {
    element: input,
    target: input,
    show({ value }) {
      input.checked = value === true;
    },
  };
}

/** @type {MakeControl} */
function makeSelect(field, change, signal) {
  const select = /** @type {HTMLSelectElement} */ (
    h(
      "select",
      { className: "ice-input" },
      field.choices.includes(String(field.default))
        ? null
        : h("option", { value: "", disabled: true }, "choose …"),
      ...field.choices.map((choice) => h("option", { value: choice }, choice)),
    )
  );
  select.addEventListener("change", () => change(select.value, true), { signal });
  return {
    element: select,
    target: select,
    show({ value }) {
      select.value = String(value);
    },
  };
}

/** The streams: one choice for all ranks, or one for each local rank. @type {MakeControl} */
function makeStreams(field, change, signal) {
  const choices = [
    ["0", "none"],
    ["1", "stdout"],
    ["2", "stderr"],
    ["3", "stdout and stderr"],
    ["by rank", "by rank …"],
  ];
  const select = /** @type {HTMLSelectElement} */ (
    h(
      "select",
      { className: "ice-input" },
      ...choices.map(([value, text]) => h("option", { value }, text)),
    )
  );
  const input = /** @type {HTMLInputElement} */ (
    h("input", {
      type: "text",
      className: "ice-input",
      placeholder: "0:1,1:3",
      "aria-label": `${field.label} by local rank`,
      title: "local rank:streams, 1 stdout, 2 stderr, 3 both",
      hidden: true,
    })
  );
  const one = (/** @type {string} */ value) => /^[0-3]?$/.test(value);
  select.addEventListener(
    "change",
    () => {
      const byRank = select.value === "by rank";
      input.hidden = !byRank;
      change(byRank ? input.value || "0:3" : select.value, true);
      if (byRank) input.focus();
    },
    { signal },
  );
  input.addEventListener("input", () => change(input.value, false), { signal });
  return {
    element: h("div", { className: "ice-streams" }, select, input),
    target: select,
    show({ value }) {
      const text = String(value);
      if (document.activeElement === input && one(text)) return; // the user is still typing
      select.value = one(text) ? text || "0" : "by rank";
      input.hidden = one(text);
      if (!one(text) && input.value !== text) input.value = text;
    },
  };
}
