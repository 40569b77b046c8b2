"""Grammars: which tokens can come next in a text that must be of a form. llguidance parses; what is here bounds it, and says when an answer is over."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sampler_svc.grammar_check.checker import Checked, Words, refused
from sampler_svc.grammar_check.errors import CannotHold
from sampler_svc.grammar_check.longest_match import LongestMatch
from sampler_svc.grammar_check.source import Written, limits_of, reworded, source_of
from sampler_svc.text.vocabulary import Vocabulary
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Grammar
from triserve.rpc.token_mask import MAX_FORCED_TOKENS, mask_bytes

# Compiled grammars that are kept, and the bytes that they and their texts have together; what one has at least.
_MAX_KEPT = 1024
_MAX_KEPT_BYTES = 64 << 20
_MIN_BYTES = 16 << 10
_END = "<|triserve end of grammar|>"
_THREADS = 3
# Below llguidance's own, which let a text of some kilobytes take seconds: what agents send takes a tenth of these.
_LIMITS: dict[str, Any] = {"initial_lexer_fuel": 500_000, "step_lexer_fuel": 30_000, "max_lexer_states": 50_000, "step_max_items": 50_000}
# What llguidance says of a token that is not allowed, or behind the end, and of nothing else.
_NOT_ALLOWED = ("satisfy the grammar", "parser stopped in consume_token; no error message")


class _Look(NamedTuple):
    """What can come at one place.

    Attributes:
        bits: of ids that are text for the matcher.
        is_whole: whether the answer may end there.
        is_over: whether nothing can follow.
    """

    bits: NDArray[np.uint8]
    is_whole: bool
    is_over: bool


class _Sides(NamedTuple):
    """Bits of ids by what they are, a bit for each; shared by all answers that end alike.

    Attributes:
        stops: of ids that end an answer.
        others: of all but those.
        text: of all but the one that ends a text for the matcher.
        width: ids there are.
    """

    stops: NDArray[np.uint8]
    others: NDArray[np.uint8]
    text: NDArray[np.uint8]
    width: int


@lru_cache(maxsize=64)
def _sides_of(logits_width: int, end: int, stop_token_ids: frozenset[int]) -> _Sides:
    bits = np.zeros((2, 8 * mask_bytes(logits_width)), np.uint8)
    bits[0, list(stop_token_ids)] = 1
    bits[1, end : end + 1] = 1
    stops, ends = np.packbits(bits, axis=1, bitorder="little")
    return _Sides(stops, ~stops, ~ends, logits_width)


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
        self._sides = _sides_of(logits_width, end, frozenset(stop_token_ids))
        # Tokens that can but come next, each with whether the answer may end behind it: the matcher is behind the last of them, where `_far` is what
        # can come. Then why it cannot go on, if it cannot.
        self._ahead: deque[tuple[int, bool]] = deque()
        self._error: InvalidRequest | None = None
        self._look = self._far = self._next_look()

    @property
    def is_whole(self) -> bool:
        """Whether the answer may end here."""
        return self._look.is_whole

    @property
    def is_over(self) -> bool:
        """Whether nothing can follow."""
        return self._look.is_over

    def advance(self, tokens: Sequence[int]) -> bool:
        """Goes on with tokens; whether all of them are allowed.

        Raises:
            InvalidRequest: the grammar is too complex behind them.
        """
        for place, token in enumerate(tokens):
            if not self._ahead:
                return self._consume(tokens[place:])
            if token != self._ahead[0][0]:
                return False
            _, is_whole = self._ahead.popleft()
            self._look = self._look_at(self._ahead[0][0], is_whole=is_whole) if self._ahead else self._far
        return True

    def allowed(self) -> bytes:
        """What can be drawn next: a bit for each id, the lowest of a byte first. [ceil(width / 8)] bytes."""
        return self._allowed(self._look).tobytes()

    def forced(self) -> list[int]:
        """What can be drawn next and behind that, as far as each is the only one at its place; nothing where there is a choice at once."""
        while len(self._ahead) < MAX_FORCED_TOKENS and self._error is None and not self._far.is_over:
            token = self._only(self._far)
            if token is None:
                break
            try:
                if not self._matcher.consume_tokens([token]):
                    raise refused(reworded(self._matcher.get_error()))
                self._far = self._next_look()
            except InvalidRequest as error:
                # It is told where the answer comes to it.
                self._error = error
                break
            self._ahead.append((token, self._far.is_whole))
        return [token for token, _ in self._ahead]

    def _consume(self, tokens: Sequence[int]) -> bool:
        if self._error is not None:
            raise self._error
        if not self._matcher.consume_tokens(list(tokens)):
            error = self._matcher.get_error()
            if any(sign in error for sign in _NOT_ALLOWED):
                return False
            raise refused(reworded(error))
        self._look = self._far = self._next_look()
        return True

    def _look_at(self, token: int, *, is_whole: bool) -> _Look:
        """What can come where it is one token."""
        bits = np.zeros_like(self._sides.text)
        bits[token >> 3] = 1 << (token & 7)
        return _Look(bits, is_whole, False)

    def _allowed(self, look: _Look) -> NDArray[np.uint8]:
        mask = look.bits & self._sides.others
        if look.is_whole:
            mask |= self._sides.stops
        return mask

    def _only(self, look: _Look) -> int | None:
        """The one id that can be drawn, if there is one and it is text."""
        mask = self._allowed(look)
        places = np.flatnonzero(mask)
        if len(places) != 1 or (byte := int(mask[places[0]])).bit_count() != 1:
            return None
        token = 8 * int(places[0]) + byte.bit_length() - 1
        is_text = not self._sides.stops[token >> 3] & (1 << (token & 7))
        return token if is_text and token < self._sides.width else None

    def _next_look(self) -> _Look:
        told = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise refused(reworded(self._matcher.get_error()))
        is_whole = bool(self._matcher.is_accepting())
        text = self._sides.text
        count = min(len(told), len(text))
        bits = np.zeros_like(text)
        np.bitwise_and(told[:count], text[:count], out=bits[:count])
        return _Look(bits, is_whole, is_whole and not bits.any())


class GrammarCompiler:
    """Compiles grammars for one tokenizer, in threads of its own; llguidance lets go of the interpreter meanwhile.

    Args:
        tokenizer: path of the tokenizer.json.
        vocabulary: of the same.
        limits: of llguidance by name, on what compiling and going on may cost.
    """

    def __init__(self, tokenizer: Path, vocabulary: Vocabulary, limits: Mapping[str, Any] = _LIMITS) -> None:
        self._limits = dict(limits)
        self._path = tokenizer
        self._vocabulary = vocabulary
        self._special_ids = {name: token for token, name in vocabulary.special_names.items()}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="grammars")
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, tuple[LLMatcher, int]] = OrderedDict()
        self._kept_bytes = 0

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Where `open` is to run."""
        return self._threads

    def close(self) -> None:
        """Begins nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def words(self) -> Words:
        """What a process that checks grammars is told. May take a while.

        Raises:
            InvalidRequest: the tokenizer is of a kind whose texts cannot be bound.
        """
        with self._lock:
            written = self._written
        return Words(written.tokens, written.special_token_ids, written.eos_token_id, self._limits)

    def open(
        self,
        grammar: Grammar,
        logits_width: int,
        stop_token_ids: Iterable[int],
        generated: Sequence[int],
        checked: Checked | None = None,
    ) -> GrammarState:
        """A new answer's state, behind what was generated of it before. May take a while.

        Args:
            grammar: what the text must be.
            logits_width: every id is below it.
            stop_token_ids: end the answer where its text is whole.
            generated: of the answer so far.
            checked: what came of checking the grammar; None = it is trusted: what compiling it takes is bounded by llguidance's limits alone.

        Raises:
            InvalidRequest: it is no grammar, asks for what cannot be held, or is too complex; or what was generated is not of it, or all of it.
        """
        with self._lock:
            kept = self._kept.get(grammar)
            if kept is not None:
                self._kept.move_to_end(grammar)
        matcher = self._compile(grammar, checked) if kept is None else kept[0]
        if kept is None:
            self._keep(
                grammar, matcher, max(_MIN_BYTES, checked.num_bytes if checked is not None else 0) + len(grammar.text) + len(grammar.frame)
            )
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
        return LLTokenizer(TokenizerWrapper(self._written))

    @cached_property
    def _written(self) -> _WrittenTokens:
        if not self._vocabulary.independent:
            raise InvalidRequest(
                "grammar cannot be held: this model's tokenizer writes a token in ways that depend on its neighbours", field="grammar"
            )
        return _WrittenTokens(self._vocabulary, Tokenizer.from_file(str(self._path)))

    def _compile(self, grammar: Grammar, checked: Checked | None) -> LLMatcher:
        with self._lock:
            tokenizer = self._tokenizer
        try:
            source = source_of(written_of(grammar), self._special_ids) if checked is None else checked.source
        except CannotHold as error:
            raise refused(error.why) from None
        except ValueError as error:
            raise refused(str(error)) from None
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=limits_of(written_of(grammar), self._limits))
        if matcher.is_error():
            raise refused(reworded(matcher.get_error()))
        return matcher

    def _keep(self, grammar: Grammar, matcher: LLMatcher, num_bytes: int) -> None:
        with self._lock:
            if grammar in self._kept:
                return
            self._kept[grammar] = matcher, num_bytes
            self._kept_bytes += num_bytes
            while len(self._kept) > _MAX_KEPT or (self._kept_bytes > _MAX_KEPT_BYTES and len(self._kept) > 1):
                _, (_, freed) = self._kept.popitem(last=False)
                self._kept_bytes -= freed


def written_of(grammar: Grammar) -> Written:
    """The same, for whom knows no contract."""
    return Written(grammar.kind, grammar.text, grammar.frame, grammar.markers, grammar.frame_markers, grammar.lenient)


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
        self._longest = LongestMatch(written)

    def __call__(self, text: bytes) -> list[int]:
        """Tokens of a text: the model's own, or else the longest that fit, one after the other."""
        ids: list[int] = self._tokenizer.encode(text.decode(errors="replace"), add_special_tokens=False).ids
        if b"".join(self._written[token] for token in ids) == text:
            return ids
        return self._longest(text)
