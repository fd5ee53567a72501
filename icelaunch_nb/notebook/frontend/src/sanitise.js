/**
 * Makes a rank's output harmless: it is text, and never controls the page.
 *
 * Colours, carriage returns and cursor movements within the last lines pass. Titles, links,
 * clipboard writes, device queries, screen switches and all other control sequences are shown as
 * text or dropped.
 */

/** CSI sequences that pass: SGR (m), cursor movements, erase in line, erase below. */
const ALLOWED = /^\x1b\[[0-9;:]{0,64}[mABCDGK]$|^\x1b\[0?J$/;

/** A whole control sequence: OSC/DCS/APC/PM/SOS with its end, CSI, or a short escape. */
const SEQUENCE = new RegExp(
  [
    /\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)/,
    /\x1b\[[0-?]*[ -/]*[@-~]/,
    /\x1b[ -/]*[0-OQ-WYZ`-~]/,
    /\x1b/,
  ]
    .map((part) => part.source)
    .join("|"),
  "g",
);

/** The beginning of a sequence at the end of a text. A longer one counts as text. */
const UNFINISHED =
  /\x1b(?:[\]PX^_][^\x07\x1b\x9c]{0,4096}\x1b?|\[[0-?]{0,64}[ -/]{0,8}|[ -/]{0,4})?$/;

/** Control characters without a use in a log: DEL, C1, and C0 without \t, \n, \r, \b and ESC. */
const CONTROLS = /[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]/g;

/** Sequences that show nothing: other CSI, and selections of charsets, as in `tput sgr0`. */
const INVISIBLE = /^\x1b[[ -/]/;

/** Hyperlinks are common. Their text stays, and the link is dropped. */
const LINK = /^\x1b\]8;/;

/**
 * @param {string} sequence
 * @returns {string}
 */
function sanitise(sequence) {
  if (ALLOWED.test(sequence)) return sequence;
  if (LINK.test(sequence) || INVISIBLE.test(sequence)) return "";
  if (sequence.length > 2)
    return sequence
      .replace(/\x1b\\$/, "")
      .replaceAll("\x1b", "␛")
      .replace(/\x07/g, "");
  return sequence === "\x1b" ? "␛" : "";
}

/** Sanitises a stream of text that comes in any pieces. */
export class Sanitiser {
  constructor() {
    /** The beginning of a sequence whose rest hasn't come yet. */
    this.unfinished = "";
  }

  /**
   * @param {string} text
   * @returns {string}
   */
  feed(text) {
    text = this.unfinished + text;
    const match = UNFINISHED.exec(text);
    this.unfinished = match ? match[0] : "";
    if (match) text = text.slice(0, match.index);
    return text.replace(SEQUENCE, sanitise).replace(CONTROLS, "");
  }
}

/** A text without control sequences, in one line. */
export function plain(/** @type {unknown} */ text) {
  return String(text ?? "")
    .replace(SEQUENCE, "")
    .replace(CONTROLS, "");
}
