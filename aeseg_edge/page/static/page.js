// The live page. It asks for one packet after another, so a slow browser gets fewer pictures and
// no old ones, and draws every view from the same packet.
"use strict";

const $ = (id) => document.getElementById(id);
const canvas = $("picture");
const paper = canvas.getContext("2d", { alpha: false });
const layer = document.createElement("canvas");
const layerPaper = layer.getContext("2d", { willReadFrequently: true });
const VOID = 255;
const SPAN = 60;

const page = {
  viewer: Math.random().toString(36).slice(2, 12),
  state: null, packet: null, number: 0, source: null, changed: 0,
  view: "overlay", alpha: 0.5, held: false, offline: false, asking: false,
  hovered: null, chosen: null, clusterChosen: null, open: null, cross: null,
  palette: new Uint32Array(256), samples: [], leaving: new AbortController(),
};

// --- talking to the server ----------------------------------------------------------------------

class Refused extends Error {}

async function ask(path, options) {
  const response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  if (response.status === 401 && path !== "/api/login") { askForToken(); throw new Refused("token"); }
  if (!response.ok) {
    let told = {};
    try { told = await response.json(); } catch { /* not one of ours */ }
    throw new Error([told.problem, told.fix].filter(Boolean).join(". ") || `The server said ${response.status}`);
  }
  return response;
}

const post = (path, data) => ask(path, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(data),
});

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const packet = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let start = 4 + length;
  const parts = {};
  for (const [name, size] of Object.entries(packet.parts)) {
    parts[name] = new Uint8Array(buffer, start, size);
    start += size;
  }
  const [image, labels, uncertainty, distance] = await Promise.all([
    createImageBitmap(new Blob([parts.image], { type: "image/jpeg" })),
    inflate(parts.labels),
    parts.uncertainty ? inflate(parts.uncertainty) : null,
    parts.distance ? inflate(parts.distance) : null,
  ]);
  return { ...packet, image, labels, uncertainty, distance };
}

async function follow() {
  for (;;) {
    if (document.hidden || page.held || $("login").open) { await pause(0.2); continue; }
    const changed = page.changed;
    try {
      const response = await ask(`/api/frame?after=${page.number}&viewer=${page.viewer}${chosenSource("&")}`, { signal: page.leaving.signal });
      setOffline(false);
      if (response.status === 204) continue;
      const packet = await decode(await response.arrayBuffer());
      // Another source was chosen meanwhile.
      if (changed !== page.changed) { packet.image.close(); continue; }
      page.packet?.image.close();
      page.packet = packet;
      page.number = packet.number;
      // Maps come a moment after the page has asked for its first frame.
      page.watched = packet.uncertainty ? (page.watched ?? 0) + 1 : 0;
      remember(packet);
      requestAnimationFrame(draw);
    } catch (error) {
      if (changed !== page.changed) continue;
      if (!(error instanceof Refused)) setOffline(true);
      await pause(1);
    }
  }
}

async function watch() {
  let first = true;
  let changed = 0;
  for (;;) {
    first ||= changed !== page.changed;
    changed = page.changed;
    if (!document.hidden && !$("login").open) {
      try {
        const state = await (await ask(`/api/state?${first ? "history" : ""}${chosenSource("&")}`)).json();
        if (changed !== page.changed) continue;
        if (first) takeHistory(state.history);
        first = false;
        // A run that has begun again counts from one.
        if (state.counters.frames < page.number) page.number = 0;
        setOffline(false);
        showState(state);
      } catch (error) {
        if (!(error instanceof Refused)) setOffline(true);
      }
    }
    showFigures();
    await pause(1);
  }
}

function setOffline(offline) {
  page.offline = offline;
  showPill();
}

// --- the token ------------------------------------------------------------------------------------

async function login(token) {
  await post("/api/login", { token });
  if ($("login").open) $("login").close();
}

function askForToken() {
  if (!$("login").open) $("login").showModal();
}

$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await login($("token").value.trim());
    $("login-bad").hidden = true;
    $("token").value = "";
  } catch (error) {
    $("login-bad").textContent = error.message;
    $("login-bad").hidden = false;
  }
});
$("login").addEventListener("cancel", (event) => event.preventDefault());

async function start() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", location.pathname);
    try { await login(given); } catch { askForToken(); }
  }
  follow();
  watch();
}

