/** The metrics as small live plots, by step; a click on one shows its ranks apart, another one folds them. */
import uPlot from "uplot";
import { apart, folded } from "./curves.js";
import { h, say } from "./dom.js";
import { plain } from "./sanitise.js";
import { onTheme } from "./theme.js";

/** @typedef {import("./curves.js").Metric} Metric */

const HEIGHT = 104;
const DRAWN = 250; // milliseconds between two drawings of one plot

/** @param {number | null} value */
export function figure(value) {
  if (value === null) return "NaN";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  return size >= 1000
    ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(4)));
}

/** Colours that differ for neighbouring ranks, of one lightness. @param {number} rank @param {boolean} dark */
const hue = (rank, dark) => `hsl(${(205 + rank * 137.5) % 360} 65% ${dark ? 68 : 42}%)`;

/** @param {AbortSignal} signal */
export function makePlots(signal) {
  const cards = h("div", { className: "ice-plots-cards" });
  const rest = h("div", { className: "ice-quiet", hidden: true });
  const element = h(
    "div",
    { className: "ice-plots", role: "group", "aria-label": "Metrics", hidden: true },
    cards,
    rest,
  );
  /** @type {Map<string, ReturnType<typeof makePlot>>} */
  const plots = new Map();
  onTheme(() => plots.forEach((plot) => plot.redraw()), signal);
  signal.addEventListener("abort", () => plots.forEach((plot) => plot.close()));
  return {
    element,
    /** @param {Metric[]} metrics @param {number} leftOut @param {number[]} names the ranks, by their places */
    show(metrics, leftOut, names) {
      element.hidden = !metrics.length;
      const keys = new Set(metrics.map((metric) => `${metric.attempt}/${metric.name}`));
      for (const [key, plot] of plots) {
        if (keys.has(key)) continue;
        plot.close();
        plots.delete(key);
      }
      for (const metric of metrics) {
        const key = `${metric.attempt}/${metric.name}`;
        let plot = plots.get(key);
        if (!plot) {
          plots.set(key, (plot = makePlot(metric.name, signal)));
          cards.append(plot.element);
        }
        plot.show(metric, names);
      }
      rest.hidden = !leftOut;
      say(rest, `${leftOut} more metrics aren't drawn: run.metrics() has them all.`);
    },
  };
}

