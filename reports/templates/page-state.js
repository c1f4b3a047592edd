// What is being looked at. It lives in the address after #, so that a link or the back button leads to it.
const VIEWS = {};
const state = { view: "grid", group: 0, a: null, b: null, prompt: 0, mode: "side" };
const LISTENERS = {};

const inGroup = (key, group) => (CELL.has(key) && CELL.get(key).group === group ? CELL.get(key) : null);
/** Keep the state within what there is: addresses are typed by hand, too. */
function settle() {
  if (!Object.hasOwn(VIEWS, state.view)) state.view = "grid";
  if (!(state.group in GROUPS)) state.group = 0;
  const own = members(state.group);
  const worst = own.filter((cell) => !cell.reference && value(cell, "state") === "ok");
  if (!inGroup(state.a, state.group)) state.a = (own.find((cell) => cell.reference) || own[0] || { key: null }).key;
  if (!inGroup(state.b, state.group)) state.b = (worst[0] || own[1] || own[0] || { key: null }).key;
  const last = GROUPS.length ? Math.max(0, GROUPS[state.group].prompts - 1) : 0;
  state.prompt = Number.isInteger(state.prompt) ? Math.min(Math.max(0, state.prompt), last) : 0;
  if (!["side", "slider", "blink", "difference"].includes(state.mode)) state.mode = "side";
}
function parse() {
  const [view, rest = ""] = location.hash.slice(1).split("?");
  const given = new URLSearchParams(rest);
  if (view) state.view = view;
  for (const key of ["a", "b", "mode"]) if (given.has(key)) state[key] = given.get(key);
  if (given.has("group")) state.group = Number(given.get("group"));
  if (given.has("prompt")) state.prompt = Number(given.get("prompt")) - 1;
}
function address() {
  const { view, group, a, b, prompt, mode } = state;
  if (!["prompts", "compare", "layers", "steps", "pareto"].includes(view)) return `#${view}`;
  const fields = { group, a: a ?? "", b: b ?? "", prompt: prompt + 1, mode };
  return `#${view}?${new URLSearchParams(fields)}`;
}
/** Change the state and show it. A new view is a step of the history; a change within one is not. */
function go(changes) {
  const view = state.view;
  Object.assign(state, changes);
  settle();
  const to = address();
  if (state.view !== view) location.hash = to;
  else if (location.hash !== to) location.replace(to);
  show();
}

function show() {
  for (const [key, view] of Object.entries(VIEWS)) {
    const on = key === state.view;
    view.panel.hidden = !on;
    view.tab.setAttribute("aria-selected", on);
    view.tab.tabIndex = on ? 0 : -1;
    if (!on && view.leave) view.leave();
  }
  const view = VIEWS[state.view];
  if (!view.built) { view.build(view.panel); view.built = true; }
  if (view.update) view.update();
}
function groupSelect() {
  const options = GROUPS.map((group, index) => [String(index), groupName(group)]);
  return select("Model", options, state.group, (to) => go({ group: Number(to) }));
}
function cellOptions(filter = () => true) {
  return members(state.group).filter(filter).map((cell) => [cell.key, name(cell)]);
}
