// Markdown to a tree of plain objects: strings, and {tag, attributes, children}. Pure: knows no page. HTML in the text stays text.
//
// Every loop is linear in the text, whatever it holds: what nests is limited in depth, and nothing is looked for twice.

import { inlineOf, node } from "./markdown_inline.js";

const MAX_DEPTH = 8; // of quotes and lists in each other; what is deeper is text
const MAX_COLUMNS = 64; // of a table: browsers lay out each row by all of them

/** Splits a text into blocks: a list of nodes; those of the text itself have the `source` they were made of. */
export function parse(text) {
  return blocksOf(text.replaceAll("\r\n", "\n").replaceAll("\r", "\n").split("\n"), 0);
}

function blocksOf(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const { block, next } = blockAt(lines, at, depth);
    if (depth === 0) block.source = lines.slice(at, next).join("\n");
    blocks.push(block);
    at = next;
  }
  return blocks;
}

/** The block that begins in a line, and the line after it. */
function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = fenceOf(line);
  if (fence) return codeAt(lines, at, fence);
  const heading = headingOf(line);
  if (heading) return { block: heading, next: at + 1 };
  if (isRule(line)) return { block: node("hr", []), next: at + 1 };
  if (depth < MAX_DEPTH && quoted(line) !== null) return quoteAt(lines, at, depth);
  if (depth < MAX_DEPTH && itemOf(line)) return listAt(lines, at, depth);
  if (isTable(lines, at)) return tableAt(lines, at);
  return paragraphAt(lines, at, depth);
}

function isBlank(line) {
  return line.trim() === "";
}

/** Whether a line ends the paragraph before it. */
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (isBlank(line) || fenceOf(line) || headingOf(line) || isRule(line) || isTable(lines, at)) return true;
  return depth < MAX_DEPTH && (quoted(line) !== null || itemOf(line) !== null);
}

function paragraphAt(lines, at, depth) {
  let next = at + 1;
  while (next < lines.length && !interrupts(lines, next, depth)) next += 1;
  const text = lines.slice(at, next).map((line) => line.trim()).join("\n");
  return { block: node("p", inlineOf(text)), next };
}

/** The fence that a line opens: its indent, mark and language; null = none. */
function fenceOf(line) {
  const match = /^( {0,3})(`{3,}|~{3,})([^`]*)$/.exec(line);
  return match && { indent: match[1].length, mark: match[2], language: match[3].trim().split(" ", 1)[0] };
}

function codeAt(lines, at, fence) {
  const code = [];
  let next = at + 1;
  while (next < lines.length && !closes(lines[next], fence)) {
    code.push(withoutIndent(lines[next], fence.indent));
    next += 1;
  }
  // The line's end after which an answer goes on is no line yet.
  if (next === lines.length && code.at(-1) === "") code.pop();
  return { block: codeBlock(code.join("\n"), fence.language), next: Math.min(next + 1, lines.length) };
}

function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.mark.length && indentOf(line) < 4 && text === fence.mark[0].repeat(text.length);
}

function codeBlock(text, language) {
  const button = node("button", ["Copy"], { type: "button", class: "copy-code", "aria-label": "Copy this code" });
  const head = node("div", [node("span", language ? [language] : []), button], { class: "code-head" });
  return node("div", [head, node("pre", [node("code", text ? [text] : [])], { tabindex: "0" })], { class: "code" });
}

function headingOf(line) {
  const match = /^ {0,3}(#{1,6})(?:[ \t]|$)/.exec(line);
  if (!match) return null;
  let text = line.slice(match[0].length).trim();
  let end = text.length;
  while (end > 0 && text[end - 1] === "#") end -= 1;
  if (end === 0 || text[end - 1] === " ") text = text.slice(0, end).trim();
  // The page has a heading of its own above.
  return node(`h${Math.min(6, match[1].length + 2)}`, inlineOf(text));
}

function isRule(line) {
  const mark = line.trimStart()[0];
  if (mark !== "-" && mark !== "*" && mark !== "_") return false;
  const marks = line.replaceAll(" ", "").replaceAll("\t", "");
  return marks.length >= 3 && indentOf(line) < 4 && marks === mark.repeat(marks.length);
}

/** What a quote's mark precedes; null = it is no quote. */
function quoted(line) {
  const match = /^ {0,3}> ?/.exec(line);
  return match && line.slice(match[0].length);
}

function quoteAt(lines, at, depth) {
  const inner = [];
  let next = at;
  for (; next < lines.length; next += 1) {
    const text = quoted(lines[next]);
    if (text === null) break;
    inner.push(text);
  }
  return { block: node("blockquote", blocksOf(inner, depth + 1)), next };
}

/** The list item that a line begins: where it stands, its kind and number, where its content begins; null = none. */
function itemOf(line) {
  const match = /^( *)([-*+]|(\d{1,9})[.)])(?: ( {0,3}(?=[^ ]))?|$)/.exec(line);
  if (!match || isRule(line)) return null;
  return { indent: match[1].length, kind: match[2].slice(-1), number: match[3], content: Math.max(match[0].length, match[1].length + match[2].length + 1) };
}

