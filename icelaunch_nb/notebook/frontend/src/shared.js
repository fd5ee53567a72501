/** What one panel is on this page, whatever number of views show it. */
import { Curves } from "./curves.js";
import { Logs } from "./logs.js";

/** What the views of one panel share: the logs, the metrics, questions that wait for an answer. */
export class Shared {
  /** @param {any} model */
  constructor(model) {
    this.model = model;
    this.logs = new Logs();
    this.curves = new Curves();
    /** Commands that were typed at the debugger's prompt. @type {string[]} */
    this.history = [];
    this.logs.path = model.get("story").path;
    /** @type {Map<string, (answer: any) => void>} */
    this.asked = new Map();
    /**
     * What is looked at. Of the newest view: an output that is brought up to date is drawn anew, and should look as before.
     * @type {{ chosen: number | "all", byHand: boolean, attempt: number, events: boolean, metrics: boolean, forward: string }}
     */
    this.look = { chosen: 0, byHand: false, attempt: -1, events: false, metrics: true, forward: "" }; // attempt -1: the newest
    /** Who takes which kind of message. @type {Record<string, (message: any, buffers: DataView[]) => void>} */
    this.takers = {
      log: (message, buffers) => this.logs.take(message.chunks, buffers[0]),
      curves: (message, buffers) => this.curves.take(message.curves, buffers[0]),
      answer: (message) => {
        this.asked.get(message.id)?.(message);
        this.asked.delete(message.id);
      },
    };
    this.hears = (/** @type {any} */ message, /** @type {DataView[]} */ buffers) => this.takers[message.kind]?.(message, buffers);
    model.on("msg:custom", this.hears);
    model.send({ do: "hello" });
  }

  /** @param {Record<string, unknown>} question */
  ask(question) {
    const id = crypto.randomUUID?.() ?? String(Math.random());
    return /** @type {Promise<any>} */ (new Promise((resolve) => {
      this.asked.set(id, resolve);
      this.model.send({ ...question, id });
    }));
  }

  close() {
    this.model.off("msg:custom", this.hears);
  }
}
