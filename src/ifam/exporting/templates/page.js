const ort = globalThis.ort;
const byId = (id) => document.getElementById(id);
const about = JSON.parse(byId("about").textContent);
const { size, mean, std } = about.preprocessing;
const [height, width] = size;
const [rows, columns] = about.mask_grid;
const [patchRows, patchColumns] = about.patch_grid;
// Strips that are longer than this many times the crop are cropped before they are resized, as in training.
const LONGEST = 8;
// Side of the drawings in pixels, and of their squares in the place of hidden pixels.
const SIDE = 480, SQUARE = 12;

let session, photo, answer, edits, dropped, stroke = null, cursor = -1, busy = false, waiting = false, loads = 0;

// ---------------------------------------------------------------------------------------------- from photo to input

async function unpacked(id) {
  const text = atob(byId(id).textContent);
  const bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function roundHalfEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest < 0.5 ? floor : rest > 0.5 ? floor + 1 : floor + (floor % 2);
}

/** One side of RGBA pixels resized: bilinear and antialiased, in the integers that PyTorch computes with. */
function resized({ data, w, h }, across, target) {
  const length = across ? w : h;
  if (length === target) return { data, w, h };
  const scale = length / target, support = Math.max(1, scale), kernels = [];
  let largest = 0;
  for (let i = 0; i < target; i++) {
    const center = scale * (i + 0.5);
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(length, Math.trunc(center + support + 0.5));
    const weights = [];
    for (let j = first; j < last; j++) weights.push(Math.max(0, 1 - Math.abs((j - center + 0.5) / support)));
    const total = weights.reduce((a, b) => a + b, 0);
    kernels.push([first, weights.map((weight) => weight / total)]);
    largest = Math.max(largest, ...kernels[i][1]);
  }
  let precision = 0;
  while (Math.trunc(0.5 + largest * 2 ** (precision + 1)) < 2 ** 15 && precision < 22) precision++;
  const [newW, newH] = across ? [target, h] : [w, target];
  const out = new Uint8ClampedArray(newW * newH * 4);
  const [step, lines, lineStep, newStep, newLine] = across ? [4, h, 4 * w, 4, 4 * newW] : [4 * w, w, 4, 4 * newW, 4];
  kernels.forEach(([first, weights], i) => {
    const whole = weights.map((weight) => Math.trunc(0.5 + weight * 2 ** precision));
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let total = 2 ** (precision - 1), at = line * lineStep + first * step + channel;
        for (let j = 0; j < whole.length; j++, at += step) total += whole[j] * data[at];
        out[line * newLine + i * newStep + channel] = total >> precision;
      }
      out[line * newLine + i * newStep + 3] = 255;
    }
  });
  return { data: out, w: newW, h: newH };
}

function part({ data, w }, left, top, newW, newH) {
  const out = new Uint8ClampedArray(newW * newH * 4);
  for (let y = 0; y < newH; y++) {
    const start = ((top + y) * w + left) * 4;
    out.set(data.subarray(start, start + newW * 4), y * newW * 4);
  }
  return { data: out, w: newW, h: newH };
}

/** The pixels that the model receives, and their place in the photo. */
function crop(image) {
  if (image.w === width && image.h === height) return { ...image, place: [0, 0, width, height] };
  const scale = Math.max(height / image.h, width / image.w);
  const spareX = Math.max(0, Math.floor((image.w - (LONGEST * width) / scale) / 2));
  const spareY = Math.max(0, Math.floor((image.h - (LONGEST * height) / scale) / 2));
  if (spareX || spareY) image = part(image, spareX, spareY, image.w - 2 * spareX, image.h - 2 * spareY);
  const newW = Math.max(width, roundHalfEven(image.w * scale)), newH = Math.max(height, roundHalfEven(image.h * scale));
  const left = roundHalfEven((newW - width) / 2), top = roundHalfEven((newH - height) / 2);
  const fitted = resized(resized(image, true, newW), false, newH);
  const [x, y] = [image.w / newW, image.h / newH];
  return { ...part(fitted, left, top, width, height), place: [spareX + left * x, spareY + top * y, width * x, height * y] };
}

