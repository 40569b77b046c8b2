// The chat page. Everything a model or a person writes enters it as text nodes, never as markup.

import { Conversation, factsOf, readKept, requestOf, sourceOf } from "./conversation.js";
import { Server } from "./server.js";
import { SettingsDialog } from "./settings.js";
import { copy, isSend, makeFailure, TurnView } from "./turns.js";

const KEPT = "triserve.chat";
const RECONNECT_MS = 2000;
// The server's code for a chat that is longer than the model's context.
const FULL = "context_length_exceeded";

const element = (id) => document.getElementById(id);
const log = element("log");
const question = element("question");
const server = new Server();
let conversation = new Conversation();

/** Views of the turns, the answer under way, and what the person has set. */
const state = { views: new Map(), abort: null, settings: {}, isKept: true };

// ---- what this browser keeps ----

function keep() {
  const turns = conversation.turns.filter((turn) => turn.text);
  const kept = state.isKept ? { turns, settings: state.settings } : { isKept: false };
  try {
    localStorage.setItem(KEPT, JSON.stringify(kept));
  } catch {
    // No room for a chat this long, or none at all: the chat goes on in this tab, and an old half of it would mislead.
    try {
      localStorage.removeItem(KEPT);
    } catch {
      return;
    }
  }
}

function restore() {
  let text = null;
  try {
    text = localStorage.getItem(KEPT);
  } catch {
    // A browser that keeps nothing for this page.
  }
  const kept = readKept(text);
  state.settings = kept.settings;
  state.isKept = kept.isKept;
  conversation.turns = kept.turns;
  // The page was left before the answer came.
  if (conversation.turns.at(-1)?.role === "user") question.value = conversation.turns.pop().text;
  for (const turn of conversation.turns) addView(turn);
  fit();
  follow(true);
}

// ---- turns on the page ----

function addView(turn) {
  const view = new TurnView(turn, { retry, refresh: (old) => retry(old, true), edit });
  state.views.set(turn, view);
  log.append(view.element);
  element("welcome").hidden = true;
  return view;
}

function removeViews(turns) {
  for (const turn of turns) {
    state.views.get(turn)?.element.remove();
    state.views.delete(turn);
  }
  element("welcome").hidden = conversation.turns.length > 0;
}

function clearFailure() {
  log.querySelector(".failure")?.remove();
}

/** Keeps the end in view, unless the reader has scrolled away from it. */
function follow(always) {
  const distance = log.scrollHeight - log.scrollTop - log.clientHeight;
  if (always || distance < 120) log.scrollTop = log.scrollHeight;
}

// ---- asking ----

/** Asks a question and shows what comes of it; returns why there is no answer, null if there is one. */
function ask(text) {
  clearFailure();
  const view = addView(conversation.add("user", text));
  follow(true);
  return answer(view.turn);
}

/** Gets the answer to the last question; returns as `ask` does. */
async function answer(asked, isFresh = false) {
  const abort = new AbortController();
  const request = requestOf(server.model?.id, conversation, state.settings, isFresh);
  const turn = conversation.add("assistant", "");
  const view = addView(turn);
  view.setWaiting(true);
  setBusy(abort);
  follow(true);
  let failure = null;
  try {
    const told = await server.answer(request, { signal: abort.signal, onText: painter(view) });
    turn.facts = factsOf(told);
    turn.source = sourceOf(told.cache);
  } catch (error) {
    if (error.name === "AbortError") turn.facts = "stopped";
    else failure = error;
  }
  view.setWaiting(false);
  // A new chat was begun meanwhile: this one is gone.
  if (state.abort !== abort) return null;
  setBusy(null);
  if (turn.text) view.paint();
  else takeBack(asked);
  if (failure) showFailure(failure, asked, turn);
  keep();
  follow(false);
  return failure;
}

/** Adds text to an answer, and paints it once in a frame. */
function painter(view) {
  let isDue = false;
  return (text) => {
    view.turn.text += text;
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      view.paint();
      follow(false);
    });
  };
}

/** A question without an answer is no part of the chat: it goes back into the box, to be sent again or worded otherwise. */
function takeBack(asked) {
  removeViews(conversation.cut(asked));
  if (question.value.trim()) return;
  question.value = asked.text;
  fit();
}

