/**
 * What every panel carries with it: a few lines that ask the kernel for the panel's code, once for all panels of a page.
 *
 * A widget's code is part of its state, and a client that executes notebooks (nbclient, papermill) saves the states of all widgets: half
 * a megabyte for each run, if the whole panel were in there.
 */

/** @type {Map<string, Promise<any>>} the code's modules on this page, by version */
const page = (/** @type {any} */ (globalThis).icelaunchPanels ??= new Map());

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
      panel = code(model).then((module) => module.default());
      return later((made) => made.initialize({ model }));
    },
    /** @param {{ model: any, el: HTMLElement }} context */
    render: ({ model, el }) => later((made) => made.render({ model, el })),
  };
};

/** @param {any} model @returns {Promise<any>} the panel's module */
async function code(model) {
  const version = model.get("version");
  const known = page.get(version);
  if (known) return known;
  return new Promise((resolve) => {
    const hears = (/** @type {{ kind: string }} */ message, /** @type {DataView[]} */ [script, style] = []) => {
      if (message.kind !== "code") return;
      model.off("msg:custom", hears);
      if (!page.has(version)) {
        const element = document.createElement("style");
        element.textContent = new TextDecoder().decode(style);
        document.head.append(element);
        page.set(version, import(URL.createObjectURL(new Blob([/** @type {DataView<ArrayBuffer>} */ (script)], { type: "text/javascript" }))));
      }
      resolve(page.get(version));
    };
    model.on("msg:custom", hears);
    model.send({ do: "code" });
  });
}
