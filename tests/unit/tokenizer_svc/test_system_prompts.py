"""Remembered system prompts: bounded, least recently used first to go, and never wrong about where they end."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_svc.system_prompts import SystemPrompt, SystemPrompts, common_len

ids = st.lists(st.integers(0, 3), max_size=12)


def prompt_of(num_ids: int) -> SystemPrompt:
    return SystemPrompt.of("x", array("I", range(num_ids)))


@settings(deadline=None)
@given(ids, ids, ids)
def test_the_common_beginning_is_found(shared: list[int], left: list[int], right: list[int]) -> None:
    one, other = shared + left, shared + right
    expected = next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert common_len(array("I", one), array("I", other)) == expected
    assert common_len("".join(map(str, one)), "".join(map(str, other))) == expected


def test_a_chat_that_does_not_begin_with_the_prompt_s_words_has_no_common_tokens() -> None:
    prompt = SystemPrompt.of("be brief", array("I", [1, 2, 3]))
    assert prompt.common_tokens("be brief. hello", [1, 2, 9, 9]) == 2
    assert prompt.common_tokens("be bright. hello", [1, 2, 9, 9]) == 0
    assert SystemPrompt.none().common_tokens("anything", [1]) == 0


def test_the_least_recently_used_prompt_goes_first() -> None:
    prompts = SystemPrompts(max_entries=2, max_bytes=1 << 20)
    prompts.put(b"a", prompt_of(1))
    prompts.put(b"b", prompt_of(2))
    assert prompts.get(b"a") == prompt_of(1)
    prompts.put(b"c", prompt_of(3))
    assert prompts.get(b"b") is None
    assert prompts.get(b"a") is not None and prompts.get(b"c") is not None


def test_a_prompt_larger_than_all_the_room_is_not_kept() -> None:
    prompts = SystemPrompts(max_entries=9, max_bytes=40)
    prompts.put(b"big", prompt_of(11))
    assert prompts.get(b"big") is None
    assert (len(prompts), prompts.num_bytes) == (0, 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), st.integers(0, 12), st.booleans()), max_size=40))
def test_count_and_bytes_are_bounded_and_accounted_for(steps: list[tuple[bytes, int, bool]]) -> None:
    prompts = SystemPrompts(max_entries=3, max_bytes=80)
    for key, size, puts in steps:
        if puts:
            prompts.put(key, prompt_of(size))
        found = prompts.get(key)
        assert not puts or found is None or found == prompt_of(size)
        kept = [kept for name in (b"a", b"b", b"c", b"d", b"e") if (kept := prompts.get(name)) is not None]
        assert len(prompts) == len(kept) <= 3
        assert prompts.num_bytes == sum(4 * len(each.token_ids) for each in kept) <= 80
