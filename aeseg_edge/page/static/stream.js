// What comes from the server by itself: packets, one after another, so that a slow browser gets
// fewer pictures and no old ones; and the state, once a second.
import { ask, asking, askJson, lose } from "./api.js";
import { chosenSource, page, setOffline, takeState, tell } from "./state.js";

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// encoding.py describes a packet.
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

export async function follow() {
  for (;;) {
    if (document.hidden || page.held || asking()) { await pause(0.2); continue; }
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
      page.watched = packet.uncertainty ? page.watched + 1 : 0;
      tell("frame");
    } catch (error) {
      if (changed !== page.changed) continue;
      lose(error);
      await pause(1);
    }
  }
}

export async function watch() {
  let first = true;
  let changed = 0;
  for (;;) {
    first ||= changed !== page.changed;
    changed = page.changed;
    if (!document.hidden && !asking()) {
      try {
        const state = await askJson(`/api/state?${first ? "history" : ""}${chosenSource("&")}`);
        if (changed !== page.changed) continue;
        if (first) tell("history", state.history);
        first = false;
        // A run that has begun again counts from one.
        if (state.counters.frames < page.number) page.number = 0;
        setOffline(false);
        takeState(state);
      } catch (error) {
        lose(error);
      }
    }
    tell("second");
    await pause(1);
  }
}
