/* The playground: a conversation with a model of this server, streamed, with what each answer used beneath it. Nothing is
 * kept but in the page. Answers are text nodes: what a model writes is never read as HTML. */
import {$, make, name, number, keys, headers, get, sentence} from "./show.js";
import {cost_now} from "./live.js";

const messages = []; /* as the API takes them */
let abort = null, listed = "";

async function list_models() {
  if (abort) return;
  const answer = await get("v1/models", keys.api), select = $("model");
  const hint = answer.status === 200 ? "" : answer.status === 404 || (answer.status === 401 && keys.admin && !keys.api)
    ? "Chat is on the API's port, with an API key where the server wants one."
    : answer.status === 401 ? `${answer.why.split(".")[0]}: type in the API key (button Keys).` : answer.why;
  const ids = answer.status === 200 ? answer.data.data.map(m => m.id) : [];
  if (hint !== listed || !messages.length) $("chat-state").textContent = hint;
  listed = hint;
  if (ids.join("\n") !== [...select.options].map(o => o.value).join("\n")) {
    const chosen = select.value;
    select.replaceChildren(...ids.map(id => make("option", {value: id}, id.length > 60 ? id.slice(0, 59) + "…" : id)));
    if (ids.includes(chosen)) select.value = chosen;
  }
  $("send").disabled = !ids.length;
}

function turn(role, who) {
  const text = make("div", {class: "text", dir: "auto"}), usage = make("div", {class: "usage"});
  const head = make("div", {class: "who"});
  head.append(who);
  const element = make("article", {class: `turn ${role}`, "aria-label": role === "user" ? "You" : "Answer"}, head, text, usage);
  $("log").append(element);
  return {element, text, usage};
}

function follow() {
  const log = $("log");
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 80) log.scrollTop = log.scrollHeight;
}

/* Lines of server-sent events as they come: data is given on, comments (a call that waits for green power) too. */
async function read_stream(body, on_data, on_comment) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith(":")) on_comment(line.slice(1).trim());
      else if (line.startsWith("data: ") && line !== "data: [DONE]") on_data(JSON.parse(line.slice(6)));
    }
  }
}

function usage_text(usage, state) {
  const parts = [];
  if (usage) {
    parts.push(`${number(usage.prompt_tokens)} prompt + ${number(usage.completion_tokens)} output tokens`);
    const cached = usage.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(`${number(cached)} from the cache`);
    const seconds = (state.end_ms - (state.first_ms ?? state.end_ms)) / 1000;
    if (state.first_ms) parts.push(`first token after ${number((state.first_ms - state.start_ms) / 1000, 2)} s`);
    if (seconds > 0 && usage.completion_tokens > 1) parts.push(`${number((usage.completion_tokens - 1) / seconds)} tokens/s`);
    parts.push(usage.energy_joules === undefined ? "joules: not told (--usage-extras)" : `${number(usage.energy_joules, 4)} J`);
    const cost = cost_now();
    if (cost) parts.push(`${number(usage.total_tokens * cost.value / 1e6, 3)} ${cost.currency} at this server's average`);
  } else parts.push("usage not told: the stream did not end by itself");
  if (state.finish === "length") parts.push("cut at the limit");
  if (state.power && state.power !== "normal") parts.push(`power: ${state.power}`);
  return parts.join(" · ");
}

async function converse(view, state, body) {
  const answer = await fetch("v1/chat/completions", {method: "POST", headers: {...headers(keys.api), "Content-Type": "application/json"},
    body: JSON.stringify(body), credentials: "omit", cache: "no-store", redirect: "error", signal: abort.signal});
  state.power = answer.headers.get("x-mr-power");
  if (!answer.ok) throw new Error(sentence(answer.status, await answer.text()));
  await read_stream(answer.body, event => {
    if (event.error) throw new Error(event.error.message);
    if (event.usage) state.usage = event.usage;
    const choice = event.choices?.[0];
    if (choice?.finish_reason) state.finish = choice.finish_reason;
    if (!choice?.delta?.content) return;
    state.first_ms ??= performance.now();
    view.text.append(document.createTextNode(choice.delta.content));
    follow();
  }, comment => { $("chat-state").textContent = comment; });
}

/* The first tokens of a server: what they cost comes with figures that are asked for later. */
function await_cost(view, state) {
  const follow_up = () => {
    if (!cost_now() && view.element.isConnected) return;
    document.removeEventListener("answered", follow_up);
    view.usage.textContent = usage_text(state.usage, state);
  };
  document.addEventListener("answered", follow_up);
}

function working(on) {
  $("send").disabled = on;
  $("stop").disabled = !on;
  $("log").setAttribute("aria-busy", String(on));
}

async function send() {
  const prompt = $("prompt").value, model = $("model").value;
  if (!prompt.trim() || !model || abort) return;
  const body = {model, stream: true, stream_options: {include_usage: true}, service_tier: $("tier").value,
    messages: [...messages, {role: "user", content: prompt}]};
  if ($("temperature").value !== "") body.temperature = Number($("temperature").value);
  if ($("max-tokens").value !== "") body.max_tokens = Number($("max-tokens").value);
  turn("user", "You").text.textContent = prompt;
  const view = turn("assistant", name(model)), state = {start_ms: performance.now()};
  $("prompt").value = "";
  $("chat-state").textContent = "Answering";
  abort = new AbortController();
  working(true);
  $("log").scrollTop = $("log").scrollHeight;
  try {
    await converse(view, state, body);
    $("chat-state").textContent = "Done";
  } catch (error) {
    const stopped = abort.signal.aborted;
    $("chat-state").textContent = stopped ? "Stopped" : "Failed";
    if (!stopped) view.element.append(make("p", {class: "error"}, error instanceof TypeError ? "The server does not answer, or the stream broke off." : error.message));
  }
  state.end_ms = performance.now();
  const text = view.text.textContent;
  if (text || state.usage) {
    view.usage.textContent = usage_text(state.usage, state);
    if (!cost_now()) await_cost(view, state);
  }
  if (text) messages.push({role: "user", content: prompt}, {role: "assistant", content: text});
  else $("prompt").value ||= prompt; /* to be sent again */
  abort = null;
  working(false);
  follow();
}

$("ask").addEventListener("submit", event => { event.preventDefault(); send(); });
$("prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); send(); }
});
$("stop").addEventListener("click", () => abort?.abort());
$("clear").addEventListener("click", () => {
  abort?.abort();
  messages.length = 0;
  $("log").replaceChildren();
  $("prompt").focus();
});
document.addEventListener("keys", list_models);
document.addEventListener("answered", list_models);
