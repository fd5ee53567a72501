/** Where every rank is: as `Stacks.folded` has it, ranks at the same place told once, the odd one out first. */
import { clock, h } from "./dom.js";
import { plain } from "./sanitise.js";

/** @param {() => void} closed takes the focus then @param {AbortSignal} signal */
export function makeStacks(closed, signal) {
  const element = h("div", {
    className: "ice-stacks",
    hidden: true,
    role: "region",
    "aria-label": "Stacks",
  });
  return {
    element,
    /** @param {{ ranks: string, text: string }[]} places */
    show(places) {
      element.hidden = false;
      const close = h("button", { type: "button", className: "ice-tool" }, "Close");
      close.addEventListener(
        "click",
        () => {
          element.hidden = true;
          closed();
        },
        { signal },
      );
      element.replaceChildren(
        h(
          "div",
          { className: "ice-stacks-head" },
          h("b", {}, `Stacks at ${clock(Date.now() / 1000)}`),
          close,
        ),
        ...places.map(({ ranks, text }) =>
          h(
            "details",
            { open: true },
            h("summary", {}, ranks),
            h("pre", { tabindex: "0" }, text.split("\n").map(plain).join("\n")),
          ),
        ),
      );
      close.focus();
    },
  };
}