function normalized({ data }) {
  const values = new Float32Array(3 * height * width);
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) values[c * height * width + i] = (data[4 * i + c] / 255 - mean[c]) / std[c];
  }
  return values;
}

/** The EXIF orientation, from 1 to 8, in the data of an EXIF segment. */
function orientationIn(exif) {
  const start = String.fromCharCode(...exif.subarray(0, 4)) === "Exif" ? 6 : 0;
  const view = new DataView(exif.buffer, exif.byteOffset + start, exif.length - start);
  try {
    const little = view.getUint16(0) === 0x4949, directory = view.getUint32(4, little);
    for (let i = 0; i < view.getUint16(directory, little); i++) {
      const entry = directory + 2 + 12 * i;
      if (view.getUint16(entry, little) === 0x112) {
        const value = view.getUint16(entry + 8, little);
        return value >= 1 && value <= 8 ? value : 1;
      }
    }
  } catch { /* damaged: as if there were none */ }
  return 1;
}

/** A WebP file without its EXIF orientation, which some browsers ignore, and that orientation; other files as they are. */
function withoutOrientation(bytes) {
  const view = new DataView(bytes.buffer), name = (at) => String.fromCharCode(...bytes.subarray(at, at + 4));
  let orientation = 1;
  if (name(0) === "RIFF" && name(8) === "WEBP") {
    for (let at = 12, length; at + 8 <= bytes.length; at += 8 + length + (length % 2)) {
      length = view.getUint32(at + 4, true);
      if (name(at) !== "EXIF") continue;
      orientation = orientationIn(bytes.subarray(at + 8, at + 8 + length));
      // A chunk of an unknown name is skipped.
      bytes.set([120, 120, 120, 120], at);
    }
  }
  return [bytes, orientation];
}

/** Whether a PNG file has 16 bits a channel, of which a browser would take the upper 8. */
const isDeep = (bytes) => bytes.length > 24 && String.fromCharCode(...bytes.subarray(1, 4)) === "PNG" && bytes[24] > 8;

/** The pixels of a bitmap, upright; null where it is too large for a canvas. */
function drawn(bitmap, orientation) {
  const { width: w, height: h } = bitmap, turned = orientation > 4;
  const [a, b, c, d] = [[1, 0, 0, 1], [-1, 0, 0, 1], [-1, 0, 0, -1], [1, 0, 0, -1],
    [0, 1, 1, 0], [0, 1, -1, 0], [0, -1, -1, 0], [0, -1, 1, 0]][orientation - 1];
  try {
    const canvas = new OffscreenCanvas(turned ? h : w, turned ? w : h);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    // Transparent pixels are white, as in training.
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingEnabled = false;
    context.setTransform(a, b, c, d, a + c < 0 ? canvas.width : 0, b + d < 0 ? canvas.height : 0);
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return data.at(-1) === 255 ? { canvas, data } : null;
  } catch {
    return null;
  }
}

