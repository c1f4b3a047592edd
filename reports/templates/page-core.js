// Data, and the making of elements. Text from the data only ever becomes a text node or an attribute's value.
const DATA = JSON.parse(document.getElementById("page-data").textContent);
const CELLS = DATA.cells, GROUPS = DATA.groups, GALLERY = DATA.gallery;
const COLUMN = new Map(DATA.columns.map((column, index) => [column.key, { ...column, index }]));
const CELL = new Map(CELLS.map((cell, index) => [cell.key, Object.assign(cell, { index })]));
const MISSING = "–";
const SVG = "http://www.w3.org/2000/svg";

const details = new Map();
/** What is only read when a cell is looked at: its values per prompt, its layers, its images. */
function detail(cell) {
  if (!details.has(cell.index)) {
    details.set(cell.index, JSON.parse(document.getElementById(`detail-${cell.index}`).textContent));
  }
  return details.get(cell.index);
}

/**
 * Make an element: `on` holds listeners, other fields are attributes; true is an empty one, false and null are none,
 * but of `aria-` ones, which say true and false in words.
 */
function make(space, tag, fields, children) {
  const node = space ? document.createElementNS(space, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(fields)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name.startsWith("aria-") && typeof value === "boolean") node.setAttribute(name, String(value));
    else if (value !== null && value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, fields = {}, ...children) => make(null, tag, fields, children);
const svg = (tag, fields = {}, ...children) => make(SVG, tag, fields, children);

const value = (cell, key) => (COLUMN.has(key) ? cell.values[COLUMN.get(key).index] : null);
const columnLabel = (column) => column.label + (column.unit ? ` (${column.unit})` : "");
const arrow = (column) => ({ higher: " ↑", lower: " ↓" })[column.better] || "";
const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

/** A figure as its column writes it. */
function written(column, x) {
  if (x === null || x === undefined || x === "") return MISSING;
  if (!isNumber(x)) return String(x);
  return column && column.digits !== null ? (x / column.scale).toFixed(column.digits) : String(x);
}

/** A figure of a cell, with its interval, or why it is missing. */
function figure(cell, column) {
  const x = value(cell, column.key);
  if (x === null) return cell.reference ? MISSING : cell.notes[column.key] || MISSING;
  const ends = cell.ends[column.key];
  const text = written(column, x);
  if (!ends) return text;
  const digits = Math.max(1, (column.digits ?? 4) - 1);
  return `${text} [${ends.map((end) => (end / column.scale).toFixed(digits)).join(", ")}]`;
}

const name = (cell) => `${cell.label} ${cell.bits}${cell.reconstruction ? " †" : ""}`;
const members = (group) => CELLS.filter((cell) => cell.group === group);
function groupName(group) {
  const several = GROUPS.filter((other) => other.model === group.model).length > 1;
  return several ? `${group.model} · ${group.dataset} · ${group.device}` : group.model;
}
const caption = (group, prompt) => GROUPS[group].captions[prompt] ?? `prompt ${prompt + 1}`;

/** The address of a cell's image of a prompt, or null. */
function image(cell, prompt) {
  const data = detail(cell).images[prompt];
  return data ? `data:image/webp;base64,${data}` : null;
}
function picture(cell, prompt, fields = {}) {
  const address = image(cell, prompt);
  if (!address) return el("span", { class: "no-image" }, "no image");
  const text = `${name(cell)}: ${caption(cell.group, prompt)}`;
  return el("img", { src: address, alt: text, decoding: "async", ...fields });
}

/** A labelled control. */
const field = (label, control) => el("label", { class: "field" }, el("span", {}, label), control);
/** A select of [value, text] pairs. `change` gets the value chosen. */
function select(label, options, chosen, change) {
  const control = el("select", { on: { change: () => change(control.value) } });
  const fill = (pairs, now) => {
    control.replaceChildren(...pairs.map(([key, text]) => el("option", { value: key }, text)));
    control.value = String(now);
  };
  fill(options, chosen);
  return { node: field(label, control), control, fill };
}
const button = (text, click, fields = {}) => el("button", { type: "button", on: { click }, ...fields }, text);
