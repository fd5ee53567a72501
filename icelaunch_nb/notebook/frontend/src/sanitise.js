/**
 * What a rank prints is text, never orders to the page: colours, carriage returns and cursor movement within the last lines pass;
 * titles, links, clipboard writes, device queries, screen switches and everything else a terminal would obey is shown or dropped.
 */

/** CSI sequences that pass: SGR (m), cursor up/down/right/left/column, erase in line, erase below. */
const PASSES = /^\x1b\[[0-9;:]{0,64}[mABCDGK]$|^\x1b\[0?J$/;

/** One control sequence, whole: OSC/DCS/APC/PM/SOS with its end, CSI, or a short escape. */
const SEQUENCE =
  /\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[ -/]*[0-OQ-WYZ`-~]|\x1b/g;

/** The beginning of one at the end of a text; what isn't whole within this length is no sequence. */
const UNFINISHED =
  /\x1b(?:[\]PX^_][^\x07\x1b\x9c]{0,4096}\x1b?|\[[0-?]{0,64}[ -/]{0,8}|[ -/]{0,4})?$/;

/** Controls that do nothing in a log: C0 without \t \n \r \b and ESC, DEL, and C1, which some terminals obey as well. */
const CONTROLS = /[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]/g;

/** What neither moves nor shows anything: other CSI, and charsets and the like, as in `tput sgr0`. */
const DUMB = /^\x1b[[ -/]/;

/** Hyperlinks are the one harmless and common OSC: their text stays, the link doesn't. */
const LINK = /^\x1b\]8;/;

/**
 * @param {string} sequence
 * @returns {string}
 */
function tame(sequence) {
  if (PASSES.test(sequence)) return sequence;
  if (LINK.test(sequence) || DUMB.test(sequence)) return "";
  if (sequence.length > 2)
    return sequence
      .replace(/\x1b\\$/, "")
      .replaceAll("\x1b", "␛")
      .replace(/\x07/g, "");
  return sequence === "\x1b" ? "␛" : "";
}

/** Makes a stream of text harmless, whatever pieces it comes in. */
export class Sanitiser {
  constructor() {
    /** The beginning of a sequence that isn't whole yet. */
    this.held = "";
  }

  /**
   * @param {string} text
   * @returns {string}
   */
  take(text) {
    text = this.held + text;
    const unfinished = UNFINISHED.exec(text);
    this.held = unfinished ? unfinished[0] : "";
    if (unfinished) text = text.slice(0, unfinished.index);
    return text.replace(SEQUENCE, tame).replace(CONTROLS, "");
  }
}

/** Without any control sequence, as one line of plain text. */
export function plain(/** @type {unknown} */ text) {
  return String(text ?? "")
    .replace(SEQUENCE, "")
    .replace(CONTROLS, "");
}