// --- sources ----------------------------------------------------------------------------------------

const chosenSource = (joint) => (page.source === null ? "" : `${joint}source=${encodeURIComponent(page.source)}`);

function chooseSource(name) {
  if (page.source === name) return;
  page.source = name;
  page.changed += 1;
  page.leaving.abort();
  page.leaving = new AbortController();
  page.packet?.image.close();
  page.packet = null;
  page.number = 0;
  page.samples = [];
  choose(null);
  $("labels-link").href = "/labels.png" + chosenSource("?");
  $("stream-link").href = "/stream.mjpg" + chosenSource("?");
  setView(page.view);
  showPill();
}

// One source needs no choice. A second one may come later, when its camera opens.
function showSources(sources) {
  const box = $("sources");
  box.hidden = sources.length < 2;
  if (box.hidden) return;
  if (page.source === null) chooseSource(sources[0].name);
  const names = sources.map((each) => each.name);
  const inputs = [...box.querySelectorAll("input")];
  if (JSON.stringify(inputs.map((each) => each.value)) !== JSON.stringify(names)) {
    const held = box.contains(document.activeElement);
    for (const label of box.querySelectorAll("label")) label.remove();
    for (const name of names) {
      const label = document.createElement("label"), input = document.createElement("input");
      const text = document.createElement("span"), dot = document.createElement("i"), more = document.createElement("small");
      input.type = "radio"; input.name = "source"; input.value = name;
      text.append(dot, document.createTextNode(name), more);
      label.append(input, text);
      box.append(label);
    }
    if (held) box.querySelector("input")?.focus();
  }
  for (const [index, input] of [...box.querySelectorAll("input")].entries()) {
    const { state, fps } = sources[index];
    input.checked = input.value === page.source;
    const text = input.nextElementSibling;
    text.dataset.state = state;
    const said = state === "live" ? `${fps.toFixed(fps < 10 ? 1 : 0)} fps` : state;
    if (text.lastChild.textContent !== said) text.lastChild.textContent = said;
  }
}

$("sources").addEventListener("change", (event) => chooseSource(event.target.value));

// --- state, classes, counters -----------------------------------------------------------------------

function showState(state) {
  const before = page.state;
  page.state = state;
  for (const item of state.classes) page.palette[item.id] = color(item.color);
  const named = (s) => s && JSON.stringify([s.classes, s.editable, s.void]);
  if (named(before) !== named(state)) { buildClasses(); requestAnimationFrame(draw); }
  $("title").textContent = state.title;
  document.title = `${state.title} \u00b7 aeseg live`;
  $("version").textContent = `aeseg_edge ${state.version}` + (state.source.name ? ` \u00b7 ${state.source.name.split("/").pop()}` : "");
  $("actions").hidden = !state.editable;
  $("undo").disabled = !state.can_undo;
  $("save").disabled = !state.unsaved;
  $("save").textContent = state.unsaved ? "Save" : "Saved";
  showSources(state.sources ?? []);
  showCounters(state);
  showPill();
}

function showPill() {
  const source = page.state?.source;
  let state = source?.state ?? "waiting";
  let text = { live: "Live", waiting: "Waiting", stalled: "Stalled", ended: "Ended" }[state] ?? state;
  if (state === "live" && source.fps) text = `Live \u00b7 ${source.fps.toFixed(source.fps < 10 ? 1 : 0)} fps`;
  if (state === "stalled") text = `No frame for ${Math.round(source.silent)} s`;
  if (page.held) { state = "held"; text = "Held"; }
  if (page.offline) { state = "offline"; text = "Not connected"; }
  if ($("state").dataset.state !== state) $("state").dataset.state = state;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
  let veil = null;
  if (page.offline) veil = "Not connected: the run has ended, or the network is down";
  else if (!page.packet) veil = state === "stalled" ? "The source gives no frames" : "Waiting for the first frame";
  else if (state === "stalled") veil = text;
  $("veil").hidden = veil === null;
  if (veil) $("veil-text").textContent = veil;
}

