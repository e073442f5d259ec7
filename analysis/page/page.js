const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const INK = "#1f2933", SOFT = "#52606d", GRID = "#e4e7eb", BLUE = "#0072b2", ORANGE = "#d55e00";
const FONT = { family: getComputedStyle(document.body).fontFamily, size: 13, color: INK };
const VIRIDIS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151"]
  .map((colour, i, all) => [i / (all.length - 1), colour]);
const OPTIONS = { displayModeBar: false, responsive: true };
const MOMENTS = ["test accuracy", "epoch"];

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function shown(value) {
  if (value === null) return "none";
  return typeof value === "number" ? String(Number(value.toPrecision(5))) : String(value);
}

// --- header ---

for (const [number, label] of data.headlines) {
  const group = element("div");
  group.append(element("dt", label), element("dd", number));
  at("headlines").append(group);
}
for (const note of data.notes) at("notes").append(element("p", note));

// --- trajectories and accuracy, coloured alike ---

const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");

const describe = new Map(data.points.map((path, i) => {
  const config = data.columns.map(({ name: column, values, of }) =>
    `${escaped(column)}: ${escaped(values[of[i]])}`);
  return [path.trial, [`<b>${path.trial}</b>`, ...config].join("<br>")];
}));

const moment = (path, i) => `${describe.get(path.trial)}<br>epoch ${path.epoch[i]}, ` +
  `test accuracy ${(100 * path.accuracy[i]).toFixed(1)} %`;

// Paths are joined into one trace a colour, with gaps between them: traces are dear, points cheap.
function joined(paths, columns) {
  const found = columns.map(() => []), text = [], epoch = [], accuracy = [];
  for (const path of paths) {
    columns.forEach((column, c) => found[c].push(...column(path), null));
    text.push(...path.epoch.map((_, i) => moment(path, i)), "");
    epoch.push(...path.epoch, null);
    accuracy.push(...path.accuracy.map((a) => 100 * a), null);
  }
  return { columns: found, text, epoch, accuracy };
}

const coordinate = (c) => (path) => path.x[c] || path.epoch.map(() => 0);

function groupsOf(column) {
  const groups = column.values.map((value, i) => ({ value, colour: column.colours[i], paths: [] }));
  data.points.forEach((path, i) => groups[column.of[i]].paths.push(path));
  return groups;
}

function trace3d(paths, line, marker) {
  const { columns: [x, y, z], text } = joined(paths, [0, 1, 2].map(coordinate));
  return { type: "scatter3d", mode: "lines+markers", x, y, z, text, line, marker,
    hovertemplate: "%{text}<extra></extra>", connectgaps: false, showlegend: false };
}

function traceAccuracy(paths, line, marker) {
  const { text, epoch, accuracy } = joined(paths, []);
  return { type: text.length > 20000 ? "scattergl" : "scatter", mode: marker ? "markers" : "lines",
    x: epoch, y: accuracy, text, ...(marker ? { marker } : { line }), opacity: .65,
    hovertemplate: "%{text}<extra></extra>", connectgaps: false, showlegend: false };
}

const references = data.references.map(({ name: label, x }) => ({
  type: "scatter3d", mode: "markers+text", x: [x[0]], y: [x[1] || 0], z: [x[2] || 0],
  text: [label], textposition: "top center", textfont: { ...FONT, size: 15 }, showlegend: false,
  marker: { size: 7, color: INK, symbol: label === "truth" ? "diamond" : "circle-open" },
  hovertemplate: `${label}<extra></extra>` }));

function byColumn(column) {
  const groups = groupsOf(column);
  at("legend").replaceChildren(...groups.map((group, i) => legendEntry(group, i)));
  return {
    scene: groups.map(({ paths, colour }) =>
      trace3d(paths, { color: colour, width: 2.5 }, { color: colour, size: 1.8, opacity: .8 })),
    accuracy: groups.map(({ paths, colour }) => traceAccuracy(paths, { color: colour, width: 1.3 })),
  };
}

function legendEntry(group, i) {
  const entry = element("li"), swatch = element("i");
  swatch.style.background = group.colour;
  entry.append(swatch, element("span", group.value));
  entry.onclick = () => {
    const visible = !entry.classList.toggle("off");
    Plotly.restyle("manifold", { visible }, [i]);
    Plotly.restyle("accuracy", { visible }, [i]);
  };
  return entry;
}

