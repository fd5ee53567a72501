/** Turns parts of logs into what a terminal shows: of one rank, or of all with a prefix before each line. */

/** @typedef {import("./logs.js").Part} Part */
/** @typedef {{ text: string, stream: number, note?: boolean, ranks: number[] }} Line */
/** @typedef {{ text: string, rank: number, stream: number, since: number, shown: boolean }} Unfinished */

const ERR = "\x1b[33m"; // stderr, where it has no colour of its own
const NOTE = "\x1b[2;3m";
const OFF = "\x1b[0m";
const HUES = [36, 35, 34, 32, 96, 95, 94, 92];
export const SCROLLBACK = 10_000; // lines that a terminal holds
const MARGIN = 5; // characters for whose line it is
const PAUSE = 250; // milliseconds until a line is shown that isn't ended
const BELOW = 6; // unfinished lines that are shown: half a screen
const LONGEST = 65536; // characters that are waited for the end of a line

/** @param {string} text */
const inErr = (text) =>
  ERR + text.replace(/\x1b\[0*m/g, OFF + ERR).replace(/\x1b\[39m/g, ERR) + OFF;

/** One rank: its streams as they came, neither one in the middle of the other's line. */
export class OneRank {
  constructor() {
    this.stream = 0;
    this.midline = false;
  }

  /** @param {Part[]} parts */
  render(parts) {
    let out = "";
    for (const part of parts) {
      if (this.midline && (part.stream !== this.stream || part.note)) out += "\r\n";
      out += part.note ? NOTE + part.text + OFF : part.stream ? inErr(part.text) : part.text;
      this.midline = !/\n(\x1b\[[0-9;]*m)*$/.test(part.text);
      this.stream = part.stream;
    }
    return out;
  }

  due() {
    return undefined; // what came is shown
  }
}

/**
 * All ranks: whole lines, each with its ranks; equal lines that came together are shown once.
 *
 * A line that isn't ended for a moment, like a progress bar or the last words of a process, stands below them until it is.
 */
export class AllRanks {
  constructor() {
    /** @type {Map<string, Unfinished>} by rank and stream */
    this.rests = new Map();
    this.below = ""; // the unfinished lines as they are drawn now
    this.rows = 0; // that these take
  }

  /**
   * @param {Part[]} parts
   * @param {boolean} over whether nothing more is expected: what isn't ended by now never will be
   * @param {number} now
   */
  render(parts, over = false, now = Date.now()) {
    let lines = "";
    let at = 0;
    while (at < parts.length) {
      let end = at;
      while (end < parts.length && parts[end].seq === parts[at].seq) end += 1;
      lines += this._together(parts.slice(at, end), now);
      at = end;
    }
    const due = [...this.rests].filter(([, rest]) => now - rest.since >= PAUSE);
    for (const [key, rest] of due) {
      rest.shown = true;
      if (over) this.rests.delete(key);
    }
    due.sort(([, a], [, b]) => a.rank - b.rank || a.stream - b.stream);
    /** @type {Line[]} */
    const unfinished = [];
    const equal = new Map();
    for (const [, rest] of due)
      if (visible(rest.text)) fold(unfinished, equal, rest.rank, rest.stream, rest.text);
    if (over) return this._draw(lines + unfinished.map(inLine).join(""), "", 0);
    const shown = unfinished.slice(0, BELOW).map(inLine);
    if (unfinished.length > BELOW)
      shown.push(`${NOTE}… and ${unfinished.length - BELOW} more unfinished lines${OFF}\n`);
    return this._draw(lines, shown.join(""), shown.length);
  }

  /** Milliseconds until a line that came without its end is to be drawn; undefined: there is none. */
  due(now = Date.now()) {
    const since = [...this.rests.values()].filter((rest) => !rest.shown).map((rest) => rest.since);
    return since.length ? Math.max(0, Math.min(...since) + PAUSE - now) : undefined;
  }

  /**
   * Lines in place of the unfinished ones, and these below them, each cut to one row: so they can be taken away again.
   * @param {string} lines
   * @param {string} below
   * @param {number} rows
   */
  _draw(lines, below, rows) {
    if (!lines && below === this.below) return "";
    lines = newest(lines);
    const away = this.rows ? `\x1b[${this.rows}A\r\x1b[J` : "";
    this.below = below;
    this.rows = rows;
    return away + lines + (below && `\x1b[?7l${below}\x1b[?7h`);
  }

  /** @param {Part[]} parts that came in one message @param {number} now */
  _together(parts, now) {
    /** @type {Line[]} */
    const lines = [];
    /** @type {Map<string, Line>} */
    const equal = new Map();
    for (const part of parts) {
      const key = `${part.rank}/${part.stream}`;
      const before = this.rests.get(key);
      this.rests.delete(key);
      if (part.note) {
        // what follows doesn't continue what came before
        if (before) fold(lines, equal, part.rank, part.stream, before.text);
        lines.push({
          text: part.text.replace(/\n$/, ""),
          stream: part.stream,
          note: true,
          ranks: [part.rank],
        });
        continue;
      }
      const texts = ((before?.text ?? "") + part.text).split("\n");
      if (texts[texts.length - 1].length > LONGEST) texts.push("");
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
      for (const text of texts) fold(lines, equal, part.rank, part.stream, text);
    }
    return lines.map(inLine).join("");
  }
}

/** As many lines as a terminal holds: the rest would only keep it busy. @param {string} lines */
function newest(lines) {
  let at = lines.length - 1;
  for (let count = 0; count < SCROLLBACK && at > 0; count += 1)
    at = lines.lastIndexOf("\n", at - 1);
  return lines.slice(Math.max(0, at + 1));
}

/**
 * Adds a line, or only its rank to one that says the same.
 * @param {Line[]} lines
 * @param {Map<string, Line>} equal the lines by what they say
 * @param {number} rank
 * @param {number} stream
 * @param {string} whole
 */
function fold(lines, equal, rank, stream, whole) {
  const text = still(whole);
  const same = equal.get(stream + text);
  if (same && !same.ranks.includes(rank)) {
    same.ranks.push(rank);
    return;
  }
  const line = { text, stream, ranks: [rank] };
  equal.set(stream + text, line);
  lines.push(line);
}

/** A line as it stands at last; only colours stay: the lines above are other ranks'. @param {string} line */
function still(line) {
  if (line.includes("\x1b") || line.includes("\b"))
    line = line.replace(/\x1b\[[01]?G/g, "\r").replace(/\x1b\[[0-9;:]*[A-DGJK]|[^\x08]?\x08/g, "");
  return line.includes("\r") ? line.replace(/\r+$/, "").replace(/^.*\r/s, "") : line;
}

/** A colour that is ended behind a line's end is no line. @param {string} text */
const visible = (text) => /\S/.test(still(text).replace(/\x1b\[[0-9;:]*m/g, ""));

/** @param {Line} line */
function inLine({ text, stream, note, ranks }) {
  const [who, hue] =
    ranks.length > 1 ? [`[×${ranks.length}]`, 1] : [`[${ranks[0]}]`, HUES[ranks[0] % HUES.length]];
  return `\x1b[${hue}m${who}${OFF}${" ".repeat(Math.max(1, MARGIN - who.length))}${note ? NOTE + text + OFF : stream ? inErr(text) : text}${OFF}\n`;
}
