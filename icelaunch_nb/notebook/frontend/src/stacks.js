/** Where every rank is: ranks at the same place are told once. */
import { clock, h } from "./dom.js";
import { plain } from "./sanitise.js";

/** @param {AbortSignal} signal */
export function makeStacks(signal) {
  const element = h("div", { className: "ice-stacks", hidden: true, role: "region", "aria-label": "Stacks" });
  return {
    element,
    /** @param {Record<string, string>} texts by rank */
    show(texts) {
      element.hidden = false;
      const close = h("button", { type: "button", className: "ice-tool" }, "Close");
      close.addEventListener("click", () => (element.hidden = true), { signal });
      /** @type {Map<string, string[]>} */
      const places = new Map();
      for (const [rank, text] of Object.entries(texts)) {
        const same = text.replace(/0x[0-9a-f]+/g, "0x…");
        places.set(same, [...(places.get(same) ?? []), rank]);
      }
      element.replaceChildren(h("div", { className: "ice-stacks-head" }, h("b", {}, `Stacks at ${clock(Date.now() / 1000)}`), close),
        ...[...places].map(([text, who]) => h("details", { open: true }, h("summary", {}, `rank ${who.join(", ")}`),
          h("pre", { tabindex: "0" }, text ? text.split("\n").map(plain).join("\n") : "no answer: the rank was not ready for the signal, or is stopped"))));
      close.focus();
    },
  };
}
