// The picture that is painted on: a stroke is sent when it ends, as the cells that it has touched.
const TINTS = { t: "rgba(0, 114, 178, 0.55)", n: "rgba(213, 94, 0, 0.6)" };
const picture = new Image();
let stroke = null, last = null, cursor = null;

const canvas = () => element.querySelector("canvas");

function draw() {
  const board = canvas();
  if (!board || !props.image || !picture.naturalWidth) return;
  board.width = picture.naturalWidth;
  board.height = picture.naturalHeight;
  const context = board.getContext("2d");
  const width = board.width / props.columns, height = board.height / props.rows;
  const box = ([row, column]) => [column * width, row * height, width, height];
  context.drawImage(picture, 0, 0);
  [...props.paint].forEach((kind, cell) => {
    if (!TINTS[kind]) return;
    context.fillStyle = TINTS[kind];
    context.fillRect(...box([Math.floor(cell / props.columns), cell % props.columns]));
  });
  context.fillStyle = "rgba(255, 255, 255, 0.6)";
  (stroke || []).forEach((cell) => context.fillRect(...box(cell)));
  if (cursor) {
    context.lineWidth = 3;
    context.strokeStyle = "#000";
    context.strokeRect(...box(cursor));
    context.lineWidth = 1;
    context.strokeStyle = "#fff";
    context.strokeRect(...box(cursor));
  }
}

function cellAt(event) {
  const board = canvas().getBoundingClientRect();
  const at = (position, length, count) => Math.max(0, Math.min(count - 1, Math.floor((position / length) * count)));
  return [at(event.clientY - board.top, board.height, props.rows), at(event.clientX - board.left, board.width, props.columns)];
}

function touch(cell) {
  // Every cell on the line from the one before: a quick pointer skips some.
  const from = last || cell;
  const steps = Math.max(Math.abs(cell[0] - from[0]), Math.abs(cell[1] - from[1]), 1);
  for (let step = 1; step <= steps; step += 1) {
    const next = [0, 1].map((axis) => Math.round(from[axis] + ((cell[axis] - from[axis]) * step) / steps));
    if (!stroke.some((one) => one[0] === next[0] && one[1] === next[1])) stroke.push(next);
  }
  last = cell;
  draw();
}

function send(cells) {
  // With the number of the image, since the next one may be on its way.
  props.value = JSON.stringify({ image: props.number, cells });
  trigger("paint");
}

element.addEventListener("pointerdown", (event) => {
  if (event.target !== canvas() || !props.image || event.button) return;
  event.target.setPointerCapture(event.pointerId);
  stroke = [];
  last = cursor = null;
  touch(cellAt(event));
});
element.addEventListener("pointermove", (event) => stroke && touch(cellAt(event)));
element.addEventListener("pointerup", () => {
  if (!stroke) return;
  const cells = stroke;
  stroke = last = null;
  send(cells);
});
element.addEventListener("pointercancel", () => {
  stroke = last = null;
  draw();
});
element.addEventListener("keydown", (event) => {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (event.target !== canvas() || !props.image) return;
  if (moves[event.key]) {
    cursor = cursor || [Math.floor(props.rows / 2), Math.floor(props.columns / 2)];
    const limits = [props.rows, props.columns];
    cursor = cursor.map((value, axis) => Math.max(0, Math.min(limits[axis] - 1, value + moves[event.key][axis])));
    draw();
  } else if (cursor && (event.key === " " || event.key === "Enter")) {
    send([cursor]);
  } else return;
  event.preventDefault();
});
element.addEventListener("focusout", () => {
  cursor = null;
  draw();
});

picture.onload = draw;
const refresh = () => {
  if (props.image && picture.src !== props.image) picture.src = props.image;
  else draw();
};
watch(["image", "paint"], refresh);
refresh();
