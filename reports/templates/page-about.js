// What failed, with its log; and what everything ran on.
const failures = () => CELLS.filter((cell) => value(cell, "state") !== "ok");

VIEWS.failures = {
  title: "Failures",
  count: () => failures().length,
  build(panel) {
    const found = failures();
    if (!found.length) panel.append(el("p", {}, "No cell failed."));
    panel.append(...found.map((cell) => el("article", {},
      el("h3", {}, `${name(cell)} on ${groupName(GROUPS[cell.group])}: `, el("span", { class: "failed" }, value(cell, "state"))),
      cell.message ? el("p", {}, cell.message) : null,
      cell.log ? el("pre", { tabindex: 0 }, cell.log) : el("p", { class: "hint" }, "It left no log."),
      button("Everything known of it", () => openCell(cell)))));
  },
};

VIEWS.environment = {
  title: "Environment",
  build(panel) {
    panel.append(el("h3", {}, "Protocol"), definitions(flatten(DATA.protocol)));
    DATA.environments.forEach((environment, index) => {
      const own = CELLS.filter((cell) => cell.environment === index);
      panel.append(el("h3", {}, `Environment of ${own.length} of ${CELLS.length} cells`), definitions(flatten(environment)));
      if (DATA.environments.length > 1) panel.append(el("details", {}, el("summary", {}, "Which cells"), el("ul", {}, ...own.map((cell) => el("li", {}, `${name(cell)} on ${groupName(GROUPS[cell.group])}`)))));
    });
  },
};
