// Quality against what it costs, in SVG: one line per method, bars for intervals, a stepped line for the front.
const WIDTH = 640, HEIGHT = 400, LEFT = 58, RIGHT = 14, TOP = 12, BOTTOM = 46;
const SHAPES = [
  "M0-9A9 9 0 1 1 0 9A9 9 0 1 1 0-9Z", "M-8-8H8V8H-8Z", "M0-10.5L10.5 0L0 10.5L-10.5 0Z", "M-9.5 7.5H9.5L0-10.5Z",
  "M-5-9H5L10 0L5 9H-5L-10 0Z", "M-9.5-7.5H9.5L0 10.5Z",
];
const COLOURS = 8;

/** About `count` round numbers from `lo` to `hi`. */
function ticks(lo, hi, count) {
  const raw = (hi - lo) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw) * power;
  const found = [];
  for (let at = Math.ceil(lo / step); at * step <= hi + step * 1e-9; at += 1) found.push(at * step);
  return found.map((x) => Number(x.toPrecision(12)));
}
/** A scale from figures to pixels, with room at both ends. */
function scale(values, from, to) {
  let lo = Math.min(...values), hi = Math.max(...values);
  const room = (hi - lo) * 0.07 || Math.abs(hi) * 0.1 || 1;
  lo -= room; hi += room;
  const at = (x) => from + ((x - lo) / (hi - lo)) * (to - from);
  return { at, ticks: ticks(lo, hi, 6) };
}
/** Points that no other one beats in both directions, by rising cost. */
function front(points, xBetter, yBetter) {
  const x = xBetter === "higher" ? -1 : 1, y = yBetter === "lower" ? -1 : 1;
  const beats = (p, q) => x * p.x <= x * q.x && y * p.y >= y * q.y && (p.x !== q.x || p.y !== q.y);
  return points.filter((q) => !points.some((p) => beats(p, q))).sort((p, q) => p.x - q.x);
}

VIEWS.pareto = {
  title: "Pareto",
  build(panel) {
    const has = (column) => CELLS.some((cell) => !cell.reference && isNumber(value(cell, column.key)));
    const costs = DATA.columns.filter((column) => column.axis === "x" && has(column));
    const goods = DATA.columns.filter((column) => column.axis === "y" && has(column));
    if (!costs.length || !goods.length) {
      panel.append(el("p", {}, "No cell has both a cost and a quality yet."));
      this.update = null;
      return;
    }
    const pairs = (columns) => columns.map((column) => [column.key, columnLabel(column) + arrow(column)]);
    const first = (columns, key) => (columns.find((column) => column.key === key) || columns[0]).key;
    const look = { y: first(goods, "psnr"), xs: [first(costs, "weight_bytes"), first(costs, "step_ms")], hidden: new Set() };
    const again = (change) => (to) => { change(to); this.update(); };
    const model = groupSelect();
    const y = select("Quality", pairs(goods), look.y, again((to) => { look.y = to; }));
    const xs = look.xs.map((key, index) => select(index ? "Cost, right" : "Cost, left", pairs(costs), key, again((to) => { look.xs[index] = to; })));
    const legend = el("div", { class: "legend", role: "group", "aria-label": "Methods" });
    const plots = el("div", { class: "plots" });
    const readout = el("p", { class: "readout", role: "status" });
    panel.append(
      el("div", { class: "controls" }, model.node, y.node, ...xs.map((x) => x.node)), legend, plots, readout,
      el("p", { class: "hint" }, "Bars: 95 % intervals of quality, quartiles of times. The number in a marker is the weight bits. Dashed: the reference. Stepped: the front, cells that no other beats in both. A marker opens its cell."),
    );
    this.update = () => {
      model.control.value = state.group;
      const cells = members(state.group).filter((cell) => !cell.reference);
      const names = [...new Set(cells.map((cell) => cell.series))];
      const series = new Map(names.map((key, index) => [key, { shape: SHAPES[index % SHAPES.length], tone: `tone-${index % COLOURS}` }]));
      legend.replaceChildren(...names.map((key) => button("", () => {
        look.hidden[look.hidden.has(key) ? "delete" : "add"](key);
        this.update();
        [...legend.children][names.indexOf(key)].focus();
      }, { "aria-pressed": !look.hidden.has(key) })));
      [...legend.children].forEach((node, index) => {
        const { shape, tone } = series.get(names[index]);
        node.append(svg("svg", { viewBox: "-12 -12 24 24", width: 14, height: 14, "aria-hidden": true, class: tone }, svg("path", { d: shape })), ` ${names[index]}`);
      });
      const visible = cells.filter((cell) => !look.hidden.has(cell.series));
      const reference = members(state.group).find((cell) => cell.reference);
      readout.textContent = "";
      plots.replaceChildren(...look.xs.map((key) => plot(visible, reference, COLUMN.get(key), COLUMN.get(look.y), series, readout)));
    };
  },
};

