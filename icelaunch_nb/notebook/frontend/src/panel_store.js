/** What one panel is on this page, whatever number of views show it. */
import { Curves } from "./curves.js";
import { Hearing } from "./hearing.js";
import { Logs } from "./logs.js";

const WORDS = ["msg:custom", "change:pulse", "change:story"]; // that the kernel still lives

/** What the views of one panel share: the logs, the metrics, questions that wait for an answer. */
export class Shared {
  /** @param {any} model */
  constructor(model) {
    this.model = model;
    this.logs = new Logs();
    this.curves = new Curves();
    this.hearing = new Hearing();
    /** Commands that were typed at the debugger's prompt. @type {string[]} */
    this.history = [];
    this.logs.folder = (attempt, rank) => {
      const { path, attempts } = /** @type {import("./story.js").Story} */ (model.get("story"));
      return `${path}/attempt_${attempt}/${attempts[attempt]?.ranks.find((entry) => entry[0] === rank)?.[1] ?? rank}`;
    };
    /** @type {Map<string, { resolve: (answer: any) => void, meanwhile?: (says: string) => void }>} */
    this.asked = new Map();
    /**
     * What is looked at. Of the newest view: an output that is brought up to date is drawn anew, and should look as before.
     * @type {{ chosen: number | "all", byHand: boolean, attempt: number, events: boolean, metrics: boolean, forward: string }}
     */
    this.look = {
      chosen: 0,
      byHand: false,
      attempt: -1,
      events: false,
      metrics: true,
      forward: "",
    }; // attempt -1: the newest
    /** Who takes which kind of message. @type {Record<string, (message: any, buffers: DataView[]) => void>} */
    this.takers = {
      log: (message, buffers) => this.logs.take(message.chunks, buffers[0]),
      older: (message, buffers) => this.logs.takeOlder(message.chunks, buffers[0]),
      curves: (message, buffers) => this.curves.take(message.curves, buffers[0]),
      heard: (message) => this.asked.get(message.id)?.meanwhile?.(message.says),
      answer: (message) => {
        this.asked.get(message.id)?.resolve(message);
        this.asked.delete(message.id);
      },
    };
    this.hears = (/** @type {any} */ message, /** @type {DataView[]} */ buffers) =>
      this.takers[message.kind]?.(message, buffers);
    this.heard = () => this.hearing.heard();
    // A restart of the kernel ends what it had to say. Where the connection is only made anew, the next pulse says so.
    this.ends = () => this.hearing.tell(true);
    this.hearing.listeners.add(() => this.hearing.lost && this.giveUp());
    model.on("msg:custom", this.hears);
    for (const word of WORDS) model.on(word, this.heard);
    model.on("comm_live_update", this.ends);
    model.send({ do: "hello" });
  }

  /** @param {Record<string, unknown>} question @param {(says: string) => void} [meanwhile] what comes first where the answer takes its time */
  ask(question, meanwhile) {
    const id = crypto.randomUUID?.() ?? String(Math.random());
    return /** @type {Promise<any>} */ (
      new Promise((resolve) => {
        this.asked.set(id, { resolve, meanwhile });
        this.model.send({ ...question, id });
        if (this.hearing.lost) this.giveUp();
      })
    );
  }

  /** Whoever waits for an answer doesn't any more. */
  giveUp() {
    for (const { resolve } of this.asked.values())
      resolve({ ok: false, lost: true, says: "no word from the kernel" });
    this.asked.clear();
  }

  close() {
    this.giveUp();
    this.model.off("msg:custom", this.hears);
    for (const word of WORDS) this.model.off(word, this.heard);
    this.model.off("comm_live_update", this.ends);
  }
}
