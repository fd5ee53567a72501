/** One field of the form: its label, its control by kind, what is wrong beside it. */
import { h, say } from "./dom.js";
import { makeDevices } from "./formdevices.js";

/** @typedef {{ key: string, label: string, kind: string, value: string | boolean, default: string | boolean, hint: string, choices: string[],
 *   sentence: string, error: string, missing: boolean, waits: boolean }} Field */
/** @typedef {(value: string | boolean, now: boolean) => void} Typed */
/** @typedef {{ element: HTMLElement, target: HTMLElement, show: (field: Field, devices: any[]) => void }} Control */

/**
 * @param {Field} field
 * @param {string} prefix
 * @param {(key: string, value: string | boolean, now: boolean) => void} change
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
  const ofArgument = [field.hint, field.default === "" ? "" : `default ${field.default}`]
    .filter(Boolean)
    .join(", ");
  const label = h(
    "label",
    {
      className: "ice-label",
      for: id,
      title: field.sentence || [field.label, ofArgument].filter(Boolean).join(": "),
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
    /** @param {Field} now @param {any[]} devices @param {boolean} asked */
    show(now, devices, asked) {
      control.show(now, devices);
      const wrong = now.error && (asked || !now.missing) ? now.error : "";
      say(error, wrong);
      control.target.setAttribute("aria-invalid", String(Boolean(wrong)));
      if (now.missing) control.target.setAttribute("aria-required", "true");
      element.toggleAttribute("data-wrong", Boolean(wrong));
      element.toggleAttribute("data-changed", now.value !== now.default && now.value !== "");
      say(hint, now.waits ? "evaluated at launch" : now.sentence);
    },
  };
}

/** @type {Record<string, (field: Field, typed: Typed, signal: AbortSignal) => Control>} */
const CONTROLS = {
  checkbox: makeCheckbox,
  select: makeSelect,
  streams: makeStreams,
  devices: makeDevices,
  number: makeText,
  text: makeText,
  expression: makeText,
};

/** @param {Field} field @param {Typed} typed @param {AbortSignal} signal @returns {Control} */
function makeText(field, typed, signal) {
  // Not type="number": it would hide from Python what was typed wrong.
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
  input.addEventListener("input", () => typed(input.value, false), { signal });
  input.addEventListener("change", () => typed(input.value, true), { signal });
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
        typed(input.value, false);
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

/** @param {Field} _field @param {Typed} typed @param {AbortSignal} signal @returns {Control} */
function makeCheckbox(_field, typed, signal) {
  const input = /** @type {HTMLInputElement} */ (
    h("input", { type: "checkbox", className: "ice-check" })
  );
  input.addEventListener("change", () => typed(input.checked, true), { signal });
  return {
    element: input,
    target: input,
    show({ value }) {
      input.checked = value === true;
    },
  };
}

/** @param {Field} field @param {Typed} typed @param {AbortSignal} signal @returns {Control} */
function makeSelect(field, typed, signal) {
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
  select.addEventListener("change", () => typed(select.value, true), { signal });
  return {
    element: select,
    target: select,
    show({ value }) {
      select.value = String(value);
    },
  };
}

/** Which streams: one choice for all ranks, or by local rank. @param {Field} field @param {Typed} typed @param {AbortSignal} signal @returns {Control} */
function makeStreams(field, typed, signal) {
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
      typed(byRank ? input.value || "0:3" : select.value, true);
      if (byRank) input.focus();
    },
    { signal },
  );
  input.addEventListener("input", () => typed(input.value, false), { signal });
  return {
    element: h("div", { className: "ice-pair" }, select, input),
    target: select,
    show({ value }) {
      const text = String(value);
      if (document.activeElement === input && one(text)) return; // someone is typing its beginning
      select.value = one(text) ? text || "0" : "by rank";
      input.hidden = one(text);
      if (!one(text) && input.value !== text) input.value = text;
    },
  };
}
