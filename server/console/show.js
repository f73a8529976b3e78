/* What every part of the console shares: elements, figures as text, keys, and calls to this server.
 *
 * Whatever a server, a model or a user says is put into the page by textContent alone (make), so that it cannot become an
 * element. Keys live in sessionStorage: a reload keeps them, the end of the tab forgets them; they travel in a header only. */

export const $ = id => document.getElementById(id);

/* An element with attributes and children; a child that is no node is text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== null) element.setAttribute(name, value);
  for (const child of children) element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  return element;
}

/* A name from elsewhere: isolated, so that right-to-left text does not turn what stands beside it; long ones are cut. */
export function name(text) {
  const whole = String(text);
  return make("bdi", {class: "name", title: whole.length > 80 ? whole.slice(0, 1000) : null}, whole.length > 80 ? whole.slice(0, 79) + "…" : whole);
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Math.abs(value) >= 1000 || Number.isInteger(value)) return Math.round(value).toLocaleString("en-US");
  return value.toLocaleString("en-US", {maximumSignificantDigits: digits});
}

export const percent = share => share === null || !Number.isFinite(share) ? "–" : `${Math.round(1000 * share) / 10} %`;
export const bytes = count => count >= 2 ** 30 ? `${number(count / 2 ** 30)} GiB` : `${number(count / 2 ** 20)} MiB`;
export const clock = ms => new Date(ms).toLocaleTimeString("en-GB", {hour: "2-digit", minute: "2-digit"});

export function span(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  return seconds < 90 ? `${seconds < 10 ? number(seconds) : Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${number(seconds / 3600)} h`;
}

export function table(caption, heads, rows) {
  const body = make("tbody");
  for (const row of rows) {
    const line = make("tr");
    row.forEach((cell, i) => line.append(make("td", {class: heads[i].number ? "number" : null}, cell)));
    body.append(line);
  }
  const head = make("tr", {}, ...heads.map(h => make("th", {scope: "col", class: h.number ? "number" : null}, h.text)));
  return make("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": caption},
    make("table", {"aria-label": caption}, make("thead", {}, head), body));
}

export function facts(pairs) {
  const list = make("dl", {class: "facts"});
  for (const [term, value] of pairs) list.append(make("dt", {}, term), make("dd", {}, value));
  return list;
}

/* Replaces what is in an element only where it has changed: a reader's place and selection stay. */
export function fill(element, ...children) {
  const fresh = make("div", {}, ...children);
  if (fresh.innerHTML === element.innerHTML) return; /* compared, never assigned */
  const open = [...element.querySelectorAll("details")].map(d => d.open);
  const scrolled = [...element.querySelectorAll(".scroll")].map(d => d.scrollTop);
  const held = [...element.querySelectorAll("summary, .scroll")].indexOf(document.activeElement);
  element.replaceChildren(...fresh.childNodes);
  element.querySelectorAll("details").forEach((d, i) => { d.open = open[i] ?? false; });
  element.querySelectorAll(".scroll").forEach((d, i) => { d.scrollTop = scrolled[i] ?? 0; });
  if (held >= 0) element.querySelectorAll("summary, .scroll")[held]?.focus({preventScroll: true});
}

export const keys = {
  get admin() { return sessionStorage.getItem("admin") ?? ""; },
  get api() { return sessionStorage.getItem("api") ?? ""; },
  set(admin, api) {
    sessionStorage.setItem("admin", admin);
    sessionStorage.setItem("api", api);
  },
  forget() { sessionStorage.clear(); },
};

export function headers(key) {
  return key ? {Authorization: `Bearer ${key}`} : {};
}

/* The sentence of an error answer; the status where there is none. */
export function sentence(status, text) {
  try {
    const message = JSON.parse(text).error.message;
    if (typeof message === "string" && message) return message;
  } catch { /* no JSON: a proxy's answer, perhaps */ }
  return `The server answered with status ${status}.`;
}

/* {status, text, data, why}: status 0 when nothing answered. */
export async function get(path, key) {
  try {
    const answer = await fetch(path, {headers: headers(key), credentials: "omit", cache: "no-store", redirect: "error", signal: AbortSignal.timeout(8000)});
    const text = await answer.text();
    if (!answer.ok) return {status: answer.status, why: sentence(answer.status, text)};
    const json = (answer.headers.get("content-type") ?? "").includes("json");
    return {status: answer.status, text, data: json ? JSON.parse(text) : null};
  } catch {
    return {status: 0, why: "The server does not answer."};
  }
}
