// What moved between two reports: variants before and after, and each change with its interval beside the line of no change.
CHARTS.plane = (box, target) => {
  const margin = 52;
  const rows = target.pairs.map((pair) => ({ ...pair, x: pair.new[0], y: pair.new[1], taken: pair.picked[1] }));
  const paths = target.pairs.flatMap(({ variant, old, new: now }) => [{ variant, x: old[0], y: old[1] }, { variant, x: now[0], y: now[1] }]);
  const ordered = [...rows.filter((row) => !row.taken), ...rows.filter((row) => row.taken)];
  const look = (taken) => ({ x: "x", y: "y", r: taken ? 7 : 5, fill: taken ? "var(--accent)" : "var(--mark)", stroke: "var(--paper)", strokeWidth: 1.5, className: "dots" });
  const figure = Plot.plot({
    ...FRAME, width: box.clientWidth, height: Math.max(300, Math.min(440, box.clientWidth * 0.46)),
    marginLeft: margin, marginRight: 24, marginTop: 26, marginBottom: 42, insetLeft: 24, insetRight: 36, insetTop: 16, insetBottom: 16,
    ariaLabel: `${target.cost} against ${target.score} on ${target.name}, ${rows.length} variants before and after`,
    x: { label: target.cost, labelAnchor: "center", labelArrow: "none", nice: true, zero: false },
    y: { label: target.score, labelArrow: "none", nice: true, reverse: !target.rises, ticks: 6 },
    marks: [
      Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1 }), Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: 6 }),
      Plot.line(paths, { x: "x", y: "y", z: "variant", stroke: "var(--mark)", strokeWidth: 1.5 }),
      Plot.dot(target.pairs, { x: (pair) => pair.old[0], y: (pair) => pair.old[1], r: 4, fill: "var(--paper)", stroke: "var(--mark)", strokeWidth: 2 }),
      ...[false, true].map((taken) => Plot.dot(ordered.filter((row) => row.taken === taken), look(taken))),
      Plot.text(ordered, { x: "x", y: "y", text: "variant", dx: 10, textAnchor: "start", fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 3, className: "names" }),
      tip(ordered, { x: "x", y: "y" }),
    ],
  });
  box.replaceChildren(figure);
  describe(figure, "group");
  untangle(figure, ordered, margin, (row) => (row.taken ? 0 : 1), (row) => row.taken);
  walk(figure, ordered, (row) => row.x);
};

CHARTS.moves = (box, target) => {
  const rows = target.moves.map((row, index) => ({ ...row, index, x: row.x[0], low: row.x[1], high: row.x[2] }));
  const looks = {
    worse: { symbol: "triangle", fill: "var(--bad)", r: 6 },
    better: { symbol: "circle", fill: "var(--good)", r: 5.5 },
    same: { symbol: "circle", stroke: "var(--mark)", strokeWidth: 2, fill: "var(--paper)", r: 4 },
  };
  const wide = box.clientWidth >= 700;
  const margin = Math.min(Math.max(...rows.map((row) => row.label.length)) * 6.8 + 16, box.clientWidth * 0.42), letters = Math.floor((margin - 10) / 6.4);
  const far = Math.max(...rows.flatMap((row) => [Math.abs(row.low), Math.abs(row.high)]), 1e-9);
  const ordered = Object.keys(looks).flatMap((verdict) => rows.filter((row) => row.verdict === verdict));
  const unit = target.unit === "%" ? "change (%)" : target.unit ? `change (${target.unit})` : "change";
  const figure = Plot.plot({
    ...FRAME, width: box.clientWidth, height: rows.length * 24 + 56, marginLeft: margin, marginRight: wide ? 190 : 20, marginTop: 6, marginBottom: 42,
    ariaLabel: `Changes on ${target.name}, ${unit}: ${rows.length} figures`,
    x: { label: unit, labelAnchor: "center", labelArrow: "none", domain: [Math.min(-far * 0.15, ...rows.map((row) => row.low)), Math.max(far * 0.15, ...rows.map((row) => row.high))], nice: true, ticks: Math.max(2, Math.floor(box.clientWidth / 140)), tickFormat: (value) => (value > 0 ? "+" : "") + String(value).replace("-", "−") },
    y: { type: "band", label: null, domain: rows.map((row) => row.index), padding: 0.3 },
    marks: [
      Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1 }),
      Plot.axisY({ tickSize: 0, fill: "var(--ink)", tickFormat: (index) => cut(rows[index].label, letters) }),
      Plot.ruleX([0], { stroke: "var(--ink)", strokeOpacity: 0.6 }),
      Plot.ruleY(rows, { y: "index", x1: "low", x2: "high", stroke: "var(--mark)", strokeWidth: 2 }),
      ...Object.entries(looks).map(([verdict, look]) => Plot.dot(rows.filter((row) => row.verdict === verdict), { x: "x", y: "index", ...look, className: "dots" })),
      ...(wide ? [Plot.text(rows, { y: "index", text: "moved", frameAnchor: "right", dx: 184, textAnchor: "end", fill: "var(--ink)" })] : []),
      tip(ordered, { x: "x", y: "index" }),
    ],
  });
  box.replaceChildren(figure);
  describe(figure, "group");
  walk(figure, ordered, (row) => row.index);
  const rest = [target.more && `${target.more} more changes`, target.still && `${target.still} figures that did not change at all`].filter(Boolean);
  if (rest.length) box.append(paragraph(`In the table: ${rest.join(", ")}.`));
};
