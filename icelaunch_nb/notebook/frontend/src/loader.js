/**
 * The code in each panel's state. It requests the rest of the panel's code from the kernel, once
 * for all panels of a page.
 *
 * A widget's code is part of its state, and a client that executes notebooks (nbclient, papermill)
 * saves the states of all widgets. The whole code would be half a megabyte for each run.
 */

/**
 * One version of the panel's code on this page. `receive` is called with its files.
 * @typedef {{ module: Promise<any>, receive: (files: DataView[]) => void }} Code
 */

const globals = /** @type {any} */ (globalThis);
/** By version. @type {Map<string, Code>} */
const codes = (globals.icelaunchCode ??= new Map());

// Milliseconds that a panel waits for code that another panel requested, whose kernel may be busy
// or gone.
const CODE_TIMEOUT = 2000;

export default () => {
  /** @type {Promise<any>} */
  let panel;
  /**
   * Calls `make` once the code is loaded, unless it is ended before.
   * @param {(made: any) => (() => void) | undefined} make
   */
  const whenLoaded = (make) => {
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
      panel = loadCode(model, closed.signal).then((module) => module.default());
      const end = whenLoaded((made) => made.initialize({ model }));
      return () => {
        closed.abort();
        end();
      };
    },
    /** @param {{ model: any, el: HTMLElement }} context */
    render: ({ model, el }) => whenLoaded((made) => made.render({ model, el })),
  };
};

/** @param {any} model @param {AbortSignal} closed @returns {Promise<any>} the panel's module */
function loadCode(model, closed) {
  const version = model.get("version");
  const requested = codes.get(version);
  const code = requested ?? awaitCode();
  codes.set(version, code);
  const onMessage = (/** @type {{ kind: string }} */ message, /** @type {DataView[]} */ files) =>
    message.kind === "code" && code.receive(files);
  model.on("msg:custom", onMessage);
  const timer = setTimeout(() => model.send({ action: "load_code" }), requested ? CODE_TIMEOUT : 0);
  const stopWaiting = () => {
    clearTimeout(timer);
    model.off("msg:custom", onMessage);
  };
  code.module.then(stopWaiting);
  closed.addEventListener("abort", stopWaiting);
  return code.module;
}

/** @returns {Code} */
function awaitCode() {
  /** @type {(files: DataView[]) => void} */
  let receive = () => {};
  const module = new Promise((resolve) => (receive = resolve)).then(([script, style]) => {
    const element = document.createElement("style");
    element.textContent = new TextDecoder().decode(style);
    document.head.append(element);
    return import(URL.createObjectURL(new Blob([script], { type: "text/javascript" })));
  });
  return { module, receive };
}
