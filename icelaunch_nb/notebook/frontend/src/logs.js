/**
 * The logs that the page holds: the sanitised text of each rank and attempt, in the order of
 * arrival. The oldest text is dropped.
 *
 * All views of a panel share them. So a click on another rank needs no message from the kernel.
 */
import { plain, Sanitiser } from "./sanitise.js";

/**
 * A piece of text. `note`: it is the panel's own text about a gap. `first`: the gap is before all
 * that the page holds.
 * @typedef {{ seq: number, rank: number, stream: number, text: string, note?: boolean,
 *   first?: boolean }} Part
 */
/**
 * A stream of a rank: the offsets where the page's text begins and ends.
 * @typedef {{ first: number, next: number, decoder: TextDecoder, sanitiser: Sanitiser }} Stream
 */
/**
 * The log of a rank. `complete`: no older text is requested any more.
 * @typedef {{ parts: Part[], size: number, streams: (Stream | undefined)[],
 *   complete: boolean }} Log
 */
/**
 * Attempt, rank, stream, start, length.
 * @typedef {[number, number, number, number, number]} Chunk
 */

const MAX_SIZE = 32 << 20; // characters of all ranks
const MAX_RANK_SIZE = 2 << 20; // characters of one rank: more than 10,000 lines
// Characters of the shown rank. Below this, older text is requested if the files have any.
const ENOUGH = 200_000;
const PIECE = 1 << 14; // characters: older text is stored, and later dropped, in such pieces
// This much fills a terminal's 10,000 lines, although most equal lines become one.
const MAX_SHOWN = { characters: 4 << 20, lines: 100_000 };

/** @param {number} bytes */
export function formatBytes(bytes) {
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
    /**
     * Called when older lines of a rank have arrived.
     * @type {Set<(attempt: number, rank: number) => void>}
     */
    this.olderListeners = new Set();
    /** The folder of a rank's logs. @type {(attempt: number, rank: number) => string} */
    this.folder = () => "";
  }

  /**
   * @param {number} attempt
   * @param {number} rank
   */
  of(attempt, rank) {
    return this.logs.get(`${attempt}/${rank}`)?.parts ?? [];
  }

  /** The newest parts of all ranks, as many as a terminal shows. @param {number} attempt */
  ofAll(attempt) {
    /** @type {Part[]} */
    const all = [];
    for (const [key, log] of this.logs)
      if (key.startsWith(`${attempt}/`)) for (const part of log.parts) all.push(part);
    all.sort((a, b) => a.seq - b.seq);
    let characters = 0,
      lines = 0,
      from = all.length;
    while (from > 0 && characters < MAX_SHOWN.characters && lines < MAX_SHOWN.lines) {
      const { text } = all[--from];
      characters += text.length;
      for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) lines += 1;
    }
    return from ? all.slice(from) : all;
  }

  /**
   * The offsets in a rank's stdout and stderr where its text begins, if older text should be
   * requested. They are returned once.
   * @param {number} attempt
   * @param {number} rank
   */
  missingBefore(attempt, rank) {
    const log = this.logs.get(`${attempt}/${rank}`);
    const before = [0, 1].map((stream) => log?.streams[stream]?.first ?? 0);
    if (!log || log.complete || log.size > ENOUGH || !before.some(Boolean)) return undefined;
    log.complete = true;
    return before;
  }

  /**
   * Receives the text right before the rest.
   * @param {Chunk[]} chunks those of one rank
   * @param {DataView} data their bytes, one after the other
   */
  receiveOlder(chunks, data) {
    let at = 0;
    for (const [attempt, rank, stream, start, length] of chunks) {
      const bytes = new Uint8Array(data.buffer, data.byteOffset + at, length);
      at += length;
      const log = this.logs.get(`${attempt}/${rank}`);
      const known = log?.streams[stream];
      if (!log?.complete || known?.first !== start + length) continue; // another page requested it
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
      const text = new Sanitiser().feed(new TextDecoder().decode(bytes));
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
  receive(chunks, data) {
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
    if (!log) this.logs.set(key, (log = { parts: [], size: 0, streams: [], complete: false }));
    let known = log.streams[stream];
    const next = known ? known.next : 0;
    if (start + bytes.length <= next) return []; // sent again for a newer page
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
    const text = known.sanitiser.feed(known.decoder.decode(bytes, { stream: true }));
    if (text) parts.push({ seq: this.seq, rank, stream, text });
    for (const part of parts) {
      log.parts.push(part);
      log.size += part.text.length;
    }
    const kept = Math.min(MAX_RANK_SIZE, MAX_SIZE / this.logs.size);
    let old = 0;
    while (log.size > kept && old < log.parts.length - 1) log.size -= log.parts[old++].text.length;
    if (old) {
      log.parts.splice(0, old);
      log.complete = true;
    }
    return parts;
  }

  /**
   * @param {number} attempt
   * @param {number} rank
   * @param {number} stream
   * @param {number} bytes
   * @param {string} what why they aren't shown
   */
  _gap(attempt, rank, stream, bytes, what) {
    const path = `${plain(this.folder(attempt, rank))}/${stream ? "stderr" : "stdout"}.log`;
    return `… ${formatBytes(bytes)} ${what}, on disk: ${path}\n`;
  }
}
