// Pointing at the picture: the name under the pointer, and the class and cluster that were chosen.
import { askJson, complain } from "./api.js";
import { edit, openEditor } from "./classes.js";
import { canvas, redraw } from "./picture.js";
import { $, VOID, choose, chosenSource, classOf, nameOf, on, page, percent, setText, shareOf } from "./state.js";

function placeOf(event) {
  // object-fit: contain leaves bars where the box has another aspect.
  const box = canvas.getBoundingClientRect();
  const scale = Math.min(box.width / canvas.width, box.height / canvas.height);
  const x = (event.clientX - box.left - (box.width - scale * canvas.width) / 2) / scale;
  const y = (event.clientY - box.top - (box.height - scale * canvas.height) / 2) / scale;
  if (!page.packet || x < 0 || y < 0 || x >= canvas.width || y >= canvas.height) return null;
  return { x: (x % page.packet.width) / page.packet.width, y: (y % page.packet.height) / page.packet.height };
}

function labelAt(place) {
  const { width, height, labels } = page.packet;
  return labels[Math.min(height - 1, Math.floor(place.y * height)) * width + Math.min(width - 1, Math.floor(place.x * width))];
}

function showTip(clientX, clientY) {
  const place = placeOf({ clientX, clientY });
  $("tip").hidden = !place;
  if (!place) return;
  const id = labelAt(place);
  const box = $("stage").getBoundingClientRect();
  const swatch = document.createElement("i");
  swatch.className = "swatch";
  swatch.style.background = classOf(id)?.color ?? "#000";
  $("tip").replaceChildren(swatch, nameOf(id));
  $("tip").style.left = `${clientX - box.left}px`;
  $("tip").style.top = `${clientY - box.top}px`;
  $("tip").classList.toggle("left", clientX - box.left > box.width - 170);
}

canvas.addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch") return;
  page.pointer = { x: event.clientX, y: event.clientY };
  showTip(event.clientX, event.clientY);
});
canvas.addEventListener("pointerleave", () => { page.pointer = null; $("tip").hidden = true; });
canvas.addEventListener("click", (event) => {
  const place = placeOf(event);
  if (place) pick(place);
});
canvas.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = steps[event.key];
  if (step) {
    event.preventDefault();
    const far = event.shiftKey ? 0.1 : 0.02;
    const clip = (value) => Math.min(0.999, Math.max(0, value));
    const from = page.cross ?? { x: 0.5, y: 0.5 };
    page.cross = { x: clip(from.x + far * step[0]), y: clip(from.y + far * step[1]) };
    redraw();
  } else if (event.key === "Enter" && page.packet) {
    page.cross ??= { x: 0.5, y: 0.5 };
    pick(page.cross);
  }
});
canvas.addEventListener("blur", redraw);

async function pick(place) {
  const label = labelAt(place);
  choose(label);
  try {
    const found = await askJson(`/api/at?number=${page.packet.number}&x=${place.x.toFixed(5)}&y=${place.y.toFixed(5)}${chosenSource("&")}`);
    // The label map that the server kept is the one that was clicked.
    choose(found.class, found.cluster);
  } catch (error) {
    complain(error);
  }
}

function showFound() {
  const id = page.chosen;
  $("found").hidden = id === null;
  if (id === null) return;
  $("found-swatch").style.background = classOf(id)?.color ?? "#000";
  setText($("found-name"), nameOf(id));
  const share = percent(shareOf(id));
  const cluster = page.clusterChosen === null ? "" : `cluster ${page.clusterChosen} \u00b7 `;
  setText($("found-more"), `${cluster}${share}`);
  $("found-edit").hidden = !page.state?.editable || (id === VOID && page.clusterChosen === null);
  setText($("found-edit"), id === VOID ? "Make a class" : "Edit");
}

$("found-close").addEventListener("click", () => choose(null));
$("found-edit").addEventListener("click", async () => {
  if (page.chosen !== VOID) openEditor(page.chosen);
  else if (await edit({ action: "split", cluster: page.clusterChosen })) choose(null);
});

on("chosen", showFound);
on("shares", showFound);
on("drawn", () => { if (page.pointer) showTip(page.pointer.x, page.pointer.y); });
