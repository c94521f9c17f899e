// Where the time goes: how timings are spread, layers in order, the roofline, the slowest layers.
const left = (box, names, share) => Math.min(Math.max(...names.map((name) => name.length)) * 7.2 + 16, box.clientWidth * share);
const ticks = (box) => Math.max(2, Math.floor(box.clientWidth / 120));
const gridX = (box) => Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: ticks(box) });

CHARTS.spread = (box, target) => {
  const rows = target.spreads, count = rows.length;
  const base = (index) => count - 1 - index;
  const hills = rows.flatMap(({ variant, low, high, counts, picked }, index) => {
    const top = Math.max(...counts), width = Math.log(high / low) / counts.length;
    const at = (x, y) => ({ variant, picked, x, y1: base(index), y2: base(index) + 0.86 * y });
    return counts.length < 2 ? [] : [at(low, 0), ...counts.map((one, bin) => at(low * Math.exp((bin + 0.5) * width), one / top)), at(high, 0)];
  });
  const marks = rows.flatMap((row, index) => ["p50", "p90", "p99"].filter((name) => row[name]).map((name) => ({ x: row[name], y1: base(index), y2: base(index) + (name === "p50" ? 0.86 : 0.34) })));
  const margin = left(box, rows.map((row) => row.variant), 0.36);
  const domain = [Math.min(...rows.map((row) => row.low)) * 0.97, Math.max(...rows.map((row) => row.high)) * 1.03];
  const at = steps(...domain, box.clientWidth / 60);
  const figure = Plot.plot({
    ...FRAME, width: box.clientWidth, height: count * 46 + 56, marginLeft: margin, marginRight: 24, marginTop: 10, marginBottom: 42,
    ariaLabel: `Timings of ${count} variants on ${target.name}, one hill each`,
    x: { type: "log", label: "one inference (ms)", labelAnchor: "center", labelArrow: "none", domain },
    y: { label: null, domain: [-0.12, count] },
    marks: [
      Plot.gridX(at, { stroke: "var(--line)", strokeOpacity: 1 }),
      Plot.axisX(at, { tickFormat: digits, tickSize: 0, label: "one inference (ms)", labelAnchor: "center", labelArrow: "none" }),
      Plot.axisY({ ticks: rows.map((_, index) => base(index)), tickFormat: (at) => cut(rows[count - 1 - at].variant, Math.floor((margin - 10) / 6.6)), tickSize: 0, fill: "var(--ink)" }),
      Plot.ruleY(rows.map((_, index) => base(index)), { stroke: "var(--rule)" }),
      Plot.areaY(hills, { x: "x", y1: "y1", y2: "y2", z: "variant", curve: "step", fill: (one) => (one.picked ? "var(--accent)" : "var(--bar)") }),
      Plot.ruleX(marks, { x: "x", y1: "y1", y2: "y2", stroke: "var(--ink)", strokeWidth: 1.5 }),
    ],
  });
  describe(figure, "img");
  box.replaceChildren(figure);
};

CHARTS.strip = (box, target) => {
  const rows = target.layers;
  const pieces = rows.flatMap(({ variant, pieces }) => {
    let end = 0;
    const whole = pieces.reduce((sum, piece) => sum + piece[2], 0);
    return pieces.map(([name, kind, ms]) => ({ variant, kind, x1: end, x2: (end += ms), told: `${variant}: ${cut(name, 60)}\n${TITLES[kind]}, ${micro(1000 * ms)}, ${percent(ms / whole)}` }));
  });
  const ends = rows.map(({ variant, pieces }) => ({ variant, ms: pieces.reduce((sum, piece) => sum + piece[2], 0) }));
  const margin = left(box, rows.map((row) => row.variant), 0.36);
  const figure = Plot.plot({
    ...FRAME, width: box.clientWidth, height: rows.length * 32 + 52, marginLeft: margin, marginRight: 76, marginTop: 6, marginBottom: 40,
    ariaLabel: `Layers of ${rows.length} variants on ${target.name} in order of execution, ${pieces.length} pieces`,
    x: { label: "one inference (ms)", labelAnchor: "center", labelArrow: "none", domain: [0, Math.max(...ends.map((end) => end.ms))], nice: true, ticks: ticks(box) },
    y: { label: null, domain: rows.map((row) => row.variant), padding: 0.3 },
    marks: [
      gridX(box),
      Plot.axisY({ tickSize: 0, fill: "var(--ink)", tickFormat: (name) => cut(name, Math.floor((margin - 10) / 6.6)) }),
      Plot.barX(pieces, { x1: "x1", x2: "x2", y: "variant", fill: (piece) => colour(piece.kind), stroke: "var(--paper)", strokeWidth: rows.some((row) => row.pieces.length > 40) ? 0.25 : 0.6, className: "dots" }),
      Plot.text(ends, { x: "ms", y: "variant", text: (end) => `${digits(end.ms)} ms`, dx: 6, textAnchor: "start", fill: "var(--ink)" }),
      tip(pieces, { x: (piece) => (piece.x1 + piece.x2) / 2, y: "variant" }),
    ],
  });
  box.replaceChildren(figure);
  describe(figure, "group");
  walk(figure, pieces, () => 0);
};

