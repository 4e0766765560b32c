// Keeps the page current: fetches the facts as the server renders them, and changes only what differs, so that a
// selection, the focus and the scroll position stay. Holds no words or figures of its own.
"use strict";

const EVERY_MS = 1000;
const silence = document.getElementById("silence");

function update(shown, fresh) {
  if (shown.isEqualNode(fresh)) return;
  if (shown.nodeName !== fresh.nodeName) return void shown.replaceWith(fresh);
  if (shown.nodeType !== Node.ELEMENT_NODE) return void (shown.nodeValue = fresh.nodeValue);
  for (const { name } of [...shown.attributes]) if (!fresh.hasAttribute(name)) shown.removeAttribute(name);
  for (const { name, value } of [...fresh.attributes]) {
    if (shown.getAttribute(name) !== value) shown.setAttribute(name, value);
  }
  const before = [...shown.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((child, i) => (i < before.length ? update(before[i], child) : shown.append(child)));
  before.slice(after.length).forEach((child) => child.remove());
}

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/status.html", { signal: AbortSignal.timeout(5 * EVERY_MS) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    update(document.getElementById("facts"), document.adoptNode(fresh.getElementById("facts")));
    document.title = fresh.title;
    document.body.classList.remove("silent");
  } catch {
    if (!document.body.classList.contains("silent")) {
      silence.textContent = `No answer from the daemon since ${new Date().toLocaleTimeString()}. These are its last facts.`;
      document.body.classList.add("silent");
    }
  }
}

async function keepCurrent() {
  await refresh();
  setTimeout(keepCurrent, EVERY_MS);
}

document.addEventListener("visibilitychange", refresh);
setTimeout(keepCurrent, EVERY_MS);
