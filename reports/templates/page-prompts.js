// Prompt by prompt: what a cell lost against another one, worst first.
VIEWS.prompts = {
  title: "Prompts",
  build(panel) {
    let metric = null;
    const model = groupSelect();
    const cell = select("Cell", [], "", (to) => go({ b: to }));
    const base = select("Against", [], "", (to) => go({ a: to }));
    const figures = select("Loss in", [], "", (to) => { metric = to; this.update(); });
    const place = el("div"), hint = el("p", { class: "hint" });
    panel.append(el("div", { class: "controls" }, model.node, cell.node, base.node, figures.node), hint, place);
    this.update = () => {
      model.control.value = state.group;
      cell.fill(cellOptions(), state.b);
      base.fill(cellOptions(), state.a);
      const b = inGroup(state.b, state.group), a = inGroup(state.a, state.group);
      if (!b) { place.replaceChildren("There is no cell."); return; }
      const known = Object.keys(detail(b).prompts);
      if (!known.includes(metric)) metric = known.includes("psnr") ? "psnr" : known[0] ?? null;
      figures.fill(known.map((key) => [key, label(key)]), metric);
      const worse = a === b ? null : metric && detail(a).prompts[metric];
      hint.textContent = metric === null ? "This cell has no figures per prompt."
        : worse ? `Loss: how much worse than ${name(a)} on the same prompt and noise.`
          : `Worst ${label(metric)} first${a.reference ? "; it already compares with the reference" : ""}.`;
      const found = promptRows(b, metric, worse);
      const table = promptTable(a, b, metric, known, Boolean(worse));
      table.set(found, `${found.length} prompts, worst first`);
      place.replaceChildren(table.node);
    };
  },
};

const label = (key) => (COLUMN.has(key) ? COLUMN.get(key).label : key);
const lowerIsBetter = (key) => COLUMN.has(key) && COLUMN.get(key).better === "lower";
/**
 * A row per prompt of cell b: how much worse its figure is than the other cell's, null where that cannot be told.
 * Without another cell's figures it is the figure itself, negative where higher is better.
 */
function promptRows(b, metric, against) {
  const sign = lowerIsBetter(metric) ? 1 : -1;
  const own = detail(b).prompts[metric] || [], count = Math.max(own.length, detail(b).images.length);
  return Array.from({ length: count }, (_, prompt) => {
    const x = own[prompt] ?? null, y = against ? against[prompt] ?? null : 0;
    return { prompt, loss: x === null || y === null ? null : sign * (x - y) };
  });
}
function promptTable(a, b, metric, known, paired) {
  const at = (cell, key, prompt) => detail(cell).prompts[key]?.[prompt] ?? null;
  const column = COLUMN.get(metric);
  const compare = (row) => go({ view: "compare", prompt: row.prompt });
  const thumb = (cell) => (row) => picture(cell, row.prompt, { class: "thumb", loading: "lazy" });
  const columns = [
    { key: "prompt", label: "#", value: (row) => row.prompt, cell: (row) => String(row.prompt + 1) },
    { key: "text", label: "Prompt", words: true, value: (row) => caption(b.group, row.prompt), cell: (row) => button(caption(b.group, row.prompt), () => compare(row), { class: "link wrap" }) },
    { key: "a", label: name(a), value: null, cell: thumb(a) },
    { key: "b", label: name(b), value: null, cell: thumb(b) },
    ...(paired ? [{ key: "loss", label: `${label(metric)} lost`, value: (row) => row.loss, cell: (row) => written(column, row.loss) }] : []),
    ...known.map((key) => ({
      key: `is ${key}`,
      label: label(key) + (COLUMN.has(key) ? arrow(COLUMN.get(key)) : ""),
      value: (row) => at(b, key, row.prompt),
      cell: (row) => written(COLUMN.get(key), at(b, key, row.prompt)),
    })),
  ];
  const sort = paired ? { sort: "loss", down: true } : { sort: `is ${metric}`, down: lowerIsBetter(metric) };
  return sortable(columns, { label: "Prompts", ...sort });
}
