// A chat as the page knows it: turns, what is sent of them, what is kept of them. Pure: knows no page and no network.

/** Of what was over sooner, the time says more of chance than of speed. */
const MIN_DECODE_MS = 20;

const ROLES = ["user", "assistant"];

/** Fields of a request that the settings set; what is empty is the model's own. */
const SAMPLING = { temperature: Number.parseFloat, top_p: Number.parseFloat, max_tokens: Number, seed: Number };

export class Conversation {
  constructor() {
    /** Each {role, text, facts, isLeftOut}; the last two may be missing. */
    this.turns = [];
  }

  /** Adds a turn and returns it. */
  add(role, text) {
    const turn = { role, text };
    this.turns.push(turn);
    return turn;
  }

  /** Takes a turn, and all that follow it, away; returns those. */
  cut(turn) {
    const index = this.turns.indexOf(turn);
    return index === -1 ? [] : this.turns.splice(index);
  }

  /** What to send for the next answer. */
  messages(system) {
    const first = system ? [{ role: "system", content: system }] : [];
    return [...first, ...this.sent().map((turn) => ({ role: turn.role, content: turn.text }))];
  }

  /** The turns the model is told of. */
  sent() {
    return this.turns.filter((turn) => !turn.isLeftOut);
  }

  /** Leaves the oldest question, with its answer, out of what is sent; returns those turns. */
  leaveOutOldest() {
    const sent = this.sent();
    const next = sent.findIndex((turn, index) => index > 0 && turn.role === "user");
    const oldest = next === -1 ? sent : sent.slice(0, next);
    for (const turn of oldest) turn.isLeftOut = true;
    return oldest;
  }
}

/** What is wrong with the text of a JSON schema; empty where nothing is. */
export function schemaFault(text) {
  try {
    const schema = JSON.parse(text);
    return schema !== null && typeof schema === "object" && !Array.isArray(schema) ? "" : "A JSON schema is an object.";
  } catch (error) {
    return `This is no JSON: ${error.message}`;
  }
}

/** What a request says of the form of its answer; null = any text. */
function formOf({ form, schema }) {
  if (form === "json") return { type: "json_object" };
  return form === "schema" ? { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(schema) } } : null;
}

/** The body of the request for the next answer; a fresh one is one that the prompt cache does not give. */
export function requestOf(model, conversation, settings, isFresh = false) {
  const body = { model, messages: conversation.messages(settings.system?.trim()), stream: true };
  body.stream_options = { include_usage: true };
  body.return_timeline = true;
  if (isFresh) body.cache = { mode: "refresh" };
  for (const [name, read] of Object.entries(SAMPLING)) {
    const given = String(settings[name] ?? "").trim();
    if (given) body[name] = read(given);
  }
  const form = formOf(settings);
  if (form) body.response_format = form;
  return body;
}

/** The line under an answer: how fast the server made it, by its own clock. A browser may read in one go what took a second to make. */
export function factsOf({ usage, timeline, finish, cache }) {
  const facts = [];
  const tokens = usage?.completion_tokens;
  if (timeline && !cache) {
    facts.push(`first token ${Math.round(timeline.tokenize_ms + timeline.queue_ms + timeline.prefill_ms)} ms`);
    if (tokens > 1 && timeline.decode_ms >= MIN_DECODE_MS) facts.push(`${((tokens - 1) / (timeline.decode_ms / 1000)).toFixed(1)} tokens/s`);
  }
  if (tokens) facts.push(tokens === 1 ? "1 token" : `${tokens} tokens`);
  if (cache) facts.push("from the prompt cache");
  if (finish === "length") facts.push("cut at the length limit");
  return facts.join(" · ");
}

/** What a reader should know of an answer that the prompt cache gave; empty where it was made now. */
export function sourceOf(cache) {
  if (!cache) return "";
  const minutes = Math.floor(cache.ageS / 60);
  const hours = Math.floor(minutes / 60);
  const age = hours ? `${hours} h` : minutes ? `${minutes} min` : "less than a minute";
  return `Made ${age} ago ${cache.isSimilar ? "for a question that was much like this one" : "for the same question"}.`;
}

/** What was kept, as far as it is what this page keeps: others may have written to the same place. */
export function readKept(text) {
  let kept;
  try {
    kept = JSON.parse(text ?? "null");
  } catch {
    kept = null;
  }
  const turns = Array.isArray(kept?.turns) ? kept.turns : [];
  const settings = {};
  for (const [name, value] of Object.entries(kept?.settings ?? {})) if (typeof value === "string") settings[name] = value;
  if (settings.form === "schema" && schemaFault(settings.schema)) delete settings.form;
  const isTurn = (turn) => ROLES.includes(turn?.role) && typeof turn.text === "string" && ["facts", "source"].every((name) => turn[name] === undefined || typeof turn[name] === "string");
  return { isKept: kept?.isKept !== false, settings, turns: turns.every(isTurn) ? turns : [] };
}
