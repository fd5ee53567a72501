/**
 * The metrics as small live plots by step. A plot shows the ranks' mean and spread. A click on it
 * shows one line for each rank instead, or the mean and spread again.
 */
import uPlot from "uplot";
import { perRank, aggregate, newestSharedBin } from "./metric_bins.js";
import { h, setText } from "./dom.js";
import { plain } from "./sanitise.js";
import { onThemeChange } from "./theme.js";

/** @typedef {import("./metric_bins.js").Metric} Metric */

const HEIGHT = 104;
const INTERVAL = 250; // milliseconds between two drawings of one plot

/** @param {number | null} value */
export function formatNumber(value) {
  if (value === null) return "NaN";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  return size >= 1000
    ? Math.round(value).toLocaleString("en")
    : String(Number(value.toPrecision(4)));
}

/**
 * A colour of the same lightness for each rank, which differs from its neighbours'.
 * @param {number} rank
 * @param {boolean} dark
 */
const hue = (rank, dark) => `hsl(${(205 + rank * 137.5) % 360} 65% ${dark ? 68 : 42}%)`;

/** @param {AbortSignal} signal */
export function makePlots(signal) {
  const cards = h("div", { className: "ice-plots-cards" });
  const rest = h("div", { className: "ice-muted", hidden: true });
  const element = h(
    "div",
    { className: "ice-plots", role: "group", "aria-label": "Metrics", hidden: true },
    cards,
    rest,
  );
  /** @type {Map<string, ReturnType<typeof makePlot>>} */
  const plots = new Map();
  onThemeChange(() => plots.forEach((plot) => plot.redraw()), signal);
  signal.addEventListener("abort", () => plots.forEach((plot) => plot.close()));
  return {
    element,
    /**
     * @param {Metric[]} metrics
     * @param {number} leftOut
     * @param {number[]} names the ranks, by their indices
     */
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
      setText(rest, `${leftOut} more metrics aren't drawn: run.metrics() has them all.`);
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
  let showsRanks = false;
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
    const data = /** @type {uPlot.AlignedData} */ (
      showsRanks ? perRank(metric) : aggregate(metric)
    );
    if (plot && plot.series.length === data.length) plot.setData(data);
    else {
      plot?.destroy();
      plot = new uPlot(options(data.length - 1), data, canvas);
    }
    showValue();
  }
  function showValue(/** @type {number | null | undefined} */ at = undefined) {
    if (!metric || !plot) return;
    const range = showsRanks ? "" : spread(at);
    const shown =
      at === undefined || at === null
        ? formatNumber(metric.last)
        : `step ${plot.data[0][at]}: ${formatNumber(/** @type {number | null} */ (mean(at)))}`;
    setText(value, range ? `${shown} ${range}` : shown);
    value.toggleAttribute("data-bad", metric.last === null);
    const how = showsRanks
      ? `${ranks.length} ranks, a line each`
      : ranks.length > 1
        ? "mean of the ranks; the band is their spread"
        : "one rank";
    const click = showsRanks ? "show their mean" : "show each rank";
    const clickHint = ranks.length > 1 ? `. Click to ${click}` : "";
    element.title = `${plain(name)} by step: ${how}${clickHint}`;
    element.setAttribute("aria-label", `${plain(name)}: ${formatNumber(metric.last)}, ${how}`);
  }
  const mean = (/** @type {number} */ at) => {
    const values = (plot?.data.slice(1, showsRanks ? undefined : 2) ?? [])
      .map((column) => column[at])
      .filter((one) => typeof one === "number");
    return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
  };
  const spread = (/** @type {number | null | undefined} */ at) => {
    const [, , least, greatest] = plot?.data ?? [];
    if (!metric || !least || !greatest || ranks.length < 2) return "";
    const column = at ?? newestSharedBin(metric);
    const half = (Number(greatest[column]) - Number(least[column])) / 2;
    return half > 0 ? `± ${formatNumber(Number(half.toPrecision(2)))}` : "";
  };
  /** @param {number} count @returns {uPlot.Options} */
  function options(count) {
    const grid = { stroke: () => color("--ice-border"), width: 0.5 };
    const axis = {
      stroke: () => color("--ice-muted"),
      font: "10px system-ui, sans-serif",
      grid,
      ticks: { show: false },
      gap: 3,
    };
    const line = () => color("--ice-accent");
    return {
      width: canvas.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      padding: [6, 14, 0, 0],
      pxAlign: false,
      cursor: { y: false, points: { size: 5 }, drag: { x: false, y: false, setScale: false } },
      scales: {
        x: { time: false },
        y: { range: (_, least, greatest) => withMargin(least, greatest) },
      },
      axes: [
        {
          ...axis,
          size: 18,
          space: 60,
          values: (_, ticks) =>
            ticks.map((tick) => (Number.isInteger(tick) ? formatStep(tick) : "")),
        },
        { ...axis, size: 46, space: 26, values: (_, ticks) => ticks.map(formatNumber) },
      ],
      series: showsRanks
        ? [
            {},
            ...Array.from({ length: count }, (_, index) => ({
              stroke: () => hue(ranks[index] ?? index, dark()),
              width: 1,
              points: { show: isSinglePoint },
            })),
          ]
        : [
            {},
            { stroke: line, width: 1.5, points: { show: isSinglePoint } },
            { width: 0, points: { show: false } },
            { width: 0, points: { show: false } },
          ],
      bands: showsRanks
        ? []
        : [{ series: [3, 2], fill: () => `color-mix(in srgb, ${line()} 22%, transparent)` }],
      hooks: { setCursor: [(self) => showValue(self.cursor.idx)] },
    };
  }

  element.addEventListener(
    "click",
    () => {
      if (ranks.length < 2) return;
      showsRanks = !showsRanks;
      element.setAttribute("aria-pressed", String(showsRanks));
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
        plot ? INTERVAL : 0,
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

/** A single point has no line, so it is drawn as a point. */
const isSinglePoint = (/** @type {uPlot} */ self) => self.data[0].length < 2;

/** @param {number} least @param {number} greatest @returns {[number, number]} */
function withMargin(least, greatest) {
  if (!Number.isFinite(least) || !Number.isFinite(greatest)) return [0, 1];
  const room = (greatest - least) * 0.06 || Math.abs(least) * 0.1 || 1;
  return [least - room, greatest + room];
}

/** @param {number} step */
const formatStep = (step) =>
  step >= 1e6 ? `${step / 1e6}M` : step >= 1e4 ? `${step / 1e3}k` : String(step);
