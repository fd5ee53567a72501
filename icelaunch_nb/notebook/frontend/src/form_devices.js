/** The devices to choose from, each with what is free on it. */
import { h, say } from "./dom.js";

/** @typedef {{ device: string, about: string, free: number, total: number, note: string }} Device */

/** @param {number} bytes */
const inGb = (bytes) => (bytes / 1e9).toFixed(bytes < 1e10 ? 1 : 0);

/** The indices that ``cuda:0-2,7`` names. @param {string} value @param {number} all */
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
 * @param {import("./formfields.js").Field} _field
 * @param {import("./formfields.js").Typed} typed
 * @param {AbortSignal} signal
 * @returns {import("./formfields.js").Control}
 */
export function makeDevices(_field, typed, signal) {
  const element = h("div", {
    className: "ice-devices",
    role: "group",
    "aria-label": "devices",
    tabindex: "-1",
  });
  let drawn = "";
  let value = "auto";
  /** @type {Map<string, HTMLElement>} */
  const chips = new Map();

  function press(/** @type {string} */ device, /** @type {number} */ all) {
    const gpu = /^cuda:(\d+)$/.exec(device);
    if (!gpu) return typed(device, true);
    const before = chosenGpus(value, all);
    const index = Number(gpu[1]);
    const now = before.includes(index)
      ? before.filter((one) => one !== index)
      : [...before, index].sort((a, b) => a - b);
    typed(now.length ? `cuda:${now.join(",")}` : "auto", true);
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
        chips.clear();
        for (const one of known) {
          const chip = h(
            "button",
            { type: "button", className: "ice-chip", title: one.about },
            h("span", { className: "ice-chip-title" }, one.device),
            h("span", { className: "ice-chip-note" }),
            h("span", { className: "ice-meter", "aria-hidden": "true" }, h("span", {})),
          );
          chip.addEventListener("click", () => press(one.device, gpus.length), { signal });
          chips.set(one.device, chip);
        }
        element.replaceChildren(...chips.values());
      }
      const chosen = chosenGpus(value, gpus.length).map((index) => `cuda:${index}`);
      for (const one of known) {
        const chip = /** @type {HTMLElement} */ (chips.get(one.device));
        chip.setAttribute(
          "aria-pressed",
          String(one.device === value || chosen.includes(one.device)),
        );
        const memory = one.total ? `${inGb(one.free)} of ${inGb(one.total)} GB free` : "";
        say(chip.children[1], [memory, one.note].filter(Boolean).join(", "));
        const meter = /** @type {HTMLElement} */ (chip.children[2]);
        meter.hidden = !one.total;
        /** @type {HTMLElement} */ (meter.firstElementChild).style.width = one.total
          ? `${Math.round(100 * (1 - one.free / one.total))}%`
          : "0";
      }
    },
  };
}
