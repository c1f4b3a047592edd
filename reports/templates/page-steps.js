// Error of the denoiser at each step of the sampler: one line per cell, in decibels.
const ALL = "all";
const decibels = (x) => (isNumber(x) && x > 0 ? -10 * Math.log10(x) : null);

VIEWS.steps = {
  title: "Steps",
  build(panel) {
    const hidden = new Set();
    let width = null;
    const model = groupSelect();
    const bits = select("Weight bits", [], "", (to) => { width = to; this.update(); });
    const legend = el("div", { class: "legend", role: "group", "aria-label": "Cells" });
    const place = el("div", { class: "plots" }), readout = el("p", { class: "readout", role: "status" }), list = el("div");
    const hint = el("p", { class: "hint" });
    panel.append(el("div", { class: "controls" }, model.node, bits.node), hint, legend, place, readout, list);
    this.update = () => {
      model.control.value = state.group;
      const own = members(state.group).filter((cell) => cell.steps.length);
      const widths = [...new Set(own.map((cell) => String(value(cell, "wbits"))))].sort((x, y) => x - y);
      if (width === null || ![ALL, ...widths].includes(width)) width = widths[0] ?? ALL;
      bits.fill([...widths.map((x) => [x, `W${x}`]), [ALL, "all"]], width);
      const cells = own.filter((cell) => width === ALL || String(value(cell, "wbits")) === width);
      hint.textContent = own.length
        ? "The quantized denoiser is asked what the 16-bit one was asked on its way to the first prompts' images. Signal to error of its prediction: 20 dB is 1 % of the squared length, and higher is better."
        : "No cell of this model has its error by step.";
      const tones = new Map(cells.map((cell, index) => [cell, `tone-${index % COLOURS}`]));
      legend.replaceChildren(...cells.map((cell) => button("", () => {
        hidden[hidden.has(cell.key) ? "delete" : "add"](cell.key);
        this.update();
        legend.children[cells.indexOf(cell)].focus();
      }, { "aria-pressed": !hidden.has(cell.key) })));
      cells.forEach((cell, index) => legend.children[index].append(
        svg("svg", { viewBox: "-12 -12 24 24", width: 14, height: 14, "aria-hidden": true, class: tones.get(cell) }, svg("path", { d: SHAPES[1] })), ` ${name(cell)}`));
      readout.textContent = "";
      const shown = cells.filter((cell) => !hidden.has(cell.key));
      place.replaceChildren(...(shown.length ? [stepPlot(shown, tones, readout)] : []));
      list.replaceChildren(...(cells.length ? [stepTable(cells)] : []));
    };
  },
};

/** Lines over the steps; steps whose error is zero or unknown are gaps. */
function stepPlot(cells, tones, readout) {
  const xColumn = { label: "Sampling step", unit: "" }, yColumn = { label: "Signal to error", unit: "dB", better: "higher" };
  const known = cells.flatMap((cell) => cell.steps.map(decibels)).filter(isNumber);
  const longest = Math.max(...cells.map((cell) => cell.steps.length));
  if (!known.length) return el("p", {}, "No step differs from the reference.");
  const x = scale([1, longest], LEFT, WIDTH - RIGHT), y = scale(known, HEIGHT - BOTTOM, TOP);
  x.ticks = x.ticks.filter(Number.isInteger);
  const title = "Signal to error of the prediction by sampling step";
  const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": title, class: "plot" });
  drawAxes(root, x, y, xColumn, yColumn);
  for (const cell of cells) {
    const points = cell.steps.map((error, index) => [index + 1, decibels(error)]);
    let pen = "M";
    const d = points.map(([step, height]) => {
      if (height === null) { pen = "M"; return ""; }
      const part = `${pen}${x.at(step).toFixed(1)} ${y.at(height).toFixed(1)}`;
      pen = "L";
      return part;
    }).join("");
    const text = stepText(cell);
    const tell = () => { readout.textContent = text; };
    const open = () => openCell(cell);
    const key = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } };
    root.append(svg("g", { class: `line ${tones.get(cell)}`, tabindex: 0, role: "button", "aria-label": text, on: { focus: tell, pointerenter: tell, click: open, keydown: key } },
      svg("path", { class: "reach", d }), svg("path", { class: "join", d }),
      ...points.filter(([, height]) => height !== null).map(([step, height]) => svg("circle", { cx: x.at(step), cy: y.at(height), r: 2.5 }))));
  }
  return el("figure", {}, root, el("figcaption", {}, title));
}
function stepFigures(cell) {
  const heights = cell.steps.map(decibels), known = heights.filter(isNumber);
  const errors = cell.steps.filter(isNumber);
  const worst = known.length ? Math.min(...known) : null;
  return {
    mean: errors.length ? decibels(errors.reduce((sum, error) => sum + error, 0) / errors.length) : null,
    worst, at: worst === null ? null : heights.indexOf(worst) + 1, first: heights[0] ?? null, last: heights.at(-1) ?? null,
  };
}
function stepText(cell) {
  const found = stepFigures(cell);
  return found.worst === null ? `${name(cell)}: no step differs`
    : `${name(cell)}: ${found.mean.toFixed(1)} dB over all steps, worst ${found.worst.toFixed(1)} dB at step ${found.at} of ${cell.steps.length}`;
}
function stepTable(cells) {
  const figures = new Map(cells.map((cell) => [cell, stepFigures(cell)]));
  const column = (key, text, digits) => ({
    key, label: text, value: (cell) => figures.get(cell)[key],
    cell: (cell) => (isNumber(figures.get(cell)[key]) ? figures.get(cell)[key].toFixed(digits) : MISSING),
  });
  const columns = [
    { key: "name", label: "Cell", words: true, value: name, cell: (cell) => button(name(cell), () => openCell(cell), { class: "link" }) },
    column("mean", "All steps (dB)", 1), column("worst", "Worst step (dB)", 1), column("at", "Worst at", 0),
    column("first", "First step (dB)", 1), column("last", "Last step (dB)", 1),
  ];
  const table = sortable(columns, { label: "Error by step", sort: "mean", down: true });
  table.set(cells, `${cells.length} cells`);
  return table.node;
}
