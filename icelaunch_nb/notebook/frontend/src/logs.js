/**
 * The logs as they came: for each rank and attempt what it wrote, harmless, in the order of arrival, the oldest forgotten.
 *
 * Kept by the model, not by a view: every view of the panel draws from it, and a click on another rank needs no kernel.
 */
import { Sanitiser } from "./sanitise.js";

/** @typedef {{ seq: number, rank: number, stream: number, text: string, note?: boolean }} Part */
/** @typedef {{ next: number, decoder: TextDecoder, sanitiser: Sanitiser }} Stream */
/** @typedef {{ parts: Part[], size: number, streams: (Stream | undefined)[] }} Log */

const KEPT = 32 << 20; // characters in all
const KEPT_EACH = 2 << 20; // and of one rank: more than 10,000 lines

/** @param {number} bytes */
export function inBytes(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  if (bytes < 1e6) return `${(bytes / 1e3).toFixed(1)} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(1)} GB`;
}

export class Logs {
  constructor() {
    /** @type {Map<string, Log>} */
    this.logs = new Map();
    this.seq = 0;
    /** @type {Set<(attempt: number, parts: Part[]) => void>} */
    this.listeners = new Set();
    /** Where the logs lie; told with the story. */
    this.path = "";
  }

  /**
   * @param {number} attempt
   * @param {number} rank
   */
  of(attempt, rank) {
    return this.logs.get(`${attempt}/${rank}`)?.parts ?? [];
  }

  /** @param {number} attempt */
  ofAll(attempt) {
    const all = [];
    for (const [key, log] of this.logs) if (key.startsWith(`${attempt}/`)) all.push(...log.parts);
    return all.sort((a, b) => a.seq - b.seq);
  }

  /** @param {number} attempt */
  has(attempt) {
    for (const key of this.logs.keys()) if (key.startsWith(`${attempt}/`)) return true;
    return false;
  }

  /**
   * @param {[number, number, number, number, number][]} chunks attempt, rank, stream, start and length of each
   * @param {DataView} data all of them, one after the other
   */
  take(chunks, data) {
    this.seq += 1;
    let at = 0;
    /** @type {Map<number, Part[]>} */
    const fresh = new Map();
    for (const [attempt, rank, stream, start, length] of chunks) {
      const bytes = new Uint8Array(data.buffer, data.byteOffset + at, length);
      at += length;
      const parts = this._add(attempt, rank, stream, start, bytes);
      if (parts.length) fresh.set(attempt, [...(fresh.get(attempt) ?? []), ...parts]);
    }
    for (const [attempt, parts] of fresh) for (const listener of this.listeners) listener(attempt, parts);
  }

  /**
   * @param {number} attempt
   * @param {number} rank
   * @param {number} stream
   * @param {number} start
   * @param {Uint8Array} bytes
   * @returns {Part[]}
   */
  _add(attempt, rank, stream, start, bytes) {
    const key = `${attempt}/${rank}`;
    let log = this.logs.get(key);
    if (!log) this.logs.set(key, (log = { parts: [], size: 0, streams: [] }));
    let known = log.streams[stream];
    const next = known ? known.next : 0;
    if (start + bytes.length <= next) return []; // sent again, for a view that was opened later
    if (start < next) bytes = bytes.subarray(next - start);
    const gap = Math.max(0, start - next);
    if (!known || gap) known = log.streams[stream] = { next: 0, decoder: new TextDecoder(), sanitiser: new Sanitiser() };
    known.next = Math.max(start, next) + bytes.length;
    /** @type {Part[]} */
    const parts = [];
    if (gap) {
      const file = `${this.path}/attempt_${attempt}/${rank}/${stream ? "stderr" : "stdout"}.log`;
      const word = next ? "skipped" : "before this";
      parts.push({ seq: this.seq, rank, stream, note: true, text: `… ${inBytes(gap)} ${word}, on disk: ${file}\n` });
    }
    const text = known.sanitiser.take(known.decoder.decode(bytes, { stream: true }));
    if (text) parts.push({ seq: this.seq, rank, stream, text });
    for (const part of parts) {
      log.parts.push(part);
      log.size += part.text.length;
    }
    const kept = Math.min(KEPT_EACH, KEPT / this.logs.size);
    let old = 0;
    while (log.size > kept && old < log.parts.length - 1) log.size -= log.parts[old++].text.length;
    if (old) log.parts.splice(0, old);
    return parts;
  }
}
