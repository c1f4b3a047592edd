// Two cells on the same prompt and the same noise: beside each other, under a slider, blinking, or subtracted.
const MODES = { side: "Side by side", slider: "Slider", blink: "Blink", difference: "Difference" };

VIEWS.compare = {
  title: "Compare",
  build(panel) {
    const zooms = [0.25, 0.5, 1, 2, 3, 4, 6, 8, 12], side = GALLERY.side || GALLERY.generated_side;
    const look = { zoom: zooms.filter((x) => x * side <= 384).pop() || zooms[0], gain: 4, at: 50, rate: 1, timer: null, paused: false };
    const model = groupSelect();
    const a = select("A", [], "", (to) => go({ a: to }));
    const b = select("B", [], "", (to) => go({ b: to }));
    const zoom = select("Zoom", zooms.map((x) => [x, `${x}×`]), look.zoom, (to) => { look.zoom = Number(to); this.update(); });
    const turn = (by) => go({ prompt: state.prompt + by });
    const prompt = el("input", { type: "number", min: 1, on: { change: (event) => go({ prompt: Number(event.target.value) - 1 }) } });
    const modes = Object.entries(MODES).map(([key, text]) => [key, button(text, () => go({ mode: key }))]);
    const text = el("p", { class: "prompt", role: "status" }), stage = el("div", { class: "stage" });
    const strip = el("div", { class: "strip", role: "group", "aria-label": "Every cell on this prompt" });
    const swap = () => go({ a: state.b, b: state.a });
    const pause = () => {
      look.paused = !look.paused;
      this.update();
      stage.querySelector("button").focus(); // the old one is gone, and with it the place of the keyboard
    };
    panel.append(
      el("div", { class: "controls" }, model.node, a.node, b.node, button("Swap A and B", swap), zoom.node),
      el("div", { class: "controls" }, button("◀", () => turn(-1), { "aria-label": "Previous prompt" }), field("Prompt", prompt), button("▶", () => turn(1), { "aria-label": "Next prompt" }),
        el("div", { class: "modes", role: "group", "aria-label": "How to compare" }, ...modes.map(([, node]) => node))),
      text, stage, el("h3", {}, "Every cell on this prompt"), strip,
      el("p", { class: "hint" }, "Keys: ← → prompt, 1–4 how to compare, s swaps A and B, space stops the blinking. A click below makes a cell B."),
      galleryNote(),
    );
    panel.addEventListener("keydown", (event) => {
      if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
      const keys = Object.keys(MODES);
      if (event.key === "ArrowLeft") turn(-1);
      else if (event.key === "ArrowRight") turn(1);
      else if (/^[1-4]$/.test(event.key)) go({ mode: keys[Number(event.key) - 1] });
      else if (event.key === "s") swap();
      else if (event.key === " " && state.mode === "blink" && !event.target.matches("button")) { event.preventDefault(); pause(); } else return;
      if (!panel.contains(document.activeElement)) panel.focus();
    });
    panel.tabIndex = -1;
    this.leave = () => { clearInterval(look.timer); look.timer = null; };
    this.update = () => {
      this.leave();
      model.control.value = state.group;
      a.fill(cellOptions(), state.a);
      b.fill(cellOptions(), state.b);
      const one = inGroup(state.a, state.group), two = inGroup(state.b, state.group);
      for (const [key, node] of modes) node.setAttribute("aria-pressed", key === state.mode);
      if (!one || !two) { stage.replaceChildren("There is no cell."); return; }
      prompt.max = GROUPS[state.group].prompts;
      prompt.value = state.prompt + 1;
      text.textContent = caption(state.group, state.prompt);
      stage.className = `stage ${state.mode}`;
      stage.replaceChildren(...stages[state.mode](one, two, look, pause));
      strip.replaceChildren(...members(state.group).map((cell) => stripButton(cell)));
    };
  },
};

function galleryNote() {
  const { side, generated_side: whole, prompts: some, available } = GALLERY;
  const parts = [];
  if (!available) parts.push("This page holds no images.");
  if (side) parts.push(`Images are thumbnails: ${side} of ${whole} pixels on the longest side. Differences are those of the thumbnails; the figures are those of the full images.`);
  if (some < available) parts.push(`Only the first ${some} of ${available} prompts have images in this page.`);
  return el("p", { class: "hint" }, parts.join(" ") || "Images are lossless.");
}
function stripButton(cell) {
  const letter = cell.key === state.a ? "A" : cell.key === state.b ? "B" : "";
  const tile = button("", () => {
    go({ b: cell.key });
    document.getElementById(`tile-${cell.key}`).focus();
  }, { class: "tile", id: `tile-${cell.key}`, "aria-pressed": cell.key === state.b });
  tile.append(picture(cell, state.prompt, { class: "thumb", loading: "lazy", alt: "" }), el("span", {}, letter ? `${letter}: ${name(cell)}` : name(cell)));
  return tile;
}
/** What a cell's figures say about one prompt. */
function promptFigures(cell, prompt) {
  return Object.entries(detail(cell).prompts)
    .filter(([, values]) => isNumber(values[prompt]))
    .map(([key, values]) => `${label(key)} ${written(COLUMN.get(key), values[prompt])}`).join(" · ");
}
function large(cell, zoom, fields = {}) {
  const img = picture(cell, state.prompt, fields);
  if (img.tagName === "IMG") {
    img.classList.toggle("pixels", zoom > 1);
    const fit = () => { img.style.width = `${img.naturalWidth * zoom}px`; };
    if (img.complete && img.naturalWidth) fit(); else img.addEventListener("load", fit, { once: true });
  }
  return img;
}
const plate = (cell, letter) => el("figcaption", {}, el("strong", {}, `${letter}: ${name(cell)}`), el("small", {}, promptFigures(cell, state.prompt)));
function range(label, fields, text, change) {
  const out = el("output", {}, text(Number(fields.value)));
  const control = el("input", { type: "range", ...fields, on: { input: () => { out.textContent = text(Number(control.value)); change(Number(control.value)); } } });
  return el("label", { class: "field range" }, el("span", {}, label), control, out);
}

