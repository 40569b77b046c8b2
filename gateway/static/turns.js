// Turns of a chat on the page: their text, their actions, editing them, and what is said when there is no answer.

import { make, makeButton, show } from "./dom.js";
import { parse } from "./markdown.js";

const DONE_MS = 1500;

/** One turn's element. `on` has the functions its actions call: retry, refresh, edit. */
export class TurnView {
  constructor(turn, on) {
    this.turn = turn;
    this.on = on;
    this.element = make("article", `turn ${turn.role}`);
    this.element.setAttribute("aria-label", turn.role === "user" ? "You" : "Answer");
    this.bubble = make("div", "bubble");
    this.facts = make("span", "facts");
    this.source = make("div", "source");
    this.source.hidden = true;
    this.element.append(this.bubble, this.source, this.makeBar());
    this.paint();
  }

  makeBar() {
    const bar = make("div", "bar");
    bar.append(makeButton("Copy", "action", (event) => copy(this.turn.text, event.currentTarget)));
    if (this.turn.role === "user") bar.append(makeButton("Edit", "action", () => this.edit()));
    else bar.append(makeButton("Retry", "action", () => this.on.retry(this.turn)), this.facts);
    return bar;
  }

  /** Shows the turn as it is now. What a person wrote is shown as it was written. */
  paint() {
    if (this.turn.role === "user") show(this.bubble, [this.turn.text]);
    else show(this.bubble, parse(this.turn.text));
    this.facts.textContent = this.turn.facts ?? "";
    this.paintSource();
    this.element.classList.toggle("left-out", Boolean(this.turn.isLeftOut));
  }

  /** Says that an answer was made before, and offers a fresh one. */
  paintSource() {
    this.source.hidden = !this.turn.source;
    if (this.source.hidden) return;
    this.source.replaceChildren(make("span", "", this.turn.source), makeButton("Get a fresh answer", "action", () => this.on.refresh(this.turn)));
  }

  setWaiting(isWaiting) {
    this.element.classList.toggle("waiting", isWaiting);
  }

  /** Lets a question be written anew; the chat goes on from there. */
  edit() {
    if (this.element.querySelector("form")) return;
    const form = make("form", "edit");
    const field = make("textarea", "", undefined);
    field.value = this.turn.text;
    field.rows = Math.min(10, this.turn.text.split("\n").length + 1);
    field.setAttribute("aria-label", "Edit your message; everything after it is asked anew");
    const close = () => {
      form.remove();
      this.element.classList.remove("editing");
    };
    const send = make("button", "", "Send");
    send.type = "submit";
    const row = make("div", "row");
    row.append(makeButton("Cancel", "quiet", close), send);
    form.append(field, row);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim() && this.on.edit(this.turn, field.value.trim())) close();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      if (isSend(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.element.classList.add("editing");
    this.element.append(form);
    field.focus();
  }
}

/** Whether a key sends what is written: not while an input method composes a character with it. */
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

/** Says why there is no answer, with ways out: a list of {label, press}. */
export function makeFailure(message, waysOut) {
  const failure = make("div", "failure");
  failure.setAttribute("role", "alert");
  failure.append(make("p", "", message));
  const row = make("div", "row");
  for (const { label, press } of waysOut) row.append(makeButton(label, "quiet", press));
  if (waysOut.length) failure.append(row);
  return failure;
}

/** Copies a text, and says so on the button for a moment. */
export async function copy(text, button) {
  const label = button.textContent;
  const isCopied = await writeClipboard(text);
  button.textContent = isCopied ? "Copied" : "Not allowed";
  setTimeout(() => (button.textContent = label), DONE_MS);
}

async function writeClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS, browsers have a clipboard on their own machine's pages alone.
    const field = make("textarea", "unseen", undefined);
    field.value = text;
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    return isCopied;
  }
}
