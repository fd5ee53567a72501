/** Progress: a bar for each loop, the outermost first, and in words where that is. */
import { h, say } from "./dom.js";

/** @typedef {[number, number]} Bar steps made, and steps in all; 0: not known */

export function makeBars() {
  const tracks = h("div", { className: "ice-tracks" });
  const count = h("span", { className: "ice-count" });
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
            { className: "ice-bar", role: "progressbar", "aria-valuemin": "0" },
            h("div", { className: "ice-fill" }),
          ),
        );
      }
      known.forEach(([done, total], level) => {
        const bar = /** @type {HTMLElement} */ (tracks.children[level]);
        const share = level === 0 ? whole(bars) : Math.min(1, done / total);
        /** @type {HTMLElement} */ (bar.firstElementChild).style.width =
          `${(100 * share).toFixed(2)}%`;
        bar.setAttribute(
          "aria-label",
          known.length > 1 ? `Progress, loop ${level + 1} of ${known.length}` : "Progress",
        );
        bar.setAttribute("aria-valuenow", String(done));
        bar.setAttribute("aria-valuemax", String(total));
      });
      const words = bars
        .map(([done, total]) => (total > 0 ? `${done} / ${total}` : `step ${done}`))
        .join(" › ");
      say(count, bars[0]?.[1] > 0 ? `${words} · ${Math.floor(100 * whole(bars))} %` : words);
    },
  };
}

/**
 * How much of the outermost loop is done, the step that it is in counted as far as the loops within it are.
 * @param {Bar[]} bars
 * @returns {number}
 */
export function whole([outer, ...inner]) {
  if (!outer || outer[1] <= 0) return 0;
  const within = outer[0] < outer[1] ? whole(/** @type {Bar[]} */ (inner)) : 0;
  return Math.min(1, (outer[0] + within) / outer[1]);
}
