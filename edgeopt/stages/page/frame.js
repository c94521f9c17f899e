// What all charts of our pages share: figures, looks, names for screen readers, the keyboard. Everything shown here stands in a table as well.
const targets = JSON.parse(document.getElementById("figures").textContent);
const FRAME = { style: { fontSize: "12px", fontFamily: "inherit", color: "var(--soft)", background: "none" } };
const CHARTS = {};  // data-chart → (box, target): each file adds its own
const MANY = 40;  // marks; from here on only those that matter are named
const TITLES = { int8: "INT8", fp8: "FP8", bf16: "BF16", fp16: "FP16", fp32: "FP32", conversion: "conversion", movement: "moving data" };

// What a screen reader hears: the chart's name, and of some the marks (`walk` names them); axes and grids are silent.
function describe(figure, role) {
  figure.setAttribute("role", role);
  figure.querySelectorAll("[aria-label]").forEach((part) => part.removeAttribute("aria-label"));
  figure.querySelectorAll(":scope > g:not(.dots)").forEach((part) => part.setAttribute("aria-hidden", true));
}

// Three digits, as the tables write them.
const digits = (value) => (value >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3))));
const micro = (us) => (us >= 1000 ? `${digits(us / 1000)} ms` : `${digits(us)} µs`);
const percent = (share) => (share >= 0.0995 ? `${Math.round(100 * share)} %` : share >= 0.0005 ? `${(100 * share).toFixed(1)} %` : share > 0 ? "< 0.1 %" : "0 %");
// Round numbers on a logarithmic scale; on a short one at even distances.
function steps(low, high, most) {
  const round = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) round.push(...[1, 2, 5].map((digit) => digit * 10 ** power));
  const found = round.filter((value) => value >= low && value <= high);
  if (found.length > most) return found.filter((value) => Number.isInteger(Math.round(1e6 * Math.log10(value)) / 1e6));
  if (found.length > 2) return found;
  const wanted = (high - low) / Math.min(5, most), unit = 10 ** Math.floor(Math.log10(wanted));
  const step = [1, 2, 5, 10].map((digit) => digit * unit).find((value) => value >= wanted);
  return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 }, (_, index) => (Math.ceil(low / step) + index) * step);
}
const colour = (kind) => `var(--k-${kind})`;

// A name that is longer than its place loses its middle: how it ends often tells more.
function cut(name, most) {
  return name.length <= most ? name : `${name.slice(0, Math.ceil((most - 1) / 2))}…${name.slice(-Math.floor((most - 1) / 2))}`;
}

// One tab stop for a chart; the arrow keys go from mark to mark in the order of `rank`, and the tip follows.
function walk(figure, order, rank) {
  const dots = [...figure.querySelectorAll(".dots > *")];
  const ring = dots.map((dot, index) => [dot, order[index]]).sort((a, b) => rank(a[1]) - rank(b[1]));
  const svg = figure.matches("svg") ? figure : figure.querySelector("svg");
  const move = (dot, type) => {
    const box = dot.getBoundingClientRect();
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

// Names that would cover each other or leave the chart step aside or go; what weighs least stays.
function untangle(figure, order, margin, weight, matters) {
  const names = [...figure.querySelectorAll(".names text")];
  const frame = figure.getBoundingClientRect();
  const taken = [...figure.querySelectorAll(".dots > *")].map((dot) => dot.getBoundingClientRect());
  const free = (box) => box.left >= frame.left + margin && box.right <= frame.right && !taken.some((one) => one.left < box.right && box.left < one.right && one.top < box.bottom && box.top < one.bottom);
  const places = [["start", 10, 0], ["end", -10, 0], ["start", 8, -13], ["end", -8, -13], ["start", 8, 13], ["end", -8, 13]];
  const named = (row) => order.length <= MANY || matters(row);
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

const tip = (rows, options) => Plot.tip(rows, Plot.pointer({ title: "told", fill: "var(--paper)", stroke: "var(--rule)", fontSize: 12, lineHeight: 1.35, textPadding: 9, className: "tip", ...options }));

function paragraph(text) {
  const line = document.createElement("p");
  line.className = "hint soft";
  line.textContent = text;
  return line;
}
const note = (box, text) => box.replaceChildren(paragraph(text));

// What a select beside a chart says, or 0 where there is none.
const chosen = (kind, index) => Number(document.querySelector(`[data-redraw="${kind}"][data-of="${index}"]`)?.value ?? 0);

function start() {
  const draw = (box) => CHARTS[box.dataset.chart](box, targets[box.dataset.target]);
  const widths = new WeakMap();
  const watch = new ResizeObserver((entries) => entries.forEach(({ target: box }) => {
    if (widths.get(box) === box.clientWidth || !box.clientWidth) return;
    widths.set(box, box.clientWidth);
    draw(box);
  }));
  document.querySelectorAll("[data-chart]").forEach((box) => watch.observe(box));
  document.querySelectorAll("[data-redraw]").forEach((select) =>
    select.addEventListener("change", () => draw(document.querySelector(`[data-chart="${select.dataset.redraw}"][data-target="${select.dataset.of}"]`))));

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
}
