/**
 * Mounts the panel in each output that holds its run's static summary, in place of that.
 *
 * An output that held a widget would show an error wherever there is no kernel, as in a notebook
 * that was saved and is opened again. The summary is markup, and is there in any case.
 */

/** @typedef {{ el: HTMLElement, hidden: HTMLElement, end: () => void }} View */
/** @typedef {{ show: (el: HTMLElement) => () => void, views: Map<Element, View> }} Panel */

const MOUNT_POINT = ".icelaunch-mount"; // all mount points, beside the class of their panel

/** By the class of their mount points. @type {Map<string, Panel>} */
const panels = new Map();

/**
 * @param {string} name the class of the mount points
 * @param {(el: HTMLElement) => () => void} show draws the panel into an element; returns what ends
 *   that
 * @returns {() => void} ends all of it
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
 * One for all panels. It is called before the page is painted: an output that is drawn anew doesn't
 * flicker.
 */
const changes = new MutationObserver((mutations) => {
  let removed = false;
  /** @type {Set<Element>} */
  const points = new Set();
  for (const { target, addedNodes, removedNodes } of mutations) {
    // What a panel draws itself.
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

/** @param {string} name @param {Panel} panel @param {Set<Element>} points that came just now */
function update(name, panel, points) {
  const gone = [...panel.views.keys()].filter((point) => !point.isConnected);
  const found = [...points].filter(
    (point) => point.isConnected && point.classList.contains(name) && !panel.views.has(point),
  );
  // An output that is drawn anew: the view goes along, with all that a person did in it.
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
 * Inserts a view at a mount point. Returns what it hides.
 * @param {HTMLElement} el
 * @param {Element} point
 */
function insert(el, point) {
  // Beside the whole of the rendered markup, which has styles of its own.
  const hidden = /** @type {HTMLElement} */ (point.closest(".jp-RenderedHTMLCommon") ?? point);
  // An element that is moved loses its focus and its scroll position.
  if (hidden.nextSibling !== el) hidden.after(el);
  hidden.style.display = "none";
  return hidden;
}
