/** The data of one panel on this page, which all its views share. */
import { Heartbeat } from "./heartbeat.js";
import { Logs } from "./logs.js";
import { MetricBins } from "./metric_bins.js";
import { updateSavedOutputs } from "./saved_outputs.js";

/**
 * What a view shows. `attempt`: -1 is the newest one. `chosen`: the user chose the rank.
 * `shownFor`: the failure or breakpoint for which a rank was last shown.
 * @typedef {{ rank: number | "all", chosen: boolean, attempt: number, events: boolean,
 *   metrics: boolean, shownFor: string }} ViewState
 */
/** @typedef {(text: string) => void} OnPending receives a text to show until the reply comes */
/** @typedef {(message: any, buffers: DataView[]) => void} Receiver */

const SIGNS_OF_LIFE = ["msg:custom", "change:live_state", "change:run_state"];

/** The logs, the metrics, and the requests that wait for a reply. */
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
     * The state of the newest view. An output that is drawn anew begins with it.
     * @type {ViewState}
     */
    this.viewState = {
      rank: 0,
      chosen: false,
      attempt: -1,
      events: false,
      metrics: true,
      shownFor: "",
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
    // After a restart of the kernel, no messages come. If only the connection was renewed, the next
    // live state resets this.
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
   * @param {OnPending} [onPending] called first if the reply takes long
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

  /** Replies to all waiting requests, because the kernel is lost. */
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
