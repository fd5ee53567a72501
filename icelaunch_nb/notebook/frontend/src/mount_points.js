/**
 * Mounts the panel in each output that holds its run's static summary. It replaces the summary.
 *
 * An output that is a widget shows an error where there is no kernel, as in a saved notebook that
 * is opened again. The summary is markup, so it always shows.
 */

/** @typedef {{ el: HTMLElement, hidden: HTMLElement, end: () => void }} View */
/** @typedef {{ show: (el: HTMLElement) => () => void, views: Map<Element, View> }} Panel */

const MOUNT_POINT = ".icelaunch-mount"; // the mount points of all panels

/** By the class of their mount points. @type {Map<string, Panel>} */
const panels = new Map();

/**
 * @param {string} name the class of the mount points
 * @param {(el: HTMLElement) => () => void} show draws the panel into an element, and returns a
 *   function that ends the view
 * @returns {() => void} unmounts the panel everywhere
 */
export function mountPanel(name, show) {
  const panel = { show, views: new Map() };
  panels.set(name, panel);
  if (panels.size === 1) changes.observe(document.body, { childList: true, subtree: true });
  for (const point of document.getElementsByClassName(name)) mount(panel, point);
  return () => {
    for (const point of [...panel.views.keys()]) unmount(panel, point);
    if (panels.get(name) === panel) panels.delete(name);
    if (!panels.size) changes.disconnect();
  };
}

/**
 * One observer serves all panels. It is called before the page is painted, so an output that is
 * drawn anew doesn't flicker.
 */
const changes = new MutationObserver((mutations) => {
  let removed = false;
  /** @type {Set<Element>} */
  const points = new Set();
  for (const { target, addedNodes, removedNodes } of mutations) {
    // A panel's own changes are ignored.
    if (/** @type {Element} */ (target).closest?.(".ice-mount-point")) continue;
    removed ||= removedNodes.length > 0;
    for (const node of addedNodes) {
      if (!(node instanceof Element)) continue;
      const inside = node.matches(MOUNT_POINT) ? [node] : node.querySelectorAll(MOUNT_POINT);
      for (const point of inside) points.add(point);
    }
  }
  if (removed || points.size) for (const [name, panel] of panels) update(name, panel, points);
});

/** @param {string} name @param {Panel} panel @param {Set<Element>} points the new ones */
function update(name, panel, points) {
  const gone = [...panel.views.keys()].filter((point) => !point.isConnected);
  const found = [...points].filter(
    (point) => point.isConnected && point.classList.contains(name) && !panel.views.has(point),
  );
  // Where an output is drawn anew, its view moves there as it is.
  for (const point of gone) {
    const next = found.shift();
    if (next) move(panel, point, next);
    else unmount(panel, point);
  }
  for (const point of found) mount(panel, point);
}

/** @param {Panel} panel @param {Element} point */
function mount(panel, point) {
  if (panel.views.has(point)) return;
  const el = document.createElement("div");
  el.className = "ice-mount-point jp-OutputArea-output";
  const hidden = insert(el, point);
  panel.views.set(point, { el, hidden, end: panel.show(el) });
}

/** @param {Panel} panel @param {Element} from @param {Element} to */
function move(panel, from, to) {
  const view = /** @type {View} */ (panel.views.get(from));
  panel.views.delete(from);
  panel.views.set(to, view);
  view.hidden.style.display = "";
  view.hidden = insert(view.el, to);
}

/** @param {Panel} panel @param {Element} point */
function unmount(panel, point) {
  const view = panel.views.get(point);
  if (!view) return;
  panel.views.delete(point);
  view.end();
  view.el.remove();
  view.hidden.style.display = "";
}

/**
 * Inserts a view at a mount point. Returns the element that it hides.
 * @param {HTMLElement} el
 * @param {Element} point
 */
function insert(el, point) {
  // The view is beside the rendered markup, since that has its own styles.
  const hidden = /** @type {HTMLElement} */ (point.closest(".jp-RenderedHTMLCommon") ?? point);
  // Moving an element would lose its focus and its scroll position.
  if (hidden.nextSibling !== el) hidden.after(el);
  hidden.style.display = "none";
  return hidden;
}
