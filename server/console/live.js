/* The live part: asks this server every two seconds, keeps what it saw for three hours, and draws it.
 *
 *   /metrics              open unless the server wants a key for it: tokens, queue, KV, watts, green joules, cost
 *   /admin/history        with the admin key, once: the minutes before this page was opened
 *   /admin/power, cost,   with the admin key: budget and who asked for it, tenants' joules, what waits and why
 *   /admin/power/plan
 *   /models               with the admin key: memory and states
 *   /admin/billing/...    with the admin key, on the admin port alone: balances of all accounts
 *   /v1/usage             with an API key: the balance of its own account
 */
import {$, make, name, number, percent, bytes, span, table, facts, fill, keys, get} from "./show.js";
import {line_chart} from "./chart.js";

const PERIOD_MS = 2000, KEPT_MS = 3 * 3600 * 1000, GREEN_WINDOW_MS = 60000, ACCOUNTS_SHOWN = 50;
const samples = []; /* {t, out, in, running, waiting, kv, watts, budget, green, cost}, oldest first */
let told = {}; /* the last answer of each call, by path */
let history_asked = null, slow_turn = 0, gone_since = null;

/* ---- /metrics ---- */

/* name -> [{labels, value}] of the text format, version 0.0.4. */
export function parse_metrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const parts = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!parts) continue;
    const labels = {};
    for (const [, label, value] of (parts[2] ?? "").matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g))
      labels[label] = value.replace(/\\(.)/g, (_, c) => c === "n" ? "\n" : c);
    if (!found.has(parts[1])) found.set(parts[1], []);
    found.get(parts[1]).push({labels, value: Number(parts[3])});
  }
  return found;
}

function sum(metrics, metric, wanted = {}) {
  let total = null;
  for (const {labels, value} of metrics.get(metric) ?? [])
    if (Object.entries(wanted).every(([k, v]) => labels[k] === v)) total = (total ?? 0) + value;
  return total;
}

function rate(now, before, field, seconds) {
  if (!before || now[field] === null || before[field] === null || now[field] < before[field]) return null;
  return (now[field] - before[field]) / seconds;
}

/* Green joules against all joules at the building's door, over the last minute. */
function green_share(now) {
  const before = samples.find(s => s.t >= now.t - GREEN_WINDOW_MS && s.joules !== undefined && s.joules !== null);
  if (!before || now.joules === null || now.green_joules === null || now.joules <= before.joules) return null;
  return Math.min(1, (now.green_joules - before.green_joules) / ((now.joules - before.joules) * now.pue));
}

function take_metrics(text) {
  const metrics = parse_metrics(text), now = {t: Date.now()};
  const kv = metrics.get("vllm:kv_cache_usage_perc") ?? [];
  const cost = (metrics.get("mr_cost_per_million_tokens") ?? []).find(s => s.labels.part === "total");
  now.in_total = sum(metrics, "vllm:prompt_tokens_total");
  now.out_total = sum(metrics, "vllm:generation_tokens_total");
  now.running = sum(metrics, "vllm:num_requests_running");
  now.waiting = sum(metrics, "vllm:num_requests_waiting");
  now.kv = kv.length ? Math.max(...kv.map(s => s.value)) : null;
  now.watts = sum(metrics, "mr_power_watts");
  now.budget = sum(metrics, "mr_power_setpoint_watts");
  now.joules = sum(metrics, "mr_power_meter_joules_total");
  now.green_joules = sum(metrics, "mr_green_joules_total");
  now.pue = metrics.get("mr_signal_pue_ratio")?.[0]?.value || told["admin/power"]?.data?.told?.pue || 1;
  now.shed = Math.max(sum(metrics, "mr_shed_level") ?? 0, metrics.get("mr_signal_shed_level")?.[0]?.value ?? 0);
  now.alarm = sum(metrics, "mr_power_meter_alarm");
  now.estimated = sum(metrics, "mr_power_meter_estimated");
  now.deferred = Object.fromEntries(["waiting", "released", "running"].map(s => [s, sum(metrics, "mr_deferred_jobs", {state: s})]));
  now.missed = sum(metrics, "mr_deadline_misses_total");
  now.ready = (metrics.get("mr_ready") ?? []).map(s => s.value);
  now.cost = cost ? cost.value : null;
  now.currency = cost ? cost.labels.currency : null;
  const before = samples.length ? samples[samples.length - 1] : null; /* never one of take_history: those are older */
  const seconds = before ? (now.t - before.t) / 1000 : 0;
  now.out = rate(now, before, "out_total", seconds);
  now.in = rate(now, before, "in_total", seconds);
  now.green = green_share(now);
  samples.push(now);
  while (samples.length && samples[0].t < now.t - KEPT_MS) samples.shift();
  return now;
}

