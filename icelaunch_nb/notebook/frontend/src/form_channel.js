/** The line to the kernel: sends what is typed, keeps it until it was heard, and notices when nobody listens. */

const PAUSE = 120; // milliseconds without a key before what was typed is sent
const UNHEARD = 700; // and after which a message that nobody heard is explained

export class Line {
  /** @param {any} model @param {AbortSignal} signal */
  constructor(model, signal) {
    this.model = model;
    this.me = Math.random().toString(36).slice(2, 10);
    this.sent = 0;
    /** What was typed and isn't heard yet, with the number of the message that carries it. @type {Map<string, { value: string | boolean, n: number }>} */
    this.unheard = new Map();
    /** @type {Map<string, ReturnType<typeof setTimeout>>} */
    this.waiting = new Map();
    /** @type {Map<number, () => void>} */
    this.asked = new Map();
    /** Whether a message has waited for long. */
    this.late = false;
    /** Called when something changes that isn't in the model. */
    this.onNews = () => {};
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.clock = undefined;
    this.hears = (/** @type {any} */ message) => {
      if (message.kind === "heard" && message.to === this.me) this._heard(message.n);
    };
    model.on("msg:custom", this.hears);
    signal.addEventListener("abort", () => this.close());
  }

  /** What a field holds that the kernel hasn't heard of. @param {string} key */
  typed(key) {
    return this.unheard.get(key)?.value;
  }

  /** @param {string} key @param {string | boolean} value @param {boolean} now */
  type(key, value, now) {
    const before = this.unheard.get(key);
    if (before?.value === value && before.n !== Infinity) return; // it is on its way: leaving a field tells again what typing told
    this.unheard.set(key, { value, n: Infinity });
    clearTimeout(this.waiting.get(key));
    this.waiting.set(
      key,
      setTimeout(() => this._send(key), now ? 0 : PAUSE),
    );
  }

  /** @param {string} what */
  ask(what) {
    for (const key of [...this.waiting.keys()]) this._send(key); // first what was typed before
    return /** @type {Promise<void>} */ (
      new Promise((resolve) => {
        const n = this._number();
        this.asked.set(n, resolve);
        this.model.send({ do: what, from: this.me, n });
      })
    );
  }

  close() {
    for (const timer of this.waiting.values()) clearTimeout(timer);
    clearTimeout(this.clock);
    this.model.off("msg:custom", this.hears);
  }

  /** @param {string} key */
  _send(key) {
    clearTimeout(this.waiting.get(key));
    this.waiting.delete(key);
    const typed = this.unheard.get(key);
    if (!typed) return;
    typed.n = this._number();
    this.model.send({ do: "set", key, value: typed.value, from: this.me, n: typed.n });
  }

  _number() {
    this.clock ??= setTimeout(() => {
      this.late = true;
      this.onNews();
    }, UNHEARD);
    return ++this.sent;
  }

  /** @param {number} n */
  _heard(n) {
    for (const [key, typed] of this.unheard) if (typed.n <= n) this.unheard.delete(key);
    for (const [asked, resolve] of this.asked) {
      if (asked > n) continue; // an earlier one was heard, too, or got lost with a connection
      this.asked.delete(asked);
      resolve();
    }
    if (n === this.sent) {
      clearTimeout(this.clock);
      this.clock = undefined;
      this.late = false;
    }
    this.onNews();
  }
}
