const axis = { // fixed: dragging in a chart would catch the scrolling of the page on a phone
  automargin: true, fixedrange: true, gridcolor: "--line", zerolinecolor: "--line",
  ticks: "outside", ticklen: 5, tickcolor: "--surface", title: {standoff: 10},
};
const hovertemplate = "%{customdata}<extra></extra>";
const template = {
  data: {
    bar: [{hovertemplate, error_y: {color: "--ink", thickness: 1, width: 4}}],
    scatter: [{hovertemplate, line: {width: 2}, marker: {line: {color: "--surface", width: 1}}}],
  },
  layout: {
    xaxis: axis, yaxis: axis, bargap: 0.3, dragmode: false, showlegend: false, margin: {l: 8, r: 12, t: 8, b: 8},
    paper_bgcolor: "rgba(0, 0, 0, 0)", plot_bgcolor: "rgba(0, 0, 0, 0)",
    font: {family: "system-ui, sans-serif", size: 12, color: "--muted"},
    hoverlabel: {bgcolor: "--surface", bordercolor: "--line", font: {family: "system-ui, sans-serif", color: "--ink"}, align: "left"},
  },
};

/** A copy in which every color named after a CSS variable has that variable's value. */
function themed(value, key, style) {
  if (typeof value === "string") return key.endsWith("color") && value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
  if (Array.isArray(value)) return value.map((item) => themed(item, key, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, themed(item, name, style)]));
}

function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [id, figure] of Object.entries(figures)) {
    const place = document.getElementById(id);
    const {data, layout} = themed({data: figure.data, layout: {...figure.layout, template}}, "", style);
    Plotly.react(place, data, {...layout, width: place.clientWidth}, {displayModeBar: false});
  }
}

function print(on) {
  document.documentElement.toggleAttribute("data-print", on);
  draw();
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let width = innerWidth;
addEventListener("resize", () => { // phones also fire this when only the height changes, as their address bar folds away
  if (innerWidth !== width) draw();
  width = innerWidth;
});
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));
