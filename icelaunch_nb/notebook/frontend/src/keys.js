/**
 * Keeps the keys that are pressed in a panel or a form from being shortcuts of the notebook.
 *
 * Jupyter first matches a shortcut on the focused element, and only then checks whether a parent
 * suppresses shortcuts. So each element that may have the focus suppresses them itself. Otherwise
 * `d d` would delete the cell.
 */

const SUPPRESS = "data-lm-suppress-shortcuts"; // Jupyter checks for this attribute
const FOCUSABLE = new Set([
  "a",
  "button",
  "details",
  "iframe",
  "input",
  "select",
  "summary",
  "textarea",
]);
const EDITABLE = "input, select, textarea:not([readonly])"; // Escape has its own meaning in these

/** Makes Jupyter match no shortcuts on this element. @param {Element} element */
export function suppressShortcuts(element) {
  element.setAttribute(SUPPRESS, "true");
}

/** Suppresses shortcuts on an element that can have the focus. @param {Element} element */
export function suppressShortcutsIfFocusable(element) {
  if (
    FOCUSABLE.has(element.localName) ||
    element.hasAttribute("tabindex") ||
    element.hasAttribute("contenteditable")
  )
    suppressShortcuts(element);
}

/**
 * Suppresses shortcuts in an element and in all that is ever inserted there. Escape returns the
 * focus to the notebook.
 * @param {HTMLElement} root
 * @param {AbortSignal} signal
 */
export function captureKeys(root, signal) {
  suppressShortcuts(root);
  root.tabIndex = -1; // otherwise, a click beside the controls would focus the cell
  // The capture phase comes before any key. Scrollable parts and elements that libraries make can
  // have the focus, and don't suppress shortcuts themselves.
  root.addEventListener(
    "focusin",
    (event) => suppressShortcuts(/** @type {Element} */ (event.target)),
    {
      signal,
      capture: true,
    },
  );
  root.addEventListener(
    "keydown",
    (event) => {
      if (
        event.key !== "Escape" ||
        event.defaultPrevented ||
        /** @type {Element} */ (event.target).matches(EDITABLE)
      )
        return;
      /** @type {HTMLElement | null | undefined} */ (
        root.parentElement?.closest("[tabindex]")
      )?.focus({ preventScroll: true });
    },
    { signal },
  );
}