CHARTS.roofline = (box, target) => {
  const { gops, fast, slow } = target.peaks;
  const rows = target.rows.filter((row) => row.roof).map((row) => ({ ...row, x: row.roof[0], y: row.roof[1], told: `${row.variant}: ${percent(row.roof[2])} of what is possible\n${digits(row.roof[1])} GOP/s at ${digits(row.roof[0])} operations per byte` }));
  const ordered = byKind(rows), roof = Math.max(...gops.map(([, , top]) => top));
  const low = Math.min(...rows.map((row) => row.x), roof / fast) / 2.5, high = Math.max(...rows.map((row) => row.x), roof / slow) * 2.5;
  const floor = Math.min(...rows.map((row) => row.y)) / 2;
  const across = steps(low, high, box.clientWidth / 60), up = steps(floor, roof * 1.1, 12);
  const slope = (rate) => [{ x: Math.max(low, floor / rate), y: Math.max(low, floor / rate) * rate, rate }, { x: roof / rate, y: roof, rate }];
  // A roof has its name where it begins, away from the variants' names; one close below another has it below its line.
  const falling = [...gops].sort((a, b) => b[2] - a[2]).map(([kind, name, top], index, all) => ({ kind, name, top, below: index > 0 && all[index - 1][2] / top < 1.35 }));
  const flats = gops.flatMap(([kind, , top]) => [{ kind, x: Math.max(low, top / fast), y: top }, { kind, x: high, y: top }]);
  const figure = Plot.plot({
    ...FRAME, width: box.clientWidth, height: Math.max(300, Math.min(420, box.clientWidth * 0.46)),
    marginLeft: MARGIN, marginRight: 24, marginTop: 26, marginBottom: 42, insetTop: 18,
    ariaLabel: `Roofline of ${rows.length} variants on ${target.name}: operations per second against operations per byte`,
    x: { type: "log", label: "operations per byte", labelAnchor: "center", labelArrow: "none", domain: [low, high] },
    y: { type: "log", label: "GOP/s", labelArrow: "none", domain: [floor, roof * 1.1] },
    marks: [
      Plot.gridX(across, { stroke: "var(--line)", strokeOpacity: 1 }), Plot.gridY(up, { stroke: "var(--line)", strokeOpacity: 1 }),
      Plot.axisX(across, { tickFormat: digits, tickSize: 0, label: "operations per byte", labelAnchor: "center", labelArrow: "none" }),
      Plot.axisY(up, { tickFormat: digits, tickSize: 0, label: "GOP/s", labelArrow: "none" }),
      Plot.line([...slope(fast), ...slope(slow)], { x: "x", y: "y", z: "rate", stroke: "var(--mark)", strokeWidth: 1.5 }),
      Plot.line(flats, { x: "x", y: "y", z: "kind", stroke: (one) => colour(one.kind), strokeWidth: 2 }),
      ...[false, true].map((below) => Plot.text(falling.filter((one) => one.below === below), { x: (one) => Math.max(low, one.top / fast), y: "top", text: (one) => `${one.name} ${digits(one.top)} GOP/s`, textAnchor: "start", dx: 6, dy: below ? 9 : -9, fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 3 })),
      Plot.ruleX(ordered, { x: "x", y1: "y", y2: (row) => row.y / row.roof[2], stroke: "var(--mark)", strokeOpacity: rows.length > MANY ? 0 : 0.6, strokeDasharray: "2 3" }),
      ...marks(ordered, rows.length > MANY),
      Plot.text(ordered, { x: "x", y: "y", text: "variant", dx: 10, textAnchor: "start", fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 3, className: "names" }),
      tip(ordered, { x: "x", y: "y" }),
    ],
  });
  box.replaceChildren(figure);
  describe(figure, "group");
  untangle(figure, ordered, MARGIN, weight, matters);
  walk(figure, ordered, (row) => row.x);
};

CHARTS.layers = (box, target) => {
  const { variant, slowest, total } = target.layers[chosen("layers", box.dataset.target)];
  const rows = slowest.map(([name, kind, us, possible, type], index) => ({ index, name, kind, us, possible, type }));
  const share = box.clientWidth < 600 ? 0.34 : 0.3;
  const margin = left(box, rows.map((row) => row.name), share), letters = Math.floor((margin - 10) / 6.6);
  const figure = Plot.plot({
    ...FRAME, width: box.clientWidth, height: rows.length * 23 + 52, marginLeft: margin, marginRight: 104, marginTop: 6, marginBottom: 40,
    ariaLabel: `The ${rows.length} slowest layers of ${variant} on ${target.name}`,
    x: { label: "time of a layer (µs)", labelAnchor: "center", labelArrow: "none", domain: [0, Math.max(...rows.map((row) => Math.max(row.us, row.possible ?? 0)), 1e-3)], nice: true, ticks: ticks(box) },
    y: { type: "band", label: null, domain: rows.map((row) => row.index), padding: 0.3 },
    marks: [
      gridX(box),
      Plot.axisY({ tickSize: 0, fill: "var(--ink)", tickFormat: (index) => cut(rows[index].name, letters) }),
      Plot.barX(rows, { x: "us", y: "index", fill: (row) => colour(row.kind) }),
      Plot.tickX(rows.filter((row) => row.possible), { x: "possible", y: "index", stroke: "var(--ink)", strokeWidth: 2, insetTop: -2, insetBottom: -2 }),
      Plot.text(rows, { x: (row) => Math.max(row.us, row.possible ?? 0), y: "index", text: (row) => `${micro(row.us)} · ${percent(row.us / total)}`, dx: 6, textAnchor: "start", fill: "var(--ink)" }),
    ],
  });
  describe(figure, "img");
  box.replaceChildren(figure);
};
