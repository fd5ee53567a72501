/** The devices to choose from, each with its free memory. */
import { h, setText } from "./dom.js";

/**
 * @typedef {{ device: string, about: string, free: number, total: number, note: string }} Device
 */

/** @param {number} bytes */
const inGigabytes = (bytes) => (bytes / 1e9).toFixed(bytes < 1e10 ? 1 : 0);

/** The indices in a value like ``cuda:0-2,7``. @param {string} value @param {number} all */
function chosenGpus(value, all) {
  if (value === "cuda") return [...Array(all).keys()];
  const named = /^cuda:([\d,\-\s]+)$/.exec(value);
  if (!named) return [];
  return named[1].split(",").flatMap((part) => {
    const [first, last = first] = part.split("-").map(Number);
    return Array.from({ length: Math.max(0, last - first + 1) }, (_, n) => first + n);
  });
}

/**
 * @param {import("./form_fields.js").Field} _field
 * @param {import("./form_fields.js").ChangeValue} change
 * @param {AbortSignal} signal
 * @returns {import("./form_fields.js").Control}
 */
export function makeDevices(_field, change, signal) {
  const element = h("div", {
    className: "ice-devices",
    role: "group",
    "aria-label": "devices",
    tabindex: "-1",
  });
  let drawn = "";
  let value = "auto";
  /** @type {Map<string, HTMLElement>} */
  const buttons = new Map();

  function toggle(/** @type {string} */ device, /** @type {number} */ all) {
    const gpu = /^cuda:(\d+)$/.exec(device);
    if (!gpu) return change(device, true);
    const before = chosenGpus(value, all);
    const index = Number(gpu[1]);
    const now = before.includes(index)
      ? before.filter((one) => one !== index)
      : [...before, index].sort((a, b) => a - b);
    change(now.length ? `cuda:${now.join(",")}` : "auto", true);
  }

  return {
    element,
    target: element,
    show(field, devices) {
      value = String(field.value);
      const gpus = /** @type {Device[]} */ (devices).filter((one) => one.device !== "cpu");
      const known = /** @type {Device[]} */ ([
        {
          device: "auto",
          about: "",
          free: 0,
          total: 0,
          note: gpus.length ? "a GPU for each rank" : "no GPU here: the CPU",
        },
        ...devices,
      ]);
      if (!known.some((one) => one.device === value) && !chosenGpus(value, gpus.length).length) {
        known.push({ device: value, about: "", free: 0, total: 0, note: "" });
      }
      const shape = known.map((one) => one.device).join("\n");
      if (shape !== drawn) {
        drawn = shape;
        buttons.clear();
        for (const one of known) {
          const button = h(
            "button",
            { type: "button", className: "ice-device", title: one.about },
            h("span", { className: "ice-device-title" }, one.device),
            h("span", { className: "ice-device-note" }),
            h("span", { className: "ice-meter", "aria-hidden": "true" }, h("span", {})),
          );
          button.addEventListener("click", () => toggle(one.device, gpus.length), { signal });
          buttons.set(one.device, button);
        }
        element.replaceChildren(...buttons.values());
      }
      const chosen = chosenGpus(value, gpus.length).map((index) => `cuda:${index}`);
      for (const one of known) {
        const button = /** @type {HTMLElement} */ (buttons.get(one.device));
        button.setAttribute(
          "aria-pressed",
          String(one.device === value || chosen.includes(one.device)),
        );
        const memory = one.total
          ? `${inGigabytes(one.free)} of ${inGigabytes(one.total)} GB free`
          : "";
        setText(button.children[1], [memory, one.note].filter(Boolean).join(", "));
        const meter = /** @type {HTMLElement} */ (button.children[2]);
        meter.hidden = !one.total;
        /** @type {HTMLElement} */ (meter.firstElementChild).style.width = one.total
          ? `${Math.round(100 * (1 - one.free / one.total))}%`
          : "0";
      }
    },
  };
}
