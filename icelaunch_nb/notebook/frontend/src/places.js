/**
 * Where the panel stands: in each output that holds its run's static summary, in place of that.
 *
 * An output that held a widget would show an error wherever there is no kernel to ask for it, as in a notebook that was saved and is opened
 * again. The summary is markup, and is there in any case.
 */

/** @typedef {{ el: HTMLElement, hides: HTMLElement, end: () => void }} View */
/** @typedef {{ show: (el: HTMLElement) => () => void, views: Map<Element, View> }} Panel */

const PLACE = ".icelaunch-place"; // all of them, beside the class of its panel

/** By the class of its summaries. @type {Map<string, Panel>} */
const panels = new Map();

/**
 * @param {string} name the class of the summaries
 * @param {(el: HTMLElement) => () => void} show draws the panel into an element; returns what ends that
 * @returns {() => void} ends all of it
 */
export function fillPlaces(name, show) {
  const panel = { show, views: new Map() };
  panels.set(name, panel);
  if (panels.size === 1) changes.observe(document.body, { childList: true, subtree: true });
  for (const place of document.getElementsByClassName(name)) enter(panel, place);
  return () => {
    for (const place of [...panel.views.keys()]) leave(panel, place);
    if (panels.get(name) === panel) panels.delete(name);
    if (!panels.size) changes.disconnect();
  };
}

/** One for all panels, called before the page is painted: an output that is drawn anew doesn't flicker. */
const changes = new MutationObserver((mutations) => {
  let removed = false;
  /** @type {Set<Element>} */
  const places = new Set();
  for (const { target, addedNodes, removedNodes } of mutations) {
    if (/** @type {Element} */ (target).closest?.(".ice-place")) continue; // what a panel draws itself
    removed ||= removedNodes.length > 0;
    for (const node of addedNodes) {
      if (!(node instanceof Element)) continue;
      for (const place of node.matches(PLACE) ? [node] : node.querySelectorAll(PLACE)) places.add(place);
    }
  }
  // First those that are gone: an output that is drawn anew keeps the element that is hidden.
  if (removed) for (const panel of panels.values()) for (const place of [...panel.views.keys()]) if (!place.isConnected) leave(panel, place);
  for (const place of places) {
    if (!place.isConnected) continue;
    for (const name of place.classList) {
      const panel = panels.get(name);
      if (panel) enter(panel, place);
    }
  }
});

/** @param {Panel} panel @param {Element} place */
function enter(panel, place) {
  if (panel.views.has(place)) return;
  // Beside the whole of the rendered markup, which has styles of its own.
  const hides = /** @type {HTMLElement} */ (place.closest(".jp-RenderedHTMLCommon") ?? place);
  const el = document.createElement("div");
  el.className = "ice-place jp-OutputArea-output";
  hides.after(el);
  hides.style.display = "none";
  panel.views.set(place, { el, hides, end: panel.show(el) });
}

/** @param {Panel} panel @param {Element} place */
function leave(panel, place) {
  const view = panel.views.get(place);
  if (!view) return;
  panel.views.delete(place);
  view.end();
  view.el.remove();
  view.hides.style.display = "";
}
