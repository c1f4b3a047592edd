// The button that sets the colours.
const THEMES = { system: "light", light: "dark", dark: "system" };
const theme = document.getElementById("theme");
theme.addEventListener("click", () => {
  const next = THEMES[document.documentElement.dataset.theme || "system"];
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  theme.textContent = `Colours: ${next}`;
});
