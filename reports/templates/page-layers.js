// Layer by layer: what each holds, and every figure the method left about it, its error where it recorded one.
VIEWS.layers = {
  title: "Layers",
  build(panel) {
    let bar = "stored_bits";
    const model = groupSelect();
    const cell = select("Cell", [], "", (to) => go({ b: to }));
    const bars = select("Bars", [], "", (to) => { bar = to; this.update(); });
    const chart = el("div", { class: "bars", role: "img" }), place = el("div"), hint = el("p", { class: "hint" });
    panel.append(el("div", { class: "controls" }, model.node, cell.node, bars.node), hint, chart, place);
    this.update = () => {
      model.control.value = state.group;
      cell.fill(cellOptions(), state.b);
      const b = inGroup(state.b, state.group), layers = b ? detail(b).layers : [];
      const columns = layerColumns(layers);
      const figures = columns.filter((column) => !column.words);
      if (!figures.some((column) => column.key === bar)) bar = "stored_bits";
      bars.fill(figures.map((column) => [column.key, column.label]), bar);
      const errors = columns.filter((column) => /error|mse/i.test(column.key));
      hint.textContent = !layers.length ? "This cell has no ledger of layers: nothing in it is quantized, or it failed before."
        : `${layers.length} quantized layers. Stored bits: bits per weight of codes, scales, tables and branches, biases left out. ${errors.length ? "" : "The method recorded no error per layer."}`;
      chart.replaceChildren();
      place.replaceChildren();
      if (!layers.length) { chart.removeAttribute("aria-label"); return; }
      drawBars(chart, layers, figures.find((column) => column.key === bar));
      const table = sortable(columns, { label: "Layers" });
      table.set(layers, `${layers.length} layers`);
      place.append(table.node);
    };
  },
};

const short = (x) => (isNumber(x) ? String(Number.isInteger(x) ? x : Number(x.toPrecision(5))) : x === null || x === undefined ? MISSING : String(x));
/** The columns of a table of layers: what all ledgers have, bytes per part, and the method's remarks. */
function layerColumns(layers) {
  const plain = (key, label, words = false) => ({ key, label, words, value: (row) => row[key], cell: (row) => short(row[key]) });
  const inside = (part) => (key) => ({
    key: `${part} ${key}`,
    label: part === "bytes" ? `${key} (bytes)` : key,
    words: part === "note" && !layers.some((row) => isNumber(row.note[key])),
    value: (row) => row[part][key] ?? null,
    cell: (row) => short(row[part][key]),
  });
  const keys = (part) => [...new Set(layers.flatMap((row) => Object.keys(row[part])))];
  return [
    plain("name", "Layer", true), plain("role", "Role", true), plain("shape", "Shape", true), plain("weights", "Weights"),
    plain("w_bits", "W"), plain("a_bits", "A"), plain("mean_bits", "Mean code bits"), plain("stored_bits", "Stored bits"),
    ...(layers.some((row) => row.road) ? [plain("road", "Kernels", true)] : []),
    ...keys("note").map(inside("note")), ...keys("bytes").map(inside("bytes")),
  ];
}
/** One bar per layer, in the order of the denoiser. */
function drawBars(chart, layers, column) {
  const values = layers.map((row) => column.value(row));
  const most = Math.max(...values.filter(isNumber), 0) || 1;
  const width = 900, height = 160, each = width / layers.length;
  const told = (row) => `${row.name} (${row.role}): ${column.label} ${short(column.value(row))}`;
  chart.setAttribute("aria-label", `${column.label} of ${layers.length} layers, at most ${short(most)}`);
  const bars = layers.map((row, index) => {
    const tall = isNumber(values[index]) ? (height * values[index]) / most : 0;
    return svg("rect", { x: index * each, width: Math.max(0.5, each - Math.min(1, each / 4)), y: height - tall, height: tall }, svg("title", {}, told(row)));
  });
  chart.append(el("p", { class: "count" }, `${column.label}, layers in order; tallest ${short(most)}`), svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": true }, ...bars));
}
