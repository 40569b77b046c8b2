"""Grammars: which tokens can come next in a text that must be of a form. llguidance parses; what is here bounds it, and says when an answer is over."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer

from sampler_svc.vocabulary import Vocabulary
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Grammar
from triserve.rpc.token_mask import mask_bytes

# Compiled grammars that are kept, and the bytes of their texts together.
_MAX_KEPT = 128
_MAX_KEPT_BYTES = 8 * 1024 * 1024
_MAX_SHOWN_CHARS = 300
_END = "<|triserve end of grammar|>"
_THREADS = 2
# JSON comes in one line, with a space behind commas and colons or without. A model that is bound to a form may not leave it for white space without
# end, as small ones do where they may.
_ITEM_SEPARATOR, _KEY_SEPARATOR = r",\x20?", r":\x20?"
# Below llguidance's own, which let a text of some kilobytes take seconds: what agents send takes a hundredth of these.
_LIMITS = LLParserLimits(initial_lexer_fuel=500_000, step_lexer_fuel=30_000, max_lexer_states=50_000, step_max_items=50_000)


class GrammarState:
    """Where one answer is in its grammar.

    Args:
        matcher: nobody else's.
        end: the id by which the matcher knows the end.
        logits_width: every id is below it.
        stop_token_ids: end the answer where its text is whole, and cannot come before.

    Raises:
        InvalidRequest: the grammar is too complex here; so do all that go on.
    """

    def __init__(self, matcher: LLMatcher, end: int, logits_width: int, stop_token_ids: Iterable[int]) -> None:
        self._matcher = matcher
        self._end = end
        self._num_bytes = mask_bytes(logits_width)
        self._stop_ids = np.array(sorted(stop_token_ids), np.intp)
        self.is_whole = False
        """Whether the answer may end here."""
        self.is_over = False
        """Whether nothing can follow."""
        self._look()

    def advance(self, tokens: Sequence[int]) -> bool:
        """Goes on with tokens; whether all of them are allowed."""
        if not self._matcher.consume_tokens(list(tokens)):
            return False
        self._look()
        return True

    def allowed(self) -> bytes:
        """What can be drawn next: a bit for each id, the lowest of a byte first. [ceil(width / 8)] bytes."""
        mask = np.zeros(self._num_bytes, np.uint8)
        count = min(len(self._bits), self._num_bytes)
        mask[:count] = self._bits[:count]
        places, ones = self._stop_ids >> 3, np.left_shift(1, self._stop_ids & 7).astype(np.uint8)
        # One after the other: several ids may share a byte.
        if self.is_whole:
            np.bitwise_or.at(mask, places, ones)
        else:
            np.bitwise_and.at(mask, places, ~ones)
        return mask.tobytes()

    def _look(self) -> None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8).copy()
        if self._matcher.is_error():
            raise refused(self._matcher.get_error())
        self.is_whole = bool(self._matcher.is_accepting())
        bits[self._end >> 3] &= ~np.uint8(1 << (self._end & 7))
        self.is_over = self.is_whole and not bits.any()
        self._bits = bits


class GrammarCompiler:
    """Compiles grammars for one tokenizer, in threads of its own; llguidance lets go of the interpreter meanwhile.

    Args:
        tokenizer: path of the tokenizer.json.
        vocabulary: of the same.
        limits: on what compiling and going on may cost.
    """

    def __init__(self, tokenizer: Path, vocabulary: Vocabulary, limits: LLParserLimits = _LIMITS) -> None:
        self._limits = limits
        self._path = tokenizer
        self._vocabulary = vocabulary
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammars")
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._kept_bytes = 0

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Where `open` is to run."""
        return self._threads

    def close(self) -> None:
        """Begins nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def open(self, grammar: Grammar, logits_width: int, stop_token_ids: Iterable[int], generated: Sequence[int]) -> GrammarState:
        """A new answer's state, behind what was generated of it before. May take a while.

        Raises:
            InvalidRequest: it is no grammar, asks for what cannot be held, or is too complex; or what was generated is not of it, or all of it.
        """
        with self._lock:
            matcher = self._kept.get(grammar)
            if matcher is not None:
                self._kept.move_to_end(grammar)
        if matcher is None:
            matcher = self._compile(grammar)
            self._keep(grammar, matcher)
        state = GrammarState(matcher.deep_copy(), self._tokenizer.eos_token, logits_width, stop_token_ids)
        if generated and not state.advance(generated):
            raise InvalidRequest("generated_token_ids has what the grammar does not allow", field="generated_token_ids")
        if state.is_over:
            if generated:
                raise InvalidRequest("generated_token_ids is an answer that has ended", field="generated_token_ids")
            raise InvalidRequest("grammar allows the empty text alone", field="grammar")
        return state

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        if not self._vocabulary.independent:
            raise InvalidRequest(
                "grammar cannot be held: this model's tokenizer writes a token in ways that depend on its neighbours", field="grammar"
            )
        return LLTokenizer(TokenizerWrapper(_WrittenTokens(self._vocabulary, Tokenizer.from_file(str(self._path)))))

    def _compile(self, grammar: Grammar) -> LLMatcher:
        try:
            with self._lock:
                tokenizer = self._tokenizer
            matcher = LLMatcher(tokenizer, _source(grammar), log_level=0, limits=self._limits)
        except ValueError as error:
            raise refused(str(error)) from None
        if matcher.is_error():
            raise refused(matcher.get_error())
        return matcher

    def _keep(self, grammar: Grammar, matcher: LLMatcher) -> None:
        with self._lock:
            if grammar in self._kept:
                return
            self._kept[grammar] = matcher
            self._kept_bytes += len(grammar.text)
            while len(self._kept) > _MAX_KEPT or (self._kept_bytes > _MAX_KEPT_BYTES and len(self._kept) > 1):
                oldest, _ = self._kept.popitem(last=False)
                self._kept_bytes -= len(oldest.text)


class _WrittenTokens:
    """Tokens as the detokenizer writes them, as llguidance wants to be told of them.

    Args:
        vocabulary: what each token is.
        tokenizer: for the tokens that a model would use for a text of which there is only one.
    """

    def __init__(self, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        size = tokenizer.get_vocab_size()
        written = [vocabulary.text_bytes(token) for token in range(size)]
        # What ends answers is known here and differs from request to request: for llguidance a token that there is not ends them.
        self.eos_token_id = size
        self.bos_token_id = None
        self.special_token_ids = [*vocabulary.special_names, size]
        self.tokens = [vocabulary.special_names.get(token, "").encode() or text for token, text in enumerate(written)] + [_END.encode()]
        self._written = written
        self._ids = {text: token for token, text in reversed(list(enumerate(written))) if text}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of a text: the model's own, or else the longest that fit, one after the other."""
        ids: list[int] = self._tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False).ids
        if b"".join(self._written[token] for token in ids) == text:
            return ids
        ids, place = [], 0
        while place < len(text):
            lengths = range(min(self._longest, len(text) - place), 0, -1)
            length = next((length for length in lengths if text[place : place + length] in self._ids), None)
            if length is None:
                break
            ids.append(self._ids[text[place : place + length]])
            place += length
        return ids


def _source(grammar: Grammar) -> str:
    if grammar.kind == "json_schema":
        try:
            schema = json.loads(grammar.text)
        except (ValueError, RecursionError):
            raise InvalidRequest("grammar is no JSON schema: it is no JSON", field="grammar") from None
        if not isinstance(schema, dict | bool):
            raise InvalidRequest("grammar is no JSON schema: it is neither an object nor a boolean", field="grammar")
        return str(
            LLMatcher.grammar_from_json_schema(
                grammar.text, overrides={"whitespace_flexible": False, "item_separator": _ITEM_SEPARATOR, "key_separator": _KEY_SEPARATOR}
            )
        )
    if grammar.kind == "regex":
        return str(LLMatcher.grammar_from_regex(grammar.text))
    return str(LLMatcher.grammar_from_lark(grammar.text))


def refused(why: str) -> InvalidRequest:
    """What a client is told of a grammar that cannot be held."""
    line = " ".join(why.split())
    shown = "".join(character if character.isprintable() else "?" for character in line[:_MAX_SHOWN_CHARS])
    return InvalidRequest(f"grammar cannot be held: {shown}", field="grammar")
