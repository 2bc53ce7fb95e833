// The classes: their shares, and the editor of each.
import { act } from "./api.js";
import { $, VOID, choose, classOf, nameOf, on, page, percent, shareOf, tell } from "./state.js";

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

export function openEditor(id) {
  page.open = id !== null && page.state?.editable ? id : null;
  markRows();
  if (page.open !== null) {
    const row = $("classes").querySelector(`li[data-id="${page.open}"]`);
    row?.scrollIntoView({ block: "nearest", behavior: "smooth" });
    row?.querySelector(".edit-name").select();
  }
}

function hover(id) {
  if (page.hovered === id) return;
  page.hovered = id;
  tell("look");
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
  if (!now && !page.held && time - sharesShown < 250) return;
  sharesShown = time;
  for (const row of $("classes").children) {
    const share = shareOf(row.dataset.id);
    row.classList.toggle("absent", share === 0);
    row.querySelector(".meter i").style.transform = `scaleX(${share.toFixed(4)})`;
    row.querySelector(".share").textContent = percent(share);
  }
  if (now) markRows();
  tell("shares");
}

export const edit = (change) => act("/api/edit", change);

on("state", (before) => {
  const named = (state) => state && JSON.stringify([state.classes, state.editable, state.void]);
  if (named(before) === named(page.state)) return;
  buildClasses();
  tell("look");
});
on("chosen", markRows);
on("drawn", () => showShares(false));
on("link", () => showShares(false));
