// Timing: frames a second, latency and frame age over the last minute, and their chart.
import { $, on, page } from "./state.js";

const SPAN = 60; // seconds
let samples = [];

function remember() {
  const { packet } = page;
  samples.push([performance.now() / 1000, packet.milliseconds.total ?? null, packet.age === null ? null : 1000 * packet.age]);
  if (samples.length > 6000) samples.splice(0, 1000);
}

function takeHistory(rows) {
  const now = performance.now() / 1000;
  samples = [...rows.map(([ago, total, age]) => [now - ago, total, age]), ...samples];
}

function quantile(values, share) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

function showFigures() {
  const now = performance.now() / 1000;
  const recent = samples.filter(([when]) => now - when <= SPAN);
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

on("source", () => { samples = []; });
on("frame", remember);
on("history", takeHistory);
on("second", showFigures);
window.addEventListener("resize", showFigures);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showFigures);