const stages = {
  side: (a, b, look) => [[a, "A"], [b, "B"]].map(([cell, letter]) => el("figure", {}, large(cell, look.zoom), plate(cell, letter))),

  slider(a, b, look) {
    const over = large(b, look.zoom, { class: "over" }), edge = el("span", { class: "edge", "aria-hidden": true });
    const stack = el("div", { class: "stack" }, large(a, look.zoom), over, edge);
    const move = (at) => {
      look.at = at;
      over.style.clipPath = `inset(0 0 0 ${at}%)`;
      edge.style.left = `${at}%`;
    };
    const bar = range("Slider: A left, B right", { min: 0, max: 100, value: look.at }, (at) => `${at} %`, move);
    const drag = (event) => {
      if (!event.buttons) return;
      const box = stack.getBoundingClientRect();
      const control = bar.querySelector("input");
      control.value = Math.round((100 * (event.clientX - box.left)) / box.width);
      control.dispatchEvent(new Event("input"));
    };
    stack.addEventListener("pointerdown", drag);
    stack.addEventListener("pointermove", drag);
    move(look.at);
    return [bar, el("figure", {}, stack, plate(a, "A"), plate(b, "B"))];
  },

  blink(a, b, look, pause) {
    const over = large(b, look.zoom, { class: "over" });
    const now = el("p", { class: "now" });
    const flip = (on) => {
      over.style.visibility = on ? "visible" : "hidden";
      now.textContent = on ? `B: ${name(b)}` : `A: ${name(a)}`;
    };
    const start = (rate) => {
      look.rate = rate;
      clearInterval(look.timer);
      if (!look.paused) look.timer = setInterval(() => flip(over.style.visibility === "hidden"), 1000 / rate);
    };
    flip(false);
    start(look.rate);
    return [
      el("div", { class: "controls" }, button(look.paused ? "Blink" : "Stop", pause), button("Flip", () => flip(over.style.visibility === "hidden")),
        range("Changes a second", { min: 0.5, max: 3, step: 0.5, value: look.rate }, String, start)),
      now, el("figure", {}, el("div", { class: "stack" }, large(a, look.zoom), over), plate(a, "A"), plate(b, "B")),
    ];
  },

  difference(a, b, look) {
    const canvas = el("canvas", { role: "img", "aria-label": `Difference of ${name(a)} and ${name(b)}` });
    const told = el("p", { class: "told", role: "status" });
    let pixels = null;
    const paint = (gain) => { look.gain = gain; if (pixels) drawDifference(canvas, pixels, gain, look.zoom); };
    const bar = range("Amplified", { min: 1, max: 32, value: look.gain }, (gain) => `${gain}×`, paint);
    const addresses = [image(a, state.prompt), image(b, state.prompt)];
    if (addresses.includes(null)) return [el("p", {}, "One of the two has no image of this prompt.")];
    Promise.all(addresses.map(pixelsOf)).then(([x, y]) => {
      if (x.width !== y.width || x.height !== y.height) { told.textContent = "The two images differ in size."; return; }
      pixels = subtract(x, y);
      told.textContent = pixels.largest
        ? `Mean |A − B| ${pixels.mean.toFixed(2)}, largest ${pixels.largest} of 255; PSNR between them ${pixels.psnr.toFixed(2)} dB`
        : "The two images are identical.";
      paint(look.gain);
    });
    return [bar, told, el("figure", {}, canvas, plate(a, "A"), plate(b, "B"))];
  },
};

async function pixelsOf(source) {
  const img = new Image();
  img.src = source;
  await img.decode();
  const canvas = el("canvas", { width: img.naturalWidth, height: img.naturalHeight });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(img, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}
/** |x − y| per channel, its mean and largest value, and PSNR = 10 log10(255² / MSE) over all channels. */
function subtract(x, y) {
  const data = new Uint8ClampedArray(x.data.length);
  let sum = 0, squares = 0, largest = 0;
  for (let i = 0; i < data.length; i += 1) {
    if (i % 4 === 3) continue;
    const off = Math.abs(x.data[i] - y.data[i]);
    data[i] = off;
    sum += off;
    squares += off * off;
    if (off > largest) largest = off;
  }
  const n = (data.length / 4) * 3;
  return { width: x.width, height: x.height, data, mean: sum / n, largest, psnr: 10 * Math.log10((255 * 255 * n) / squares) };
}
function drawDifference(canvas, off, gain, zoom) {
  canvas.width = off.width;
  canvas.height = off.height;
  canvas.style.width = `${off.width * zoom}px`;
  const context = canvas.getContext("2d"), shown = context.createImageData(off.width, off.height);
  for (let i = 0; i < off.data.length; i += 1) shown.data[i] = i % 4 === 3 ? 255 : off.data[i] * gain;
  context.putImageData(shown, 0, 0);
}
