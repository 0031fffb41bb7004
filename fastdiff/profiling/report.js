"use strict";
// The report's behaviour: the answer with its slider, the plot, the front's pictures, the table.
const D = JSON.parse(document.getElementById("data").textContent);
const by = Object.fromEntries(D.rows.map((r) => [r.slug, r]));
const $ = (id) => document.getElementById(id);
const value = (r, m) => (r[m] === null || r[m] === undefined ? null : typeof r[m] === "object" ? r[m].value : r[m]);
const short = (v) => (v === null ? "–" : v === 0 ? "0" : Math.abs(v) >= 1000 ? v.toFixed(0) : Number(v.toPrecision(3)).toString());
const time = (s) => (s < 1 ? short(s * 1000) + " ms" : short(s) + " s");
const element = (tag, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
};
const image = (strip, title) =>
  element("img", { className: "strip" + (strip.pixelated ? " pixelated" : ""), src: strip.url, alt: title, title,
                   style: `width:${strip.pixelated ? Math.min(1100, strip.width * 2.6) : strip.width}px` });
const measured = Object.keys(D.measures).filter((m) => D.rows.some((r) => value(r, m) !== null));
if (!measured.length) measured.push("rmse"); // nothing was measured: an empty plot
const main = measured[0];

// ---- the answer

function answer(slug, why) {
  const r = by[slug];
  $("answer-why").textContent = why;
  if (!r) { $("answer-label").textContent = "no setting fits"; return; }
  $("answer-label").textContent = `Take ${r.label}`;
  const numbers = [["a sample", time(r.seconds.median)], ["model calls", short(r.calls)]];
  if (value(r, "rmse") !== null) numbers.push(["RMSE to converged", short(value(r, "rmse"))]);
  if (value(r, "ssim") !== null) numbers.push(["SSIM to converged", short(value(r, "ssim"))]);
  if (value(r, "frechet") !== null) numbers.push([`Frechet distance, ${r.frechet.count} samples`, short(value(r, "frechet"))]);
  const slowest = D.rows.filter((o) => o.seconds && value(o, main) !== null).sort((a, b) => b.seconds.median - a.seconds.median)[0];
  if (slowest && slowest !== r && slowest.seconds.median > 1.05 * r.seconds.median) numbers.push([`than ${slowest.label}`, short(slowest.seconds.median / r.seconds.median) + "x faster"]);
  $("answer-numbers").replaceChildren(...numbers.map(([t, v]) => element("div", {}, element("b", { textContent: v }), element("span", { className: "dim small", textContent: t }))));
  const strips = [];
  if (D.strips[slug]) strips.push(element("div", { className: "dim small", textContent: r.label }), image(D.strips[slug], r.label));
  if (D.converged[r.target]) strips.push(element("div", { className: "dim small", textContent: "converged, from the same noise" }), image(D.converged[r.target], "converged"));
  $("answer-strips").replaceChildren(...strips);
  $("answer-line").textContent = r.line;
}
function recommend() { answer(D.picked, D.picked ? "Recommended: " + D.reason : D.reason); setSlider(D.picked); }
const ladder = D.fronts[main] || [];
function setSlider(slug) {
  const at = Math.max(0, ladder.indexOf(slug));
  $("budget").max = Math.max(0, ladder.length - 1);
  $("budget").value = at;
  $("budget-text").textContent = ladder.length ? time(by[ladder[at]].seconds.median) : "";
}
$("budget").addEventListener("input", () => {
  const slug = ladder[Number($("budget").value)];
  $("budget-text").textContent = time(by[slug].seconds.median);
  answer(slug, `The best ${D.measures[main].title} within ${time(by[slug].seconds.median)} a sample`);
});
$("reset").addEventListener("click", recommend);
$("copy").addEventListener("click", () => {
  const done = () => { $("copy").textContent = "copied"; };
  if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText($("answer-line").textContent).then(done);
  else { const range = document.createRange(); range.selectNode($("answer-line")); getSelection().removeAllRanges(); getSelection().addRange(range); document.execCommand("copy"); done(); }
});
if (!ladder.length) $("budget").disabled = true;

