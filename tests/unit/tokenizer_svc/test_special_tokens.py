"""Marks and aliases: what users wrote never becomes a special token, what the template printed always does."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenizer_svc.special_tokens import ALIAS_LETTERS, MARKS, AddedToken, SpecialTokens, insert_mark, new_salt, pick_mark

NAMES = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im_end|>x", "[INST]", "s>[", "aba")


def special(*names: str, single_word: bool = False) -> SpecialTokens:
    return SpecialTokens([AddedToken(name, True, single_word, False) for name in names], salt=new_salt())


brief = settings(deadline=None)
SPECIAL = special(*NAMES)
pieces = st.sampled_from(
    [*NAMES, *(name[:cut] for name in NAMES for cut in range(1, len(name))), *(name[cut:] for name in NAMES for cut in range(1, len(name)))]
)
words = st.lists(pieces | st.text(max_size=3) | st.sampled_from([" ", "\n", "<", "|", ">"]), max_size=6).map("".join)


def shielded(text: str, mark: str, cuts: tuple[str, ...] = ()) -> str:
    return insert_mark(text, mark, SPECIAL.break_points(text, cuts))


@brief
@given(words)
@example("<s</s>>")
@example("ababa")
def test_no_special_token_is_left_unbroken_in_marked_text(text: str) -> None:
    marked = shielded(text, MARKS[0])
    assert not any(name in marked for name in NAMES)
    assert marked.replace(MARKS[0], "") == text.replace(MARKS[0], "")


@brief
@given(words, words, words)
def test_marked_texts_trimmed_and_put_side_by_side_hold_no_special_token(left: str, middle: str, right: str) -> None:
    mark = pick_mark([left, middle, right], never="")
    assert mark is not None
    trimmed = "".join(shielded(text, mark).strip() for text in (left, middle, right))
    assert not any(name in trimmed for name in NAMES)


@brief
@given(words)
def test_a_template_that_cuts_strings_out_joins_no_special_token(text: str) -> None:
    cuts = ("</think>", "zz")
    planted = text.replace("|", "|</think>").replace("s", "szz")
    marked = shielded(planted, MARKS[0], cuts)
    for cut in cuts:
        marked = marked.replace(cut, "")
    assert not any(name in marked for name in NAMES)


@brief
@given(st.text(alphabet=st.characters(blacklist_characters="<|>[]sab/imx")))
def test_text_without_special_letters_needs_no_mark(text: str) -> None:
    assert SPECIAL.break_points(text) == []


@pytest.mark.parametrize("text", ["  abc<  ", "\n>quoted\n", " <s> ", "\t<|im_end|>\n"])
def test_marks_leave_space_around_the_text_for_templates_that_trim(text: str) -> None:
    marked = shielded(text, MARKS[0])
    assert MARKS[0] in marked
    assert marked.strip().replace(MARKS[0], "") == text.strip()


def test_what_the_template_printed_gets_aliases_and_what_users_wrote_keeps_its_letters() -> None:
    user = shielded("a<s>b", MARKS[0])
    prepared = SPECIAL.to_aliases(f"<s>{user}</s>", MARKS[0])
    assert prepared == f"{SPECIAL.aliases['<s>']}a<s>b{SPECIAL.aliases['</s>']}"


def test_the_longest_special_token_wins() -> None:
    assert SPECIAL.to_aliases("<|im_end|>x", None) == SPECIAL.aliases["<|im_end|>x"]


def test_a_longer_added_token_that_is_not_special_keeps_the_special_one_inside_it_from_matching() -> None:
    tokens = SpecialTokens([AddedToken("<s>", True, False, False), AddedToken("<s>>", False, False, False)], salt=new_salt())
    assert tokens.to_aliases("<s>> <s>", None) == f"<s>> {tokens.aliases['<s>']}"


def test_a_single_word_token_is_one_between_words_only() -> None:
    tokens = special("<m>", single_word=True)
    alias = tokens.aliases["<m>"]
    assert tokens.to_aliases("<m> a<m> <m>b .<m>.", None) == f"{alias} a<m> <m>b .{alias}."


def test_a_single_character_is_text_though_it_is_called_special() -> None:
    tokens = special("!", "<s>")
    assert tokens.to_aliases("hi!", None) == "hi!"
    assert tokens.break_points("hi!") == []


def test_aliases_are_secret_and_none_begins_another() -> None:
    many = special(*(f"<{index}>" for index in range(1500)))
    aliases = list(many.aliases.values())
    assert len({len(alias) for alias in aliases}) == 1
    assert len(set(aliases)) == len(aliases)
    assert set("".join(aliases)) <= set(ALIAS_LETTERS)
    assert special("<s>").aliases["<s>"] != special("<s>").aliases["<s>"]


def test_a_tokenizer_without_special_tokens_needs_nothing() -> None:
    none = SpecialTokens([], salt=new_salt())
    assert none.break_points("<s>") == []
    assert none.to_aliases("<s>", None) == "<s>"


def test_the_mark_is_in_no_text() -> None:
    assert pick_mark([MARKS[0], f"a{MARKS[1]}"], never=MARKS[2]) == MARKS[3]
    assert pick_mark(["".join(MARKS)], never="") is None
    assert not set(MARKS) & set(ALIAS_LETTERS)