function byMoment(which) {
  const { epoch, accuracy } = joined(data.points, []);
  const values = which === "epoch" ? epoch : accuracy;
  const known = values.filter((value) => value !== null);
  const [low, high] = [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))];
  const marker = { color: values.map((value) => value ?? low), colorscale: VIRIDIS };
  const scale = element("li", "", "ends"), ends = element("li", "", "ends"), bar = element("div", "", "scale");
  bar.style.background = `linear-gradient(to right, ${VIRIDIS.map(([, c]) => c).join(",")})`;
  scale.append(bar);
  const unit = which === "epoch" ? "" : " %";
  ends.append(element("span", shown(low) + unit), element("span", shown(high) + unit));
  at("legend").replaceChildren(scale, ends);
  return {
    scene: [trace3d(data.points, { color: "rgba(120,130,140,.25)", width: 1 }, { ...marker, size: 2.4 })],
    accuracy: [traceAccuracy(data.points, null, { ...marker, size: 4 })],
  };
}

const axis3d = (i) => ({ title: { text: data.axes[i] || "", font: { ...FONT, size: 14 } },
  tickfont: { ...FONT, size: 11, color: SOFT }, gridcolor: "#dde2e7", zerolinecolor: "#c3cad2",
  showbackground: false, nticks: 6 });
const LAYOUT3D = { font: FONT, margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)",
  uirevision: "kept", hoverlabel: { bgcolor: "#fff", bordercolor: "#cbd2d9", align: "left", font: FONT },
  scene: { xaxis: axis3d(0), yaxis: axis3d(1), zaxis: axis3d(2), aspectmode: "manual",
    aspectratio: { x: 1.5, y: 1.1, z: .95 }, camera: { eye: { x: 1.3, y: -1.5, z: .75 }, center: { x: 0, y: 0, z: -.12 } } } };
const axis2d = (title, more) => ({ title: { text: title, standoff: 8 }, gridcolor: GRID,
  zeroline: false, linecolor: "#cbd2d9", tickfont: { ...FONT, size: 12, color: SOFT }, ...more });
const layout2d = (x, y, more) => ({ font: FONT, margin: { l: 56, r: 12, t: 8, b: 46 }, xaxis: x,
  yaxis: y, hoverlabel: { bgcolor: "#fff", bordercolor: "#cbd2d9", align: "left", font: FONT },
  paper_bgcolor: "#fff", plot_bgcolor: "#fff", showlegend: false, ...more });

function draw() {
  const chosen = at("colour").value;
  const column = data.columns.find((item) => item.name === chosen);
  const traces = column ? byColumn(column) : byMoment(chosen);
  Plotly.react("manifold", [...traces.scene, ...references], LAYOUT3D, OPTIONS);
  Plotly.react("accuracy", traces.accuracy, layout2d(axis2d("epoch"),
    axis2d("test accuracy, %"), { hovermode: "closest" }), OPTIONS);
}

for (const choice of [...data.columns.map((column) => column.name), ...MOMENTS])
  at("colour").append(element("option", choice));
at("colour").onchange = draw;
draw();

const timeLike = data.axes.filter((label) => label.includes("time-like")).map((l) => l.slice(0, 4));
at("axes-note").textContent = timeLike.length
  ? `${timeLike.join(" and ")} ${timeLike.length > 1 ? "are" : "is"} time-like: its eigenvalue is ` +
    "negative, so separations along it count negatively towards the distance."
  : "All three axes are space-like.";

// --- spectrum ---

const k = data.spectrum.values.map((_, i) => i + 1);
const labelled = [1, 2, 3, 10, 50].filter((i) => i <= k.length);
Plotly.newPlot("spectrum", [
  { test: (v) => v > 0, color: BLUE, label: "space-like, λ > 0" },
  { test: (v) => v < 0, color: ORANGE, label: "time-like, λ < 0" },
].map(({ test, color, label }) => {
  const chosen = k.filter((i) => test(data.spectrum.values[i - 1]));
  return { x: chosen, y: chosen.map((i) => Math.abs(data.spectrum.values[i - 1])), name: label,
    mode: "markers", marker: { color, size: 8 }, hovertemplate: "|λ|<sub>%{x}</sub> = %{y:.4g}<extra></extra>" };
}).filter((trace) => trace.x.length), layout2d(axis2d("component", { rangemode: "tozero" }),
  axis2d("|λ|", { type: "log", exponentformat: "power", dtick: 1 }),
  { showlegend: true, legend: { x: 1, xanchor: "right", y: 1 } }), OPTIONS);
