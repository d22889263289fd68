// Pages that change in place: when the ledger has changed, and when another question of the same page is asked.
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

  // Where the focus goes once the part that it is in has been exchanged: to what stands for the element that had it.
  // What was asked for may have another address and other words; what comes by itself is told by its address.
  function successor(part, held, at, asked) {
    const all = [...part.querySelectorAll(held.tagName)];
    const same = (...facts) => all.find((one) => facts.every((fact) => one[fact] && one[fact] === held[fact]));
    return (
      same("id") || same("name", "type", "value") || same("name", "type") || same("href", "textContent") ||
      (asked ? same("textContent") || all[Math.min(at, all.length - 1)] : same("href"))
    );
  }

  // Put what differs in its place; where somebody is choosing something, only when they ask for it.
  function exchange(fresh, asked) {
    for (const old of document.querySelectorAll(asked ? "[data-live], [data-part]" : "[data-live]:not([data-touched])")) {
      const next = fresh.getElementById(old.id);
      if (!next || next.innerHTML === old.innerHTML) continue;
      old.removeAttribute("data-touched");
      const held = old.contains(document.activeElement) ? document.activeElement : null;
      const at = held ? [...old.querySelectorAll(held.tagName)].indexOf(held) : -1;
      const open = [...old.querySelectorAll("details[open][id]")].map((one) => one.id);
      old.innerHTML = next.innerHTML; // our own page, escaped by the server; scripts in it do not run
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      old.classList.remove("fresh");
      void old.offsetWidth;
      if (!asked) old.classList.add("fresh");
      if (!held) continue;
      const heir = successor(old, held, at, asked);
      if (!heir && asked) old.tabIndex = -1; // what had it is gone: its place has it, and Tab goes on from there
      (heir || old).focus({ preventScroll: true });
    }
    document.dispatchEvent(new CustomEvent("refreshed"));
  }

  async function load(address) {
    const answer = await fetch(address, { credentials: "same-origin", headers: { accept: "text/html" } });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    return { answer, fresh };
  }

  // Another question: the same page's parts are exchanged; anything else is opened as ever.
  let asking = 0;
  async function ask(address, remember = true) {
    const mine = ++asking;
    document.body.setAttribute("aria-busy", "true");
    try {
      const { answer, fresh } = await load(address);
      if (mine !== asking) return;
      const here = new URL(answer.url);
      if (!answer.ok || here.pathname !== location.pathname) throw new Error("another page");
      if (remember) history.pushState(null, "", here.pathname + here.search + here.hash);
      document.title = fresh.title;
      exchange(fresh, true);
      shown = fresh.body.dataset.state;
    } catch {
      location.assign(address);
    } finally {
      document.body.removeAttribute("aria-busy");
    }
  }

  async function refresh() {
    if (busy) return;
    busy = true;
    try {
      while (wanted !== shown && !document.hidden) {
        const state = wanted;
        const began = performance.now();
        const address = location.href;
        const { answer, fresh } = await load(address);
        if (answer.redirected && new URL(answer.url).pathname.endsWith("/login")) {
          location.reload();
          return;
        }
        if (!answer.ok) throw new Error(fresh.querySelector("main")?.textContent.trim() || answer.statusText);
        if (address === location.href) exchange(fresh, false);
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
  // A form that was refused is shown on its page again: that is where reloading, and what comes live, belongs.
  const again = document.querySelector("form[data-here]");
  if (again) window.history.replaceState(null, "", again.dataset.here);
  // A page that the ledger could not fill is asked for again once that answers.
  const away = document.querySelector("[data-away]");
  async function askAgain() {
    const there = !document.hidden && (await fetch(away.dataset.away).catch(() => null))?.ok;
    if (there) location.reload();
    else setTimeout(askAgain, 3 * LEAST_PAUSE);
  }
  if (away) {
    away.textContent = "This page comes by itself as soon as the ledger answers.";
    setTimeout(askAgain, 3 * LEAST_PAUSE);
  }
  if (status) say("Connecting", false);
  listen();

  document.addEventListener("change", (event) => {
    const field = event.target;
    if (field.matches("[data-apply]")) {
      if (field.name === "period") for (const date of ["since", "until"]) field.form.elements[date].value = "";
      field.form.requestSubmit();
    } else if (field.matches("[data-values]") && field.value) suggest(field);
    else field.closest("[data-live]")?.setAttribute("data-touched", "");
  });

  // The values that a filter may be about, for its field.
  async function suggest(field) {
    const answer = await fetch(`${field.dataset.values}&of=${encodeURIComponent(field.value)}`);
    const values = answer.ok ? await answer.json() : [];
    document.getElementById("suggestions").replaceChildren(...values.map((value) => new Option(value, value)));
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-soft]");
    if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    ask(link.href);
  });
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.matches("[data-soft]")) return;
    event.preventDefault();
    ask(`${form.action}?${new URLSearchParams(new FormData(form, event.submitter))}`);
  });
  document.addEventListener("soft", (event) => {
    const target = new URL(event.detail, location.href);
    if (target.pathname === location.pathname) ask(target.href);
    else location.assign(target.href);
  });
  addEventListener("popstate", () => ask(location.href, false));

  // The browser's time zone: told to the server once, which then cuts days by it.
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const said = `tokenmeter_zone=${zone}`;
  if (zone && body.dataset.zone && body.dataset.zone !== zone && !document.cookie.includes(said)) {
    document.cookie = `${said}; path=${body.dataset.base}; max-age=31536000; samesite=lax`;
    if (document.cookie.includes(said)) location.reload();
  }
  const zones = document.getElementById("zones");
  if (zone && zones) zones.prepend(new Option("your zone", zone));
})();