async function load(blob, name) {
  const ticket = ++loads;
  say(`Reading ${name} …`);
  let bytes, orientation, bitmap;
  try {
    [bytes, orientation] = withoutOrientation(new Uint8Array(await blob.arrayBuffer()));
    const file = new Blob([bytes], { type: blob.type });
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch { /* said below */ }
  // Another photo was chosen meanwhile.
  if (ticket !== loads) return;
  if (!bitmap) return say(`${name} is not an image that this browser can read; choose a JPEG, PNG or WebP file.`, true);
  if (isDeep(bytes)) return say(`${name} has 16 bits a channel, which this page would cut to 8; save it with 8.`, true);
  const whole = drawn(bitmap, orientation);
  if (!whole) {
    const pixels = `${bitmap.width.toLocaleString()} x ${bitmap.height.toLocaleString()} pixels`;
    return say(`${name} has ${pixels}, which is more than this browser can draw; save it smaller.`, true);
  }
  const pixels = crop({ data: whole.data, w: whole.canvas.width, h: whole.canvas.height });
  photo = { canvas: whole.canvas, pixels, images: normalized(pixels), name, own: null };
  // Until it is answered the page shows the photo before, and what is done to that must not be done to this one.
  answer = stroke = null;
  reset();
  await update();
}

// ------------------------------------------------------------------------------------------------------ the answer

function reset() {
  edits = new Int8Array(rows * columns).fill(-1);
  dropped = new Set();
}

const patchOf = (cell) => {
  const [row, column] = [Math.floor(cell / columns), cell % columns];
  return Math.floor((row * patchRows) / rows) * patchColumns + Math.floor((column * patchColumns) / columns);
};

async function run({ images }, useMask) {
  const feeds = {
    images: new ort.Tensor("float32", images, [1, 3, height, width]),
    use_mask: new ort.Tensor("int8", useMask, [1, rows, columns]),
  };
  if (about.adds_parts) {
    const parts = new Int8Array(patchRows * patchColumns).fill(-1);
    feeds.use_parts = new ort.Tensor("int8", parts, [1, patchRows, patchColumns]);
  }
  const out = await session.run(feeds);
  const logits = Array.from(out.logits.data), top = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp(logit - top)), total = weights.reduce((a, b) => a + b, 0);
  return {
    logits,
    probabilities: weights.map((weight) => weight / total),
    mask: Array.from(out.mask.data, Number),
    parts: Array.from(out.patch_parts.data, Number),
    contributions: out.part_contributions && Array.from(out.part_contributions.data),
  };
}

/** Answer to the photo with all changes; changes made meanwhile are answered next. */
async function update() {
  waiting = true;
  if (busy) return;
  busy = true;
  while (waiting) {
    waiting = false;
    const started = performance.now();
    const asked = photo;
    asked.own ??= await run(asked, new Int8Array(rows * columns).fill(-1));
    const { mask, parts } = asked.own;
    const useMask = edits.map((edit, cell) => edit >= 0 ? edit : mask[cell] && dropped.has(parts[patchOf(cell)]) ? 0 : -1);
    const given = await run(asked, useMask);
    // Another photo is answered next.
    if (asked !== photo) continue;
    answer = given;
    show(performance.now() - started);
  }
  busy = false;
}

// --------------------------------------------------------------------------------------------------------- drawing

