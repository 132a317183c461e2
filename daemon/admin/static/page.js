// Keeps an open page as the daemon is: cells get their new text, and lists that are old are asked for again.
"use strict";
(() => {
  const status = document.getElementById("live");
  if (!document.body.hasAttribute("data-live") || !status) return;
  const say = (words) => {
    if (status.textContent !== words) status.textContent = words;
  };
  let source = null;
  const loading = new Set();

  const setCells = (cells) => {
    for (const [id, text] of Object.entries(cells)) {
      const element = document.getElementById(id);
      if (!element || element.textContent === text) continue;
      element.textContent = text;
      if (element.dataset.state !== undefined) element.dataset.state = text;
    }
  };

  // The new list takes the place of the old one; what had the focus has it again.
  const load = async (name) => {
    const part = document.querySelector('[data-part="' + name + '"]');
    if (!part || loading.has(name)) return;
    loading.add(name);
    try {
      const answer = await fetch("/parts/" + name + (part.dataset.query || ""));
      if (!answer.ok) return;
      const made = new DOMParser().parseFromString(await answer.text(), "text/html");
      const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
      if (part.innerHTML.trim() === made.body.innerHTML.trim()) return;
      part.replaceChildren(...made.body.childNodes);
      const again = focused && document.getElementById(focused);
      if (again) again.focus({ preventScroll: true });
    } catch {
      // The daemon is gone for now; the stream says so.
    } finally {
      loading.delete(name);
    }
  };

  const open = () => {
    if (source) return;
    source = new EventSource("/events");
    source.addEventListener("open", () => say("This page is live."));
    source.addEventListener("cells", (event) => setCells(JSON.parse(event.data)));
    source.addEventListener("stale", (event) => JSON.parse(event.data).forEach(load));
    source.addEventListener("end", () => {
      close();
      say("You are signed out: reload the page.");
    });
    source.addEventListener("error", () => {
      if (source && source.readyState === EventSource.CLOSED) close();
      say("The daemon does not answer: what is shown is old.");
      if (!source) setTimeout(() => { if (!document.hidden) open(); }, 5000);
    });
  };
  const close = () => {
    if (source) source.close();
    source = null;
  };
  // A browser opens six connections to a host at most: pages that nobody sees must not keep them.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  window.addEventListener("pagehide", close);
  if (!document.hidden) open();
})();
