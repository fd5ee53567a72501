/**
 * Updates the static summaries in the notebook's model, which Jupyter saves.
 *
 * The kernel updates outputs by their display ids. Jupyter forgets these when the page is loaded
 * again, and would then save an old summary for good. A front end without Jupyter's notebook model
 * has nothing to update here.
 */

/** @param {any} html a text, or its lines */
const joined = (html) => (Array.isArray(html) ? html.join("") : String(html ?? ""));

/**
 * Replaces the summary in each output that holds an older one of the same panel.
 * @param {any} model the panel's
 * @param {Record<string, any>} data by MIME type
 */
export function updateSavedOutputs(model, data) {
  const cells = model.widget_manager?.context?.model?.cells;
  const mountClass = model.get("mount_class");
  for (let number = 0; number < (cells?.length ?? 0); number += 1) {
    const outputs = cells.get(number)?.outputs;
    for (let at = 0; at < (outputs?.length ?? 0); at += 1) {
      const output = outputs.get(at);
      const html = joined(output.data?.["text/html"]);
      if (html.includes(mountClass) && html !== joined(data["text/html"]))
        outputs.set(at, { ...output.toJSON(), data });
    }
  }
}