/** @param {string} name @param {AbortSignal} signal */
function makePlot(name, signal) {
  const value = h("span", { className: "ice-plot-value" });
  const label = h(
    "span",
    { className: "ice-plot-label" },
    h("span", { className: "ice-plot-name" }, plain(name)),
    value,
  );
  const canvas = h("div", { className: "ice-plot-canvas" });
  const element = h(
    "button",
    { type: "button", className: "ice-plot", "aria-pressed": "false" },
    label,
    canvas,
  );
  let unfolded = false;
  /** @type {uPlot | undefined} */
  let plot;
  /** @type {Metric | undefined} */
  let metric;
  /** @type {number[]} */
  let ranks = [];
  let drawn = -1,
    due = 0;

  const dark = () => document.body.dataset.jpThemeLight === "false";
  const color = (/** @type {string} */ variable) =>
    getComputedStyle(element).getPropertyValue(variable).trim() || "#808080";

  function draw() {
    if (!metric || !canvas.clientWidth) return;
    drawn = metric.version;
    const data = /** @type {uPlot.AlignedData} */ (unfolded ? apart(metric) : folded(metric));
    if (plot && plot.series.length === data.length) plot.setData(data);
    else {
      plot?.destroy();
      plot = new uPlot(options(data.length - 1), data, canvas);
    }
    tell();
  }
  function tell(/** @type {number | null | undefined} */ at = undefined) {
    if (!metric || !plot) return;
    const range = unfolded ? "" : spread(at);
    const shown =
      at === undefined || at === null
        ? figure(metric.last)
        : `step ${plot.data[0][at]}: ${figure(/** @type {number | null} */ (mean(at)))}`;
    say(value, range ? `${shown} ${range}` : shown);
    value.toggleAttribute("data-bad", metric.last === null);
    const how = unfolded
      ? `${ranks.length} ranks apart`
      : ranks.length > 1
        ? "mean of the ranks; the band is their spread"
        : "one rank";
    element.title = `${plain(name)} by step: ${how}${ranks.length > 1 ? ". Click to " + (unfolded ? "fold the ranks" : "show them apart") : ""}`;
    element.setAttribute("aria-label", `${plain(name)}: ${figure(metric.last)}, ${how}`);
  }
  const mean = (/** @type {number} */ at) => {
    const values = (plot?.data.slice(1, unfolded ? undefined : 2) ?? [])
      .map((column) => column[at])
      .filter((one) => typeof one === "number");
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  };
  const spread = (/** @type {number | null | undefined} */ at) => {
    const [, , least, greatest] = plot?.data ?? [];
    if (!least || !greatest || ranks.length < 2) return "";
    const last = at ?? least.length - 1;
    const half = (Number(greatest[last]) - Number(least[last])) / 2;
    return half > 0 ? `± ${figure(Number(half.toPrecision(2)))}` : "";
  };
  /** @param {number} count @returns {uPlot.Options} */
  function options(count) {
    const grid = { stroke: () => color("--ice-line"), width: 0.5 };
    const axis = {
      stroke: () => color("--ice-quiet"),
      font: "10px system-ui, sans-serif",
      grid,
      ticks: { show: false },
      gap: 3,
    };
    const line = () => color("--ice-run");
    return {
      width: canvas.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      padding: [6, 14, 0, 0],
      pxAlign: false,
      cursor: { y: false, points: { size: 5 }, drag: { x: false, y: false, setScale: false } },
      scales: { x: { time: false }, y: { range: (_, least, greatest) => padded(least, greatest) } },
      axes: [
        {
          ...axis,
          size: 18,
          space: 60,
          values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? short(tick) : "")),
        },
        { ...axis, size: 46, space: 26, values: (_, ticks) => ticks.map(figure) },
      ],
      series: unfolded
        ? [
            {},
            ...Array.from({ length: count }, (_, place) => ({
              stroke: () => hue(ranks[place] ?? place, dark()),
              width: 1,
              points: { show: alone },
            })),
          ]
        : [
            {},
            { stroke: line, width: 1.5, points: { show: alone } },
            { width: 0, points: { show: false } },
            { width: 0, points: { show: false } },
          ],
      bands: unfolded
        ? []
        : [{ series: [3, 2], fill: () => `color-mix(in srgb, ${line()} 22%, transparent)` }],
      hooks: { setCursor: [(self) => tell(self.cursor.idx)] },
    };
  }

  element.addEventListener(
    "click",
    () => {
      if (ranks.length < 2) return;
      unfolded = !unfolded;
      element.setAttribute("aria-pressed", String(unfolded));
      draw();
    },
    { signal },
  );
  const sizes = new ResizeObserver(() => {
    if (plot && canvas.clientWidth && plot.width !== canvas.clientWidth)
      plot.setSize({ width: canvas.clientWidth, height: HEIGHT });
    else if (!plot) draw();
  });
  sizes.observe(canvas);
  return {
    element,
    /** @param {Metric} now @param {number[]} names */
    show(now, names) {
      metric = now;
      ranks = names;
      if (now.version === drawn || due) return;
      due = window.setTimeout(
        () => {
          due = 0;
          draw();
        },
        plot ? DRAWN : 0,
      );
    },
    redraw: () => plot?.redraw(),
    close() {
      clearTimeout(due);
      sizes.disconnect();
      plot?.destroy();
      element.remove();
    },
  };
}

/** A single point would have no line to be seen by. */
const alone = (/** @type {uPlot} */ self) => self.data[0].length < 2;

/** @param {number} least @param {number} greatest @returns {[number, number]} */
function padded(least, greatest) {
  if (!Number.isFinite(least) || !Number.isFinite(greatest)) return [0, 1];
  const room = (greatest - least) * 0.06 || Math.abs(least) * 0.1 || 1;
  return [least - room, greatest + room];
}

/** @param {number} step */
const short = (step) =>
  step >= 1e6 ? `${step / 1e6}M` : step >= 1e4 ? `${step / 1e3}k` : String(step);