function showCounters(state) {
  const rows = [];
  const several = (state.sources ?? []).length > 1 ? state.sources.map((each) => each.name) : null;
  const put = (name, value) => {
    // What is counted by source is shown of the one that is looked at.
    if (several && value !== null && typeof value === "object" && Object.keys(value).every((each) => several.includes(each))) {
      if (page.source in value) put(name, value[page.source]);
    } else if (value !== null && typeof value === "object") {
      for (const [inner, number] of Object.entries(value)) put(`${name} (${inner})`, number);
    } else rows.push([name.replaceAll("_", " "), number(value)]);
  };
  for (const [name, value] of Object.entries(state.counters)) put(name, value);
  if (typeof state.source.drift === "number") put("drift", Number(state.source.drift.toFixed(3)));
  if (state.source.width) put("frame size", `${state.source.width} \u00d7 ${state.source.height}`);
  const list = $("counters");
  while (list.children.length > rows.length) list.lastChild.remove();
  rows.forEach(([name, value], place) => {
    let row = list.children[place];
    if (!row) {
      row = document.createElement("div");
      row.append(document.createElement("dt"), document.createElement("dd"));
      list.append(row);
    }
    row.firstChild.textContent = name;
    row.lastChild.textContent = value;
  });
}

function number(value) {
  if (typeof value !== "number") return value === null ? "\u2013" : String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return value.toFixed(Math.abs(value) < 10 ? 2 : 1);
}

const classOf = (id) => page.state?.classes.find((item) => item.id === id);
const nameOf = (id) => (id === VOID ? "void" : classOf(id)?.name ?? `class ${id}`);

function color(hex) {
  const value = parseInt(hex.slice(1), 16);
  // As ImageData has it in memory, little-endian: ABGR.
  return ((value & 255) << 16) | (value & 0xff00) | (value >> 16);
}

function buildClasses() {
  const list = $("classes");
  const focused = document.activeElement?.closest?.("li")?.dataset.id;
  const typed = new Map();
  for (const row of list.children) {
    const input = row.querySelector(".edit-name");
    if (row.classList.contains("open") && input.value !== input.defaultValue) typed.set(row.dataset.id, input.value);
  }
  list.replaceChildren(...page.state.classes.map((item) => buildRow(item, typed)));
  $("classes-count").textContent = `${page.state.classes.length}`;
  const gone = page.state.void?.length ? ` Void: ${page.state.void.length > 1 ? "clusters" : "cluster"} ${page.state.void.join(", ")}.` : "";
  $("classes-note").replaceChildren(
    page.state.editable ? "Choose a class to rename, recolour or merge it." : "Classes cannot be changed on this page.", gone);
  if (page.state.editable && page.state.void?.length) {
    const back = document.createElement("button");
    back.className = "quiet small"; back.type = "button"; back.textContent = "Bring back";
    back.addEventListener("click", async () => {
      for (const cluster of page.state.void) await edit({ action: "split", cluster });
    });
    $("classes-note").append(" ", back);
  }
  if (page.chosen !== null && page.chosen !== VOID && !classOf(page.chosen)) choose(null);
  if (focused !== undefined && !document.activeElement?.closest?.("li")) {
    list.querySelector(`li[data-id="${focused}"] .class`)?.focus();
  }
  showShares(true);
}