/** One panel: an SVG, or a line saying that there is nothing to draw. */
function plot(cells, reference, xColumn, yColumn, series, readout) {
  const put = (cell, column) => {
    const inUnits = (x) => (isNumber(x) ? x / column.scale : null);
    return { now: inUnits(value(cell, column.key)), ends: (cell.ends[column.key] || []).map(inUnits) };
  };
  const points = cells.map((cell) => ({ cell, across: put(cell, xColumn), up: put(cell, yColumn) }))
    .map(({ cell, across, up }) => ({ cell, x: across.now, y: up.now, xs: across.ends, ys: up.ends }))
    .filter((point) => isNumber(point.x) && isNumber(point.y));
  const title = `${columnLabel(yColumn)} against ${columnLabel(xColumn)}`;
  if (!points.length) return el("p", {}, `${title}: no cell has both.`);
  const level = reference && isNumber(value(reference, yColumn.key)) ? put(reference, yColumn) : null;
  const step = reference && xColumn.key === "step_ms" && isNumber(value(reference, "step_ms")) ? put(reference, xColumn) : null;
  const all = (axis, extra) => [...points.flatMap((point) => [point[axis], ...point[`${axis}s`]]), ...(extra ? [extra.now, ...extra.ends] : [])];
  const x = scale(all("x", step), LEFT, WIDTH - RIGHT), y = scale(all("y", level), HEIGHT - BOTTOM, TOP);
  const root = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": title, class: "plot" });
  drawAxes(root, x, y, xColumn, yColumn);
  const line = (tone, ...d) => svg("path", { class: tone, d: d.join("") });
  if (level) {
    if (level.ends.length) root.append(svg("rect", { class: "band", x: LEFT, width: WIDTH - LEFT - RIGHT, y: y.at(level.ends[1]), height: y.at(level.ends[0]) - y.at(level.ends[1]) }));
    root.append(line("level", `M${LEFT} ${y.at(level.now)}H${WIDTH - RIGHT}`));
  }
  if (step) root.append(line("level", `M${x.at(step.now)} ${TOP}V${HEIGHT - BOTTOM}`));
  const best = front(points, xColumn.better, yColumn.better);
  root.append(line("front", ...best.map((point, index) => (index
    ? `H${x.at(point.x)}V${y.at(point.y)}` : `M${x.at(point.x)} ${y.at(point.y)}`))));
  for (const [key, look] of series) {
    const own = points.filter((point) => point.cell.series === key).sort((p, q) => p.x - q.x);
    if (own.length > 1) root.append(line(`${look.tone} join`, `M${own.map((point) => `${x.at(point.x)} ${y.at(point.y)}`).join("L")}`));
    for (const point of own) root.append(mark(point, x, y, look, xColumn, yColumn, best.includes(point), readout));
  }
  return el("figure", {}, root, el("figcaption", {}, title));
}
function drawAxes(root, x, y, xColumn, yColumn) {
  const label = (fields, text) => svg("text", fields, String(text));
  for (const at of x.ticks) {
    const place = x.at(at);
    root.append(svg("path", { class: "rule", d: `M${place} ${TOP}V${HEIGHT - BOTTOM}` }), label({ x: place, y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, tickText(at)));
  }
  for (const at of y.ticks) {
    root.append(svg("path", { class: "rule", d: `M${LEFT} ${y.at(at)}H${WIDTH - RIGHT}` }), label({ x: LEFT - 6, y: y.at(at) + 4, "text-anchor": "end" }, tickText(at)));
  }
  root.append(
    label({ x: (LEFT + WIDTH) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, columnLabel(xColumn) + arrow(xColumn)),
    label({ transform: `translate(13 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" }, columnLabel(yColumn) + arrow(yColumn)),
  );
}
const tickText = (at) => String(Number(at.toPrecision(4)));
function mark(point, x, y, look, xColumn, yColumn, best, readout) {
  const cell = point.cell, px = x.at(point.x), py = y.at(point.y);
  const text = `${name(cell)}: ${columnLabel(yColumn)} ${figure(cell, yColumn)}; ${columnLabel(xColumn)} ${figure(cell, xColumn)}${best ? "; on the front" : ""}`;
  const bars = [];
  if (point.ys.length) bars.push(`M${px} ${y.at(point.ys[0])}V${y.at(point.ys[1])}M${px - 4} ${y.at(point.ys[0])}h8M${px - 4} ${y.at(point.ys[1])}h8`);
  if (point.xs.length) bars.push(`M${x.at(point.xs[0])} ${py}H${x.at(point.xs[1])}M${x.at(point.xs[0])} ${py - 4}v8M${x.at(point.xs[1])} ${py - 4}v8`);
  const tell = () => { readout.textContent = text; };
  const open = () => openCell(cell);
  const key = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } };
  return svg("g", { class: `mark ${look.tone}`, tabindex: 0, role: "button", "aria-label": text, on: { focus: tell, pointerenter: tell, click: open, keydown: key } },
    svg("path", { class: "bars", d: bars.join("") }),
    svg("path", { class: "shape", d: look.shape, transform: `translate(${px} ${py})` }),
    svg("text", { x: px, y: py + 3.6, "text-anchor": "middle" }, String(value(cell, "wbits"))));
}
