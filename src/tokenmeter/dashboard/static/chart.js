// A chart's pointer: tells what is under it, opens a column, zooms into a stretch. The server has drawn it.
// Arrow keys do the same: with Shift they choose a stretch, Enter opens the column or zooms in.
// A finger hovers over nothing: its first tap tells, a second one on the same column opens it.
"use strict";
(() => {
  const WIDE = 10; // units of the plane per column
  const NEAR = 6; // pixels within which a drag is a click
  let plane, data, tip, here, chosen;
  let at = null; // the column that is told
  let picked = null; // the column where a stretch begins that the keys choose
  let from = null; // where a drag began: column and pixel, and whether the column was told already

  function set() {
    plane = document.getElementById("plane");
    if (!plane) return;
    data = JSON.parse(plane.parentElement.querySelector("script").textContent);
    tip = plane.querySelector(".tip");
    here = plane.querySelector(".here");
    chosen = plane.querySelector(".chosen");
  }

  function column(event) {
    const box = plane.getBoundingClientRect();
    const place = Math.floor(((event.clientX - box.left) / box.width) * data.labels.length);
    return Math.min(Math.max(place, 0), data.labels.length - 1);
  }

  function row(name, text, css, kind) {
    const line = document.createElement("div");
    if (kind) line.className = kind;
    const swatch = document.createElement("span");
    if (css) {
      const ns = "http://www.w3.org/2000/svg";
      const rect = document.createElementNS(ns, "rect");
      for (const [key, value] of Object.entries({ class: css, width: "100%", height: "100%" })) rect.setAttribute(key, value);
      swatch.append(document.createElementNS(ns, "svg"));
      swatch.firstChild.append(rect);
    }
    const label = document.createElement("bdi");
    label.textContent = name;
    const value = document.createElement("b");
    value.textContent = text;
    line.append(swatch, label, value);
    return line;
  }

  function tell(place) {
    at = place;
    here.setAttribute("x", at * WIDE);
    const head = document.createElement("strong");
    head.textContent = data.labels[at];
    const told = data.series.filter((one) => one.texts[at] !== "–").map((one) => row(one.name, one.texts[at], one.css));
    told.push(row(data.words, data.total[at], null, "all"));
    if (at in data.before) told.push(row("the time before", data.before[at]));
    tip.replaceChildren(head, ...told);
    tip.hidden = false;
    const x = ((at + 0.5) / data.labels.length) * plane.clientWidth;
    const room = plane.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(room, x < plane.clientWidth / 2 ? x + 16 : x - tip.offsetWidth - 16))}px`;
  }

  function hush() {
    at = from = picked = null;
    if (tip) tip.hidden = true;
    chosen?.setAttribute("width", 0);
  }

  // The stretch between two columns, both included.
  function mark(one, other) {
    const [first, last] = [one, other].sort((a, b) => a - b);
    chosen.setAttribute("x", first * WIDE);
    chosen.setAttribute("width", (last - first + 1) * WIDE);
    return [first, last];
  }

  function go(address) {
    document.dispatchEvent(new CustomEvent("soft", { detail: address }));
  }

  function zoom(first, last) {
    const [since, until] = [data.starts[first], data.starts[last + 1]].map(encodeURIComponent);
    go(data.zoom.replace("SINCE", since).replace("UNTIL", until));
  }

  const on = (name, act) =>
    document.addEventListener(name, (event) => {
      if (event.target.closest?.("#plane")) act(event);
    });

  on("pointermove", (event) => {
    const place = column(event);
    if (place !== at) tell(place);
    if (from !== null) mark(from.place, place);
  });
  on("pointerdown", (event) => {
    const place = column(event);
    from = { place, x: event.clientX, told: place === at };
    if (place !== at) tell(place);
  });
  on("pointerup", (event) => {
    if (from === null) return;
    const { place, x, told } = from;
    const end = column(event);
    const dragged = Math.abs(event.clientX - x) > NEAR;
    from = null;
    if (event.pointerType === "touch" && !told && !dragged) return;
    hush();
    if (dragged) zoom(Math.min(place, end), Math.max(place, end));
    else go(data.links[end]);
  });
  on("pointercancel", hush); // the finger scrolls the page
  on("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      const next = (at ?? (step > 0 ? -1 : data.labels.length)) + step;
      if (!(next in data.labels)) return;
      picked = event.shiftKey ? (picked ?? at ?? next) : null;
      tell(next);
      if (picked === null) chosen.setAttribute("width", 0);
      else mark(picked, next);
    } else if (event.key === "Enter" && at !== null) {
      const stretch = picked === null || picked === at ? null : mark(picked, at);
      if (stretch === null) return go(data.links[at]);
      hush();
      zoom(...stretch);
    } else if (event.key === "Escape") hush();
  });
  document.addEventListener("pointerout", (event) => {
    const left = plane?.contains(event.target) && !plane.contains(event.relatedTarget);
    if (left && event.pointerType !== "touch") hush();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest?.("#plane")) hush();
  });
  document.addEventListener("refreshed", set);
  set();
})();
