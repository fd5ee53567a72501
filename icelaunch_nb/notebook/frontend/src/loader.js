/**
 * What every panel carries with it: a few lines that ask the kernel for the panel's code, once for all panels of a page.
 *
 * A widget's code is part of its state, and a client that executes notebooks (nbclient, papermill) saves the states of all widgets: half
 * a megabyte for each run, if the whole panel were in there.
 */

/** A version of the code on this page: its module, and who takes the code once a kernel sends it. @typedef {{ module: Promise<any>, take: (files: DataView[]) => void }} Code */

/** By version. @type {Map<string, Code>} */
const page = /** @type {any} */ ((globalThis).icelaunchCode ??= new Map());

const PATIENCE = 2000; // milliseconds that a panel waits for the code that another one asked for; that one's kernel may be busy, or gone

export default () => {
  /** @type {Promise<any>} */
  let panel;
  /** What is made once the code is here, unless its end comes first. @param {(made: any) => (() => void) | undefined} make */
  const later = (make) => {
    /** @type {(() => void) | undefined} */
    let end;
    let over = false;
    panel.then((made) => {
      if (!over) end = make(made);
    });
    return () => {
      over = true;
      end?.();
    };
  };
  return {
    /** @param {{ model: any }} context */
    initialize({ model }) {
      const closed = new AbortController();
      panel = code(model, closed.signal).then((module) => module.default());
      const end = later((made) => made.initialize({ model }));
      return () => {
        closed.abort();
        end();
      };
    },
    /** @param {{ model: any, el: HTMLElement }} context */
    render: ({ model, el }) => later((made) => made.render({ model, el })),
  };
};

/** @param {any} model @param {AbortSignal} closed @returns {Promise<any>} the panel's module */
function code(model, closed) {
  const version = model.get("version");
  const asked = page.get(version);
  const known = asked ?? expect();
  page.set(version, known);
  const hears = (/** @type {{ kind: string }} */ message, /** @type {DataView[]} */ files) =>
    message.kind === "code" && known.take(files);
  model.on("msg:custom", hears);
  const ask = setTimeout(() => model.send({ do: "code" }), asked ? PATIENCE : 0);
  const leave = () => {
    clearTimeout(ask);
    model.off("msg:custom", hears);
  };
  known.module.then(leave);
  closed.addEventListener("abort", leave);
  return known.module;
}

/** @returns {Code} */
function expect() {
  /** @type {(files: DataView[]) => void} */
  let take = () => {};
  const module = new Promise((resolve) => (take = resolve)).then(([script, style]) => {
    const element = document.createElement("style");
    element.textContent = new TextDecoder().decode(style);
    document.head.append(element);
    return import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  });
  return { module, take };
}
