/**
 * The metrics that the ranks reported, in the kernel's bins. All views of a panel share them. The
 * Python side is `notebook/panel/metric_bins.py`.
 */

/**
 * `Bins`: the ranks' means in each bin, by rank index; the key is the bin's first step.
 * @typedef {Map<number, Float32Array>} Bins
 * @typedef {{ attempt: number, name: string, width: number, ranks: number, last: number | null,
 *   bins: Bins, version: number }} Metric
 * @typedef {{ attempt: number, name: string, width: number, whole: boolean, bins: number,
 *   ranks: number, last: number | null, left_out: number }} MetricUpdate
 */

export class MetricBins {
  constructor() {
    /** @type {Map<string, Metric>} */
    this.metrics = new Map();
    this.leftOut = 0;
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  /** @param {number} attempt */
  of(attempt) {
    return [...this.metrics.values()].filter((metric) => metric.attempt === attempt);
  }

  /**
   * @param {MetricUpdate[]} updates
   * @param {DataView} data the numbers of each metric: the bins' first steps, then the ranks'
   *   means, bin by bin
   */
  receive(updates, data) {
    let at = data.byteOffset;
    const next = (/** @type {number} */ bytes) => data.buffer.slice(at, (at += bytes));
    for (const { attempt, name, width, whole, bins, ranks, last, left_out: leftOut } of updates) {
      const key = `${attempt}/${name}`;
      let metric = this.metrics.get(key);
      if (!metric || whole)
        this.metrics.set(
          key,
          (metric = {
            attempt,
            name,
            width,
            ranks,
            last,
            bins: new Map(),
            version: metric?.version ?? 0,
          }),
        );
      const steps = new Float64Array(next(8 * bins));
      const means = new Float32Array(next(4 * bins * ranks));
      steps.forEach((step, number) =>
        metric.bins.set(step, means.subarray(number * ranks, (number + 1) * ranks)),
      );
      metric.last = last;
      metric.version += 1;
      this.leftOut = leftOut;
    }
    for (const listener of this.listeners) listener();
  }
}

/**
 * A metric in columns, as uPlot draws it: steps, and the ranks' mean, least and greatest value.
 * @param {Metric} metric
 * @returns {[number[], (number | null)[], (number | null)[], (number | null)[]]}
 */
export function aggregate(metric) {
  const steps = sortedSteps(metric);
  /** @type {[number[], (number | null)[], (number | null)[], (number | null)[]]} */
  const columns = [steps, [], [], []];
  for (const step of steps) {
    let count = 0,
      sum = 0,
      least = Infinity,
      greatest = -Infinity;
    for (const value of metric.bins.get(step) ?? []) {
      if (Number.isNaN(value)) continue;
      count += 1;
      sum += value;
      least = Math.min(least, value);
      greatest = Math.max(greatest, value);
    }
    columns[1].push(count ? sum / count : null);
    columns[2].push(count ? least : null);
    columns[3].push(count ? greatest : null);
  }
  return columns;
}

/**
 * The newest column of `aggregate` that has values of several ranks. The newest of all often has
 * only those of the rank that is ahead.
 * @param {Metric} metric
 * @returns {number} -1 where there is none
 */
export function newestSharedBin(metric) {
  const steps = sortedSteps(metric);
  let at = steps.length - 1;
  while (
    at >= 0 &&
    (metric.bins.get(steps[at]) ?? []).filter((value) => !Number.isNaN(value)).length < 2
  )
    at -= 1;
  return at;
}

/**
 * A metric in columns: steps, and each rank's values.
 * @param {Metric} metric
 * @returns {[number[], ...(number | null | undefined)[][]]}
 */
export function perRank(metric) {
  const steps = sortedSteps(metric);
  const ranks = Array.from({ length: metric.ranks }, (_, rank) =>
    steps.map((step) => {
      const value = metric.bins.get(step)?.[rank];
      // uPlot draws a line across undefined; null would be a gap.
      return value === undefined || Number.isNaN(value) ? undefined : value;
    }),
  );
  return [steps, ...ranks];
}

/** @param {Metric} metric */
function sortedSteps(metric) {
  return [...metric.bins.keys()].sort((a, b) => a - b);
}
