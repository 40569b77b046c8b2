"""However an answer is cut into deltas and attempts, its text is the library's text of all its tokens, up to the stop string."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders

from sampler_svc.request_state import Finish, RequestState
from sampler_svc.text.vocabulary import Vocabulary
from tests.examples import examples
from tests.fakes.sampler_tokenizers import byte_tokenizer, llama_decoder, tokenizer_of
from tests.fakes.tokenizers import KINDS
from triserve.rpc.sampling import Sampling
from triserve.v1 import common_pb2, sampler_pb2

BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACED_PIECES = ["▁Hello", "▁", "▁▁", "wor", "ld", ",", "▁.", "é", "🙂", "▁a", "n't", "\n"]
WORD_PIECES = ["it", "##s", "don", "'", "t", ".", ",", "##ing", "re", "é", "🙂", "[", "!"]
SUFFIXED_PIECES = ["hello</w>", "wor", "ld</w>", ",</w>", "é", "🙂</w>", "</w>"]
SPECIAL = ["<s>", "</s>", "[CLS]"]
STOPS = ["lo", " wor", "</s>", "[CLS]", "it s", "é", "\N{REPLACEMENT CHARACTER}", "s.", "\n", "l", "d,", "> <"]


def _gemma_decoder() -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _trained(kind: str) -> Callable[[], Tokenizer]:
    return lambda: Tokenizer.from_str(KINDS[kind]())


MAKERS: Mapping[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: byte_tokenizer("ab", "Hello", "<", "s", special=SPECIAL),
    "byte level of training": _trained("byte_level_bpe"),
    "bytes as a last resort, a space less": lambda: tokenizer_of([*BYTE_PIECES, *SPACED_PIECES], llama_decoder(), special=SPECIAL),
    "bytes as a last resort": lambda: tokenizer_of([*BYTE_PIECES, *SPACED_PIECES], _gemma_decoder(), special=SPECIAL),
    "metaspace, first": lambda: tokenizer_of(SPACED_PIECES, decoders.Metaspace(prepend_scheme="first"), special=SPECIAL),
    "metaspace, always": lambda: tokenizer_of(SPACED_PIECES, decoders.Metaspace(), special=SPECIAL),
    "metaspace, never": lambda: tokenizer_of(SPACED_PIECES, decoders.Metaspace(prepend_scheme="never"), special=SPECIAL),
    "unigram": _trained("metaspace_unigram"),
    "word pieces": lambda: tokenizer_of(WORD_PIECES, decoders.WordPiece(), special=SPECIAL),
    "word pieces, spaces kept": lambda: tokenizer_of(WORD_PIECES, decoders.WordPiece(cleanup=False), special=SPECIAL),
    "word pieces of training": _trained("word_piece"),
    "suffixed": lambda: tokenizer_of(SUFFIXED_PIECES, decoders.BPEDecoder(suffix="</w>"), special=SPECIAL),
    "words": lambda: tokenizer_of(WORD_PIECES, None, special=SPECIAL),
}


@cache
def vocabulary(kind: str) -> tuple[Tokenizer, Vocabulary]:
    """A tokenizer that has an added token which is text as well, and its vocabulary."""
    tokenizer = MAKERS[kind]()
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer, Vocabulary(tokenizer)


@st.composite
def ids_of(draw: st.DrawFn, kind: str) -> list[int]:
    """Any ids, unknown ones too. Bytes of a last resort are whole characters: of a run that is none the library takes back what a stream has sent."""
    tokenizer, _ = vocabulary(kind)
    width = tokenizer.get_vocab_size()
    if "last resort" not in kind:
        return draw(st.lists(st.integers(0, width), max_size=10))
    others = st.integers(256, width).map(lambda token: [token])
    characters = st.sampled_from("aé€🙂\n").map(lambda character: [*character.encode()])
    return [token for chunk in draw(st.lists(others | characters, max_size=8)) for token in chunk]


def library_text(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int], *, skips: bool, joins: bool) -> str:
    """What the answer's tokens add to the text of the prompt's; where it `joins`, without the space between special tokens that are neighbours."""

    def text_of(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=skips))

    before = text_of(prompt)
    text = text_of([*prompt, *answer])
    assert text.startswith(before)
    if skips or not joins:
        return text[len(before) :]
    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    known = [token for token in [*prompt, *answer] if tokenizer.id_to_token(token) is not None]
    for end in range(len(known), 1, -1):
        shorter = text_of(known[: end - 1])
        if special.issuperset(known[end - 2 : end]) and len(shorter) >= len(before) and text_of(known[:end]).startswith(f"{shorter} "):
            text = text[: len(shorter)] + text[len(shorter) + 1 :]
    return text[len(before) :]


def until_stop(text: str, stops: Sequence[str], *, includes: bool) -> tuple[str, bool]:
    """The text before, or up to, the stop string that is complete first, the longest of those complete together; and whether one was."""
    for end in range(len(text) + 1):
        found = max((stop for stop in stops if text.endswith(stop, 0, end)), key=len, default=None)
        if found is not None:
            return text[: end if includes else end - len(found)], True
    return text, False


def opened(kind: str, prompt: Sequence[int], generated: Sequence[int], stopping: common_pb2.StoppingParams) -> RequestState:
    tokenizer, own = vocabulary(kind)
    opening = sampler_pb2.OpenRequest(
        request=1, prompt_token_ids=prompt, generated_token_ids=generated, sampling=Sampling(temperature=0.0).write(), stopping=stopping
    )
    state = RequestState(opening, own, tokenizer.get_vocab_size() + 1)
    for _ in state.replay():
        pass
    return state


@examples(120)
@given(
    st.data(), st.sampled_from(sorted(MAKERS)), st.lists(st.sampled_from(STOPS), max_size=3), st.booleans(), st.booleans(), st.booleans()
)
def test_the_text_is_the_library_s_however_it_is_cut(
    data: st.DataObject, kind: str, stops: list[str], skips: bool, spaces: bool, includes: bool
) -> None:
    tokenizer, _ = vocabulary(kind)
    prompt, answer = data.draw(ids_of(kind)), data.draw(ids_of(kind))
    # What a prompt leaves half of a character belongs to the answer, where the library has it in the prompt's text.
    assume(answer and not tokenizer.decode(prompt, skip_special_tokens=skips).endswith("\N{REPLACEMENT CHARACTER}"))
    # A special token's name stops an answer even where it is no text; that is promised elsewhere.
    stops = [stop for stop in stops if not (skips and any(name in stop for name in SPECIAL))]
    stopping = common_pb2.StoppingParams(
        max_tokens=len(answer),
        stop_strings=stops,
        include_stop_string=includes,
        skip_special_tokens=skips,
        spaces_between_special_tokens=spaces,
    )
    expected, is_stopped = until_stop(library_text(tokenizer, prompt, answer, skips=skips, joins=not spaces), stops, includes=includes)
    state, text = opened(kind, prompt, [], stopping), ""
    delta = state.delta()
    for position, token in enumerate(answer):
        cut = data.draw(st.sampled_from(["goes on", "delta", "attempt"]), label=f"before token {position}")
        if cut != "goes on":
            text, delta = text + delta.text, state.delta()
        if cut == "attempt":
            state = opened(kind, prompt, answer[:position], stopping)
            delta = state.delta()
        state.advance(token, delta)
        if delta.finish is not None:
            break
    assert delta.finish is (Finish.STOP if is_stopped else Finish.LENGTH)
    assert text + delta.text == expected
