/**
 * Keys that are pressed in a panel or a form are for it, and never for the notebook around it.
 *
 * Jupyter first matches a shortcut on the focused element, and only then looks whether an element
 * above suppresses shortcuts. So every element that may have the focus suppresses them itself; else
 * `d d` would delete the cell.
 */

const SUPPRESSES = "data-lm-suppress-shortcuts"; // the name that Jupyter looks for
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
const TYPED = "input, select, textarea:not([readonly])"; // here Escape has a meaning of its own

/** Has Jupyter match no shortcuts on this element. @param {Element} element */
export function suppressShortcuts(element) {
  element.setAttribute(SUPPRESSES, "true");
}

/** Suppresses them on an element that is made focusable. @param {Element} element */
export function suppressShortcutsIfFocusable(element) {
  if (
    FOCUSABLE.has(element.localName) ||
    element.hasAttribute("tabindex") ||
    element.hasAttribute("contenteditable")
  )
    suppressShortcuts(element);
}

/**
 * Captures the keys of all that is in an element, whoever makes it and whenever. Escape gives the
 * focus back to the notebook.
 * @param {HTMLElement} root
 * @param {AbortSignal} signal
 */
export function captureKeys(root, signal) {
  suppressShortcuts(root);
  root.tabIndex = -1; // a click on what can't be focused would focus the cell
  // In the capture phase, before any key: parts that scroll and what libraries draw get the focus
  // without having suppressed anything.
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
        /** @type {Element} */ (event.target).matches(TYPED)
      )
        return;
      /** @type {HTMLElement | null | undefined} */ (
        root.parentElement?.closest("[tabindex]")
      )?.focus({ preventScroll: true });
    },
    { signal },
  );
}
