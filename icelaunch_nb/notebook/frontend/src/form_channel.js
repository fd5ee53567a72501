/**
 * The form's channel to the kernel. It sends typed values, keeps them until the kernel has received
 * them, and notices when that takes long.
 */

const PAUSE = 120; // milliseconds without a key before a value is sent
const LATE = 700; // milliseconds after which a message that wasn't received counts as late

export class FormChannel {
  /** @param {any} model @param {AbortSignal} signal */
  constructor(model, signal) {
    this.model = model;
    this.id = Math.random().toString(36).slice(2, 10);
    this.sent = 0; // the number of the newest message
    /**
     * The values that the kernel hasn't received yet, and the numbers of their messages.
     * @type {Map<string, { value: string | boolean, seq: number }>}
     */
    this.typed = new Map();
    /** By key. @type {Map<string, ReturnType<typeof setTimeout>>} */
    this.timers = new Map();
    /** Requests that wait until they are received, by number. @type {Map<number, () => void>} */
    this.requests = new Map();
    this.late = false; // whether a message is late
    /** Called when a change isn't in the model. */
    this.onChange = () => {};
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.lateTimer = undefined;
    this.onMessage = (/** @type {any} */ message) => {
      if (message.kind === "received" && message.to === this.id) this._receive(message.seq);
    };
    model.on("msg:custom", this.onMessage);
    signal.addEventListener("abort", () => this.close());
  }

  /** The value of a field that the kernel hasn't received. @param {string} key */
  unsent(key) {
    return this.typed.get(key)?.value;
  }

  /**
   * Sends a field's value, at once or after a pause.
   * @param {string} key
   * @param {string | boolean} value
   * @param {boolean} now
   */
  set(key, value, now) {
    const before = this.typed.get(key);
    // The value was sent already: a field that loses the focus sets it again.
    if (before?.value === value && before.seq !== Infinity) return;
    this.typed.set(key, { value, seq: Infinity });
    clearTimeout(this.timers.get(key));
    this.timers.set(
      key,
      setTimeout(() => this._send(key), now ? 0 : PAUSE),
    );
  }

  /**
   * Sends the typed values, then a request. Waits until the request is received.
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
    }, LATE);
    return ++this.sent;
  }

  /** @param {number} received the number of the newest message that the kernel has received */
  _receive(received) {
    for (const [key, { seq }] of this.typed) if (seq <= received) this.typed.delete(key);
    for (const [seq, resolve] of this.requests) {
      if (seq > received) continue; // an earlier one was received, or lost with a connection
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
