// The grid: every cell, filtered by words and by what there is to choose from.
VIEWS.grid = {
  title: "Grid",
  build(panel) {
    let chosen = new Set(DATA.columns.filter((column) => column.shown).map((column) => column.key));
    let table = null;
    const words = el("input", { type: "search", placeholder: "e.g. svdquant w4", on: { input: apply } });
    const distinct = (get) => [...new Set(CELLS.map(get))].sort((x, y) => String(x).localeCompare(String(y), "en", { numeric: true }));
    const pick = (label, get) => {
      const values = distinct(get).map(String);
      const chooser = select(label, [["", "all"], ...values.map((text) => [`=${text}`, text])], "", apply);
      return { ...chooser, keeps: (cell) => !chooser.control.value || chooser.control.value === `=${get(cell)}` };
    };
    const picks = [
      pick("Model", (cell) => groupName(GROUPS[cell.group])),
      pick("Method", (cell) => cell.label),
      pick("Bits", (cell) => cell.bits),
      pick("State", (cell) => value(cell, "state")),
    ];
    const haystack = new Map(CELLS.map((cell) => [cell, [
      cell.key, cell.label, cell.bits, ...cell.values.filter((x) => typeof x === "string"),
    ].join(" ").toLowerCase()]));
    function apply() {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = CELLS.filter((cell) => picks.every((one) => one.keeps(cell)) && wanted.every((word) => haystack.get(cell).includes(word)));
      table.set(rows, `${rows.length} of ${CELLS.length} cells`);
    }
    const place = el("div");
    function rebuild() {
      const columns = DATA.columns.filter((column) => chosen.has(column.key));
      table = sortable([
        { key: "", label: "Method", words: true, value: (cell) => cell.label, cell: openButton },
        ...columns.map((column) => ({
          key: column.key,
          label: columnLabel(column) + arrow(column),
          words: column.digits === null,
          value: (cell) => value(cell, column.key),
          cell: (cell) => (column.key === "state" ? stateText(cell) : figure(cell, column)),
        })),
      ], { label: "Cells", rowClass: (cell) => (cell.reference ? "reference" : null) });
      place.replaceChildren(table.node);
      apply();
    }
    const boxes = DATA.columns.map((column) => el("label", {}, el("input", {
      type: "checkbox", checked: chosen.has(column.key),
      on: { change: (event) => { chosen[event.target.checked ? "add" : "delete"](column.key); rebuild(); } },
    }), ` ${columnLabel(column)}`));
    panel.append(
      el("div", { class: "controls" }, field("Filter", words), ...picks.map((one) => one.node)),
      el("details", { class: "columns" }, el("summary", {}, "Columns"), el("div", {}, ...boxes)),
      place,
      el("p", { class: "hint" }, "A heading sorts; a method's name opens everything known of that cell. [lo, hi]: 95 % interval over the prompts; for times the quartiles."),
    );
    rebuild();
  },
};
const openButton = (cell) => button(cell.label + (cell.reconstruction ? " †" : ""), () => openCell(cell), { class: "link" });
function stateText(cell) {
  const text = value(cell, "state");
  return text === "ok" ? text : el("strong", { class: "failed" }, text);
}

/** The dialog with everything known of a cell. */
function openCell(cell) {
  const dialog = document.getElementById("cell");
  const leave = (changes) => () => { dialog.close(); go({ group: cell.group, ...changes }); };
  const reference = members(cell.group).find((other) => other.reference);
  const rows = DATA.columns.map((column) => [columnLabel(column), figure(cell, column)]).filter(([, text]) => text !== MISSING);
  const settings = Object.entries(cell.config).map(([key, x]) => [key, JSON.stringify(x)]);
  dialog.replaceChildren(...[
    el("h2", { id: "cell-title" }, `${name(cell)} on ${groupName(GROUPS[cell.group])}`),
    cell.message ? el("p", { class: "failed" }, cell.message) : null,
    el("p", { class: "actions" },
      button("Compare images", leave({ view: "compare", a: reference ? reference.key : cell.key, b: cell.key })),
      button("Worst prompts", leave({ view: "prompts", b: cell.key })),
      button("Layers", leave({ view: "layers", b: cell.key })),
      button("Close", () => dialog.close(), { autofocus: true })),
    definitions(rows),
    settings.length ? el("h3", {}, "Settings") : "",
    definitions(settings),
    el("h3", {}, "Environment"),
    definitions(flatten(DATA.environments[cell.environment])),
    cell.log ? el("h3", {}, "Log") : "",
    cell.log ? el("pre", { tabindex: 0 }, cell.log) : "",
  ].filter(Boolean));
  dialog.showModal();
}
const definitions = (pairs) => el("dl", {}, ...pairs.flatMap(([key, text]) => [el("dt", {}, key), el("dd", {}, String(text))]));
/** Nested objects as [path, text] pairs. */
function flatten(object, prefix = "") {
  return Object.entries(object ?? {}).flatMap(([key, x]) =>
    (x !== null && typeof x === "object" && !Array.isArray(x) ? flatten(x, `${prefix}${key} · `)
      : [[prefix + key, x === null ? "none" : Array.isArray(x) ? JSON.stringify(x) : String(x)]]));
}
