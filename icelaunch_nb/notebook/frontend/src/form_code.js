/** The launch as code that can be copied. */
import { h, setText } from "./dom.js";

const COPIED_SHOWN = 1500; // milliseconds for which a button shows that it has copied

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
    { type: "button", className: "ice-tool-button", "aria-expanded": "false" },
    "Code",
  );
  const blocks = ["Python", "%%icelaunch cell"].map((name) => {
    const text = h("pre", { tabindex: "0", "aria-label": name });
    const copy = h(
      "button",
      { type: "button", className: "ice-tool-button", "aria-label": `Copy as ${name}` },
      "Copy",
    );
    copy.addEventListener(
      "click",
      async () => {
        const done = await copyText(text);
        setText(copy, done ? "Copied" : "Press Ctrl+C");
        setTimeout(() => setText(copy, "Copy"), COPIED_SHOWN);
      },
      { signal },
    );
    element.append(
      h(
        "div",
        { className: "ice-code-block" },
        h("div", { className: "ice-code-header" }, h("span", {}, name), copy),
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
      setText(blocks[0], python);
      setText(blocks[1], cell);
    },
  };
}

/**
 * Copies a text. A page that isn't served by HTTPS or from this machine can only copy a selection.
 * @param {Element} element
 */
async function copyText(element) {
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