function say(text, isError = false) {
  byId("status").textContent = text;
  byId("status").className = isError ? "error" : "";
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function bar(value, largest, signed) {
  const track = element("span", "track"), inner = element("span", value < 0 ? "bar minus" : "bar");
  const share = largest > 0 ? Math.abs(value) / largest : 0;
  inner.style.width = `${(signed ? 50 : 100) * share}%`;
  inner.style.left = signed ? `${value < 0 ? 50 - 50 * share : 50}%` : "0";
  track.append(inner);
  return track;
}

function show(milliseconds) {
  const order = answer.probabilities.map((_, c) => c).sort((a, b) => answer.probabilities[b] - answer.probabilities[a]);
  const best = order[0], percent = (share) => `${(100 * share).toFixed(1)} %`;
  byId("result").hidden = false;
  byId("answer").textContent = `${about.class_names[best]}: ${percent(answer.probabilities[best])}`;
  byId("probabilities").replaceChildren(...order.slice(0, 5).map((c) => {
    const row = element("div", "row"), p = answer.probabilities[c];
    row.append(element("span", "", about.class_names[c]), bar(p, 1), element("span", "number", percent(p)));
    return row;
  }));
  const visible = answer.mask.reduce((a, b) => a + b, 0);
  byId("empty").hidden = visible > 0;
  byId("share").textContent = visible ? `${percent(visible / answer.mask.length)} of the photo` : "nothing";
  listParts(best, percent);
  draw();
  const changed = edits.some((edit) => edit >= 0) || dropped.size;
  say(`${photo.name}: answered in ${Math.round(milliseconds)} ms${changed ? ", with your changes" : ""}.`);
}

function listParts(best, percent) {
  const held = about.part_colors.map((_, k) => photo.own.mask.filter((on, cell) => on && photo.own.parts[patchOf(cell)] === k).length);
  const values = about.part_colors.map((_, k) => answer.contributions?.[k * about.class_names.length + best] ?? null);
  const largest = Math.max(...values.map(Math.abs));
  const boxes = [...byId("list").querySelectorAll("input")], focused = boxes.indexOf(document.activeElement);
  byId("list").replaceChildren(...about.part_colors.map((color, k) => {
    const row = element("div", "row"), label = element("label", ""), box = document.createElement("input");
    const swatch = element("span", "swatch");
    swatch.style.background = `rgb(${color})`;
    Object.assign(box, { type: "checkbox", checked: !dropped.has(k), disabled: !held[k] });
    box.addEventListener("change", () => {
      if (!answer) return;
      dropped[box.checked ? "delete" : "add"](k);
      update();
    });
    label.append(box, swatch, `part ${k}`);
    const shown = values[k] === null ? percent(held[k] / photo.own.mask.length) : values[k].toFixed(2);
    row.append(label, values[k] === null ? bar(held[k], photo.own.mask.length) : bar(values[k], largest, true));
    row.append(element("span", "number", shown));
    return row;
  }));
  if (focused >= 0) byId("list").querySelectorAll("input")[focused].focus();
  byId("note").textContent = about.adds_parts
    ? `Bars: what each part adds to the score of ${about.class_names[best]}.`
    : "Bars: share of the photo. This model sees its parts together, so none has a contribution of its own.";
}

function overlay(context, paint) {
  const image = new ImageData(columns, rows);
  for (let cell = 0; cell < rows * columns; cell++) image.data.set(paint(cell), 4 * cell);
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, context.canvas.width, context.canvas.height);
}

function draw() {
  const canvas = byId("parts"), seen = byId("seen");
  for (const one of [canvas, seen]) {
    one.width = SIDE;
    one.height = Math.round((SIDE * height) / width);
  }
  const context = canvas.getContext("2d");
  context.drawImage(photo.canvas, ...photo.pixels.place, 0, 0, canvas.width, canvas.height);
  overlay(context, (cell) =>
    answer.mask[cell] ? [...about.part_colors[answer.parts[patchOf(cell)]], 150] : [255, 255, 255, 140]);
  if (cursor >= 0 && document.activeElement === canvas) {
    const [w, h] = [canvas.width / patchColumns, canvas.height / patchRows];
    context.lineWidth = 4;
    context.strokeStyle = "#1c2024";
    context.strokeRect((cursor % patchColumns) * w, Math.floor(cursor / patchColumns) * h, w, h);
  }
  const view = seen.getContext("2d"), input = new OffscreenCanvas(width, height);
  const pixels = new ImageData(new Uint8ClampedArray(photo.pixels.data), width, height);
  for (let i = 0; i < width * height; i++) {
    const row = Math.floor((Math.floor(i / width) * rows) / height), column = Math.floor(((i % width) * columns) / width);
    if (!answer.mask[row * columns + column]) pixels.data[4 * i + 3] = 0;
  }
  input.getContext("2d").putImageData(pixels, 0, 0);
  for (let y = 0; y < seen.height; y += SQUARE) {
    for (let x = 0; x < seen.width; x += SQUARE) {
      view.fillStyle = ((x + y) / SQUARE) % 2 ? "#d8d8d8" : "#ececec";
      view.fillRect(x, y, SQUARE, SQUARE);
    }
  }
  view.imageSmoothingEnabled = false;
  view.drawImage(input, 0, 0, seen.width, seen.height);
}

// -------------------------------------------------------------------------------------------------------- painting

const brush = () => Number(document.querySelector("input[name=brush]:checked").value);

/**
 * Show or hide the cells around a place, given from 0 to 1: a patch, or three quarters of its sides where the mask is
 * finer. With less, a stroke at the corner of four hidden patches would show too little of each to be seen at all.
 */
