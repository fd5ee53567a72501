/**
 * The logs as they came: for each rank and attempt what it wrote, harmless, in the order of arrival, the oldest forgotten.
 *
 * Kept by the model, not by a view: every view of the panel draws from it, and a click on another rank needs no kernel.
 */
import { Sanitiser } from "./sanitise.js";

/** @typedef {{ seq: number, rank: number, stream: number, text: string, note?: boolean, first?: boolean }} Part */
/** @typedef {{ first: number, next: number, decoder: TextDecoder, sanitiser: Sanitiser }} Stream what is held of it: from, to */
/** @typedef {{ parts: Part[], size: number, streams: (Stream | undefined)[], whole: boolean }} Log whole: nothing before it is asked for */
/** @typedef {[number, number, number, number, number]} Chunk attempt, rank, stream, start and length */

const KEPT = 32 << 20; // characters in all
const KEPT_EACH = 2 << 20; // and of one rank: more than 10,000 lines
const ENOUGH = 200_000; // of a rank that somebody looks at; of one that holds less, and less than its files, more is asked for
const PIECE = 1 << 14; // of what was asked for, so that it is forgotten bit by bit
const SCREEN = { characters: 4 << 20, lines: 100_000 }; // that fill a terminal's 10,000 lines, most equal ones being one line

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
    /** Who draws a rank anew to which older lines came. @type {Set<(attempt: number, rank: number) => void>} */
    this.olderListeners = new Set();
    /** Where the logs of a rank lie; told with the story. @type {(attempt: number, rank: number) => string} */
    this.folder = () => "";
  }

  /**
   * @param {number} attempt
   * @param {number} rank
   */
  of(attempt, rank) {
    return this.logs.get(`${attempt}/${rank}`)?.parts ?? [];
  }

  /** The newest of all ranks, as much as a terminal shows. @param {number} attempt */
  ofAll(attempt) {
    /** @type {Part[]} */
    const all = [];
    for (const [key, log] of this.logs)
      if (key.startsWith(`${attempt}/`)) for (const part of log.parts) all.push(part);
    all.sort((a, b) => a.seq - b.seq);
    let characters = 0,
      lines = 0,
      from = all.length;
    while (from > 0 && characters < SCREEN.characters && lines < SCREEN.lines) {
      const { text } = all[--from];
      characters += text.length;
      for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) lines += 1;
    }
    return from ? all.slice(from) : all;
  }

  /**
   * Where what is held of a rank begins in its stdout and stderr, if there is more that is worth asking for; once.
   * @param {number} attempt
   * @param {number} rank
   */
  begins(attempt, rank) {
    const log = this.logs.get(`${attempt}/${rank}`);
    const before = [0, 1].map((stream) => log?.streams[stream]?.first ?? 0);
    if (!log || log.whole || log.size > ENOUGH || !before.some(Boolean)) return undefined;
    log.whole = true;
    return before;
  }

  /** What lies right before the rest. @param {Chunk[]} chunks of one rank @param {DataView} data all of them, one after the other */
  takeOlder(chunks, data) {
    let at = 0;
    for (const [attempt, rank, stream, start, length] of chunks) {
      const bytes = new Uint8Array(data.buffer, data.byteOffset + at, length);
      at += length;
      const log = this.logs.get(`${attempt}/${rank}`);
      const known = log?.streams[stream];
      if (!log?.whole || known?.first !== start + length) continue; // another page asked
      known.first = start;
      log.parts = log.parts.filter((part) => !part.first || part.stream !== stream);
      const common = { seq: (log.parts[0]?.seq ?? this.seq) - 0.5, rank, stream };
      /** @type {Part[]} */
      const parts = start
        ? [
            {
              ...common,
              note: true,
              first: true,
              text: this._gap(attempt, rank, stream, start, "before this"),
            },
          ]
        : [];
      const text = new Sanitiser().take(new TextDecoder().decode(bytes));
      for (let from = 0, to; from < text.length; from = to) {
        to = text.indexOf("\n", from + PIECE) + 1 || text.length;
        parts.push({ ...common, text: text.slice(from, to) });
      }
      log.parts = [...parts, ...log.parts];
      log.size += text.length;
    }
    for (const [attempt, rank] of chunks.slice(0, 1))
      for (const listener of this.olderListeners) listener(attempt, rank);
  }

  /** @param {number} attempt */
  has(attempt) {
    for (const key of this.logs.keys()) if (key.startsWith(`${attempt}/`)) return true;
    return false;
  }

  /**
   * @param {Chunk[]} chunks
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
    for (const [attempt, parts] of fresh)
      for (const listener of this.listeners) listener(attempt, parts);
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
    if (!log) this.logs.set(key, (log = { parts: [], size: 0, streams: [], whole: false }));
    let known = log.streams[stream];
    const next = known ? known.next : 0;
    if (start + bytes.length <= next) return []; // sent again, for a view that was opened later
    if (start < next) bytes = bytes.subarray(next - start);
    const gap = Math.max(0, start - next);
    if (!known || gap)
      known = log.streams[stream] = {
        first: known ? known.first : start,
        next: 0,
        decoder: new TextDecoder(),
        sanitiser: new Sanitiser(),
      };
    known.next = Math.max(start, next) + bytes.length;
    /** @type {Part[]} */
    const parts = [];
    if (gap)
      parts.push({
        seq: this.seq,
        rank,
        stream,
        note: true,
        first: !next,
        text: this._gap(attempt, rank, stream, gap, next ? "skipped" : "before this"),
      });
    const text = known.sanitiser.take(known.decoder.decode(bytes, { stream: true }));
    if (text) parts.push({ seq: this.seq, rank, stream, text });
    for (const part of parts) {
      log.parts.push(part);
      log.size += part.text.length;
    }
    const kept = Math.min(KEPT_EACH, KEPT / this.logs.size);
    let old = 0;
    while (log.size > kept && old < log.parts.length - 1) log.size -= log.parts[old++].text.length;
    if (old) {
      log.parts.splice(0, old);
      log.whole = true;
    }
    return parts;
  }

  /**
   * @param {number} attempt
   * @param {number} rank
   * @param {number} stream
   * @param {number} bytes
   * @param {string} what became of them
   */
  _gap(attempt, rank, stream, bytes, what) {
    return `… ${inBytes(bytes)} ${what}, on disk: ${this.folder(attempt, rank)}/${stream ? "stderr" : "stdout"}.log\n`;
  }
}
