"""The page's modules that know no page: Markdown to a tree, a chat to a request. Run by node, where there is one."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

import gateway

STATIC = Path(gateway.__file__).parent / "static"
NODE = shutil.which("node")
_MODULES = ("markdown", "markdown_inline", "conversation")
pytestmark = pytest.mark.skipif(NODE is None, reason="no node on the PATH: the page's modules are tried in a browser alone")

# Shows a tree as markup, the way the page makes elements of it; attributes that every link has are left out.
_SHOW = """
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const skipped = new Set(["target", "rel", "tabindex", "type", "aria-label"]);
const shown = (node) => {
  if (typeof node === "string") return escaped(node);
  const attributes = Object.entries(node.attributes).filter(([name]) => !skipped.has(name)).map(([name, value]) => ` ${name}="${value}"`);
  return `<${node.tag}${attributes.join("")}>${node.children.map(shown).join("")}</${node.tag}>`;
};
"""


def run(script: str, given: object) -> Any:
    """What a module script makes of some JSON: it reads `given` and leaves `result`."""
    assert NODE is not None
    with tempfile.TemporaryDirectory() as folder:
        # A browser is told by the page that these are modules, node by a file beside them.
        (Path(folder) / "package.json").write_text('{"type": "module"}')
        for name in _MODULES:
            shutil.copy(STATIC / f"{name}.js", folder)
        imports = "".join(f'import * as {name} from "./{name}.js";\n' for name in _MODULES)
        read = "import fs from 'node:fs';\nconst given = JSON.parse(fs.readFileSync(0, 'utf8'));"
        (Path(folder) / "main.js").write_text(f"{imports}{read}\n{script}\nconsole.log(JSON.stringify(result));")
        command = [NODE, "main.js"]
        done = subprocess.run(command, cwd=folder, input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def markup(texts: list[str]) -> list[str]:
    """What each text is shown as."""
    shown: list[str] = run(f"{_SHOW}const result = given.map((text) => markdown.parse(text).map(shown).join(''));", texts)
    return shown


CASES = {
    # Blocks.
    "a\nb\n\nc": "<p>a\nb</p><p>c</p>",
    "# a\n## b #\n#c\n####### d": "<h3>a</h3><h4>b</h4><p>#c\n####### d</p>",
    "a\n---\n* * *\n--": "<p>a</p><hr></hr><hr></hr><p>--</p>",
    "> a\n> > b\n\nc": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
    # Lists.
    "- a\n- b\n  - c\n    - d\n- e": "<ul><li>a</li><li>b<ul><li>c<ul><li>d</li></ul></li></ul></li><li>e</li></ul>",
    "1. a\n2. b": "<ol><li>a</li><li>b</li></ol>",
    "3) a": '<ol start="3"><li>a</li></ol>',
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "- a\n\n  b": "<ul><li><p>a</p><p>b</p></li></ul>",
    "- a\nb\n\nc": "<ul><li>a\nb</li></ul><p>c</p>",
    "- a\n1. b\n+ c": "<ul><li>a</li></ul><ol><li>b</li></ol><ul><li>c</li></ul>",
    "a\n- b": "<p>a</p><ul><li>b</li></ul>",
    "-a\n1.b": "<p>-a\n1.b</p>",
    "1. a\n   - b\n\n2. c": "<ol><li><p>a</p><ul><li>b</li></ul></li><li><p>c</p></li></ol>",
    # Tables.
    "|a|b|c|\n|:-|-:|:-:|\n|1|2|": '<div class="table"><table><thead><tr><th>a</th><th class="right">b</th><th class="centre">c</th></tr></thead>'
    '<tbody><tr><td>1</td><td class="right">2</td></tr></tbody></table></div>',
    "a|b\n-|-\n\\||*x*\n\ny": '<div class="table"><table><thead><tr><th>a</th><th>b</th></tr></thead>'
    "<tbody><tr><td>|</td><td><em>x</em></td></tr></tbody></table></div><p>y</p>",
    "a|b\n-|-|-": "<p>a|b\n-|-|-</p>",
    # Inside a line.
    "*a* **b** ***c*** _d_ __e__ ~~f~~": "<p><em>a</em> <strong>b</strong> <strong><em>c</em></strong> <em>d</em> <strong>e</strong> <del>f</del></p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    "2 * 3 * 4, a_b_c, *open, ~x~": "<p>2 * 3 * 4, a_b_c, *open, ~x~</p>",
    "*a **b*": "<p><em>a **b</em></p>",
    "`a*b*` ``a`b`` `open": "<p><code>a*b*</code> <code>a`b</code> `open</p>",
    "\\*a\\* \\`b\\` \\\\": "<p>*a* `b` \\</p>",
    # Links.
    "[a](https://e.org) [*b*](http://e.org/x_(y))": '<p><a href="https://e.org/">a</a> <a href="http://e.org/x_(y)"><em>b</em></a></p>',
    '[a](https://e.org "title") ![b](https://e.org/i.png)': '<p><a href="https://e.org/">a</a> <a href="https://e.org/i.png">b</a></p>',
    "see https://e.org/a. Or (http://e.org)": '<p>see <a href="https://e.org/a">https://e.org/a</a>. Or (<a href="http://e.org/">http://e.org</a>)</p>',
    "<https://e.org>": '<p><a href="https://e.org/">https://e.org</a></p>',
    "[a [b](https://e.org) c](https://f.org)": '<p>[a <a href="https://e.org/">b</a> c](<a href="https://f.org/">https://f.org</a>)</p>',
    # What is no link, and no markup.
    "[a](javascript:alert(1))": "<p>[a](javascript:alert(1))</p>",
    "[a](JaVaScRiPt://e.org/%0aalert(1))": "<p>[a](JaVaScRiPt://e.org/%0aalert(1))</p>",
    "[a](data:text/html,x) [b](//e.org) [c](/x) [d](https:e)": "<p>[a](data:text/html,x) [b](//e.org) [c](/x) [d](https:e)</p>",
    "<javascript:alert(1)> <b>x</b> &amp;": "<p>&lt;javascript:alert(1)> &lt;b>x&lt;/b> &amp;amp;</p>",
    "": "",
    " \n\n ": "",
}


def test_each_form_is_shown_as_what_it_means_and_all_else_as_text() -> None:
    assert dict(zip(CASES, markup(list(CASES)), strict=True)) == CASES


def test_a_fence_is_code_to_its_end_or_to_the_end_of_what_has_come() -> None:
    texts = ["```py\n*a*\n\n```\nb", "```\na\n", "~~~\n```\n~~~", "````\n```\n````"]
    head = '<div class="code"><div class="code-head"><span>{}</span><button class="copy-code">Copy</button></div><pre><code>{}</code></pre></div>'
    assert markup(texts) == [
        head.format("py", "*a*\n") + "<p>b</p>",
        head.format("", "a"),
        head.format("", "```"),
        head.format("", "```"),
    ]


def test_every_link_opens_elsewhere_and_tells_nothing_of_this_page() -> None:
    links = run(
        "const result = markdown.parse(given)[0].children.filter((one) => one.tag).map((one) => one.attributes);",
        "[a](http://e.org) http://e.org <http://e.org>",
    )
    assert links == [{"href": "http://e.org/", "target": "_blank", "rel": "noopener noreferrer"}] * 3


def test_all_beginnings_of_a_text_can_be_shown() -> None:
    text = "\n\n".join(CASES) + "\n\n```py\nx\n```\n"
    sizes = run("const result = [...given].map((_, at) => markdown.parse(given.slice(0, at)).length);", text)
    assert len(sizes) == len(text)


HOSTILE = [
    "[",
    "](",
    "[a](",
    "*a **b ",
    "a* ",
    "*a*b",
    "> ",
    "- ",
    "- a\n",
    "- a\n\n1. b\n\n",
    "|",
    "a|\n-|\n",
    " #",
    " ",
    "<http:",
    "(http://a",
    "\\",
    "```\n",
    "~~~ x\n",
    "_",
    "`",
    "``a`",
    "![",
    "a|" * 99 + "\n",
]


@pytest.mark.slow
@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hundred_thousand_characters_made_to_hurt_are_read_at_once(piece: str) -> None:
    """Anything that grows with the square of the text would not end within the limit of `run`: it takes some 10 ms otherwise."""
    text = piece * (100_000 // len(piece))
    assert all(
        size >= 0
        for size in run(
            "const result = given.map((text) => markdown.parse(text).length);", [text, "x" + text, text + "x", text + "](http://e.org)"]
        )
    )


def test_what_nests_is_text_beyond_some_depth() -> None:
    depths = run(
        "const deep = (node) => typeof node === 'string' ? 0 : 1 + Math.max(0, ...node.children.map(deep));"
        "const result = given.map((text) => Math.max(...markdown.parse(text).map(deep)));",
        [
            "> " * 1000 + "x",
            "- " * 1000 + "x",
            "*a _b " * 1000 + "c_ d*" * 1000,
            "\n".join(" " * 2 * depth + "- a" for depth in range(200)),
        ],
    )
    assert max(depths) < 40


def test_a_request_has_the_settings_that_are_set_and_no_others() -> None:
    script = """
    const chat = new conversation.Conversation();
    chat.add("user", "a");
    const result = given.map((settings) => conversation.requestOf("m", chat, settings));
    """
    empty, full = run(
        script, [{"system": " ", "seed": ""}, {"system": "Be brief.", "temperature": "0", "top_p": "0.5", "max_tokens": "7", "seed": "-3"}]
    )
    always = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "return_timeline": True}
    assert empty == {**always, "messages": [{"role": "user", "content": "a"}]}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    assert full == {**always, "messages": messages, "temperature": 0, "top_p": 0.5, "max_tokens": 7, "seed": -3}


def test_answers_are_json_where_the_settings_say_so() -> None:
    script = """
    const chat = new conversation.Conversation();
    chat.add("user", "a");
    const result = given.map((settings) => conversation.requestOf("m", chat, settings).response_format ?? null);
    """
    schema = '{"type": "object"}'
    forms = [{"form": "", "schema": schema}, {"form": "json", "schema": "{"}, {"form": "schema", "schema": schema}]
    by_schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
    assert run(script, forms) == [None, {"type": "json_object"}, by_schema]


def test_a_schema_that_is_none_is_told_and_not_kept() -> None:
    texts = ['{"a": 1}', "{", "[]", "null", "3", ""]
    faults = run("const result = given.map((text) => conversation.schemaFault(text));", texts)
    assert faults[0] == "" and faults[2:5] == ["A JSON schema is an object."] * 3
    assert all(fault.startswith("This is no JSON: ") for fault in (faults[1], faults[5]))
    kept = [json.dumps({"settings": {"form": "schema", "schema": text}}) for text in texts]
    settings = run("const result = given.map((text) => conversation.readKept(text).settings);", kept)
    assert ["form" in one for one in settings] == [True, False, False, False, False, False]


def test_the_oldest_turns_are_left_out_pair_by_pair() -> None:
    script = """
    const chat = new conversation.Conversation();
    for (const [role, text] of given) chat.add(role, text);
    const result = [];
    while (chat.sent().length) {
      result.push([chat.leaveOutOldest().map((turn) => turn.text), chat.messages("").map((message) => message.content)]);
    }
    """
    turns = [["user", "a"], ["assistant", "b"], ["user", "c"], ["assistant", "d"]]
    assert run(script, turns) == [[["a", "b"], ["c", "d"]], [["c", "d"], []]]


def test_the_speed_is_the_servers_and_left_out_where_it_says_nothing() -> None:
    timeline = {"tokenize_ms": 1.4, "queue_ms": 0.2, "prefill_ms": 10, "decode_ms": 500}
    usage = {"completion_tokens": 51}
    given = [
        {"usage": usage, "timeline": timeline, "finish": "stop", "cache": None},
        {"usage": usage, "timeline": {**timeline, "decode_ms": 0.5}, "finish": "length", "cache": None},
        {"usage": usage, "timeline": timeline, "finish": "stop", "cache": {"isSimilar": False, "ageS": 5}},
        {"usage": {"completion_tokens": 1}, "timeline": {**timeline, "decode_ms": 0}, "finish": "stop", "cache": None},
        {"usage": None, "timeline": None, "finish": None, "cache": None},
    ]
    assert run("const result = given.map((told) => conversation.factsOf(told));", given) == [
        "first token 12 ms · 100.0 tokens/s · 51 tokens",
        "first token 12 ms · 51 tokens · cut at the length limit",
        "51 tokens · from the prompt cache",
        "first token 12 ms · 1 token",
        "",
    ]


def test_an_answer_of_the_cache_says_when_and_for_what_it_was_made() -> None:
    given = [None, {"isSimilar": False, "ageS": 59}, {"isSimilar": True, "ageS": 60}, {"isSimilar": True, "ageS": 7200}]
    assert run("const result = given.map((cache) => conversation.sourceOf(cache));", given) == [
        "",
        "Made less than a minute ago for the same question.",
        "Made 1 min ago for a question that was much like this one.",
        "Made 2 h ago for a question that was much like this one.",
    ]


def test_a_fresh_answer_is_asked_for_past_the_cache() -> None:
    script = """
    const chat = new conversation.Conversation();
    chat.add("user", "a");
    const result = [false, true].map((isFresh) => conversation.requestOf("m", chat, {}, isFresh).cache ?? null);
    """
    assert run(script, None) == [None, {"mode": "refresh"}]


def test_what_was_kept_is_read_as_far_as_it_is_a_chat() -> None:
    kept = [
        '{"turns": [{"role": "user", "text": "a"}], "settings": {"seed": "1", "x": 2}}',
        '{"isKept": false}',
        None,
        "{",
        "[1]",
        '"x"',
        '{"turns": [{"role": "user"}]}',
        '{"turns": [null]}',
    ]
    empty = {"isKept": True, "settings": {}, "turns": []}
    assert run("const result = given.map((text) => conversation.readKept(text));", kept) == [
        {"isKept": True, "settings": {"seed": "1"}, "turns": [{"role": "user", "text": "a"}]},
        {**empty, "isKept": False},
        *[empty] * 6,
    ]
