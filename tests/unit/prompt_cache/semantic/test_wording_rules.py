"""The rules by which English questions that are worded in two ways are read as one, and what they must not let pass."""

from __future__ import annotations

import pytest

from prompt_cache.semantic.parsing.parse import parse
from prompt_cache.semantic.parsing.small_talk import unwrapped
from prompt_cache.semantic.parsing.tokens import expanded, tokens
from tests.unit.prompt_cache.semantic.pairs import refused_by


@pytest.mark.parametrize(
    "text, rest",
    [
        ("Hi everyone, quick question: how do I swim?", "how do I swim ?"),
        ("Sorry if this is a silly question, but how do I swim?", "how do I swim ?"),
        ("I'm a bit stuck. How do I swim? Many thanks in advance!", "How do I swim ?"),
        ("Dear support team, how do I swim? Best regards, Anna", "How do I swim ?"),
        ("Is there any chance you could tell me how I swim?", "how I swim ?"),
        ("Would you be so kind as to draw a cat?", "draw a cat ?"),
        ("I'd appreciate it if you could draw a cat.", "draw a cat ."),
        ("Could anybody tell me when it opens?", "when it opens ?"),
        ("I was just wondering where it is.", "where it is ."),
    ],
)
def test_greetings_thanks_and_frames_are_taken_away(text: str, rest: str) -> None:
    assert " ".join(token.surface for token in unwrapped(expanded(tokens(text))).tokens).casefold() == rest.casefold()


@pytest.mark.parametrize(
    "text",
    [
        "How do I end a letter? Kind regards?",
        "How do I say thanks for your help?",
        "Thanks.",
        "Hello",
        "Can someone steal my password?",
        "Do you mind paying cash?",
        "I need to call you.",
        "May I smoke?",
    ],
)
def test_what_is_asked_is_no_wrapping(text: str) -> None:
    found = expanded(tokens(text))
    assert unwrapped(found).tokens == found


def test_whether_behind_a_frame_asks_for_yes_or_no() -> None:
    framed, plain = parse("Could you tell me whether the gym is open?"), parse("Is the gym open?")
    assert framed.of("wh")[0].corresponds(plain.of("wh")[0])
    assert refused_by("Could you tell me when the gym is open?", "Is the gym open?") == "question_type"


@pytest.mark.parametrize(
    "first, second",
    [
        # What "and" joins may be turned round as a whole.
        ("What is the difference between a red fox and a wolf?", "What is the difference between a wolf and a red fox?"),
        ("Should I run in the morning or in the evening?", "Should I run in the evening or in the morning?"),
        # A statement is the condition of the question beside it.
        ("My laptop is wet. What should I do?", "What should I do if my laptop is wet?"),
        ("I have a cold. Can I swim?", "Can I swim? I have a cold."),
        ("My screen is black but the fan is running. Why?", "The fan is running but my screen is black. Why?"),
        # "When" is "if" where it says on what occasion.
        ("What should I do first when the alarm rings?", "If the alarm rings, what should I do first?"),
        # Behind a phrase at the front the question begins anew.
        ("In two sentences, explain what osmosis is.", "Explain what osmosis is in two sentences."),
        ("Since the last update my watch no longer syncs. Why?", "My watch no longer syncs since the last update. Why?"),
        # What something has is what is of it; what one needs is what is needed.
        ("Which side effects does zinc have?", "What are the side effects of zinc?"),
        ("How many rooms does the castle have?", "How many rooms are in the castle?"),
        ("Which papers do I need for a loan?", "Which papers are needed for a loan?"),
        ("How do I change my phone's language?", "How do I change the language of my phone?"),
        # Prepositions that say the same behind some words.
        ("What is the symbol for gold?", "What is the symbol of gold?"),
        ("How do I convert a file into PDF?", "How do I convert a file to PDF?"),
        ("Explain tax with an example", "Explain tax using an example"),
        # What "do I" asks is what one should.
        ("Who do I call about a leak?", "Who should I call about a leak?"),
        ("Where do I find my PIN?", "Where can I find my PIN?"),
        ("Wie setze ich mein Passwort zurück?", "Wie kann ich mein Passwort zurücksetzen?"),
        ("What are the sympoms of flu?", "What are the symptoms of flu?"),
    ],
)
def test_two_wordings_of_one_question_pass(first: str, second: str) -> None:
    assert refused_by(first, second) is None
    assert refused_by(second, first) is None


@pytest.mark.parametrize(
    "first, second, guard",
    [
        ("Should I stop to smoke?", "Should I stop smoking?", "word_order"),
        ("How do I sort by name and then by date?", "How do I sort by date and then by name?", "word_order"),
        ("How do I lock in a rate?", "How do I lock a rate?", "word_order"),
        ("What attracts bees?", "What are bees attracted to?", "word_order"),
        ("What is the difference between a dog and a cat that bites?", "What is the difference between a cat and a dog that bites?", "word_order"),
        ("Who do I call when I am ill?", "Who calls me when I am ill?", "question_type"),
        ("Do I get a refund if I cancel?", "Do I get a refund if they cancel?", "question_type"),
        ("How do I know when bread is done?", "How do I know if bread is done?", "question_type"),
        ("How can I leave early?", "How must I leave early?", "question_type"),
        ("Why do I sneeze?", "Why should I sneeze?", "question_type"),
        ("How do I delete one message?", "How do I delete messages?", "numbers"),
        ("My cat bit my dog. What do I do?", "My dog bit my cat. What do I do?", "word_order"),
        ("Which effect does heat have on ice?", "Which effect does ice have on heat?", "word_order"),
        ("Wie hebe ich Geld ab?", "Wie hebe ich Geld auf?", "content_words"),
        ("How do I feed the lion?", "How do I feed the loin?", "content_words"),
        ("How do I update my account?", "How do I upgrade my account?", "content_words"),
    ],
)  # fmt: skip
def test_what_the_rules_must_tell_apart(first: str, second: str, guard: str) -> None:
    assert refused_by(first, second) == guard
    assert refused_by(second, first) == guard
