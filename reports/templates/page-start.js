// Tabs, footnotes; then the view that the address names.
const tabs = document.getElementById("tabs"), views = document.getElementById("views");
for (const [key, view] of Object.entries(VIEWS)) {
  view.tab = button(view.title, () => go({ view: key }), { role: "tab", id: `tab-${key}`, "aria-controls": key });
  view.panel = el("section", { id: `view-${key}`, role: "tabpanel", "aria-labelledby": `tab-${key}`, hidden: true });
  view.tab.setAttribute("aria-controls", view.panel.id);
  if (view.count) view.tab.append(" ", el("span", { class: "badge" }, String(view.count())));
  tabs.append(view.tab);
  views.append(view.panel);
}
tabs.addEventListener("keydown", (event) => {
  const keys = Object.keys(VIEWS), at = keys.indexOf(state.view);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: keys.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  go({ view: keys[(to + keys.length) % keys.length] });
  VIEWS[state.view].tab.focus();
});

const failed = CELLS.filter((cell) => value(cell, "state") !== "ok").length;
const prompts = Math.max(0, ...GROUPS.map((group) => group.prompts));
document.getElementById("summary").textContent = CELLS.length
  ? `${CELLS.length} cells, ${failed ? `${failed} failed` : "none failed"}; up to ${prompts} prompts each`
  : "No cell is finished yet.";
document.getElementById("notes").append(...DATA.notes.map((note) => el("li", {}, note)));

window.addEventListener("hashchange", () => {
  if (location.hash === address()) return;
  parse();
  settle();
  show();
});
parse();
settle();
show();