function paint([x, y], value) {
  const [tall, wide] = [rows / patchRows, columns / patchColumns].map((n) => Math.ceil(0.75 * n));
  const [top, left] = [Math.floor(y * rows - (tall - 1) / 2), Math.floor(x * columns - (wide - 1) / 2)];
  for (let row = Math.max(0, top); row < Math.min(rows, top + tall); row++) {
    for (let column = Math.max(0, left); column < Math.min(columns, left + wide); column++) {
      edits[row * columns + column] = value;
    }
  }
}

function placeOf(event) {
  const box = byId("parts").getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

/** Go on with a stroke to a place, along the line from the one before: a quick pointer skips some. */
function strokeTo(place) {
  const from = stroke, length = Math.max(...place.map((to, axis) => Math.abs(to - from[axis])));
  const steps = Math.max(1, Math.ceil(2 * length * Math.max(rows, columns)));
  stroke = place;
  for (let step = 1; step <= steps; step++) {
    const [x, y] = place.map((to, axis) => from[axis] + ((to - from[axis]) * step) / steps);
    if (x >= 0 && x < 1 && y >= 0 && y < 1) paint([x, y], brush());
  }
  update();
}

byId("parts").addEventListener("pointerdown", (event) => {
  if (!answer) return;
  byId("parts").setPointerCapture(event.pointerId);
  cursor = -1;
  stroke = placeOf(event);
  strokeTo(stroke);
});
byId("parts").addEventListener("pointermove", (event) => stroke && event.buttons && strokeTo(placeOf(event)));
byId("parts").addEventListener("pointerup", () => { stroke = null; });
byId("parts").addEventListener("pointercancel", () => { stroke = null; });
byId("parts").addEventListener("keydown", (event) => {
  const [row, column] = [Math.floor(Math.max(cursor, 0) / patchColumns), Math.max(cursor, 0) % patchColumns];
  const moved = {
    ArrowUp: [Math.max(0, row - 1), column],
    ArrowDown: [Math.min(patchRows - 1, row + 1), column],
    ArrowLeft: [row, Math.max(0, column - 1)],
    ArrowRight: [row, Math.min(patchColumns - 1, column + 1)],
    " ": [row, column],
  }[event.key];
  if (!moved || !answer) return;
  event.preventDefault();
  cursor = moved[0] * patchColumns + moved[1];
  if (event.key !== " ") return draw();
  const inPatch = (_, cell) => patchOf(cell) === cursor;
  // While it is being answered, what was done last is in the edits alone.
  const shown = answer.mask.map((on, index) => (busy && edits[index] >= 0 ? edits[index] : on));
  const value = shown.filter(inPatch).some(Boolean) ? 0 : 1;
  edits = edits.map((edit, cell) => (inPatch(edit, cell) ? value : edit));
  update();
});
byId("parts").addEventListener("focus", () => answer && draw());
byId("parts").addEventListener("blur", () => answer && draw());
byId("reset").addEventListener("click", () => { reset(); update(); });

// --------------------------------------------------------------------------------------------------------- loading

byId("file").addEventListener("change", (event) => {
  const [file] = event.target.files;
  if (file) load(file, file.name);
});
addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").className = "over"; });
addEventListener("dragleave", () => { byId("drop").className = ""; });
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").className = "";
  const [file] = event.dataTransfer.files;
  if (file) load(file, file.name);
});

try {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = (await unpacked("wasm")).buffer;
  session = await ort.InferenceSession.create(await unpacked("model"), { executionProviders: ["wasm"], logSeverityLevel: 3 });
  byId("examples").append(...about.examples.map(({ name, type, data }) => {
    const button = element("button", "", `Example: ${name}`);
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
    button.addEventListener("click", () => load(new Blob([bytes], { type }), name));
    return button;
  }));
  say("The model is ready: choose a photo.");
  // For scripts that drive this page.
  globalThis.ifam = { get answer() { return answer; }, get photo() { return photo; }, get busy() { return busy; } };
} catch (error) {
  say(`This browser cannot run the model (${error.message}); open the page in a current Chrome, Edge, Firefox or Safari.`, true);
}
