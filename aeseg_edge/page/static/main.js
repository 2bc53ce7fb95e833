// The live page: starts what follows the run, and knows the keys. Each panel is a file of its name.
import { loginFromAddress } from "./api.js";
import { openEditor } from "./classes.js";
import "./counters.js";
import { save, undo } from "./header.js";
import { fullScreen, setAlpha, setHeld, setView } from "./picture.js";
import "./pointing.js";
import { nextSource } from "./sources.js";
import { $, choose, page } from "./state.js";
import { follow, watch } from "./stream.js";
import "./timing.js";

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
  else if (key === "n") nextSource();
  else if (key === "?") $("keys").showModal();
  else if (key === " " && !event.target.closest?.("button, a, summary")) { event.preventDefault(); setHeld(!page.held); }
});

await loginFromAddress();
follow();
watch();
