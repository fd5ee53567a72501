/**
 * Whether the kernel still lives. While a run goes on, its live state comes every second
 * (`_HEARTBEAT_INTERVAL` in `notebook/panel/session.py`).
 */

const SILENT = 5000; // milliseconds without a message after which the kernel counts as lost
// Milliseconds that one check counts for at most. A page that slept has yet to receive what came
// meanwhile.
const STEP = 1000;

export class Heartbeat {
  /**
   * @param {number} at when the kernel sent what is known, in milliseconds since the epoch; a page
   *   may have it from a file
   */
  constructor(at) {
    this.at = at;
    this.lost = false;
    this.silent = 0;
    this.checked = Date.now();
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  /** Counts a message of the kernel. */
  beat() {
    this.at = Date.now();
    this.silent = 0;
    this.setLost(false);
  }

  /** Counts the time since the last check. Called regularly while messages are expected. */
  check() {
    const now = Date.now();
    this.silent += Math.min(STEP, Math.max(0, now - this.checked));
    this.checked = now;
    if (this.silent > SILENT) this.setLost(true);
  }

  /** @param {boolean} lost */
  setLost(lost) {
    if (lost === this.lost) return;
    this.lost = lost;
    for (const listener of this.listeners) listener();
  }
}
