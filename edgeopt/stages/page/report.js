// The charts of a report: latency against scores, and bars of latency, size and memory.
const KINDS = [
  ["out", { symbol: "times", stroke: "var(--mark)", strokeWidth: 2, r: 4.5 }],
  ["qualifies", { symbol: "circle", stroke: "var(--accent)", strokeWidth: 2, fill: "var(--paper)", r: 4.5 }],
  ["reference", { symbol: "diamond", stroke: "var(--ink)", strokeWidth: 2, fill: "var(--paper)", r: 5 }],
  ["picked", { symbol: "circle", fill: "var(--accent)", stroke: "var(--paper)", strokeWidth: 1.5, r: 7 }],
];
const MARGIN = 52;
const byKind = (rows) => KINDS.flatMap(([kind]) => rows.filter((row) => row.kind === kind));
const marks = (rows, many) => KINDS.map(([kind, look]) => Plot.dot(rows.filter((row) => row.kind === kind), { x: "x", y: "y", ...look, r: many && kind !== "picked" ? 3 : look.r, className: "dots" }));
const weight = (row) => ({ picked: 0, reference: 1, qualifies: 2, out: 4 })[row.kind] - (row.front ? 1.5 : 0);
const matters = (row) => row.front || row.kind === "picked" || row.kind === "reference";

function scatter(box, target, score) {
  const { label, rises } = target.scores[score] ?? { label: "no score", rises: true };
  const rows = target.rows
    .filter((row) => row.x && (row.y[score] || !target.scores.length))
    .map((row) => ({ ...row, x: row.x[0], left: row.x[1], right: row.x[2], y: row.y[score]?.[0] ?? 0, low: row.y[score]?.[1] ?? 0, high: row.y[score]?.[2] ?? 0 }));
  if (!rows.length) return note(box, "No row has this score.");
  const front = score === 0 ? rows.filter((row) => row.front).sort((a, b) => a.x - b.x || a.y - b.y) : [];
  const ordered = byKind(rows);
  const many = rows.length > MANY;
  const figure = Plot.plot({
    ...FRAME, width: box.clientWidth, height: Math.max(300, Math.min(440, box.clientWidth * 0.5)),
    marginLeft: MARGIN, marginRight: 24, marginTop: 26, marginBottom: 42, insetLeft: 24, insetRight: 36, insetTop: 16, insetBottom: 16,
    ariaLabel: `Scatter of ${target.cost} against ${label} on ${target.name}, ${rows.length} variants`,
    x: { label: target.cost, labelAnchor: "center", labelArrow: "none", nice: true, zero: false },
    y: { label: label, labelArrow: "none", nice: true, reverse: !rises, ticks: 6 },
    marks: [
      Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1 }), Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: 6 }),
      Plot.line(front, { x: "x", y: "y", curve: target.throughput ? "step-before" : "step-after", stroke: "var(--mark)", strokeWidth: 1.5, strokeDasharray: "5 4" }),
      Plot.ruleX(ordered, { x: "x", y1: "low", y2: "high", stroke: "var(--mark)", strokeOpacity: many ? 0.25 : 0.7 }),
      Plot.ruleY(ordered, { y: "y", x1: "left", x2: "right", stroke: "var(--mark)", strokeOpacity: many ? 0.25 : 0.7 }),
      ...marks(ordered, many),
      Plot.text(ordered, { x: "x", y: "y", text: "variant", dx: 10, textAnchor: "start", fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 3, className: "names" }),
      tip(ordered, { x: "x", y: "y" }),
    ],
  });
  box.replaceChildren(figure);
  describe(figure, "group");
  untangle(figure, ordered, MARGIN, weight, matters);
  walk(figure, ordered, (row) => row.x);
}

function bars(box, target, { value, low, high, tick, told, label }) {
  const all = target.rows.filter((row) => value(row) != null);
  const rows = all.filter((row) => row.bar);
  if (!rows.length) return note(box, "Nothing was measured for this.");
  const longest = Math.max(...rows.map((row) => row.variant.length));
  const wanted = longest * 7.2 + 16, left = Math.min(wanted, box.clientWidth * 0.36);
  const figure = Plot.plot({
    ...FRAME, width: box.clientWidth, height: rows.length * 25 + 52, marginLeft: left, marginRight: 76, marginTop: 6, marginBottom: 40,
    ariaLabel: `${label} on ${target.name}, ${rows.length} variants`,
    x: { label, labelAnchor: "center", labelArrow: "none", domain: [0, Math.max(...rows.map((row) => Math.max(value(row), high?.(row) ?? 0, tick?.(row) ?? 0)))], nice: true, ticks: Math.max(2, Math.floor(box.clientWidth / 120)) },
    y: { label: null, domain: rows.map((row) => row.variant), padding: 0.34 },
    marks: [
      Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: Math.max(2, Math.floor(box.clientWidth / 120)) }),
      Plot.axisY({ tickSize: 0, fill: "var(--ink)", textOverflow: "ellipsis-end", lineWidth: wanted > left ? left / 12 - 1.5 : Infinity }),
      Plot.barX(rows, { x: value, y: "variant", fill: (row) => (row.kind === "picked" ? "var(--accent)" : "var(--bar)") }),
      ...(low ? [Plot.ruleY(rows, { y: "variant", x1: low, x2: high, stroke: "var(--ink)", strokeWidth: 2 })] : []),
      ...(tick ? [Plot.tickX(rows.filter((row) => tick(row) != null), { x: tick, y: "variant", stroke: "var(--ink)", strokeWidth: 1.5, insetTop: 3, insetBottom: 3 })] : []),
      Plot.text(rows, { x: (row) => Math.max(value(row), high?.(row) ?? 0, tick?.(row) ?? 0), y: "variant", text: (row) => told(row).replace(/ \[.*/, ""), dx: 6, textAnchor: "start", fill: "var(--ink)" }),
    ],
  });
  describe(figure, "img");
  box.replaceChildren(figure);
  if (all.length > rows.length) box.append(paragraph(`The ${rows.length} foremost of ${all.length} rows; the table holds all.`));
}

CHARTS.scatter = (box, target) => scatter(box, target, chosen("scatter", box.dataset.target));
CHARTS.latency = (box, target) => bars(box, target, {
  value: (row) => row.x?.[0], low: (row) => row.x[1], high: (row) => row.x[2], tick: target.throughput ? null : (row) => row.p90, told: (row) => row.cost, label: target.cost,
});
CHARTS.size = (box, target) => bars(box, target, { value: (row) => row.mb, told: (row) => row.size, label: "size (MB)" });
CHARTS.memory = (box, target) => bars(box, target, { value: (row) => row.rss, told: (row) => row.memory, label: "peak memory (MB)" });