/* What a million tokens cost here, for the playground: {value, currency} or null. */
export function cost_now() {
  const last = samples[samples.length - 1];
  return last && last.cost !== null && last.cost !== undefined ? {value: last.cost, currency: last.currency} : null;
}

/* The minutes that the server remembers, before those that this page has seen. */
function take_history(data) {
  const first = samples.length ? samples[0].t : Date.now();
  const old = [];
  for (const row of Array.isArray(data?.minutes) ? data.minutes : []) {
    const t = 1000 * (row.t + data.period_s / 2);
    if (!Number.isFinite(t) || t >= first) continue;
    old.push({t, out: row.output_tokens_s, in: row.prompt_tokens_s, running: row.running, waiting: row.queue, kv: row.kv_share,
      watts: row.watts, budget: row.budget_w, green: row.green_share, cost: row.cost_per_million});
  }
  samples.unshift(...old.sort((a, b) => a.t - b.t));
}

/* ---- tiles and charts ---- */

function tile(key, title, value, unit, sub, state) {
  return make("div", {class: "tile", id: `tile-${key}`, "data-state": state ?? null}, make("dt", {}, title),
    make("dd", {class: "value"}, value, ...(unit ? [make("small", {}, unit)] : [])), make("dd", {class: "sub"}, sub));
}

function power_sub(now) {
  const meter = now.alarm === 2 ? "the meter is lost" : now.alarm === 1 ? "the meter is silent" : now.estimated ? "estimated" : "metered";
  if (now.watts === null) return "this server has no meter";
  return `${now.budget === null ? "no budget set" : `budget ${number(now.budget)} W`}, ${meter}`;
}

const SHED = ["nothing shed", "deferrable work waits", "default work slowed too", "down to the floor"];

function draw_tiles(now) {
  const over = now.budget !== null && now.watts > now.budget * 1.05, d = now.deferred;
  fill($("tiles"),
    tile("tokens", "Output tokens", number(now.out), "tokens/s", `${number(now.in)} prompt tokens/s; ${number(now.out_total)} written since the start`),
    tile("queue", "Running", number(now.running), "requests", `${number(now.waiting)} waiting`, now.waiting > 4 * Math.max(1, now.running) ? "warn" : null),
    tile("kv", "KV cache in use", percent(now.kv), "", "of the fullest model", now.kv > 0.95 ? "warn" : null),
    tile("power", "Power", number(now.watts), now.watts === null ? "" : "W", power_sub(now), now.alarm ? "bad" : over ? "warn" : null),
    tile("green", "Green share", percent(now.green), "", now.green === null ? "no figure for the last minute" : "of the last minute's energy"),
    tile("cost", "Cost", now.cost === null ? "–" : number(now.cost), now.currency ?? "", now.cost === null ? "no price of a kWh, or no tokens yet" : "a million tokens, since the start"),
    tile("shed", "Shed level", number(now.shed), "of 3", SHED[now.shed] ?? "", now.shed ? "warn" : null),
    tile("deferred", "Deferred jobs", number(d.waiting), "waiting", `${number(d.running)} running, ${number(now.missed)} deadlines missed`, now.missed ? "warn" : null));
}

function draw_charts() {
  const to = Date.now(), from = to - 1000 * Number($("span").value);
  const percents = samples.map(s => ({...s, kv100: s.kv === null ? null : 100 * s.kv, green100: s.green === null ? null : 100 * s.green}));
  fill($("charts"),
    line_chart("Tokens", "tokens/s", samples, [{name: "out", text: "output"}, {name: "in", text: "prompt"}], from, to),
    line_chart("Queue", "requests", samples, [{name: "running", text: "running"}, {name: "waiting", text: "waiting"}], from, to),
    line_chart("KV cache", "%", percents, [{name: "kv100", text: "in use"}], from, to, 100),
    line_chart("Power", "W", samples, [{name: "watts", text: "drawn"}, {name: "budget", text: "budget"}], from, to),
    line_chart("Green share", "%", percents, [{name: "green100", text: "green"}], from, to, 100),
    line_chart("Cost of a million tokens", samples.findLast(s => s.currency)?.currency ?? "money", samples, [{name: "cost", text: "all parts"}], from, to));
  const first = samples[0]?.t ?? to;
  $("history-note").textContent = told["admin/history"]?.status === 200 ? "of this server's memory and this page"
    : `seen by this page for ${span((to - first) / 1000)}`;
}

