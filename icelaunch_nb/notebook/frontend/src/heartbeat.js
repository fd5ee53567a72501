/** Whether the kernel is still heard: while a run lives, its pulses come every second (`_BEAT` in `notebook/panel/service.py`). */

const SILENT = 5000; // milliseconds without a word after which that is said
const STEP = 1000; // that one look counts for at most: a page that slept has yet to be told what came meanwhile

export class Hearing {
  constructor() {
    this.at = Date.now();
    this.lost = false;
    this.silent = 0;
    this.looked = Date.now();
    /** @type {Set<() => void>} */
    this.listeners = new Set();
  }

  heard() {
    this.at = Date.now();
    this.silent = 0;
    this.tell(false);
  }

  /** To be called now and then while there is something to hear. */
  look() {
    const now = Date.now();
    this.silent += Math.min(STEP, Math.max(0, now - this.looked));
    this.looked = now;
    if (this.silent > SILENT) this.tell(true);
  }

  /** @param {boolean} lost */
  tell(lost) {
    if (lost === this.lost) return;
    this.lost = lost;
    for (const listener of this.listeners) listener();
  }
}
