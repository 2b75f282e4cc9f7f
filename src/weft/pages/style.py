"""What every page has: its style, light and dark, and a script that reads the tables under charts aloud on hover."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #5a6570; --line: #dde2e7; --page: #fff; --panel: #f5f7f9;
  --c1: #1f6fc4; --c2: #c2660c; --c3: #2b8a4e; --c4: #b03a70; --c5: #6b4fc0; --c6: #7d6a12; --c7: #14828f;
  --c8: #b8402c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe5ea; --soft: #9aa7b3; --line: #323a42; --page: #14181c; --panel: #1c2227;
    --c1: #62a8f0; --c2: #eda052; --c3: #63c389; --c4: #ea83b1; --c5: #a994f0; --c6: #cdb548; --c7: #4cc0cd;
    --c8: #f08872; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0; }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: .6rem 2rem; margin: 0 0 1rem; }
dt { color: var(--soft); font-size: .82rem; } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
.note { color: var(--soft); margin: .4rem 0; max-width: 48rem; overflow-wrap: anywhere; }
.result { font-size: 2.1rem; font-weight: 650; line-height: 1.2; margin: .2rem 0; }
.result small { font-size: 1rem; font-weight: 400; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.5rem 2rem;
  align-items: start; }
figure { margin: 0; min-width: 0; max-width: 34rem; }
figcaption { font-weight: 600; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .85rem; color: var(--soft); min-height: 1.4em; }
.legend span { overflow-wrap: anywhere; min-width: 0; } .legend svg { width: 20px; height: 10px; margin-right: .3rem; }
.chart svg.plot { display: block; width: 100%; height: auto; touch-action: pan-y; }
.chart text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); } .cursor { stroke: var(--ink); stroke-dasharray: 2 3; }
output { display: block; font-size: .85rem; min-height: 1.5em; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
details { margin: .25rem 0 .75rem; } summary { cursor: pointer; color: var(--soft); font-size: .88rem; }
details .table { max-height: 22rem; overflow: auto; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.1rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; white-space: nowrap; }
th.w, td.w { text-align: left; overflow-wrap: break-word; max-width: 26rem; }
@media (min-width: 700px) { td { white-space: nowrap; } td.w { white-space: normal; } }
details th { position: sticky; top: 0; background: var(--page); }
.strip { display: block; width: 100%; min-width: 9rem; height: 14px; background: var(--panel); }
.bar { display: flex; height: 14px; min-width: 9rem; } .bar i { display: block; height: 100%; }
pre { background: var(--panel); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto; font-size: .85rem; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; }
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .5rem 1rem; }
:focus-visible { outline: 2px solid var(--c1); outline-offset: 2px; }
@media print { details { display: block; } body { background: none; } }
"""

SCRIPT = """
for (const figure of document.querySelectorAll("figure.chart")) {
  const plot = figure.querySelector("svg.plot"), out = figure.querySelector("output");
  if (!plot || !out || !plot.dataset.x) continue;
  const [low, high, left, right, width] = plot.dataset.x.split(" ").map(Number);
  const heads = [...figure.querySelectorAll("thead th")].map(cell => cell.textContent);
  const rows = [...figure.querySelectorAll("tbody tr")], cursor = plot.querySelector(".cursor");
  const places = rows.map(row => Number(row.cells[0].textContent));
  let at = -1;
  const show = next => {
    at = Math.max(0, Math.min(rows.length - 1, next));
    const x = left + (places[at] - low) / (high - low) * (right - left);
    cursor.setAttribute("x1", x); cursor.setAttribute("x2", x); cursor.removeAttribute("visibility");
    out.textContent = heads.map((head, place) => head + " " + rows[at].cells[place].textContent).join(" \\u00b7 ");
  };
  const nearest = value => places.reduce(
    (best, place, number) => Math.abs(place - value) < Math.abs(places[best] - value) ? number : best, 0);
  plot.setAttribute("tabindex", "0");
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * width;
    show(nearest(low + (x - left) / (right - left) * (high - low)));
  });
  plot.addEventListener("keydown", event => {
    const steps = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: rows.length - 1};
    if (event.key in steps) { event.preventDefault(); show(steps[event.key]); }
  });
}
"""
