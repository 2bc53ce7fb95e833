// What the panels share: the page's state, and who is told when a part of it changes. A panel
// imports this and what lies below it, never the panel that uses it.

export const $ = (id) => document.getElementById(id);
export const VOID = 255;

export const page = {
  viewer: Math.random().toString(36).slice(2, 12),
  state: null, packet: null, number: 0, source: null, changed: 0,
  view: "overlay", alpha: 0.5, held: false, offline: false,
  hovered: null, chosen: null, clusterChosen: null, open: null, cross: null, pointer: null,
  watched: 0, palette: new Uint32Array(256), leaving: new AbortController(),
};

const listeners = new Map();

// Events: "frame" a packet has come, "look" the picture is to be drawn again, "drawn" it is;
// "history" figures from before this page (given), "state" the server's state has come (the one
// before it is given), "second" one has passed; "source" another source was chosen, "chosen"
// another class; "shares" those shown have changed; "link" held or connected, or no longer.
export function on(event, work) {
  listeners.set(event, [...(listeners.get(event) ?? []), work]);
}

export function tell(event, given) {
  for (const work of listeners.get(event) ?? []) work(given);
}

export function takeState(state) {
  const before = page.state;
  page.state = state;
  for (const item of state.classes) page.palette[item.id] = color(item.color);
  tell("state", before);
}

export function choose(id, cluster = null) {
  page.chosen = id;
  page.clusterChosen = cluster;
  tell("chosen");
  tell("look");
}

export function setOffline(offline) {
  page.offline = offline;
  tell("link");
}

export const chosenSource = (joint) => (page.source === null ? "" : `${joint}source=${encodeURIComponent(page.source)}`);
export const classOf = (id) => page.state?.classes.find((item) => item.id === id);
export const nameOf = (id) => (id === VOID ? "void" : classOf(id)?.name ?? `class ${id}`);
export const shareOf = (id) => page.packet?.shares[id] ?? 0;
export const percent = (share) => (share === 0 ? "\u2013" : share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`);
export const rate = (fps) => `${fps.toFixed(fps < 10 ? 1 : 0)} fps`;

// Only what changed: a status region that is written again is read out again.
export function setText(node, text) { if (node.textContent !== text) node.textContent = text; }

export function toast(text, wrong = false) {
  const note = document.createElement("div");
  note.className = wrong ? "toast wrong" : "toast";
  note.textContent = text;
  $("toasts").replaceChildren(note);
  setTimeout(() => note.remove(), wrong ? 7000 : 2500);
}

function color(hex) {
  const value = parseInt(hex.slice(1), 16);
  // As ImageData has it in memory, little-endian: ABGR.
  return ((value & 255) << 16) | (value & 0xff00) | (value >> 16);
}
