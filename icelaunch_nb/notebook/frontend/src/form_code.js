/** The same launch as code, to copy. */
import { h, say } from "./dom.js";

const TOLD = 1500; // milliseconds for which a button says that it copied

/** @param {AbortSignal} signal */
export function makeCode(signal) {
  const element = h("div", {
    className: "ice-code",
    hidden: true,
    role: "region",
    "aria-label": "The same launch as code",
  });
  const button = h(
    "button",
    { type: "button", className: "ice-tool", "aria-expanded": "false" },
    "Code",
  );
  const blocks = ["Python", "%%icelaunch cell"].map((name) => {
    const text = h("pre", { tabindex: "0", "aria-label": name });
    const copy = h(
      "button",
      { type: "button", className: "ice-tool", "aria-label": `Copy as ${name}` },
      "Copy",
    );
    copy.addEventListener(
      "click",
      async () => {
        const done = await put(text);
        say(copy, done ? "Copied" : "Press Ctrl+C");
        setTimeout(() => say(copy, "Copy"), TOLD);
      },
      { signal },
    );
    element.append(
      h(
        "div",
        { className: "ice-block" },
        h("div", { className: "ice-block-head" }, h("span", {}, name), copy),
        text,
      ),
    );
    return text;
  });
  button.addEventListener(
    "click",
    () => {
      element.hidden = !element.hidden;
      button.setAttribute("aria-expanded", String(!element.hidden));
    },
    { signal },
  );
  return {
    element,
    button,
    /** @param {string} python @param {string} cell */
    show(python, cell) {
      say(blocks[0], python);
      say(blocks[1], cell);
    },
  };
}

/**
 * Copies a text. A page that isn't served by https or from this machine has no clipboard but the selection's.
 * @param {Element} element
 */
async function put(element) {
  try {
    await navigator.clipboard.writeText(element.textContent ?? "");
    return true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(element);
    const selection = window.getSelection();
    selection?.removeAllRanges();
    selection?.addRange(range);
    return document.execCommand("copy");
  }
}