/* ---- panels ---- */

/* What stands in a panel whose call was not answered with data: a sentence. */
function excuse(path, needs) {
  const answer = told[path];
  if (!keys[needs]) return make("p", {class: "hint"}, `Type in the ${needs === "admin" ? "admin" : "API"} key (button Keys) to see this.`);
  return make("p", {class: "hint"}, answer ? answer.why ?? "Nothing is told." : "Asking.");
}

const watts = value => value === null || value === undefined ? "none" : `${number(value)} W`;

function draw_power() {
  const data = told["admin/power"]?.data, heading = make("h3", {}, "Budget and sources");
  if (!data) return fill($("power-facts"), heading, excuse("admin/power", "admin"));
  const t = data.told, rows = data.sources.map(s => [name(s.name), s.state, s.age_s === null ? "never" : `${span(s.age_s)} ago`,
    number(Object.values(s.rejected).reduce((a, b) => a + b, 0)), name(s.message ?? "")]);
  fill($("power-facts"), heading, facts([
    ["Drawn", `${watts(data.watts)} (idle ${watts(data.idle_w)}, full ${watts(data.full_w)})`],
    ["Held at", watts(data.setpoint_w)], ["Cap, target", `${watts(data.cap_w)}, ${watts(data.target_w)}`],
    ["By hand", `cap ${watts(data.hand.cap_w)}, target ${watts(data.hand.target_w)}, shed ${data.hand.shed_level}`],
    ["Signal: cap, target", `${watts(t.cap_w)}${t.cap_hard ? " (hard)" : ""}, ${watts(t.target_w)}`],
    ["Signal: green", watts(t.green_w)], ["Signal: price", t.price_kwh === null ? "not told" : `${number(t.price_kwh)} a kWh`],
    ["Signal: CO2", t.gco2_kwh === null ? "not told" : `${number(t.gco2_kwh)} g/kWh${t.co2_marginal ? ", marginal" : ""}, ${t.quality}`],
    ["Shed level", `${data.shed_level}${data.until ? `, until ${new Date(1000 * data.until).toLocaleString("en-GB")}` : ""}`]]),
    rows.length ? table("Sources of signals", [{text: "Source"}, {text: "State"}, {text: "Heard"}, {text: "Refused", number: true}, {text: "Message"}], rows)
      : make("p", {class: "hint"}, "No source of signals (--power-signal)."));
}

function draw_cost() {
  const data = told["admin/cost"]?.data, heading = make("h3", {}, "Cost and energy since the start");
  if (!data) return fill($("cost-facts"), heading, excuse("admin/cost", "admin"));
  const kwh = uj => uj < 3.6e11 ? `${number(uj / 3.6e9)} Wh` : `${number(uj / 3.6e12)} kWh`, e = data.energy, c = data.cost;
  const parts = c ? table("Parts of a million tokens", [{text: "Part"}, {text: `${c.currency} a million tokens`, number: true}],
    Object.entries(c.parts).map(([part, value]) => [part.replaceAll("_", " "), number(value, 4)])) : make("p", {class: "hint"}, data.cost_missing);
  fill($("cost-facts"), heading, facts([["Energy", kwh(e.meter_uj)], ["Prefill, decode", `${kwh(e.prefill_uj)}, ${kwh(e.decode_uj)}`],
    ["Idle, paced", `${kwh(e.idle_uj)}, ${kwh(e.paced_uj)}`], ["Green", kwh(e.green_uj)],
    ["CO2", `${number(e.ugco2_location / 1e6)} g by location, ${number(e.ugco2_market / 1e6)} g by market`],
    ...(c ? [["A token", `${number(c.joules_token)} J`], ["Price", `${number(c.price_kwh)} ${c.currency} a kWh, PUE ${number(c.pue)}`]] : [])]), parts);
}

