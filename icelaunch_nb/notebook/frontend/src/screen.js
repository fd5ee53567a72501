/** Turns parts of logs into what a terminal shows: of one rank, or of all with a prefix before each line. */

/** @typedef {import("./logs.js").Part} Part */

const ERR = "\x1b[33m"; // stderr, where it has no colour of its own
const NOTE = "\x1b[2;3m";
const OFF = "\x1b[0m";
const HUES = [36, 35, 34, 32, 96, 95, 94, 92];

/** @param {string} text */
const inErr = (text) => ERR + text.replace(/\x1b\[0*m/g, OFF + ERR).replace(/\x1b\[39m/g, ERR) + OFF;

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
}

/** All ranks: whole lines, each with its ranks; equal lines that came together are shown once. */
export class AllRanks {
  constructor() {
    /** @type {Map<string, string>} */
    this.rest = new Map();
  }

  /** @param {Part[]} parts */
  render(parts) {
    let out = "";
    let at = 0;
    while (at < parts.length) {
      let end = at;
      while (end < parts.length && parts[end].seq === parts[at].seq) end += 1;
      out += this._together(parts.slice(at, end));
      at = end;
    }
    return out;
  }

  /** @param {Part[]} parts that came in one message */
  _together(parts) {
    /** @type {{ text: string, stream: number, note?: boolean, ranks: number[] }[]} */
    const lines = [];
    /** @type {Map<string, (typeof lines)[number]>} */
    const equal = new Map();
    for (const part of parts) {
      const key = `${part.rank}/${part.stream}`;
      const texts = ((part.note ? "" : (this.rest.get(key) ?? "")) + part.text).split("\n");
      const rest = texts.pop() ?? "";
      if (!part.note) this.rest.set(key, rest.length > 65536 ? "" : rest);
      for (const whole of texts) {
        const text = whole.replace(/\r+$/, "").replace(/^.*\r/s, "");
        const same = equal.get(part.stream + text);
        if (same && !same.ranks.includes(part.rank)) {
          same.ranks.push(part.rank);
          continue;
        }
        const line = { text, stream: part.stream, note: part.note, ranks: [part.rank] };
        equal.set(part.stream + text, line);
        lines.push(line);
      }
    }
    return lines.map((line) => {
      const many = line.ranks.length > 1;
      const prefix = many ? `\x1b[1m[×${line.ranks.length}]` : `\x1b[${HUES[line.ranks[0] % HUES.length]}m[${line.ranks[0]}]`;
      const text = line.note ? NOTE + line.text + OFF : line.stream ? inErr(line.text) : line.text;
      return `${prefix.padEnd(9)}${OFF}${text}${OFF}\n`;
    }).join("");
  }
}
