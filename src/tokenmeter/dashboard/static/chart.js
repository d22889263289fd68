// Draws the overview's chart from the data in the page, in the page's own colours.
"use strict";
(() => {
  const place = document.getElementById("chart");
  const buttons = [...document.querySelectorAll("[data-shows]")];
  const legend = document.getElementById("legend");
  let data = null;
  let shows = "spend";

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function read() {
    data = JSON.parse(document.querySelector("#chart-data script").textContent);
  }

  function traces() {
    const unit = shows === "spend" ? "%{y:$,.6~f}" : "%{y:,} tokens";
    return data[shows].map((series, index) => ({
      type: "bar",
      name: plain(series.name),
      x: data.labels,
      y: series.values.map(Number),
      marker: { color: colour(`--chart-${(index % 7) + 1}`) },
      hovertemplate: `%{x}<br>${unit}`,
    }));
  }

  // Plotly reads a little markup in names; what users call things is text.
  function plain(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  function draw() {
    const ink = colour("--ink");
    const line = colour("--line");
    const label = 30 + 7 * Math.max(...data.labels.map((text) => text.length), 1); // pixels, roughly
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, fixedrange: true, automargin: true };
    Plotly.react(
      place,
      traces(),
      {
        barmode: "stack",
        bargap: 0.25,
        margin: { l: 10, r: 10, t: 10, b: 10 },
        paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)",
        font: { color: ink, family: getComputedStyle(document.body).fontFamily, size: 12 },
        xaxis: { ...axis, type: "category", nticks: Math.max(2, Math.floor(place.clientWidth / label)), tickangle: 0 },
        yaxis: { ...axis, tickformat: shows === "spend" ? "$,.6~f" : "", rangemode: "tozero", nticks: 6 },
        showlegend: false,
        hoverlabel: { bgcolor: colour("--card"), bordercolor: line, font: { color: ink } },
      },
      { displayModeBar: false, responsive: true },
    );
    name();
  }

  function name() {
    legend.replaceChildren(
      ...data[shows].map((series, index) => {
        const item = document.createElement("li");
        const swatch = document.createElement("span");
        swatch.style.backgroundColor = colour(`--chart-${(index % 7) + 1}`);
        item.append(swatch, series.name);
        return item;
      }),
    );
  }

  function show(what) {
    shows = what;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.shows === what));
    draw();
  }

  read();
  draw();
  place.on("plotly_click", (event) => location.assign(data.links[event.points[0].pointIndex]));
  for (const button of buttons) button.addEventListener("click", () => show(button.dataset.shows));
  document.addEventListener("refreshed", () => {
    read();
    draw();
    Plotly.Plots.resize(place); // it may have been hidden until the first call
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
