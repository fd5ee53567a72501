/** Progress: a bar for each loop, the outermost first, and the steps as text. */
import { h, setText } from "./dom.js";

/** @typedef {[number, number]} Bar steps made, and all steps; 0: unknown */

export function makeProgress() {
  const tracks = h("div", { className: "ice-progress-bars" });
  const count = h("span", { className: "ice-progress-text" });
  const element = h("div", { className: "ice-progress", hidden: true }, tracks, count);
  return {
    element,
    /** @param {Bar[]} bars */
    show(bars) {
      element.hidden = bars.every(([done, total]) => total <= 0 && done <= 0);
      const known = bars.filter(([, total]) => total > 0);
      while (tracks.children.length > known.length) tracks.lastElementChild?.remove();
      while (tracks.children.length < known.length) {
        tracks.append(
          h(
            "div",
            { className: "ice-progress-bar", role: "progressbar", "aria-valuemin": "0" },
            h("div", { className: "ice-progress-fill" }),
          ),
        );
      }
      known.forEach(([done, total], level) => {
        const bar = /** @type {HTMLElement} */ (tracks.children[level]);
        const share = level === 0 ? fraction(bars) : Math.min(1, done / total);
        /** @type {HTMLElement} */ (bar.firstElementChild).style.width =
          `${(100 * share).toFixed(2)}%`;
        bar.setAttribute(
          "aria-label",
          known.length > 1 ? `Progress, loop ${level + 1} of ${known.length}` : "Progress",
        );
        bar.setAttribute("aria-valuenow", String(done));
        bar.setAttribute("aria-valuemax", String(total));
      });
      const text = bars
        .map(([done, total]) => (total > 0 ? `${done} / ${total}` : `step ${done}`))
        .join(" › ");
      setText(count, bars[0]?.[1] > 0 ? `${text} · ${Math.floor(100 * fraction(bars))} %` : text);
    },
  };
}

/**
 * The fraction of the outermost loop that is done. Its current step counts by the fraction of the
 * inner loops.
 * @param {Bar[]} bars
 * @returns {number}
 */
export function fraction([outer, ...inner]) {
  if (!outer || outer[1] <= 0) return 0;
  const within = outer[0] < outer[1] ? fraction(/** @type {Bar[]} */ (inner)) : 0;
  return Math.min(1, (outer[0] + within) / outer[1]);
}
