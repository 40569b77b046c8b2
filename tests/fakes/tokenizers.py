"""Small model folders with real tokenizers of every kind and chat templates of every style, made in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL_TOKENS = (
    "<unk>",
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "[INST]",
    "[/INST]",
)
# Added, but not special: they mean something in plain text too.
TEXT_TOKENS = ("<think>", "</think>", "<user>", "<model>")

CORPUS = (
    "The tokenizer turns text into token ids, and ids into text; the template writes the turns of a chat.",
    "A system prompt comes first and does not change: you are a helpful assistant, answer in whole sentences.",
    "Hello, what is the capital of France? It is Paris. And of Italy? It is Rome. Thank you, that is all.",
    "def render(messages): return ''.join(message['content'] for message in messages)  # 1, 2, 3, 42, 2026",
    "Grüße, façade, naïve, Привет мир, こんにちは世界, 🙂🙃, tabs\tand\nlines\n\n  and   spaces.",
) * 3


@cache
def byte_level_bpe() -> str:
    """tokenizer.json in the manner of GPT-2, Llama 3 and Qwen: bytes as letters, no token for the unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    return _finished(tokenizer, trainer)


@cache
def prepending_bpe() -> str:
    """In the manner of Llama 2: spaces as ▁, one before all, bytes as a last resort, special tokens inside the vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *_BYTES], show_progress=False)
    return _finished(tokenizer, trainer, adds=("<s>", ""), spell_out=("<s>", "</s>"))


@cache
def metaspace_unigram() -> str:
    """In the manner of T5 and XLM-R: the likeliest pieces, special tokens among them, a prefix space at the very start alone."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=list(SPECIAL_TOKENS), unk_token="<unk>", show_progress=False)
    return _finished(tokenizer, trainer, adds=("<s>", "</s>"))


@cache
def word_piece() -> str:
    """In the manner of BERT: lower case, words split at punctuation."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    return _finished(tokenizer, trainer, adds=("<s>", "</s>"))


@cache
def whole_words() -> str:
    """Words between spaces and nothing else, special tokens among them."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=300, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    return _finished(tokenizer, trainer)


KINDS: Mapping[str, Callable[[], str]] = {
    "byte_level_bpe": byte_level_bpe,
    "prepending_bpe": prepending_bpe,
    "metaspace_unigram": metaspace_unigram,
    "word_piece": word_piece,
    "whole_words": whole_words,
}

_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def _finished(tokenizer: Tokenizer, trainer: trainers.Trainer, *, adds: tuple[str, str] = ("", ""), spell_out: tuple[str, ...] = ()) -> str:
    """Trains, adds the special tokens, and returns the JSON.

    Args:
        tokenizer: untrained.
        trainer: for its model.
        adds: special tokens that the tokenizer puts before and after a text.
        spell_out: special tokens that merges of ordinary pieces lead to as well, as in some published files.
    """
    tokenizer.train_from_iterator(CORPUS, trainer)
    definition: dict[str, Any] = json.loads(tokenizer.to_str())
    definition["added_tokens"] = []
    for token in spell_out:
        _add_merges_to(token, definition["model"])
    finished = Tokenizer.from_str(json.dumps(definition))
    finished.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    finished.add_tokens([AddedToken(token, special=False, normalized=False) for token in TEXT_TOKENS])
    before, after = adds
    if before:
        form = f"{before} $A {after}".strip()
        finished.post_processor = processors.TemplateProcessing(
            single=form, special_tokens=[(t, finished.token_to_id(t)) for t in adds if t]
        )
    text: str = finished.to_str()
    return text


def _add_merges_to(token: str, model: dict[str, Any]) -> None:
    for end in range(2, len(token) + 1):
        for piece in (token[: end - 1], token[end - 1], token[:end]):
            model["vocab"].setdefault(piece, len(model["vocab"]))
        model["merges"].append([token[: end - 1], token[end - 1]])


CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

HEADERS = """\
{{ bos_token }}
{%- for message in messages %}
<|start_header_id|>{{ message['role'] }}{% if message['name'] %} {{ message['name'] }}{% endif %}<|end_header_id|>

{{ message['content'] | trim }}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}
<|start_header_id|>assistant<|end_header_id|>

{% endif %}
"""

INSTRUCTIONS = """\
{% if messages[0]['role'] == 'system' %}
    {% set turns = messages[1:] %}
    {% set opening = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
{% else %}
    {% set turns = messages %}
    {% set opening = '' %}
{% endif %}
{% if turns | length == 0 %}{{ raise_exception('There is nobody to answer.') }}{% endif %}
{% for message in turns %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Turns must alternate, not ' + message['role'] + ' here.') }}{% endif %}
    {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + (opening if loop.first else '') + message['content'].strip() + ' [/INST]' }}{% else %}
{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}
{% endfor %}
"""

INSPECTING = """\
{%- macro turn(role, content) %}{{ '<|im_start|>' ~ role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}{% endmacro %}
{%- set state = namespace(last=-1) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set state.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
    {%- if message.content is not string %}{{ raise_exception('Content must be text.') }}{% endif %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
        {%- generation %}{{ turn('assistant', content) }}{% endgeneration %}
    {%- elif message.role in ['system', 'user'] %}
        {%- if loop.index0 > state.last and not loop.last %}{% continue %}{% endif %}
        {{- turn(message.role, message.content.rstrip() if message.content.endswith('\\n') else message.content) }}
    {%- else %}
        {{- raise_exception('No role ' ~ message.role ~ ' here.') }}
    {%- endif %}
{%- endfor %}
{%- if tools is not none %}{{ turn('system', tools | tojson) }}{% endif %}
{%- if reasoning_effort is defined %}{{ turn('system', {'effort': reasoning_effort} | tojson) }}{% endif %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

ROLES_AS_TOKENS = """\
{%- for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""

# The system prompt goes with the last turn of the user.
SYSTEM_LAST = """\
{{- bos_token }}
{%- for message in messages if message.role != 'system' %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' + (messages[0].content + '\\n\\n' if loop.last and messages[0].role == 'system' else '') + message.content + '[/INST]' }}
    {%- else %}
        {{- message.content + eos_token }}
    {%- endif %}
{%- endfor %}
"""

# In the manner of DeepSeek: the tokens that frame a turn are not marked special.
FRAMING = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<model>' + message.content.split('</think>')[-1] + eos_token }}
    {%- else %}
        {{- ('<user>' if message.role == 'user' else '') + message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<model><think>\\n' }}{% endif %}
"""

TEMPLATES: Mapping[str, str] = {
    "chatml": CHATML,
    "headers": HEADERS,
    "instructions": INSTRUCTIONS,
    "inspecting": INSPECTING,
    "roles_as_tokens": ROLES_AS_TOKENS,
    "system_last": SYSTEM_LAST,
    "framing": FRAMING,
}


def write_model_folder(path: Path, *, kind: str = "byte_level_bpe", template: str | None = CHATML, **files: dict[str, Any]) -> Path:
    """Writes a model folder and returns its path.

    Args:
        path: made if it is not there.
        kind: a key of `KINDS`.
        template: Jinja source; None = no chat template.
        files: content of further JSON files by name without ".json"; `tokenizer_config` is merged into the usual one.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(KINDS[kind](), encoding="utf-8")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
    config |= files.pop("tokenizer_config", {})
    for name, content in {"tokenizer_config": config, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    if template is not None:
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    return path
