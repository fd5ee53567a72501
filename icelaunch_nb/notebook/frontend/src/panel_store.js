/** What one panel is on this page, whatever number of views show it. */
import { Heartbeat } from "./heartbeat.js";
import { Logs } from "./logs.js";
import { MetricBins } from "./metric_bins.js";
import { updateSavedOutputs } from "./saved_outputs.js";

/**
 * What a view shows. `attempt` -1 is the newest one; `byHand`: the rank was chosen by a person;
 * `forward`: what last brought a rank forward.
 * @typedef {{ rank: number | "all", byHand: boolean, attempt: number, events: boolean,
 *   metrics: boolean, forward: string }} ViewState
 */
/** @typedef {(text: string) => void} OnPending shows what the kernel does meanwhile */
/** @typedef {(message: any, buffers: DataView[]) => void} Receiver */

const SIGNS_OF_LIFE = ["msg:custom", "change:live_state", "change:run_state"];

/** Shared by the views of one panel: logs, metrics, and requests that wait for a reply. */
export class PanelStore {
  /** @param {any} model */
  constructor(model) {
    this.model = model;
    this.logs = new Logs();
    this.metricBins = new MetricBins();
    this.heartbeat = new Heartbeat(1000 * model.get("live_state").t);
    /** Commands that were typed at the debugger's prompt. @type {string[]} */
    this.history = [];
    this.logs.folder = (attempt, rank) => {
      const { path, attempts } = /** @type {import("./run_state.js").RunState} */ (
        model.get("run_state")
      );
      const entry = attempts[attempt]?.ranks.find((one) => one[0] === rank);
      return `${path}/attempt_${attempt}/${entry?.[1] ?? rank}`;
    };
    /** @type {Map<string, { resolve: (reply: any) => void, onPending?: OnPending }>} */
    this.requests = new Map();
    /**
     * Of the newest view. An output that is updated is drawn anew, and looks as before.
     * @type {ViewState}
     */
    this.viewState = {
      rank: 0,
      byHand: false,
      attempt: -1,
      events: false,
      metrics: true,
      forward: "",
    };
    /** Called once the notebook holds the newest summary. @type {() => void} */
    this.onSaved = () => {};
    /** By the message's kind. @type {Record<string, Receiver>} */
    this.receivers = {
      log: (message, buffers) => this.logs.receive(message.chunks, buffers[0]),
      older_log: (message, buffers) => this.logs.receiveOlder(message.chunks, buffers[0]),
      metrics: (message, buffers) => this.metricBins.receive(message.metrics, buffers[0]),
      summary: (message) => {
        updateSavedOutputs(model, message.data);
        this.onSaved();
      },
      pending: (message) => this.requests.get(message.id)?.onPending?.(message.text),
      reply: (message) => {
        this.requests.get(message.id)?.resolve(message);
        this.requests.delete(message.id);
      },
    };
    /** @type {Receiver} */
    this.onMessage = (message, buffers) => this.receivers[message.kind]?.(message, buffers);
    this.onSignOfLife = () => this.heartbeat.beat();
    // A restart of the kernel ends the run's messages. Where only the connection is made anew, the
    // next live state says so.
    this.onKernelEnd = () => this.heartbeat.setLost(true);
    this.heartbeat.listeners.add(() => this.heartbeat.lost && this.giveUp());
    model.on("msg:custom", this.onMessage);
    for (const event of SIGNS_OF_LIFE) model.on(event, this.onSignOfLife);
    model.on("comm_live_update", this.onKernelEnd);
    model.send({ action: "open" });
  }

  /**
   * Sends a request and waits for its reply.
   * @param {Record<string, unknown>} request
   * @param {OnPending} [onPending] called first where the reply takes its time
   */
  request(request, onPending) {
    const id = crypto.randomUUID?.() ?? String(Math.random());
    return /** @type {Promise<any>} */ (
      new Promise((resolve) => {
        this.requests.set(id, { resolve, onPending });
        this.model.send({ ...request, id });
        if (this.heartbeat.lost) this.giveUp();
      })
    );
  }

  /** Replies to all requests that wait, in place of a kernel that is lost. */
  giveUp() {
    for (const { resolve } of this.requests.values())
      resolve({ ok: false, lost: true, text: "no word from the kernel" });
    this.requests.clear();
  }

  close() {
    this.giveUp();
    this.model.off("msg:custom", this.onMessage);
    for (const event of SIGNS_OF_LIFE) this.model.off(event, this.onSignOfLife);
    this.model.off("comm_live_update", this.onKernelEnd);
  }
}