function listAt(lines, at, depth) {
  const first = itemOf(lines[at]);
  const items = [];
  let next = at;
  let loose = false;
  while (next < lines.length) {
    const item = itemOf(lines[next]);
    if (!item || item.kind !== first.kind || item.indent > first.indent + 3 || item.indent < first.indent - 3) break;
    const inner = [lines[next].slice(item.content)];
    next += 1;
    let after = next; // the line after the last one that is not blank
    for (; next < lines.length; next += 1) {
      const line = lines[next];
      if (isBlank(line)) {
        inner.push("");
        continue;
      }
      const belongs = indentOf(line) >= Math.min(item.content, item.indent + 2);
      const goesOn = next === after && !interrupts(lines, next, 0);
      if (!belongs && !goesOn) break;
      inner.push(withoutIndent(line, item.content));
      after = next + 1;
    }
    const isGap = after < next;
    const continues = next < lines.length && itemOf(lines[next])?.kind === first.kind;
    if (isGap && continues) loose = true;
    inner.length -= next - after;
    const blocks = blocksOf(inner, depth + 1);
    if (blocks.filter((block) => block.tag === "p").length > 1) loose = true;
    items.push(blocks);
    if (!continues) next = after;
  }
  const children = items.map((blocks) => node("li", loose ? blocks : blocks.flatMap((block) => (block.tag === "p" ? block.children : [block]))));
  const start = first.number && Number(first.number) !== 1 ? { start: String(Number(first.number)) } : {};
  return { block: node(first.number ? "ol" : "ul", children, start), next };
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

/** A line without that many leading spaces, or as many as it has. */
function withoutIndent(line, count) {
  return line.slice(Math.min(count, indentOf(line)));
}

function isTable(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !lines[at + 1].includes("-")) return false;
  const marks = cellsOf(lines[at + 1]);
  if (!lines[at + 1].includes("|") || marks.length > MAX_COLUMNS) return false;
  return marks.every((mark) => /^:?-+:?$/.test(mark)) && cellsOf(lines[at]).length === marks.length;
}

function tableAt(lines, at) {
  const aligned = cellsOf(lines[at + 1]).map((mark) => alignment(mark));
  const row = (line, tag) => {
    const cells = cellsOf(line);
    // Cells that are missing stay so: a wide head with many short rows would be a square of them.
    return node("tr", cells.slice(0, aligned.length).map((cell, index) => node(tag, inlineOf(cell), aligned[index])));
  };
  let next = at + 2;
  while (next < lines.length && lines[next].includes("|")) next += 1;
  const body = lines.slice(at + 2, next).map((line) => row(line, "td"));
  const table = node("table", [node("thead", [row(lines[at], "th")]), ...(body.length ? [node("tbody", body)] : [])]);
  return { block: node("div", [table], { class: "table", tabindex: "0" }), next };
}

function alignment(mark) {
  const [left, right] = [mark.startsWith(":"), mark.endsWith(":")];
  if (!right) return {};
  return { class: left ? "centre" : "right" };
}

/** The cells of a table's row; a bar after a backslash is none. */
function cellsOf(line) {
  let text = line.trim();
  if (text.startsWith("|")) text = text.slice(1);
  if (text.endsWith("|") && !text.endsWith("\\|")) text = text.slice(0, -1);
  const cells = [];
  for (const piece of text.split("|")) {
    const last = cells.length - 1;
    if (last >= 0 && cells[last].endsWith("\\")) cells[last] = `${cells[last].slice(0, -1)}|${piece}`;
    else cells.push(piece);
  }
  return cells.map((cell) => cell.trim());
}
