/** Renders logs for a terminal: one rank's, or all ranks' with a prefix before each line. */

import { plain } from "./sanitise.js";

/** @typedef {import("./logs.js").Part} Part */
/** @typedef {{ text: string, stream: number, note?: boolean, ranks: number[] }} Line */
/**
 * @typedef {{ text: string, rank: number, stream: number, since: number,
 *   shown: boolean }} Unfinished
 */

const STDERR = "\x1b[33m"; // stderr, where it has no colour of its own
const NOTE = "\x1b[2;3m";
const OFF = "\x1b[0m";
const HUES = [36, 35, 34, 32, 96, 95, 94, 92];
export const SCROLLBACK = 10_000; // lines that a terminal holds
const PREFIX_WIDTH = 5; // characters
const DELAY = 250; // milliseconds until an unfinished line is shown
const MAX_UNFINISHED = 6; // unfinished lines that are shown: half a screen
const MAX_LINE_LENGTH = 65536; // characters after which an unfinished line counts as finished

/** @param {string} text */
const asStderr = (text) =>
  STDERR + text.replace(/\x1b\[0*m/g, OFF + STDERR).replace(/\x1b\[39m/g, STDERR) + OFF;

/** Renders one rank: its streams in the order of arrival. No line contains both of them. */
export class RankRenderer {
  constructor() {
    this.stream = 0;
    this.midline = false;
  }

  /** @param {Part[]} parts */
  render(parts) {
    let out = "";
    for (const part of parts) {
      if (this.midline && (part.stream !== this.stream || part.note)) out += "\r\n";
      out += part.note ? NOTE + part.text + OFF : part.stream ? asStderr(part.text) : part.text;
      this.midline = !/\n(\x1b\[[0-9;]*m)*$/.test(part.text);
      this.stream = part.stream;
    }
    return out;
  }

  due() {
    return undefined; // everything is shown at once
  }
}

/**
 * Renders all ranks: whole lines, each with its ranks. Equal lines of one message show once.
 *
 * A line that stays unfinished for a moment, like a progress bar or a process's last line, is drawn
 * below the whole lines until it is finished.
 */
export class AllRanksRenderer {
  constructor() {
    /** @type {Map<string, Unfinished>} by rank and stream */
    this.rests = new Map();
    this.below = ""; // the unfinished lines as they are drawn
    this.rows = 0; // the rows of the unfinished lines
  }

  /**
   * @param {Part[]} parts
   * @param {boolean} over whether nothing more comes, so that unfinished lines stay so
   * @param {number} now
   */
  render(parts, over = false, now = Date.now()) {
    let lines = "";
    let at = 0;
    while (at < parts.length) {
      let end = at;
      while (end < parts.length && parts[end].seq === parts[at].seq) end += 1;
      lines += this._renderMessage(parts.slice(at, end), now);
      at = end;
    }
    const due = [...this.rests].filter(([, rest]) => now - rest.since >= DELAY);
    for (const [key, rest] of due) {
      rest.shown = true;
      if (over) this.rests.delete(key);
    }
    due.sort(([, a], [, b]) => a.rank - b.rank || a.stream - b.stream);
    /** @type {Line[]} */
    const unfinished = [];
    const equal = new Map();
    for (const [, rest] of due)
      if (isVisible(rest.text)) addLine(unfinished, equal, rest.rank, rest.stream, rest.text);
    if (over) return this._draw(lines + unfinished.map(formatLine).join(""), "", 0);
    const shown = unfinished.slice(0, MAX_UNFINISHED).map(formatLine);
    if (unfinished.length > MAX_UNFINISHED)
      shown.push(
        `${NOTE}… and ${unfinished.length - MAX_UNFINISHED} more unfinished lines${OFF}\n`,
      );
    return this._draw(lines, shown.join(""), shown.length);
  }

  /** Milliseconds until an unfinished line is to be drawn; undefined: there is none. */
  due(now = Date.now()) {
    const since = [...this.rests.values()].filter((rest) => !rest.shown).map((rest) => rest.since);
    return since.length ? Math.max(0, Math.min(...since) + DELAY - now) : undefined;
  }

  /**
   * Draws lines where the unfinished ones are, and the unfinished ones below. Each unfinished line
   * is cut to one row, so that it can be removed again.
   * @param {string} lines
   * @param {string} below
   * @param {number} rows
   */
  _draw(lines, below, rows) {
    if (!lines && below === this.below) return "";
    lines = newest(lines);
    const erase = this.rows ? `\x1b[${this.rows}A\r\x1b[J` : "";
    this.below = below;
    this.rows = rows;
    return erase + lines + (below && `\x1b[?7l${below}\x1b[?7h`);
  }

  /** @param {Part[]} parts those of one message @param {number} now */
  _renderMessage(parts, now) {
    /** @type {Line[]} */
    const lines = [];
    /** @type {Map<string, Line>} */
    const equal = new Map();
    for (const part of parts) {
      const key = `${part.rank}/${part.stream}`;
      const before = this.rests.get(key);
      this.rests.delete(key);
      if (part.note) {
        // The text after a gap doesn't continue the line before it.
        if (before) addLine(lines, equal, part.rank, part.stream, before.text);
        lines.push({
          text: part.text.replace(/\n$/, ""),
          stream: part.stream,
          note: true,
          ranks: [part.rank],
        });
        continue;
      }
      const texts = ((before?.text ?? "") + part.text).split("\n");
      if (texts[texts.length - 1].length > MAX_LINE_LENGTH) texts.push("");
      const rest = (texts.pop() ?? "").replace(/^.*\r(?=[^\r])/s, "");
      if (rest) {
        const same = before && !texts.length;
        this.rests.set(key, {
          text: rest,
          rank: part.rank,
          stream: part.stream,
          since: same ? before.since : now,
          shown: !!same && before.shown,
        });
      }
      for (const text of texts) addLine(lines, equal, part.rank, part.stream, text);
    }
    return lines.map(formatLine).join("");
  }
}

/** The newest lines, as many as a terminal holds. @param {string} lines */
function newest(lines) {
  let at = lines.length - 1;
  for (let count = 0; count < SCROLLBACK && at > 0; count += 1)
    at = lines.lastIndexOf("\n", at - 1);
  return lines.slice(Math.max(0, at + 1));
}

/**
 * Adds a line, or only its rank to a line with the same text.
 * @param {Line[]} lines
 * @param {Map<string, Line>} equal the lines by their text
 * @param {number} rank
 * @param {number} stream
 * @param {string} whole
 */
function addLine(lines, equal, rank, stream, whole) {
  const text = finalText(whole);
  const same = equal.get(stream + text);
  if (same && !same.ranks.includes(rank)) {
    same.ranks.push(rank);
    return;
  }
  const line = { text, stream, ranks: [rank] };
  equal.set(stream + text, line);
  lines.push(line);
}

/**
 * A line's text after its carriage returns and cursor movements. Colours stay.
 * @param {string} line
 */
function finalText(line) {
  if (line.includes("\x1b") || line.includes("\b"))
    line = line.replace(/\x1b\[[01]?G/g, "\r").replace(/\x1b\[[0-9;:]*[A-DGJK]|[^\x08]?\x08/g, "");
  return line.includes("\r") ? line.replace(/\r+$/, "").replace(/^.*\r/s, "") : line;
}

/** A colour that is reset after a line's end is no line. @param {string} text */
const isVisible = (text) => /\S/.test(finalText(text).replace(/\x1b\[[0-9;:]*m/g, ""));

/** @param {Line} line */
function formatLine({ text, stream, note, ranks }) {
  const [who, hue] =
    ranks.length > 1
      ? [`[×${ranks.length}]`, 1]
      : [`[${plain(ranks[0])}]`, HUES[ranks[0] % HUES.length] ?? 0];
  const styled = note ? NOTE + text + OFF : stream ? asStderr(text) : text;
  const space = " ".repeat(Math.max(1, PREFIX_WIDTH - who.length));
  return `\x1b[${hue}m${who}${OFF}${space}${styled}${OFF}\n`;
}
