// Draws the charts of the page from its figures, and lets tables be sorted. Everything shown here stands in a table as well.
"use strict";
(() => {
  const targets = JSON.parse(document.getElementById("figures").textContent);
  const KINDS = [
    ["out", { symbol: "times", stroke: "var(--mark)", strokeWidth: 2, r: 4.5 }],
    ["qualifies", { symbol: "circle", stroke: "var(--accent)", strokeWidth: 2, fill: "var(--paper)", r: 4.5 }],
    ["reference", { symbol: "diamond", stroke: "var(--ink)", strokeWidth: 2, fill: "var(--paper)", r: 5 }],
    ["picked", { symbol: "circle", fill: "var(--accent)", stroke: "var(--paper)", strokeWidth: 1.5, r: 7 }],
  ];
  const FRAME = { style: { fontSize: "12px", fontFamily: "inherit", color: "var(--soft)", background: "none" } };

  const MARGIN = 52;
  const MANY = 40;  // marks; from here on only those that matter are named

  function scatter(box, target, score) {
    const { label, rises } = target.scores[score] ?? { label: "no score", rises: true };
    const rows = target.rows
      .filter((row) => row.x && (row.y[score] || !target.scores.length))
      .map((row) => ({ ...row, x: row.x[0], left: row.x[1], right: row.x[2], y: row.y[score]?.[0] ?? 0, low: row.y[score]?.[1] ?? 0, high: row.y[score]?.[2] ?? 0 }));
    if (!rows.length) return note(box, "No row has this score.");
    const front = score === 0 ? rows.filter((row) => row.front).sort((a, b) => a.x - b.x || a.y - b.y) : [];
    const ordered = KINDS.flatMap(([kind]) => rows.filter((row) => row.kind === kind));
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
        ...KINDS.map(([kind, look]) => Plot.dot(ordered.filter((row) => row.kind === kind), { x: "x", y: "y", ...look, r: many && kind !== "picked" ? 3 : look.r, className: "dots" })),
        Plot.text(ordered, { x: "x", y: "y", text: "variant", dx: 10, textAnchor: "start", fill: "var(--ink)", stroke: "var(--paper)", strokeWidth: 3, className: "names" }),
        Plot.tip(ordered, Plot.pointer({ x: "x", y: "y", title: "told", fill: "var(--paper)", stroke: "var(--rule)", fontSize: 12, lineHeight: 1.35, textPadding: 9, className: "tip" })),
      ],
    });
    box.replaceChildren(figure);
    describe(figure, "group");
    untangle(figure, ordered);
    walk(figure, ordered);
  }

  // What a screen reader hears: the chart's name, and of the scatter its marks (`walk` names them); axes and grids are silent.
  function describe(figure, role) {
    figure.setAttribute("role", role);
    figure.querySelectorAll("[aria-label]").forEach((part) => part.removeAttribute("aria-label"));
    figure.querySelectorAll(":scope > g:not(.dots)").forEach((part) => part.setAttribute("aria-hidden", true));
  }

  // Names that would cover each other or leave the chart step aside or go; what matters most stays.
  function untangle(figure, order) {
    const names = [...figure.querySelectorAll(".names text")];
    const frame = figure.getBoundingClientRect();
    const taken = [...figure.querySelectorAll(".dots > *")].map((dot) => dot.getBoundingClientRect());
    const free = (box) => box.left >= frame.left + MARGIN && box.right <= frame.right && !taken.some((one) => one.left < box.right && box.left < one.right && one.top < box.bottom && box.top < one.bottom);
    const rank = { picked: 0, reference: 1, qualifies: 2, out: 4 };
    const weight = (row) => rank[row.kind] - (row.front ? 1.5 : 0);
    const places = [["start", 10, 0], ["end", -10, 0], ["start", 8, -13], ["end", -8, -13], ["start", 8, 13], ["end", -8, 13]];
    const named = (row) => order.length <= MANY || row.front || row.kind === "picked" || row.kind === "reference";
    names.forEach((name, index) => named(order[index]) || name.remove());
    order.map((row, index) => [row, names[index]]).filter(([row]) => named(row)).sort((a, b) => weight(a[0]) - weight(b[0])).forEach(([, name]) => {
      const origin = name.getAttribute("transform");
      for (const [anchor, dx, dy] of places) {
        name.setAttribute("text-anchor", anchor);
        name.setAttribute("transform", `${origin} translate(${dx - 10},${dy})`);
        const box = name.getBoundingClientRect();
        if (free(box)) return void taken.push(box);
      }
      name.remove();
    });
  }

  // One tab stop for a chart; the arrow keys go from mark to mark along x, and the tip follows.
  function walk(figure, order) {
    const dots = [...figure.querySelectorAll(".dots > *")];
    const ring = dots.map((dot, index) => [dot, order[index]]).sort((a, b) => a[1].x - b[1].x);
    const move = (dot, type) => {
      const box = dot.getBoundingClientRect();
      const svg = figure.matches("svg") ? figure : figure.querySelector("svg");
      svg.dispatchEvent(new PointerEvent(type, { bubbles: true, pointerType: "mouse", clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 }));
    };
    ring.forEach(([dot, row], index) => {
      dot.setAttribute("tabindex", index ? -1 : 0);
      dot.setAttribute("role", "img");
      dot.setAttribute("aria-label", row.told.replaceAll("\n", ", "));
      dot.addEventListener("focus", () => move(dot, "pointermove"));
      dot.addEventListener("blur", () => move(dot, "pointerleave"));
      dot.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -index, End: ring.length - 1 - index }[event.key];
        const next = step === undefined ? undefined : ring[index + step];
        if (!next) return;
        event.preventDefault();
        dot.setAttribute("tabindex", -1);
        next[0].setAttribute("tabindex", 0);
        next[0].focus({ preventScroll: true });
      });
    });
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

  const CHARTS = {
    scatter: (box, target) => scatter(box, target, Number(document.querySelector(`[data-score="${box.dataset.target}"]`)?.value ?? 0)),
    latency: (box, target) => bars(box, target, {
      value: (row) => row.x?.[0], low: (row) => row.x[1], high: (row) => row.x[2], tick: target.throughput ? null : (row) => row.p90, told: (row) => row.cost, label: target.cost,
    }),
    size: (box, target) => bars(box, target, { value: (row) => row.mb, told: (row) => row.size, label: "size (MB)" }),
    memory: (box, target) => bars(box, target, { value: (row) => row.rss, told: (row) => row.memory, label: "peak memory (MB)" }),
  };

  function paragraph(text) {
    const line = document.createElement("p");
    line.className = "hint soft";
    line.textContent = text;
    return line;
  }
  const note = (box, text) => box.replaceChildren(paragraph(text));

  const draw = (box) => CHARTS[box.dataset.chart](box, targets[box.dataset.target]);
  const widths = new WeakMap();
  const watch = new ResizeObserver((entries) => entries.forEach(({ target: box }) => {
    if (widths.get(box) === box.clientWidth || !box.clientWidth) return;
    widths.set(box, box.clientWidth);
    draw(box);
  }));
  document.querySelectorAll("[data-chart]").forEach((box) => watch.observe(box));
  document.querySelectorAll("[data-score]").forEach((select) =>
    select.addEventListener("change", () => draw(document.querySelector(`[data-chart="scatter"][data-target="${select.dataset.score}"]`))));

  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    table.querySelectorAll("thead button").forEach((button) => button.addEventListener("click", () => {
      const head = button.closest("th");
      const falls = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("[aria-sort]").forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const order = (row) => Number(row.cells[head.cellIndex].dataset.order ?? NaN);
      const sorted = [...body.rows].sort((a, b) => {
        const [x, y] = [order(a), order(b)];
        return Number.isNaN(x) - Number.isNaN(y) || (falls ? y - x : x - y) || 0;
      });
      body.append(...sorted);
    }));
  });
})();