function buildRow(item, typed) {
  const row = $("class-row").content.firstElementChild.cloneNode(true);
  const find = (selector) => row.querySelector(selector);
  row.dataset.id = item.id;
  find(".swatch").style.background = item.color;
  find(".meter i").style.background = item.color;
  find(".name").textContent = item.name;
  find(".class").addEventListener("click", () => openEditor(page.open === item.id ? null : item.id));
  find(".class").addEventListener("pointerenter", () => hover(item.id));
  find(".class").addEventListener("pointerleave", () => hover(null));
  find(".class").addEventListener("focus", () => hover(item.id));
  find(".class").addEventListener("blur", () => hover(null));
  if (!page.state.editable) return row;
  const input = find(".edit-name");
  input.defaultValue = item.name;
  input.value = typed.get(String(item.id)) ?? item.name;
  find(".edit-color").value = item.color;
  find(".edit-color").addEventListener("change", (event) => edit({ action: "recolor", id: item.id, color: event.target.value }));
  const others = page.state.classes.filter((other) => other.id !== item.id);
  find(".edit-merge").replaceChildren(new Option("\u2013", ""), ...others.map((other) => new Option(other.name, other.id)));
  const same = () => others.find((other) => other.name.toLowerCase() === input.value.trim().toLowerCase());
  const label = () => {
    const target = find(".edit-merge").value;
    const into = target === "" ? same()?.name : nameOf(Number(target));
    find(".edit-apply").textContent = into === undefined ? "Rename" : `Merge into ${into.length > 14 ? into.slice(0, 13) + "\u2026" : into}`;
    find(".edit-apply").disabled = into === undefined && (input.value.trim() === item.name || !input.value.trim());
  };
  input.addEventListener("input", label);
  find(".edit-merge").addEventListener("change", label);
  label();
  find(".edit-void").addEventListener("click", () => edit({ action: "void", id: item.id }));
  find(".edit-cancel").addEventListener("click", () => { openEditor(null); find(".class").focus(); });
  find(".editor").addEventListener("submit", async (event) => {
    event.preventDefault();
    const target = find(".edit-merge").value;
    const done = target === ""
      ? await edit({ action: "rename", id: item.id, name: input.value })
      : await edit({ action: "merge", into: Number(target), ids: [item.id] });
    if (!done) return;
    openEditor(null);
    $("classes").querySelector(`li[data-id="${target === "" ? item.id : target}"] .class`)?.focus();
  });
  find(".chips").replaceChildren(...item.clusters.map((cluster) => {
    const chip = document.createElement(item.clusters.length > 1 ? "button" : "span");
    chip.className = "chip";
    chip.dataset.cluster = cluster;
    chip.textContent = cluster;
    if (item.clusters.length > 1) {
      chip.type = "button";
      chip.title = `Give cluster ${cluster} a class of its own`;
      chip.addEventListener("click", () => edit({ action: "split", cluster }));
    }
    return chip;
  }));
  return row;
}

function openEditor(id) {
  page.open = id !== null && page.state?.editable ? id : null;
  markRows();
  if (page.open !== null) {
    const row = $("classes").querySelector(`li[data-id="${page.open}"]`);
    row?.scrollIntoView({ block: "nearest", behavior: "smooth" });
    row?.querySelector(".edit-name").select();
  }
}

function markRows() {
  for (const row of $("classes").children) {
    const id = Number(row.dataset.id);
    const open = id === page.open;
    row.classList.toggle("open", open);
    row.classList.toggle("chosen", id === page.chosen);
    row.querySelector(".editor").hidden = !open;
    row.querySelector(".class").setAttribute("aria-expanded", open);
    for (const chip of row.querySelectorAll(".chip")) {
      chip.classList.toggle("here", Number(chip.dataset.cluster) === page.clusterChosen);
    }
  }
}

let sharesShown = 0;
function showShares(now) {
  const time = performance.now();
  if (!now && time - sharesShown < 250) return;
  sharesShown = time;
  const shares = page.packet?.shares ?? {};
  for (const row of $("classes").children) {
    const share = shares[row.dataset.id] ?? 0;
    row.classList.toggle("absent", share === 0);
    row.querySelector(".meter i").style.transform = `scaleX(${share.toFixed(4)})`;
    row.querySelector(".share").textContent = percent(share);
  }
  if (now) markRows();
  if (page.chosen !== null) showFound();
}

