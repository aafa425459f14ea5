"use strict";
// What is committed comes with a number and is shown once; what is tentative replaces itself. When the connection
// breaks, the browser asks again by itself and names the last number it has (Last-Event-ID).

const byId = (id) => document.getElementById(id);
const main = byId("captions"), current = byId("current");
const committed = byId("committed"), tentative = byId("tentative"), state = byId("state");
const KEPT = 400; // phrases on the page; the downloads have all of them
let follow = true, newest = null, retry = 500, source = null;

function say(text, kind) {
  state.textContent = text;
  state.className = kind;
}

function keepUp() {
  if (follow) main.scrollTop = main.scrollHeight;
  byId("latest").hidden = follow;
}

function clear() {
  main.querySelectorAll("p.phrase").forEach((old) => old.remove());
  committed.textContent = tentative.textContent = "";
  newest = null;
}

function caption(message) {
  const number = Number(message.lastEventId.split(".")[1]);
  if (newest !== null && number <= newest) return; // had it already
  newest = number;
  const event = JSON.parse(message.data);
  if (event.event === "committed") {
    committed.textContent += event.words.map((word) => word.text).join("");
    tentative.textContent = "";
  } else {
    const phrase = document.createElement("p");
    phrase.className = "phrase";
    phrase.textContent = committed.textContent.trim();
    main.insertBefore(phrase, current);
    committed.textContent = tentative.textContent = "";
    const old = main.querySelectorAll("p.phrase");
    if (old.length > KEPT) old[0].remove();
  }
  keepUp();
}

function connect() {
  source = new EventSource("/events");
  source.addEventListener("open", () => { retry = 500; say("live", "on"); });
  source.addEventListener("reset", clear);
  source.addEventListener("caption", caption);
  source.addEventListener("partial", (message) => {
    tentative.textContent = JSON.parse(message.data).text;
    keepUp();
  });
  source.addEventListener("end", () => {
    source.close();
    tentative.textContent = "";
    say("ended", "over");
  });
  source.addEventListener("error", () => {
    say("reconnecting", "");
    if (source.readyState === EventSource.CLOSED) {
      // The browser has given up, after an error from the server say: begin anew, which shows everything again.
      setTimeout(connect, retry);
      retry = Math.min(2 * retry, 8000);
    }
  });
}

main.addEventListener("scroll", () => {
  follow = main.scrollHeight - main.scrollTop - main.clientHeight < 60;
  byId("latest").hidden = follow;
});
byId("latest").addEventListener("click", () => { follow = true; keepUp(); });

function remember(name, value) {
  try { localStorage.setItem(name, value); } catch { /* a private window */ }
}
function recall(name) {
  try { return localStorage.getItem(name); } catch { return null; }
}
const root = document.documentElement;
function size(factor) {
  const now = parseFloat(getComputedStyle(main).fontSize) * factor;
  const next = `${Math.min(160, Math.max(14, now))}px`;
  root.style.setProperty("--size", next);
  remember("size", next);
}
byId("smaller").addEventListener("click", () => size(1 / 1.15));
byId("larger").addEventListener("click", () => size(1.15));
byId("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember("theme", root.dataset.theme);
});
if (recall("size")) root.style.setProperty("--size", recall("size"));
if (recall("theme")) root.dataset.theme = recall("theme");
connect();
