// Markdown inside a line to a list of strings and {tag, attributes, children}. Pure, and linear in the text: see markdown.js.

const MAX_OPEN = 16; // emphasis that is open at once
const MAX_LINK = 2048; // characters of an address
const SCHEMES = new Set(["http", "https"]);

/** A node of the tree. */
export const node = (tag, children, attributes = {}) => ({ tag, attributes, children });

/** Reads one run of text, from its first to its last character. */
class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.nodes = [];
    this.plain = "";
    this.open = []; // emphasis that may be closed: {mark, index of the node with the mark}
    this.brackets = []; // of links that may be closed: {index of the node with the bracket, open emphasis before it}
    this.ticks = ticksOf(text);
    this.lastParen = text.lastIndexOf(")");
  }

  run() {
    while (this.at < this.text.length) this.step();
    this.flush();
    return merged(this.nodes);
  }

  step() {
    const { text, at } = this;
    const mark = text[at];
    if (mark === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      this.plain += text[at + 1];
      this.at += 2;
    } else if (mark === "`") this.code();
    else if (mark === "*" || mark === "_" || mark === "~") this.emphasis(mark);
    else if (mark === "[") this.openBracket(1);
    else if (mark === "!" && text[at + 1] === "[") this.openBracket(2);
    else if (mark === "]") this.closeBracket();
    else if (mark === "<") this.angle();
    else if (mark === "h" && !isWord(text[at - 1]) && text.startsWith("http", at)) this.bare();
    else this.take(1);
  }

  take(count) {
    this.plain += this.text.slice(this.at, this.at + count);
    this.at += count;
  }

  flush() {
    if (this.plain) this.nodes.push(this.plain);
    this.plain = "";
  }

  push(child) {
    this.flush();
    this.nodes.push(child);
  }

  code() {
    const length = runLength(this.text, this.at);
    const closing = this.ticks.after(length, this.at);
    if (closing === -1) return this.take(length);
    let code = this.text.slice(this.at + length, closing).replaceAll("\n", " ");
    if (code.startsWith(" ") && code.endsWith(" ") && code.trim()) code = code.slice(1, -1);
    this.push(node("code", [code]));
    this.at = closing + length;
  }

  emphasis(mark) {
    const { text, at } = this;
    const length = runLength(text, at);
    const [before, after] = [text[at - 1], text[at + length]];
    if (length > 3 || (mark === "~" && length !== 2)) return this.take(length);
    const isWithin = mark === "_" && isWord(before) && isWord(after);
    const canClose = !isSpace(before) && !isWithin;
    const canOpen = !isSpace(after) && !isWithin;
    const run = mark.repeat(length);
    this.at += length;
    if (canClose && this.open.some((one) => one.run === run)) return this.close(run);
    if (!canOpen || this.open.length >= MAX_OPEN) {
      this.plain += run;
      return;
    }
    this.push(run);
    this.open.push({ run, index: this.nodes.length - 1 });
  }

  /** Wraps what has come since the last mark of the kind; marks in between stay text. */
  close(run) {
    this.flush();
    let opened = this.open.pop();
    while (opened.run !== run) opened = this.open.pop();
    const children = merged(this.nodes.splice(opened.index).slice(1));
    if (run === "~~") this.nodes.push(node("del", children));
    else if (run.length === 1) this.nodes.push(node("em", children));
    else if (run.length === 2) this.nodes.push(node("strong", children));
    else this.nodes.push(node("strong", [node("em", children)]));
    while (this.brackets.length && this.brackets.at(-1).index >= opened.index) this.brackets.pop();
  }

  openBracket(length) {
    this.push(this.text.slice(this.at, this.at + length));
    this.brackets.push({ index: this.nodes.length - 1, numOpen: this.open.length });
    this.at += length;
  }

  closeBracket() {
    const opened = this.brackets.pop();
    const target = opened && this.text[this.at + 1] === "(" ? this.target(this.at + 2) : null;
    const href = target && addressOf(target.text);
    if (!href) return this.take(1);
    this.flush();
    const children = merged(this.nodes.splice(opened.index).slice(1));
    this.open = this.open.slice(0, opened.numOpen);
    this.nodes.push(link(href, children.length ? children : [href]));
    // There is no link within a link.
    this.brackets = [];
    this.at = target.next;
  }

  /** What stands between the brackets of an address, and where it ends; null = they are not closed. */
  target(from) {
    const { text } = this;
    const end = Math.min(text.length, this.lastParen + 1, from + MAX_LINK);
    let depth = 0;
    for (let at = from; at < end; at += 1) {
      if (text[at] === "\n") return null;
      if (text[at] === "(") depth += 1;
      if (text[at] === ")") depth -= 1;
      if (depth < 0) return { text: text.slice(from, at).trim().split(/\s/, 1)[0], next: at + 1 };
    }
    return null;
  }

  /** An address in angle brackets; everything else in them is text. */
  angle() {
    const match = /^<([a-z]{4,5}:[^\s<>]{1,2048})>/.exec(this.text.slice(this.at, this.at + MAX_LINK));
    const href = match && addressOf(match[1]);
    if (!href) return this.take(1);
    this.push(link(href, [match[1]]));
    this.at += match[0].length;
  }

  /** An address as it is, up to a space; marks at its end belong to the sentence. */
  bare() {
    const shown = /^[^\s<>"'`*\]]*/.exec(this.text.slice(this.at, this.at + MAX_LINK))[0].replace(/[.,;:!?)]{1,9}$/, "");
    const href = shown.includes("://") && !this.brackets.length ? addressOf(shown) : null;
    if (!href) return this.take(1);
    this.push(link(href, [shown]));
    this.at += shown.length;
  }
}

/** The nodes of a run of text. */
export function inlineOf(text) {
  return new Inline(text).run();
}

/** The same nodes with strings that follow each other made one. */
function merged(nodes) {
  const all = [];
  let text = [];
  const flush = () => {
    if (text.length) all.push(text.join(""));
    text = [];
  };
  for (const one of nodes) {
    if (typeof one === "string") text.push(one);
    else {
      flush();
      all.push(one);
    }
  }
  flush();
  return all;
}

function link(href, children) {
  return node("a", children, { href, target: "_blank", rel: "noopener noreferrer" });
}

/** An address as a link may have it; null = it leads nowhere, or to something other than a page. */
export function addressOf(text) {
  if (!/^[a-z]+:\/\/[^/]/i.test(text) || !URL.canParse(text)) return null;
  const address = new URL(text);
  return SCHEMES.has(address.protocol.slice(0, -1)) ? address.href : null;
}

/** Where the runs of backticks of each length stand, asked for from left to right. */
function ticksOf(text) {
  const starts = new Map();
  for (let at = text.indexOf("`"); at !== -1; ) {
    const length = runLength(text, at);
    if (!starts.has(length)) starts.set(length, { at: [], next: 0 });
    starts.get(length).at.push(at);
    at = text.indexOf("`", at + length);
  }
  return {
    /** The next run of a length after a place; -1 = there is none. */
    after(length, place) {
      const runs = starts.get(length);
      while (runs.next < runs.at.length && runs.at[runs.next] <= place) runs.next += 1;
      return runs.at[runs.next] ?? -1;
    },
  };
}

function runLength(text, at) {
  let end = at + 1;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

function isSpace(character) {
  return character === undefined || /\s/.test(character);
}

function isWord(character) {
  return character !== undefined && /[\p{L}\p{N}_]/u.test(character);
}
