// What the page asks of its server.

/** A refusal, or an answer that broke off. */
export class ServerError extends Error {
  constructor(message, { code = "", status = 0 } = {}) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

export class Server {
  constructor() {
    /** Kept in this page alone. */
    this.key = "";
    this.model = null;
  }

  /** Asks what is served: {id, max_model_len, ...}. */
  async connect() {
    const response = await this.fetch("/v1/models", {});
    [this.model] = (await response.json()).data;
    return this.model;
  }

  /**
   * Streams an answer. `onText` hears the text of each event; returns what else the stream told.
   * Throws a ServerError, or an AbortError when the signal says so.
   */
  async answer(body, { signal, onText }) {
    const response = await this.fetch("/v1/chat/completions", { method: "POST", signal, body: JSON.stringify(body) });
    const told = { usage: null, timeline: null, finish: null, cache: cacheOf(response.headers) };
    for await (const event of eventsOf(response)) {
      if (event.error) throw new ServerError(event.error.message, event.error);
      told.usage = event.usage ?? told.usage;
      told.timeline = event.triserve ?? told.timeline;
      const [choice] = event.choices;
      if (choice?.delta.content) onText(choice.delta.content);
      told.finish = choice?.finish_reason ?? told.finish;
    }
    return told;
  }

  async fetch(path, options) {
    const headers = { "Content-Type": "application/json" };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    const response = await fetch(path, { ...options, headers }).catch((error) => {
      throw error.name === "AbortError" ? error : new ServerError("the server cannot be reached");
    });
    if (response.ok) return response;
    const { error } = (await response.json().catch(() => null)) ?? {};
    throw new ServerError(error?.message ?? `the server answered HTTP ${response.status}`, { code: error?.code, status: response.status });
  }
}

/** Where an answer came from: null where it was made now, else { isSimilar, ageS }. */
function cacheOf(headers) {
  const status = headers.get("X-Triserve-Cache") ?? "";
  return status.startsWith("hit") ? { isSimilar: status === "hit-semantic", ageS: Number(headers.get("Age") ?? 0) } : null;
}

/** Yields the JSON of each event of a response, whatever pieces it arrives in. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ServerError("the connection broke");
    });
    if (done) throw new ServerError("the server broke the answer off");
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
