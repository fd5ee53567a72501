/**
 * Notices when the kernel is lost. While a run goes on, the kernel sends its live state at least
 * every second (`_HEARTBEAT_INTERVAL` in `notebook/panel/session.py`).
 */

const TIMEOUT = 5000; // milliseconds without a message after which the kernel counts as lost
// Milliseconds that one check counts at most. A page that was suspended still has to receive the
// messages of that time.
const MAX_INTERVAL = 1000;

export class Heartbeat {
  /**
   * @param {number} at when the kernel sent the newest message, in milliseconds since the epoch.
   *   The page may have read it from the notebook's file.
   */
  constructor(at) {
    this.at = at;
    this.lost = false;
    this.silence = 0; // milliseconds
    this.checked = Date.now();
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  /** Counts a message of the kernel. */
  beat() {
    this.at = Date.now();
    this.silence = 0;
    this.setLost(false);
  }

  /** Counts the time since the last check. Called regularly while messages are expected. */
  check() {
    const now = Date.now();
    this.silence += Math.min(MAX_INTERVAL, Math.max(0, now - this.checked));
    this.checked = now;
    if (this.silence > TIMEOUT) this.setLost(true);
  }

  /** @param {boolean} lost */
  setLost(lost) {
    if (lost === this.lost) return;
    this.lost = lost;
    for (const listener of this.listeners) listener();
  }
}