Plotly.newPlot("stress", [{ x: k, y: data.spectrum.stress, mode: "lines+markers",
  line: { color: INK, width: 1.5 }, marker: { size: 5, color: INK },
  hovertemplate: "χ<sub>%{x}</sub> = %{y:.3f}<extra></extra>" }],
  layout2d(axis2d("components", { rangemode: "tozero" }), axis2d("χ", { range: [0, 1.04] }), {
    annotations: [{ xref: "paper", yref: "paper", x: .98, y: .05, xanchor: "right", yanchor: "bottom",
      showarrow: false, align: "left", font: { ...FONT, size: 14 }, text: labelled.map((i) =>
        `χ<sub>${i}</sub> = ${data.spectrum.stress[i - 1].toFixed(3)}`).join("<br>") }] }), OPTIONS);
const { frobenius, l1, time_like_share: share } = data.spectrum, last = l1.length;
const percent = (x) => `${(100 * x).toFixed(1)} %`;
at("measures").textContent = `Of the distances themselves ${last} component${last > 1 ? "s" : ""} ` +
  `explain${last > 1 ? "" : "s"} ${percent(frobenius[last - 1])} by their squares (Frobenius) and ` +
  `${percent(l1[last - 1])} by their magnitudes (L1). Time-like components hold ${percent(share)} of Σ λ².`;
at("bound").textContent = data.spectrum.bound === 0
  ? "All eigenvalues were computed."
  : `No eigenvalue beyond those computed exceeds ${shown(data.spectrum.bound)} in magnitude: the ` +
    `first ${data.spectrum.n_certified} are proved to be the largest.`;

// --- trials ---

const body = at("trials").tBodies[0], { names, rows, kept } = data.trials;
const numeric = names.map((_, c) => rows.some((row) => typeof row[c] === "number"));
const lines = rows.map((row, r) => {
  const line = element("tr", undefined, kept[r] ? "" : "out");
  row.forEach((value, c) => {
    const className = names[c] === "state" ? `state ${value}` : numeric[c] ? "number" : "";
    line.append(element("td", value === null ? "–" : shown(value), className));
  });
  return { line, row, text: row.map(shown).join(" ").toLowerCase() };
});
let sorted = { column: 0, sign: 1 };

function compare(a, b) {
  const [x, y] = [a.row[sorted.column], b.row[sorted.column]];
  if (x === null || y === null) return (x === null) - (y === null);
  const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
  return sorted.sign * order;
}

function fill() {
  const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = lines.filter(({ text }) => words.every((word) => text.includes(word)));
  body.replaceChildren(...found.sort(compare).map(({ line }) => line));
  at("count").textContent = `${found.length} of ${lines.length} trials`;
  heads.forEach((head, c) => head.setAttribute("aria-sort",
    c !== sorted.column ? "none" : sorted.sign > 0 ? "ascending" : "descending"));
}

const heads = names.map((label, c) => {
  const head = element("th", label, numeric[c] ? "number" : "");
  head.onclick = () => {
    sorted = { column: c, sign: sorted.column === c ? -sorted.sign : 1 };
    fill();
  };
  return head;
});
const top = element("tr");
top.append(...heads);
at("trials").tHead.append(top);
at("filter").oninput = fill;
fill();

const reasons = Object.entries(data.left_out);
at("left-out").textContent = reasons.length
  ? "Left out of the embedding: " + reasons.map(([reason, ids]) => `${ids.length} ${reason} ` +
    `(${ids.slice(0, 5).join(", ")}${ids.length > 5 ? ", …" : ""})`).join("; ") + "."
  : "Every trial of the sweep is in the embedding.";

// --- provenance ---

const { parameters, versions, fingerprint, inputs } = data.provenance;
const facts = [
  ["selection", parameters.where || "all complete trials"],
  ["untrained trials", parameters.exclude_untrained ? "left out" : "kept"],
  ["samples", `${parameters.split}, sample set ${inputs.sample_set}`],
  ["distance", data.distance],
  ...Object.entries(parameters)
    .filter(([name]) => name.endsWith("_floor"))
    .map(([name, value]) => [name.replace("_", " "), shown(value)]),
  ["components", parameters.n_components],
  ["weights", parameters.weigh ? "each trial alike" : "each snapshot alike"],
  ["versions", Object.entries(versions).map((pair) => pair.join(" ")).join(", ")],
  ["fingerprint", fingerprint],
];
for (const [label, value] of facts) at("provenance").append(element("dt", label), element("dd", value));
at("record").textContent = JSON.stringify(data.provenance, null, 1);