function showFailure(failure, asked, turn) {
  if (failure.status === 401) element("key-form").hidden = false;
  const message = turn.text ? `The answer broke off: ${failure.message}` : `No answer: ${failure.message}`;
  clearFailure();
  log.append(makeFailure(message, waysOut(failure, asked)));
  follow(true);
}

/** What may help. Where the context is full, the oldest turns can go. */
function waysOut(failure, asked) {
  if (failure.code !== FULL) return [];
  const takeQuestion = () => {
    const text = question.value.trim() || asked.text;
    question.value = "";
    fit();
    return text;
  };
  const anew = () => {
    beginAnew();
    ask(takeQuestion());
  };
  const ways = [{ label: "New chat with this question", press: anew }];
  if (conversation.sent().length) ways.unshift({ label: "Leave out the oldest turns and ask again", press: () => askShorter(takeQuestion) });
  return ways;
}

/** Asks with the oldest question and its answer left out, and the next oldest, until it fits. */
async function askShorter(takeQuestion) {
  let failure;
  do {
    for (const turn of conversation.leaveOutOldest()) state.views.get(turn).paint();
    failure = await ask(takeQuestion());
  } while (failure?.code === FULL && conversation.sent().length);
}

function retry(turn, isFresh = false) {
  if (state.abort) return;
  clearFailure();
  const index = conversation.turns.indexOf(turn);
  const asked = conversation.turns[index - 1];
  removeViews(conversation.cut(turn));
  asked.isLeftOut = false;
  state.views.get(asked).paint();
  answer(asked, isFresh);
}

/** Asks a question anew in other words; all that came after it goes. Returns whether it could. */
function edit(turn, text) {
  if (state.abort) return false;
  removeViews(conversation.cut(turn));
  ask(text);
  return true;
}

/** Swaps Send for Stop while an answer is under way. */
function setBusy(abort) {
  state.abort = abort;
  element("send").hidden = abort !== null;
  element("stop").hidden = abort === null;
  log.classList.toggle("busy", abort !== null);
  log.setAttribute("aria-busy", String(abort !== null));
  question.focus();
}

function beginAnew() {
  const underWay = state.abort;
  setBusy(null);
  underWay?.abort();
  clearFailure();
  removeViews(conversation.turns.splice(0));
  conversation = new Conversation();
  keep();
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

/** Asks the server what it serves, until it says so. */
async function connect() {
  try {
    const { id, max_model_len: limit } = await server.connect();
    element("model").textContent = `${id} · ${limit.toLocaleString()} tokens of context`;
    element("greeting").textContent = `Chat with ${id}`;
    element("key-form").hidden = true;
    document.title = `${id} · Triserve`;
  } catch (error) {
    element("model").textContent = error.message;
    // Where a key is asked for, the next try comes with the key.
    if (error.status === 401) element("key-form").hidden = false;
    else setTimeout(connect, RECONNECT_MS);
  }
}

// ---- what a person does ----

element("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || state.abort) return;
  question.value = "";
  fit();
  ask(text);
});

question.addEventListener("keydown", (event) => {
  if (!isSend(event)) return;
  event.preventDefault();
  element("ask").requestSubmit();
});
question.addEventListener("input", fit);

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) state.abort?.abort();
});

log.addEventListener("click", (event) => {
  const button = event.target.closest(".copy-code");
  if (button) copy(button.closest(".code").querySelector("code").textContent, button);
});

for (const example of document.querySelectorAll(".example")) example.addEventListener("click", () => state.abort || ask(example.textContent));

element("stop").addEventListener("click", () => state.abort?.abort());
element("new").addEventListener("click", beginAnew);

const dialog = new SettingsDialog(element("settings-dialog"), ({ settings, isKept }) => {
  state.settings = settings;
  state.isKept = isKept;
  keep();
  question.focus();
});
element("settings").addEventListener("click", () => dialog.open(state));

element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  server.key = element("key").value.trim();
  element("key-form").hidden = true;
  element("key").value = "";
  connect();
});

addEventListener("pagehide", keep);

restore();
connect();
