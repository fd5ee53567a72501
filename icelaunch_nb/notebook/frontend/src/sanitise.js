/**
 * Makes what a rank prints harmless: it is text, and never commands the page.
 *
 * Colours, carriage returns and cursor movement within the last lines pass. Titles, links,
 * clipboard writes, device queries, screen switches and all else that a terminal would obey is
 * shown or dropped.
 */

/** CSI sequences that pass: SGR (m), cursor movements, erase in line, erase below. */
const PASSING = /^\x1b\[[0-9;:]{0,64}[mABCDGK]$|^\x1b\[0?J$/;

/** One control sequence, whole: OSC/DCS/APC/PM/SOS with its end, CSI, or a short escape. */
const SEQUENCE =
  /\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-OQ-WYZ`-~]|\x1b/g;

/** A sequence's beginning at the end of a text. A longer one is no sequence. */
const UNFINISHED =
  /\x1b(?:[\]PX^_][^\x07\x1b\x9c]{0,4096}\x1b?|\[[0-?]{0,64}[ -/]{0,8}|[ -/]{0,4})?$/;

/** Controls without a use in a log: C0 but \t \n \r \b and ESC, DEL, and C1. */
const CONTROLS = /[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]/g;

/** Sequences that show nothing: other CSI, and charsets and the like, as in `tput sgr0`. */
const INVISIBLE = /^\x1b[[ -/]/;

/** Hyperlinks are common: their text stays, the link doesn't. */
const LINK = /^\x1b\]8;/;

/**
 * @param {string} sequence
 * @returns {string}
 */
function sanitise(sequence) {
  if (PASSING.test(sequence)) return sequence;
  if (LINK.test(sequence) || INVISIBLE.test(sequence)) return "";
  if (sequence.length > 2)
    return sequence
      .replace(/\x1b\\$/, "")
      .replaceAll("\x1b", "␛")
      .replace(/\x07/g, "");
  return sequence === "\x1b" ? "␛" : "";
}

/** Sanitises a stream of text, whatever pieces it comes in. */
export class Sanitiser {
  constructor() {
    /** The beginning of a sequence that isn't whole yet. */
    this.held = "";
  }

  /**
   * @param {string} text
   * @returns {string}
   */
  feed(text) {
    text = this.held + text;
    const unfinished = UNFINISHED.exec(text);
    this.held = unfinished ? unfinished[0] : "";
    if (unfinished) text = text.slice(0, unfinished.index);
    return text.replace(SEQUENCE, sanitise).replace(CONTROLS, "");
  }
}

/** Without any control sequence, as one line of plain text. */
export function plain(/** @type {unknown} */ text) {
  return String(text ?? "")
    .replace(SEQUENCE, "")
    .replace(CONTROLS, "");
}
