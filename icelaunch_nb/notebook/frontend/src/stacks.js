/** The stacks of all ranks. Ranks with equal stacks are one group (`Stacks.groups` in Python). */
import { clock, h } from "./dom.js";
import { plain } from "./sanitise.js";

/** @param {() => void} onClose moves the focus @param {AbortSignal} signal */
export function makeStacks(onClose, signal) {
  const element = h("div", {
    className: "ice-stacks",
    hidden: true,
    role: "region",
    "aria-label": "Stacks",
  });
  return {
    element,
    /** @param {{ ranks: string, text: string }[]} groups */
    show(groups) {
      element.hidden = false;
      const close = h("button", { type: "button", className: "ice-tool-button" }, "Close");
      close.addEventListener(
        "click",
        () => {
          element.hidden = true;
          onClose();
        },
        { signal },
      );
      element.replaceChildren(
        h(
          "div",
          { className: "ice-stacks-header" },
          h("b", {}, `Stacks at ${clock(Date.now() / 1000)}`),
          close,
        ),
        ...groups.map(({ ranks, text }) =>
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