const percent = (share) => (share === 0 ? "\u2013" : share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`);

async function edit(change) {
  try {
    showState(await (await post("/api/edit", change)).json());
    return true;
  } catch (error) {
    toast(error.message, true);
    return false;
  }
}

async function act(path, said) {
  try {
    showState(await (await post(path, {})).json());
    if (said) toast(said);
  } catch (error) {
    toast(error.message, true);
  }
}

const save = () => act("/api/save", "Saved into the bundle");
const undo = () => act("/api/undo");
$("save").addEventListener("click", save);
$("undo").addEventListener("click", undo);

function toast(text, wrong = false) {
  const note = document.createElement("div");
  note.className = wrong ? "toast wrong" : "toast";
  note.textContent = text;
  $("toasts").replaceChildren(note);
  setTimeout(() => note.remove(), wrong ? 7000 : 2500);
}

// --- drawing ----------------------------------------------------------------------------------------

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

function draw() {
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
    paper.globalAlpha = 1;
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
  showShares(false);
  if (page.pointer) showTip(page.pointer.x, page.pointer.y);
  if ($("veil").hidden === false) showPill();
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

// --- pointing ---------------------------------------------------------------------------------------

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
    requestAnimationFrame(draw);
  } else if (event.key === "Enter" && page.packet) {
    page.cross ??= { x: 0.5, y: 0.5 };
    pick(page.cross);
  }
});
canvas.addEventListener("blur", () => requestAnimationFrame(draw));

async function pick(place) {
  const label = labelAt(place);
  choose(label);
  try {
    const found = await (await ask(`/api/at?number=${page.packet.number}&x=${place.x.toFixed(5)}&y=${place.y.toFixed(5)}${chosenSource("&")}`)).json();
    // The label map that the server kept is the one that was clicked.
    choose(found.class, found.cluster);
  } catch (error) {
    if (!(error instanceof Refused)) toast(error.message, true);
  }
}

function choose(id, cluster = null) {
  page.chosen = id;
  page.clusterChosen = cluster;
  $("found").hidden = id === null;
  markRows();
  if (id !== null) showFound();
  requestAnimationFrame(draw);
}

function showFound() {
  const id = page.chosen;
  $("found-swatch").style.background = classOf(id)?.color ?? "#000";
  setText("found-name", nameOf(id));
  const share = percent(page.packet?.shares[id] ?? 0);
  const cluster = page.clusterChosen === null ? "" : `cluster ${page.clusterChosen} \u00b7 `;
  setText("found-more", `${cluster}${share}`);
  $("found-edit").hidden = !page.state?.editable || (id === VOID && page.clusterChosen === null);
  setText("found-edit", id === VOID ? "Make a class" : "Edit");
}

// Only what changed: a status region that is written again is read out again.
function setText(id, text) { if ($(id).textContent !== text) $(id).textContent = text; }

$("found-close").addEventListener("click", () => choose(null));
$("found-edit").addEventListener("click", async () => {
  if (page.chosen !== VOID) openEditor(page.chosen);
  else if (await edit({ action: "split", cluster: page.clusterChosen })) choose(null);
});

function hover(id) {
  if (page.hovered === id) return;
  page.hovered = id;
  requestAnimationFrame(draw);
}

// --- timing -----------------------------------------------------------------------------------------

function remember(packet) {
  page.samples.push([performance.now() / 1000, packet.milliseconds.total ?? null, packet.age === null ? null : 1000 * packet.age]);
  if (page.samples.length > 6000) page.samples.splice(0, 1000);
}

function takeHistory(rows) {
  const now = performance.now() / 1000;
  page.samples = [...rows.map(([ago, total, age]) => [now - ago, total, age]), ...page.samples];
}

function quantile(values, share) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

function showFigures() {
  const now = performance.now() / 1000;
  const recent = page.samples.filter(([when]) => now - when <= SPAN);
  const spread = (place) => {
    const values = recent.map((row) => row[place]).filter((value) => value !== null);
    const figure = (value) => value.toFixed(value < 10 ? 1 : 0);
    return values.length ? `${figure(quantile(values, 0.5))} / ${figure(quantile(values, 0.95))} ` : null;
  };
  const put = (id, text, unit) => {
    const small = document.createElement("small");
    small.textContent = text === null ? "" : unit;
    $(id).replaceChildren(text ?? "\u2013", small);
  };
  const fps = page.state?.source.fps;
  put("fps", fps ? fps.toFixed(1) : null, "");
  put("latency", spread(1), "ms");
  put("age", spread(2), "ms");
  drawChart(recent, now);
}

function drawChart(rows, now) {
  const chart = $("chart");
  const ratio = window.devicePixelRatio || 1;
  const width = chart.clientWidth, height = chart.clientHeight;
  if (!width) return;
  chart.width = Math.round(width * ratio);
  chart.height = Math.round(height * ratio);
  const pen = chart.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const tone = (name) => style.getPropertyValue(name).trim();
  const top = 14, bottom = height - 24, left = 46, right = width - 16;
  const values = rows.flatMap(([, total, age]) => [total, age]).filter((value) => value !== null);
  const most = Math.max(4, quantile(values, 0.995) ?? 4) * 1.15;
  const raw = most / 3, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const y = (value) => bottom - Math.min(1.03, value / most) * (bottom - top);
  const x = (when) => right - (now - when) / SPAN * (right - left);
  pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  for (let value = 0; value <= most; value += step) {
    pen.strokeStyle = tone("--line");
    pen.beginPath(); pen.moveTo(left, Math.round(y(value)) + 0.5); pen.lineTo(right, Math.round(y(value)) + 0.5); pen.stroke();
    pen.fillStyle = tone("--dim"); pen.textAlign = "right";
    pen.fillText(`${Number(value.toPrecision(3))}${value === 0 ? " ms" : ""}`, left - 8, y(value));
  }
  pen.fillStyle = tone("--dim");
  for (const ago of [60, 45, 30, 15, 0]) {
    pen.textAlign = ago === 60 ? "left" : ago === 0 ? "right" : "center";
    pen.fillText(ago === 0 ? "now" : `\u2212${ago} s`, x(now - ago), height - 10);
  }
  for (const [place, name] of [[2, "--warm"], [1, "--accent"]]) {
    pen.strokeStyle = tone(name); pen.lineWidth = 1.6; pen.lineJoin = "round";
    pen.beginPath();
    let last = null;
    for (const row of thinned(rows, place, now)) {
      if (last === null || row[0] - last > 2.5) pen.moveTo(x(row[0]), y(row[1])); else pen.lineTo(x(row[0]), y(row[1]));
      last = row[0];
    }
    pen.stroke();
  }
}

// The median of each quarter of a second: a line that can be read at any frame rate.
function thinned(rows, place, now) {
  const bins = new Map();
  for (const row of rows) {
    if (row[place] === null) continue;
    const bin = Math.floor(row[0] * 4);
    if (!bins.has(bin)) bins.set(bin, []);
    bins.get(bin).push(row[place]);
  }
  return [...bins].sort((a, b) => a[0] - b[0]).map(([bin, values]) => [Math.min(now, (bin + 0.5) / 4), quantile(values, 0.5)]);
}

// --- controls ---------------------------------------------------------------------------------------

function setView(view) {
  page.view = view;
  document.querySelector(`input[name="view"][value="${view}"]`).checked = true;
  $("alpha-label").classList.toggle("off", view === "mask" || view === "both");
  $("snapshot").href = "/snapshot.jpg?view=" + (["uncertainty", "distance"].includes(view) ? "overlay" : view) + chosenSource("&");
  requestAnimationFrame(draw);
}

function setAlpha(share) {
  page.alpha = Math.min(1, Math.max(0, share));
  $("alpha").value = Math.round(100 * page.alpha);
  $("alpha-out").textContent = `${Math.round(100 * page.alpha)} %`;
  requestAnimationFrame(draw);
}

function setHeld(held) {
  page.held = held;
  $("pause").setAttribute("aria-pressed", held);
  showPill();
}

$("views").addEventListener("change", (event) => setView(event.target.value));
$("alpha").addEventListener("input", (event) => setAlpha(event.target.value / 100));
$("pause").addEventListener("click", () => setHeld(!page.held));
$("help").addEventListener("click", () => $("keys").showModal());
function fullScreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $("stage").requestFullscreen?.().catch(() => {});
}
$("full").addEventListener("click", fullScreen);
$("full").hidden = !document.fullscreenEnabled;

document.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  const typing = event.target.closest?.("input:not([type=range]):not([type=radio]), select, dialog");
  if ((event.ctrlKey || event.metaKey) && key === "s") { event.preventDefault(); if (!$("save").disabled) save(); return; }
  if ((event.ctrlKey || event.metaKey) && key === "z" && !typing) { event.preventDefault(); if (!$("undo").disabled) undo(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === "escape" && !document.querySelector("dialog[open]")) { openEditor(null); choose(null); return; }
  if (typing) return;
  const views = { 1: "overlay", 2: "mask", 3: "both", 4: "uncertainty", 5: "distance" };
  if (views[key]) setView(views[key]);
  else if (key === "[") setAlpha(page.alpha - 0.05);
  else if (key === "]") setAlpha(page.alpha + 0.05);
  else if (key === "f") fullScreen();
  else if (key === "n" && !$("sources").hidden) {
    const names = page.state.sources.map((each) => each.name);
    chooseSource(names[(names.indexOf(page.source) + 1) % names.length]);
    showSources(page.state.sources);
  }
  else if (key === "?") $("keys").showModal();
  else if (key === " " && !event.target.closest?.("button, a, summary")) { event.preventDefault(); setHeld(!page.held); }
});
window.addEventListener("resize", () => { showFigures(); draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showFigures);

start();
