// The row that chooses between several sources.
import { $, choose, chosenSource, on, page, rate, setText, tell } from "./state.js";

function chooseSource(name) {
  if (page.source === name) return;
  page.source = name;
  page.changed += 1;
  page.leaving.abort();
  page.leaving = new AbortController();
  page.packet?.image.close();
  page.packet = null;
  page.number = 0;
  choose(null);
  $("labels-link").href = "/labels.png" + chosenSource("?");
  $("stream-link").href = "/stream.mjpg" + chosenSource("?");
  tell("source");
}

export function nextSource() {
  if ($("sources").hidden) return;
  const names = page.state.sources.map((each) => each.name);
  chooseSource(names[(names.indexOf(page.source) + 1) % names.length]);
  showSources();
}

// One source needs no choice. A second one may come later, when its camera opens.
function showSources() {
  const box = $("sources"), sources = page.state.sources ?? [];
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
    setText(text.lastChild, state === "live" ? rate(fps) : state);
  }
}

$("sources").addEventListener("change", (event) => chooseSource(event.target.value));
on("state", showSources);