// ---- the plot

const across = (r, x) => (x === "seconds" ? r.seconds && r.seconds.median : r[x]);
const colours = ["#1f77b4", "#e67e22", "#2a9d4a", "#8e44ad", "#7b5544", "#0097a7", "#d4a017", "#5c6bc0", "#ad1457", "#607d8b"];
function draw() {
  const x = $("x").value, y = $("y").value, m = D.measures[y];
  const known = D.rows.filter((r) => r.seconds && value(r, y) !== null);
  const traces = [];
  const front = (D.fronts[y] || []).map((s) => by[s]);
  if (front.length) traces.push({ x: front.map((r) => across(r, x)), y: front.map((r) => value(r, y)), mode: "lines", name: "front",
    line: { color: "rgba(40,40,40,0.18)", width: 12 }, hoverinfo: "skip" });
  [...new Set(known.map((r) => r.variant))].forEach((variant, i) => {
    const line = known.filter((r) => r.variant === variant).sort((a, b) => a.setting.steps - b.setting.steps);
    const interval = typeof line[0][y] === "object";
    traces.push({
      x: line.map((r) => across(r, x)), y: line.map((r) => value(r, y)), name: variant, mode: "lines+markers+text",
      text: line.map((r) => String(r.setting.steps)), textposition: "top right", textfont: { size: 10, color: "#777" }, customdata: line.map((r) => r.slug),
      line: { color: colours[i % colours.length], width: 1.6 }, marker: { size: 8 },
      error_y: interval ? { type: "data", symmetric: false, array: line.map((r) => r[y].high - r[y].value), arrayminus: line.map((r) => r[y].value - r[y].low), thickness: 1, width: 2 } : undefined,
      hovertext: line.map((r) => `<b>${r.label}</b><br>${time(r.seconds.median)} a sample (p20 ${time(r.seconds.p20)}, p80 ${time(r.seconds.p80)})<br>${short(r.calls)} model calls, ${r.samples} samples<br>` +
        measured.map((n) => `${D.measures[n].title}: ${short(value(r, n))}`).join("<br>")),
      hoverinfo: "text",
    });
  });
  const picked = by[D.picked];
  if (picked && value(picked, y) !== null) traces.push({ x: [across(picked, x)], y: [value(picked, y)], mode: "markers", name: "recommended",
    marker: { symbol: "star", size: 18, color: "#c2185b", line: { color: "#fff", width: 1 } }, hoverinfo: "skip" });
  const log = y === "rmse";
  const shapes = [], notes = [];
  const level = (at, text) => {
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: at, y1: at, line: { dash: "dot", color: "#777", width: 1 } });
    notes.push({ xref: "paper", x: 1, xanchor: "right", y: log ? Math.log10(at) : at, yanchor: "bottom", text, showarrow: false, font: { size: 11, color: "#777" } });
  };
  if (y === "rmse") D.facts.references.slice(0, 1).forEach((r) => r.error > 0 && level(r.error, "error of the reference itself"));
  const floor = D.facts.data_against_data && D.facts.data_against_data[y];
  if (floor) level(floor.value, `${floor.count} pictures of the data against the rest`);
  Plotly.react("chart", traces, {
    margin: { l: 70, r: 20, t: 10, b: 55 }, hovermode: "closest", legend: { orientation: "h", y: -0.16 }, shapes, annotations: notes,
    xaxis: { title: { text: $("x").selectedOptions[0].text }, type: "log", gridcolor: "#eceff2" },
    yaxis: { title: { text: m.title + (m.less ? " (less is better)" : " (more is better)") }, type: log ? "log" : "linear", gridcolor: "#eceff2" },
    paper_bgcolor: "#fff", plot_bgcolor: "#fff",
  }, { responsive: true, displaylogo: false });
  const compared = known.length ? (known[0][y] && known[0][y].count) || known[0].compared : 0;
  $("chart-note").textContent = known.length ? `Numbers at the dots are steps. ${m.title}: from ${compared || known[0].samples} samples a setting; bars are 5% to 95% of a bootstrap.` : "Not measured.";
}
measured.forEach((m) => $("y").append(element("option", { value: m, textContent: D.measures[m].title })));
$("x").addEventListener("change", draw);
$("y").addEventListener("change", draw);
draw();
$("chart").on("plotly_click", (event) => {
  const r = by[event.points[0].customdata];
  if (!r) return;
  const shown = [element("div", { textContent: `${r.label}, ${time(r.seconds.median)} a sample` })];
  if (D.strips[r.slug]) shown.push(image(D.strips[r.slug], r.label));
  shown.push(element("pre", { textContent: r.line }));
  $("clicked").replaceChildren(...shown);
});

