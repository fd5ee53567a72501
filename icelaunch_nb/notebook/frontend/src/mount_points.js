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
      for (const place of node.matches(PLACE) ? [node] : node.querySelectorAll(PLACE))
        places.add(place);
    }
  }
  if (!removed && !places.size) return;
  for (const [name, panel] of panels) {
    const gone = removed ? [...panel.views.keys()].filter((place) => !place.isConnected) : [];
    const found = [...places].filter(
      (place) => place.isConnected && place.classList.contains(name) && !panel.views.has(place),
    );
    // An output that is drawn anew: the view goes along, with all that a person did in it.
    for (const place of gone) {
      const next = found.shift();
      if (next) move(panel, place, next);
      else leave(panel, place);
    }
    for (const place of found) enter(panel, place);
  }
});

/** @param {Panel} panel @param {Element} place */
function enter(panel, place) {
  if (panel.views.has(place)) return;
  const el = document.createElement("div");
  el.className = "ice-place jp-OutputArea-output";
  const hides = stand(el, place);
  panel.views.set(place, { el, hides, end: panel.show(el) });
}

/** @param {Panel} panel @param {Element} from @param {Element} to */
function move(panel, from, to) {
  const view = /** @type {View} */ (panel.views.get(from));
  panel.views.delete(from);
  panel.views.set(to, view);
  view.hides.style.display = "";
  view.hides = stand(view.el, to);
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

/** Puts a view in a place; what it hides there. @param {HTMLElement} el @param {Element} place */
function stand(el, place) {
  // Beside the whole of the rendered markup, which has styles of its own.
  const hides = /** @type {HTMLElement} */ (place.closest(".jp-RenderedHTMLCommon") ?? place);
  if (hides.nextSibling !== el) hides.after(el); // an element that is moved loses its focus and what is scrolled in it
  hides.style.display = "none";
  return hides;
}
