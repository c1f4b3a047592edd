// Tables that sort on a click or on Enter. Sorting and filtering look at all rows and lay out the first ones, so
// that they take as long with thousands of rows as with a hundred; a button lays out the rest.
const CHUNK = 100;

/**
 * A table of `columns`: {key, label, words, value(row), cell(row)}. `cell` gives text or a node, `value`
 * what the column sorts by, unless it is null; a missing one comes last in either direction.
 */
function sortable(columns, { label, sort = null, down = false, rowClass = () => null }) {
  const drawn = new Map();
  let rows = [], shown = CHUNK;
  const body = el("tbody");
  const heads = columns.map((column) =>
    el("th", { scope: "col", class: column.words ? "words" : null },
      column.value ? button(column.label, () => order(column.key, by === column.key ? !descending : false)) : column.label));
  const count = el("p", { class: "count", role: "status" });
  const more = button("", () => { shown = Infinity; fill(); }, { class: "more" });
  const table = el("table", { "aria-label": label }, el("thead", {}, el("tr", {}, ...heads)), body);
  const node = el("div", {}, count, el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label }, table), more);
  let by = sort, descending = down;

  function line(row) {
    let tr = drawn.get(row);
    if (!tr) {
      tr = el("tr", { class: rowClass(row) }, ...columns.map((column, index) =>
        el(index ? "td" : "th", { class: column.words ? "words" : null, scope: index ? null : "row" }, column.cell(row))));
      drawn.set(row, tr);
    }
    return tr;
  }
  function sorted() {
    const column = columns.find((candidate) => candidate.key === by);
    if (!column) return rows;
    const sign = descending ? -1 : 1;
    const keyed = rows.map((row) => [column.value(row), row]);
    keyed.sort(([x], [y]) => {
      const nothing = (x === null || x === undefined) - (y === null || y === undefined);
      if (nothing || x === null || x === undefined) return nothing;
      return sign * (isNumber(x) && isNumber(y) ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
    });
    return keyed.map(([, row]) => row);
  }
  function fill() {
    const all = sorted(), first = all.slice(0, shown);
    body.replaceChildren(...first.map(line));
    heads.forEach((head, index) => {
      if (columns[index].key === by) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    more.hidden = first.length === all.length;
    more.textContent = `Show all ${all.length} rows`;
  }
  function order(key, isDown) { by = key; descending = isDown; shown = CHUNK; fill(); }
  return {
    node,
    order,
    /** Show these rows; `text` says what they are. */
    set(next, text) { rows = next; count.textContent = text; shown = CHUNK; fill(); },
  };
}
