// Live pages: fetch the page again when the ledger has changed and exchange the parts that differ.
"use strict";
(() => {
  const body = document.body;
  const status = document.getElementById("live");
  const LEAST_PAUSE = 1000; // milliseconds between two refreshes, however busy the ledger is
  const SHARE = 3; // a refresh is followed by a pause this many times as long: a large ledger is not read all the time
  let shown = body.dataset.state;
  let wanted = shown;
  let busy = false;
  let source = null;

  function say(words, on) {
    if (!status || status.textContent === words) return;
    status.textContent = words;
    status.parentElement.classList.toggle("on", on);
  }

  function place(element) {
    if (!element || element === body) return null;
    if (element.id) return `#${CSS.escape(element.id)}`;
    const href = element.getAttribute("href");
    return href ? `a[href="${CSS.escape(href)}"]` : null;
  }

  function exchange(fresh) {
    for (const old of document.querySelectorAll("[data-live]")) {
      const next = fresh.getElementById(old.id);
      if (!next || next.innerHTML === old.innerHTML) continue;
      const focus = old.contains(document.activeElement) ? place(document.activeElement) : null;
      const open = [...old.querySelectorAll("details[open][id]")].map((one) => one.id);
      old.innerHTML = next.innerHTML; // our own page, escaped by the server; scripts in it do not run
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      old.classList.remove("fresh");
      void old.offsetWidth;
      old.classList.add("fresh");
      if (focus) old.querySelector(focus)?.focus({ preventScroll: true });
    }
    document.dispatchEvent(new CustomEvent("refreshed"));
  }

  async function refresh() {
    if (busy) return;
    busy = true;
    try {
      while (wanted !== shown && !document.hidden) {
        const state = wanted;
        const began = performance.now();
        const answer = await fetch(location.href, { credentials: "same-origin", headers: { accept: "text/html" } });
        if (answer.redirected && new URL(answer.url).pathname.endsWith("/login")) {
          location.reload();
          return;
        }
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        if (!answer.ok) throw new Error(fresh.querySelector("main")?.textContent.trim() || answer.statusText);
        exchange(fresh);
        shown = state;
        say(status.dataset.words, true);
        document.getElementById("updated").textContent = `· updated ${new Date().toLocaleTimeString()}`;
        const pause = Math.max(LEAST_PAUSE, SHARE * (performance.now() - began));
        await new Promise((done) => setTimeout(done, pause));
      }
    } catch (error) {
      say("Not live: the dashboard does not answer", false);
      setTimeout(refresh, 5 * LEAST_PAUSE);
    } finally {
      busy = false;
    }
  }

  function listen() {
    if (document.hidden || source || !body.dataset.events) return;
    source = new EventSource(body.dataset.events);
    source.addEventListener("open", () => say(status.dataset.words, true));
    source.addEventListener("error", () => say("Not live: connecting again", false));
    source.addEventListener("change", (event) => {
      wanted = event.data;
      refresh();
    });
  }

  function hush() {
    source?.close();
    source = null;
  }

  // A hidden tab holds no connection: browsers allow six per server.
  document.addEventListener("visibilitychange", () => (document.hidden ? hush() : listen()));
  addEventListener("pagehide", hush);
  addEventListener("pageshow", listen);
  if (status) say("Connecting", false);
  listen();

  for (const field of document.querySelectorAll("[data-apply]")) {
    field.addEventListener("change", () => {
      if (field.name === "period") for (const date of ["since", "until"]) field.form.elements[date].value = "";
      field.form.requestSubmit();
    });
  }
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const zones = document.getElementById("zones");
  if (zone && zones) zones.prepend(new Option("your zone", zone));
})();
