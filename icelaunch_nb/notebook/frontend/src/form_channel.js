/**
 * The form's channel to the kernel: sends what is typed, holds it until the kernel has received it,
 * and notices when the kernel doesn't.
 */

const PAUSE = 120; // milliseconds without a key before what was typed is sent
const UNANSWERED = 700; // milliseconds after which a message that wasn't received is explained

export class FormChannel {
  /** @param {any} model @param {AbortSignal} signal */
  constructor(model, signal) {
    this.model = model;
    this.id = Math.random().toString(36).slice(2, 10);
    this.sent = 0; // number of the newest message
    /**
     * What was typed and isn't received yet, and the number of the message that carries it.
     * @type {Map<string, { value: string | boolean, seq: number }>}
     */
    this.typed = new Map();
    /** By key. @type {Map<string, ReturnType<typeof setTimeout>>} */
    this.timers = new Map();
    /** Requests that wait until they are received, by number. @type {Map<number, () => void>} */
    this.requests = new Map();
    this.late = false; // whether a message has waited for long
    /** Called when something changes that isn't in the model. */
    this.onChange = () => {};
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.lateTimer = undefined;
    this.onMessage = (/** @type {any} */ message) => {
      if (message.kind === "received" && message.to === this.id) this._receive(message.seq);
    };
    model.on("msg:custom", this.onMessage);
    signal.addEventListener("abort", () => this.close());
  }

  /** What a field holds that the kernel hasn't received. @param {string} key */
  unsent(key) {
    return this.typed.get(key)?.value;
  }

  /**
   * Sends what a field holds: at once, or after a pause.
   * @param {string} key
   * @param {string | boolean} value
   * @param {boolean} now
   */
  set(key, value, now) {
    const before = this.typed.get(key);
    // It is on its way: a field that loses the focus repeats what was typed.
    if (before?.value === value && before.seq !== Infinity) return;
    this.typed.set(key, { value, seq: Infinity });
    clearTimeout(this.timers.get(key));
    this.timers.set(
      key,
      setTimeout(() => this._send(key), now ? 0 : PAUSE),
    );
  }

  /**
   * Sends what was typed before, then a request. Waits until that is received.
   * @param {string} action
   */
  request(action) {
    for (const key of [...this.timers.keys()]) this._send(key);
    return /** @type {Promise<void>} */ (
      new Promise((resolve) => {
        const seq = this._nextNumber();
        this.requests.set(seq, resolve);
        this.model.send({ action, sender: this.id, seq });
      })
    );
  }

  close() {
    for (const timer of this.timers.values()) clearTimeout(timer);
    clearTimeout(this.lateTimer);
    this.model.off("msg:custom", this.onMessage);
  }

  /** @param {string} key */
  _send(key) {
    clearTimeout(this.timers.get(key));
    this.timers.delete(key);
    const typed = this.typed.get(key);
    if (!typed) return;
    typed.seq = this._nextNumber();
    const { value, seq } = typed;
    this.model.send({ action: "set", key, value, sender: this.id, seq });
  }

  _nextNumber() {
    this.lateTimer ??= setTimeout(() => {
      this.late = true;
      this.onChange();
    }, UNANSWERED);
    return ++this.sent;
  }

  /** @param {number} received number of the newest message that the kernel has received */
  _receive(received) {
    for (const [key, { seq }] of this.typed) if (seq <= received) this.typed.delete(key);
    for (const [seq, resolve] of this.requests) {
      if (seq > received) continue; // an earlier one was received, or got lost with a connection
      this.requests.delete(seq);
      resolve();
    }
    if (received === this.sent) {
      clearTimeout(this.lateTimer);
      this.lateTimer = undefined;
      this.late = false;
    }
    this.onChange();
  }
}