// ---- the front's pictures

function frontRow(title, about, strip, picked) {
  return element("div", { className: "row" + (picked ? " picked" : "") },
    element("div", {}, element("b", { textContent: title }), element("div", { className: "dim small", textContent: about })), image(strip, title));
}
ladder.filter((s) => D.strips[s]).forEach((s) => {
  const r = by[s];
  $("front").append(frontRow(r.label, `${time(r.seconds.median)}, ${short(r.calls)} calls, ${D.measures[main].title.split(" ")[0]} ${short(value(r, main))}`, D.strips[s], s === D.picked));
});
Object.entries(D.converged).forEach(([slug, strip]) => {
  const r = D.facts.references.find((o) => D.rows.some((row) => row.target === slug && row.setting.guidance === o.target.guidance));
  $("front").append(frontRow("converged", r ? `${r.solver}, ${r.steps} steps, guidance ${r.target.guidance}` : "", strip, false));
});

// ---- the table

const columns = [
  ["setting", (r) => r.label, (r) => r.label],
  ["samples", (r) => r.samples, (r) => String(r.samples)],
  ["time a sample", (r) => r.seconds && r.seconds.median, (r) => (r.seconds ? time(r.seconds.median) : "–")],
  ["p20 – p80", (r) => r.seconds && r.seconds.p20, (r) => (r.seconds ? `${time(r.seconds.p20)} – ${time(r.seconds.p80)}` : "–")],
  ["calls", (r) => r.calls, (r) => short(r.calls)],
  ...(D.rows.some((r) => r.full_calls !== null && r.full_calls !== r.calls) ? [["full calls", (r) => r.full_calls, (r) => short(r.full_calls)]] : []),
  ...measured.map((m) => [m.replace("sliced_wasserstein", "sliced W.").replace("frechet", "Frechet").replace("kid", "KID").replace("rmse", "RMSE").replace("psnr", "PSNR").replace("ssim", "SSIM"),
    (r) => value(r, m), (r) => short(value(r, m)), (r) => (r[m] && r[m].low !== undefined ? `${short(r[m].low)} to ${short(r[m].high)}` : "")]),
];
let order = 2, down = false;
function table() {
  const head = element("tr", {}, ...columns.map(([title], i) => element("th", { textContent: title + (i === order ? (down ? " ↓" : " ↑") : ""), onclick: () => { down = i === order ? !down : false; order = i; table(); } })));
  document.querySelector("#table thead").replaceChildren(head);
  const key = columns[order][1];
  const sorted = [...D.rows].sort((a, b) => {
    const [u, v] = [key(a), key(b)];
    if (u === null || v === null) return (u === null) - (v === null);
    return (u < v ? -1 : u > v ? 1 : 0) * (down ? -1 : 1);
  });
  document.querySelector("#table tbody").replaceChildren(...sorted.map((r) => {
    const name = (ladder.includes(r.slug) ? "front " : "") + (r.slug === D.picked ? "picked " : "") + (r.error ? "failed" : "");
    if (r.error) return element("tr", { className: name }, element("td", { textContent: r.label }), element("td", { className: "why", colSpan: columns.length - 1, textContent: r.error }));
    return element("tr", { className: name }, ...columns.map(([, , show, about]) => element("td", { textContent: show(r), title: about ? about(r) : r.note })));
  }));
}
table();
recommend();
