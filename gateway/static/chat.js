// The chat page. Everything a model or a person writes enters the page as text nodes, never as markup.

const element = (id) => document.getElementById(id);
const log = element("log");
const question = element("question");
const send = element("send");
const stop = element("stop");

/** What the page knows: the served model, the turns so far, and the answer under way. */
const state = { model: "", turns: [], key: "", abort: null };

/** A new element with a class and, if given, a text. */
function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Cuts a text into paragraphs and fenced code: a list of {code, text}. An open fence runs to the end. */
function blocksOf(text) {
  const blocks = [];
  let lines = [];
  let code = false;
  const close = () => {
    if (code) blocks.push({ code, text: lines.join("\n") });
    else for (const part of lines.join("\n").split(/\n{2,}/)) if (part.trim()) blocks.push({ code, text: part.trim() });
    lines = [];
  };
  for (const line of text.split("\n")) {
    if (/^\s*```/.test(line)) {
      close();
      code = !code;
    } else lines.push(line);
  }
  close();
  return blocks;
}

/** Shows a text in a bubble; blocks that have not changed are left alone, so that a selection in them survives. */
function show(bubble, text) {
  const blocks = blocksOf(text);
  blocks.forEach((block, index) => {
    const tag = block.code ? "PRE" : "P";
    let node = bubble.children[index];
    if (!node || node.tagName !== tag) {
      const fresh = make(tag);
      if (block.code) fresh.append(make("code"));
      if (node) node.replaceWith(fresh);
      else bubble.append(fresh);
      node = fresh;
    }
    const target = block.code ? node.firstChild : node;
    if (target.textContent !== block.text) target.textContent = block.text;
  });
  while (bubble.children.length > blocks.length) bubble.lastChild.remove();
}

/** Adds a turn to the page and returns its parts. */
function addTurn(role, text) {
  element("welcome")?.setAttribute("hidden", "");
  const turn = make("article", `turn ${role}`);
  turn.setAttribute("aria-label", role === "user" ? "You" : "Answer");
  const bubble = make("div", "bubble");
  turn.append(bubble);
  show(bubble, text);
  log.append(turn);
  follow(true);
  return { turn, bubble };
}

/** Keeps the end in view, unless the reader has scrolled away from it. */
function follow(always) {
  const distance = log.scrollHeight - log.scrollTop - log.clientHeight;
  if (always || distance < 120) log.scrollTop = log.scrollHeight;
}

function headers() {
  const all = { "Content-Type": "application/json" };
  if (state.key) all.Authorization = `Bearer ${state.key}`;
  return all;
}

/** The message of a failed response. */
async function refusalOf(response) {
  const body = await response.json().catch(() => null);
  if (response.status === 401) element("key-form").hidden = false;
  return body?.error?.message ?? `the server answered HTTP ${response.status}`;
}

/** Yields the JSON of each event of a response, whatever pieces it arrives in. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server broke the answer off");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

/** Streams the answer to the turns so far into a turn of the page. */
async function stream(answer, signal) {
  const begun = performance.now();
  const seen = { text: "", first: 0, last: 0, usage: null, finish: null };
  let waiting = false;
  const paint = () => {
    waiting = false;
    show(answer.bubble, seen.text);
    follow(false);
  };
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers(),
    signal,
    body: JSON.stringify({ model: state.model, messages: state.turns, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw new Error(await refusalOf(response));
  try {
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) seen.usage = event.usage;
      const choice = event.choices[0];
      if (!choice) continue;
      if (choice.delta.content) {
        seen.text += choice.delta.content;
        seen.last = performance.now();
        seen.first ||= seen.last;
        if (!waiting) {
          waiting = true;
          requestAnimationFrame(paint);
        }
      }
      seen.finish = choice.finish_reason ?? seen.finish;
    }
  } finally {
    paint();
    answer.text = seen.text;
    answer.facts.textContent = factsOf(seen, begun, response.headers.get("X-Triserve-Cache"));
  }
}

/** The line under an answer: how fast it came. */
function factsOf(seen, begun, cache) {
  const facts = [];
  const tokens = seen.usage?.completion_tokens;
  if (seen.first) facts.push(`first token ${Math.round(seen.first - begun)} ms`);
  if (tokens > 1 && seen.last > seen.first) facts.push(`${((tokens - 1) / ((seen.last - seen.first) / 1000)).toFixed(1)} tokens/s`);
  if (tokens) facts.push(`${tokens} tokens`);
  if (cache === "hit") facts.push("from the prompt cache");
  if (seen.finish === "length") facts.push("cut at the length limit");
  return facts.join(" · ");
}

/** Asks a question and shows what comes of it. */
async function ask(text) {
  state.turns.push({ role: "user", content: text });
  addTurn("user", text);
  const { turn, bubble } = addTurn("assistant", "");
  const answer = { bubble, facts: make("p", "facts"), text: "" };
  turn.append(answer.facts);
  bubble.classList.add("waiting");
  const abort = new AbortController();
  setBusy(abort);
  let failure = "";
  try {
    await stream(answer, abort.signal);
  } catch (error) {
    if (error.name === "AbortError") answer.facts.textContent = [answer.facts.textContent, "stopped"].filter(Boolean).join(" · ");
    else failure = error instanceof TypeError ? "the server cannot be reached" : error.message;
  }
  bubble.classList.remove("waiting");
  if (!answer.text) bubble.remove();
  if (!answer.facts.textContent) answer.facts.remove();
  if (failure) {
    const shown = make("p", "failure", `No answer: ${failure}`);
    if (answer.text) shown.textContent = `The answer broke off: ${failure}`;
    shown.setAttribute("role", "alert");
    turn.append(shown);
  }
  if (state.abort !== abort) return;
  // A question without an answer is not part of what the model is told next.
  if (answer.text) state.turns.push({ role: "assistant", content: answer.text });
  else state.turns.pop();
  setBusy(null);
  follow(false);
}

/** Swaps Send for Stop while an answer is under way. */
function setBusy(abort) {
  state.abort = abort;
  send.hidden = abort !== null;
  stop.hidden = abort === null;
  log.setAttribute("aria-busy", String(abort !== null));
  question.focus();
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

/** Asks the server what it serves. */
async function connect() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await refusalOf(response));
    const [model] = (await response.json()).data;
    state.model = model.id;
    element("model").textContent = `${model.id} · ${model.max_model_len.toLocaleString()} tokens of context`;
    element("key-form").hidden = true;
    document.title = `${model.id} · Triserve`;
  } catch (error) {
    element("model").textContent = error instanceof TypeError ? "the server cannot be reached" : error.message;
    // Where a key is asked for, the next try comes with the key.
    if (element("key-form").hidden) setTimeout(connect, 2000);
  }
}

element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || state.abort) return;
  question.value = "";
  fit();
  ask(text);
});

question.addEventListener("keydown", (event) => {
  // While an input method composes a character, Enter belongs to it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  element("ask").requestSubmit();
});
question.addEventListener("input", fit);

stop.addEventListener("click", () => state.abort?.abort());

element("new").addEventListener("click", () => {
  const underWay = state.abort;
  state.turns = [];
  setBusy(null);
  underWay?.abort();
  for (const turn of log.querySelectorAll(".turn")) turn.remove();
  element("welcome").removeAttribute("hidden");
});

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = element("key").value.trim();
  element("key-form").hidden = true;
  element("key").value = "";
  connect();
});

connect();
