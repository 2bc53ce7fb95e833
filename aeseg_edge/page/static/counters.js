// The counters of the loop.
import { $, on, page } from "./state.js";

function showCounters() {
  const { state } = page, rows = [];
  const several = (state.sources ?? []).length > 1 ? state.sources.map((each) => each.name) : null;
  const put = (name, value) => {
    // What is counted by source is shown of the one that is looked at.
    if (several && value !== null && typeof value === "object" && Object.keys(value).every((each) => several.includes(each))) {
      if (page.source in value) put(name, value[page.source]);
    } else if (value !== null && typeof value === "object") {
      for (const [inner, each] of Object.entries(value)) put(`${name} (${inner})`, each);
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

on("state", showCounters);
on("source", showCounters);
