// The bar on top: title, state of the source, undo and save; and the veil over the picture that
// says why it does not move.
import { act } from "./api.js";
import { $, on, page, rate, setText } from "./state.js";

const STATES = { live: "Live", waiting: "Waiting", stalled: "Stalled", ended: "Ended" };

function showPill() {
  const source = page.state?.source;
  let state = source?.state ?? "waiting";
  let text = STATES[state] ?? state;
  if (state === "live" && source.fps) text = `Live \u00b7 ${rate(source.fps)}`;
  if (state === "stalled") text = `No frame for ${Math.round(source.silent)} s`;
  if (page.held) { state = "held"; text = "Held"; }
  if (page.offline) { state = "offline"; text = "Not connected"; }
  if ($("state").dataset.state !== state) $("state").dataset.state = state;
  setText($("state-text"), text);
  let veil = null;
  if (page.offline) veil = "Not connected: the run has ended, or the network is down";
  else if (!page.packet) veil = state === "stalled" ? "The source gives no frames" : "Waiting for the first frame";
  else if (state === "stalled") veil = text;
  $("veil").hidden = veil === null;
  if (veil) $("veil-text").textContent = veil;
}

function showTitle() {
  const { title, version, source, editable, unsaved, can_undo: canUndo } = page.state;
  $("title").textContent = title;
  document.title = `${title} \u00b7 aeseg live`;
  $("version").textContent = `aeseg_edge ${version}` + (source.name ? ` \u00b7 ${source.name.split("/").pop()}` : "");
  $("actions").hidden = !editable;
  $("undo").disabled = !canUndo;
  $("save").disabled = !unsaved;
  $("save").textContent = unsaved ? "Save" : "Saved";
  showPill();
}

export const save = () => act("/api/save", {}, "Saved into the bundle");
export const undo = () => act("/api/undo");
$("save").addEventListener("click", save);
$("undo").addEventListener("click", undo);
on("state", showTitle);
on("link", showPill);
on("source", showPill);
on("drawn", () => { if (!$("veil").hidden) showPill(); });
