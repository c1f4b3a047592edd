// The leaderboard: one table for each protocol, under filters they share; a row opens all that is known of it.
const BOARDS = DATA.boards;
const TIMES_SHOWN = 60;

/** A control that keeps the rows whose `get` is what was chosen. */
function pick(label, get, change) {
  const values = [...new Set(CELLS.map(get))].sort((x, y) => x.localeCompare(y, "en", { numeric: true }));
  const chooser = select(label, [["", "all"], ...values.map((text) => [`=${text}`, text])], "", change);
  return { node: chooser.node, keeps: (cell) => !chooser.control.value || chooser.control.value === `=${get(cell)}` };
}
const searched = new Map(CELLS.map((cell) => [cell, [
  cell.label, cell.bits, ...cell.values.filter((x) => typeof x === "string"),
].join(" ").toLowerCase()]));

const shownColumns = DATA.columns.filter((column) => column.shown);
const tables = BOARDS.map((board) => sortable([
  { key: "", label: "Method", words: true, value: (cell) => cell.label,
    cell: (cell) => button(cell.label + (cell.reconstruction ? " †" : ""), () => openRow(cell), { class: "link" }) },
  ...shownColumns.map((column) => ({
    key: column.key,
    label: columnLabel(column) + arrow(column),
    words: column.digits === null,
    value: (cell) => value(cell, column.key),
    cell: (cell) => figure(cell, column),
  })),
], { label: `Rows of ${board.name}`, rowClass: (cell) => (cell.reference ? "reference" : null) }));

const words = el("input", { type: "search", placeholder: "e.g. svdquant w4", on: { input: apply } });
const older = el("input", { type: "checkbox", id: "older", on: { change: apply } });
const picks = [
  pick("Model", (cell) => String(value(cell, "model")), apply),
  pick("Method", (cell) => cell.label, apply),
  pick("Bits", (cell) => cell.bits, apply),
];
function apply() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const kept = CELLS.filter((cell) => (older.checked || cell.newest) && picks.every((one) => one.keeps(cell))
    && wanted.every((word) => searched.get(cell).includes(word)));
  BOARDS.forEach((board, index) => {
    const rows = kept.filter((cell) => cell.board === index);
    const all = CELLS.filter((cell) => cell.board === index && (older.checked || cell.newest)).length;
    tables[index].set(rows, `${rows.length} of ${all} rows`);
  });
}

/** The dialog with everything known of a row, and of what became of its cell. */
function openRow(cell) {
  const dialog = document.getElementById("cell");
  const rows = DATA.columns.map((column) => [columnLabel(column), figure(cell, column)]).filter(([, text]) => text !== MISSING);
  const past = CELLS.filter((other) => other.board === cell.board && other.series === cell.series);
  dialog.replaceChildren(
    el("h2", { id: "cell-title" }, `${name(cell)} on ${value(cell, "model")}`),
    el("p", { class: "actions" }, button("Close", () => dialog.close(), { autofocus: true })),
    definitions(rows),
    el("h3", {}, "History"),
    ...(past.length > 1 ? history(past) : [el("p", {}, "One row so far.")]),
    el("h3", {}, "Made with"),
    definitions(Object.entries(cell.made)),
    el("h3", {}, "Settings"),
    definitions(Object.entries(cell.config).map(([key, x]) => [key, JSON.stringify(x)])),
  );
  dialog.showModal();
}
const definitions = (pairs) => el("dl", {}, ...pairs.flatMap(([key, text]) => [el("dt", {}, key), el("dd", {}, String(text))]));

/** A figure from row to row: a choice of figures, a line, and the rows as text. */
function history(rows) {
  const offered = DATA.columns.filter((column) => column.axis && rows.filter((cell) => isNumber(value(cell, column.key))).length > 1);
  if (!offered.length) return [el("p", {}, `${rows.length} rows; none has figures.`)];
  const first = offered.find((column) => column.key === "psnr") || offered[0];
  const place = el("figure");
  const draw = (key) => place.replaceChildren(line(rows, COLUMN.get(key)), el("figcaption", {}, ...rows.slice(-TIMES_SHOWN).map((cell) =>
    el("span", {}, `${value(cell, "added")}, ${value(cell, "commit")}: ${figure(cell, COLUMN.get(key))}`))));
  draw(first.key);
  return [select("Figure", offered.map((column) => [column.key, columnLabel(column)]), first.key, draw).node, place];
}
function line(rows, column) {
  const points = rows.map((cell, index) => [index, value(cell, column.key)]).filter(([, y]) => isNumber(y));
  const ys = points.map(([, y]) => y), low = Math.min(...ys), high = Math.max(...ys);
  const [width, height, edge] = [600, 160, 18], room = high - low || 1;
  const at = ([x, y]) => [edge + (x / Math.max(1, rows.length - 1)) * (width - 2 * edge), height - edge - ((y - low) / room) * (height - 2 * edge)];
  const text = `${columnLabel(column)} over ${points.length} rows: ${written(column, low)} to ${written(column, high)}`;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "plot tone-0", role: "img", "aria-label": text },
    svg("path", { class: "join", d: points.map((point, index) => `${index ? "L" : "M"}${at(point).map((x) => x.toFixed(1)).join(" ")}`).join("") }),
    ...points.map((point) => svg("circle", { class: "shape", r: 4, cx: at(point)[0].toFixed(1), cy: at(point)[1].toFixed(1) })),
    svg("text", { x: edge, y: 12 }, text));
}

document.getElementById("summary").textContent = CELLS.length
  ? `${CELLS.length} rows; ${CELLS.filter((cell) => cell.newest).length} cells; ${BOARDS.length} ${BOARDS.length === 1 ? "protocol" : "protocols"}`
  : "The leaderboard has no rows yet.";
document.getElementById("controls").append(el("div", { class: "controls" }, field("Filter", words), ...picks.map((one) => one.node),
  el("label", {}, older, " older rows too")));
document.getElementById("boards").append(...BOARDS.map((board, index) => el("section", {},
  el("h2", {}, board.name),
  board.steps.length ? el("details", { class: "steps", open: board.steps.length < 20 },
    el("summary", {}, `${board.steps.length} ${board.steps.length === 1 ? "step" : "steps"} in its history`),
    el("ul", {}, ...board.steps.map((step) => el("li", {}, step)))) : null,
  tables[index].node)));
document.getElementById("notes").append(...DATA.notes.map((note) => el("li", {}, note)));
apply();
