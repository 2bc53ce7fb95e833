// The picture: every view is drawn from the same packet; and the controls below it.
import { $, VOID, chosenSource, on, page, tell } from "./state.js";

export const canvas = $("picture");
const paper = canvas.getContext("2d", { alpha: false });
const layer = document.createElement("canvas");
const layerPaper = layer.getContext("2d", { willReadFrequently: true });

const HEAT = new Uint32Array(256);
for (let i = 0; i < 256; i++) {
  // Black over violet and orange to pale yellow, ever more opaque.
  const t = i / 255;
  const r = Math.min(1, 1.7 * t), g = Math.max(0, 1.7 * t - 0.75), b = t < 0.5 ? 0.9 * t : Math.max(0.1, 0.85 - 1.1 * t + Math.max(0, t - 0.75) * 2.4);
  const a = Math.min(1, 1.25 * t * t + 0.25 * t);
  HEAT[i] = ((a * 255) << 24 | (b * 255) << 16 | (g * 255) << 8 | (r * 255)) >>> 0;
}

function colored(packet, alpha) {
  const { width, height, labels } = packet;
  const strong = Math.round(255 * alpha), weak = Math.round(255 * alpha * 0.22);
  const lit = page.hovered ?? page.chosen;
  const inner = new Uint32Array(256), border = new Uint32Array(256);
  for (let id = 0; id < 256; id++) {
    const a = id === VOID ? 0 : (lit === null || lit === id ? strong : weak);
    inner[id] = ((a << 24) | page.palette[id]) >>> 0;
    // Half as bright: a thin line between regions.
    border[id] = ((a << 24) | ((page.palette[id] >> 1) & 0x7f7f7f)) >>> 0;
  }
  if (layer.width !== width || layer.height !== height) { layer.width = width; layer.height = height; }
  const data = new ImageData(width, height);
  const out = new Uint32Array(data.data.buffer);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const id = labels[i];
      const edge = (x > 0 && labels[i - 1] !== id) || (y > 0 && labels[i - width] !== id);
      out[i] = edge ? border[id] : inner[id];
    }
  }
  layerPaper.putImageData(data, 0, 0);
  return layer;
}

function heat(packet, values) {
  const { rows, columns } = packet;
  if (layer.width !== columns || layer.height !== rows) { layer.width = columns; layer.height = rows; }
  const data = new ImageData(columns, rows);
  const out = new Uint32Array(data.data.buffer);
  for (let i = 0; i < out.length; i++) out[i] = HEAT[values[i]];
  layerPaper.putImageData(data, 0, 0);
  return layer;
}

export const redraw = () => requestAnimationFrame(draw);

export function draw() {
  const packet = page.packet;
  if (!packet) return;
  const { width, height } = packet;
  const both = page.view === "both";
  // Narrow screens have room below one another, not beside.
  const below = both && canvas.parentElement.clientWidth < 560;
  const across = both && !below ? 2 * width : width, down = below ? 2 * height : height;
  if (canvas.width !== across || canvas.height !== down) { canvas.width = across; canvas.height = down; }
  paper.globalAlpha = 1;
  if (page.view === "mask") {
    paper.fillStyle = "#000";
    paper.fillRect(0, 0, width, height);
    paper.drawImage(colored(packet, 1), 0, 0);
  } else if (page.view === "uncertainty" || page.view === "distance") {
    paper.fillStyle = "#000";
    paper.fillRect(0, 0, width, height);
    paper.globalAlpha = 0.75;
    paper.drawImage(packet.image, 0, 0, width, height);
    paper.globalAlpha = Math.min(1, 1.6 * page.alpha);
    const values = packet[page.view];
    if (values) paper.drawImage(heat(packet, values), 0, 0, width, height);
    paper.globalAlpha = 1;
  } else {
    paper.drawImage(packet.image, 0, 0, width, height);
    if (both) {
      const [x, y] = below ? [0, height] : [width, 0];
      paper.fillStyle = "#000";
      paper.fillRect(x, y, width, height);
      paper.drawImage(colored(packet, 1), x, y);
    } else paper.drawImage(colored(packet, page.alpha), 0, 0);
  }
  if (page.cross && document.activeElement === canvas) drawCross();
  canvas.dataset.frame = packet.frame;
  canvas.dataset.source = packet.source;
  const unknown = !packet.distance && page.watched > 3;
  document.querySelector('input[name="view"][value="distance"]').disabled = unknown;
  tell("drawn");
}

function drawCross() {
  const x = Math.round(page.cross.x * page.packet.width), y = Math.round(page.cross.y * page.packet.height);
  for (const [ink, line] of [["#000", 4], ["#fff", 1.5]]) {
    paper.strokeStyle = ink; paper.lineWidth = line;
    paper.beginPath();
    paper.moveTo(x - 12, y); paper.lineTo(x + 12, y); paper.moveTo(x, y - 12); paper.lineTo(x, y + 12);
    paper.stroke();
  }
}

export function setView(view) {
  page.view = view;
  document.querySelector(`input[name="view"][value="${view}"]`).checked = true;
  $("alpha-label").classList.toggle("off", view === "mask" || view === "both");
  $("snapshot").href = "/snapshot.jpg?view=" + (["uncertainty", "distance"].includes(view) ? "overlay" : view) + chosenSource("&");
  redraw();
}

export function setAlpha(share) {
  page.alpha = Math.min(1, Math.max(0, share));
  $("alpha").value = Math.round(100 * page.alpha);
  $("alpha-out").textContent = `${Math.round(100 * page.alpha)} %`;
  redraw();
}

export function setHeld(held) {
  page.held = held;
  $("pause").setAttribute("aria-pressed", held);
  tell("link");
}

$("views").addEventListener("change", (event) => setView(event.target.value));
$("alpha").addEventListener("input", (event) => setAlpha(event.target.value / 100));
$("pause").addEventListener("click", () => setHeld(!page.held));
$("help").addEventListener("click", () => $("keys").showModal());
export function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("stage").requestFullscreen?.().catch(() => {});
}
$("full").addEventListener("click", fullScreen);
$("full").hidden = !document.fullscreenEnabled;
on("frame", redraw);
on("look", redraw);
on("source", () => setView(page.view));
window.addEventListener("resize", draw);