function draw_plan() {
  const data = told["admin/power/plan"]?.data;
  if (!data) return fill($("plan"), excuse("admin/power/plan", "admin"));
  const time = s => s === null ? "–" : new Date(1000 * s).toLocaleString("en-GB", {day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit"});
  const total = slot => Object.values(slot.planned_s).reduce((a, b) => a + b, 0);
  fill($("plan"), facts([["Policy", `${data.policy}${data.event ? ", an event is on" : ""}`],
    ["Jobs", `${number(data.waiting)} waiting, ${number(data.released)} let go, ${number(data.running)} running`],
    ["Work that waits", `${span(data.work_waiting_s)} of the device`],
    ["Since the start", `${number(data.admitted)} promised, ${number(data.done)} done, ${number(data.refused)} refused`],
    ["Missed", Object.entries(data.missed).map(([why, n]) => `${why} ${n}`).join(", ")]]),
    data.slots.length ? table("When work is planned", [{text: "From"}, {text: "Room", number: true}, {text: "Green room", number: true}, {text: "Planned", number: true}, {text: "Because of"}],
      data.slots.map(s => [time(s.start), span(s.capacity_s), span(s.green_s), span(total(s)), Object.entries(s.planned_s).filter(([, v]) => v > 0).map(([k]) => k).join(", ")]))
      : make("p", {class: "hint"}, "Nothing is planned."),
    ...(data.jobs.length ? [table("Jobs by deadline", [{text: "Job"}, {text: "Tier"}, {text: "State"}, {text: "Why"}, {text: "Work", number: true}, {text: "Start"}, {text: "Deadline"}],
      data.jobs.map(j => [name(j.id), j.tier, j.state, name(j.why), span(j.work_s), time(j.expected_start), time(j.deadline)]))] : []));
}

const tokens = units => number(units / 1e6);

function draw_balances() {
  const heading = make("h3", {}, "Balances and energy of tenants"), parts = [heading];
  const accounts = told.balances, own = told["v1/usage"], energy = told["admin/cost"]?.data?.tenants ?? [];
  const heads = [{text: "Account"}, {text: "Left, tokens", number: true}, {text: "On lease", number: true}, {text: "Used", number: true}, {text: "State"}];
  const row = b => [name(b.account ?? b.account_id), tokens(b.available_units), tokens(b.leased_units), tokens(b.used_units), b.open ? "open" : "closed"];
  if (accounts?.rows?.length) parts.push(table("Balances", heads, accounts.rows.map(row)));
  if (accounts?.more) parts.push(make("p", {class: "hint"}, `The first ${ACCOUNTS_SHOWN} of ${accounts.more} accounts.`));
  if (own?.data?.balance) parts.push(table("Balance of your API key's account", heads, [row(own.data.balance)]));
  if (energy.length) parts.push(table("Energy of tenants", [{text: "Tenant"}, {text: "Requests", number: true}, {text: "Joules", number: true}, {text: "Green", number: true}, {text: "g CO2", number: true}],
    energy.map(t => [name(t.tenant), number(t.requests), number((t.prefill_uj + t.decode_uj + t.idle_share_uj) / 1e6, 4), number(t.green_uj / 1e6), number(t.ugco2_location / 1e6)])));
  if (accounts?.why && parts.length > 1) parts.push(make("p", {class: "hint"}, accounts.why));
  if (parts.length === 1) parts.push(keys.admin || keys.api
    ? make("p", {class: "hint"}, accounts?.why ?? own?.why ?? "No tenant has used anything yet.") : excuse("balances", "admin"));
  fill($("balances"), ...parts);
}

function draw_models() {
  const data = told.models?.data, heading = make("h3", {}, "Models");
  if (!data) return fill($("models"), heading, excuse("models", "admin"));
  fill($("models"), heading, table("Models", [{text: "Model"}, {text: "State"}, {text: "Context", number: true}, {text: "Weights", number: true}, {text: "KV", number: true}, {text: "Running", number: true}, {text: "Waiting", number: true}],
    data.data.map(m => [name(m.id), m.reason ? `${m.state}: ${m.reason}` : m.state, number(m.max_model_len), bytes(m.weights_bytes), bytes(m.kv_bytes), number(m.running), number(m.waiting)])));
}

/* ---- asking ---- */

async function ask_admin() {
  const paths = ["admin/power", "admin/cost", "admin/power/plan", "models"];
  if (!keys.admin) return paths.forEach(path => delete told[path]);
  if (history_asked !== keys.admin) {
    history_asked = keys.admin;
    told["admin/history"] = await get("admin/history", keys.admin);
    if (told["admin/history"].status === 200) take_history(told["admin/history"].data);
  }
  const answers = await Promise.all(paths.map(path => get(path, keys.admin)));
  paths.forEach((path, i) => { told[path] = answers[i]; });
}

/* All accounts live on the admin port; elsewhere the call does not exist, and the panel says where it does. */
async function ask_balances() {
  delete told.balances;
  delete told["v1/usage"];
  if (keys.api) told["v1/usage"] = await get("v1/usage", keys.api);
  if (!keys.admin) return;
  const list = await get("admin/billing/accounts", keys.admin);
  if (list.status !== 200) {
    told.balances = {why: list.status === 404 || list.status === 401 ? "Balances of all accounts are shown on the admin port (--admin-port), where this page is served too." : list.why};
    return;
  }
  const all = list.data.data, rows = [];
  for (const account of all.slice(0, ACCOUNTS_SHOWN)) {
    const balance = await get(`admin/billing/accounts/${encodeURIComponent(account.account)}`, keys.admin);
    if (balance.status === 200) rows.push(balance.data);
  }
  told.balances = {rows, more: all.length > ACCOUNTS_SHOWN ? all.length : 0, why: all.length ? null : "There is no account yet."};
}

async function ask_metrics() {
  let answer = await get("metrics");
  if (answer.status === 401 && keys.api) answer = await get("metrics", keys.api);
  if (answer.status === 401 && keys.admin) answer = await get("metrics", keys.admin);
  return answer;
}

function say_state(answer, now) {
  const pill = $("state"), notice = $("notice");
  let state = "good", text = "Ready", why = "";
  if (answer.status === 0) {
    gone_since ??= Date.now();
    state = "bad", text = "Gone";
    why = `The server does not answer since ${new Date(gone_since).toLocaleTimeString("en-GB")}. What stands below is what it said last; this page goes on asking.`;
  } else {
    gone_since = null;
    if (answer.status !== 200) state = "warn", text = "No figures", why = answer.status === 401 ? "This server shows its figures to holders of a key: type one in (button Keys)." : answer.why;
    else if (now.ready.some(r => !r)) state = "warn", text = now.ready.some(r => r) ? "Some models not ready" : "Not ready";
    const refused = ["admin/power", "admin/power/plan", "models"].map(p => told[p]).find(a => a && (a.status === 401 || a.status === 403));
    if (!why && refused) why = `Admin key: ${refused.why}`;
  }
  if (pill.textContent !== text) pill.textContent = text;
  pill.dataset.state = state;
  if (notice.textContent !== why) notice.textContent = why;
  notice.hidden = !why;
  $("main").dataset.stale = state === "bad" ? "yes" : "no";
}

async function turn() {
  const answer = await ask_metrics();
  let now = null;
  if (answer.status === 200) {
    now = take_metrics(answer.text);
    await ask_admin();
    if (slow_turn++ % 5 === 0) await ask_balances();
    draw_tiles(now);
    draw_charts();
    draw_power();
    draw_cost();
    draw_plan();
    draw_balances();
    draw_models();
    $("when").textContent = new Date(now.t).toLocaleTimeString("en-GB");
    document.dispatchEvent(new Event("answered"));
  }
  say_state(answer, now);
}

let running = false, again = false;
async function go_on() {
  if (running) { again = true; return; }
  running = true;
  try { await turn(); } finally { running = false; }
  if (again) { again = false; go_on(); }
}

/* ---- keys ---- */

$("keys-toggle").addEventListener("click", () => {
  const open = $("keys").hidden;
  $("keys").hidden = !open;
  $("keys-toggle").setAttribute("aria-expanded", String(open));
  if (open) $("admin-key").focus();
});
function keys_changed() {
  told = {};
  slow_turn = 0;
  history_asked = null;
  go_on();
  document.dispatchEvent(new Event("keys"));
}
$("keys").addEventListener("submit", event => {
  event.preventDefault();
  keys.set($("admin-key").value.trim(), $("api-key").value.trim());
  keys_changed();
});
$("keys-forget").addEventListener("click", () => {
  keys.forget();
  $("admin-key").value = $("api-key").value = "";
  keys_changed();
});
$("admin-key").value = keys.admin;
$("api-key").value = keys.api;
$("span").addEventListener("change", draw_charts);

draw_power();
draw_cost();
draw_plan();
draw_balances();
draw_models();
go_on();
setInterval(go_on, PERIOD_MS);
