"""Nothing unfinished, short-lived or personal is kept for others."""

from __future__ import annotations

import pytest

from prompt_cache.semantic.write_gates import DEFAULT_MAX_BYTES, reason_not_to_keep


def _reason(
    question: str = "What is the capital of France?",
    answer: str = "Paris.",
    finish_reason: str | None = "stop",
    num_bytes: int = 100,
    **flags: bool,
) -> str | None:
    return reason_not_to_keep(question, answer, finish_reason=finish_reason, num_bytes=num_bytes, **flags)


def test_a_finished_lasting_answer_is_kept() -> None:
    assert _reason() is None


@pytest.mark.parametrize("finish_reason", ["length", "content_filter", "tool_calls", "error", "", None, "Stop"])
def test_only_an_answer_that_stopped_by_itself_is_kept(finish_reason: str | None) -> None:
    assert _reason(finish_reason=finish_reason) == "not_finished"


def test_flags_and_size_are_heeded() -> None:
    assert _reason(has_tools=True) == "tools"
    assert _reason(is_allowed=False) == "not_deterministic"
    assert _reason(num_bytes=DEFAULT_MAX_BYTES) is None
    assert _reason(num_bytes=DEFAULT_MAX_BYTES + 1) == "too_large"
    assert _reason(answer=" \u200b ") == "empty"


def test_a_question_too_long_to_be_compared_is_not_kept() -> None:
    assert _reason("why " * 500) is None
    assert _reason("why " * 500 + "y") == "question_too_long"


@pytest.mark.parametrize(
    "question",
    [
        "What is the weather in Rome?",
        "What's happening today?",
        "Who is the current president of Chile?",
        "What are the latest Python releases?",
        "What is the price of gold?",
        "How much does an iPhone cost?",
        "What did Apple stock do?",
        "What time is it in Tokyo?",
        "What happened last week?",
        "Which films come out next month?",
        "Is the museum open now?",
        "What was announced 3 days ago?",
        "Find a pizzeria near me.",
        "Wie ist das Wetter in Berlin?",
        "Was kostet ein iPhone?",
        "Wer ist der aktuelle Kanzler?",
        "Was läuft heute im Kino?",
        "Was geschah letzte Woche?",
        "¿Qué tiempo hace en Madrid?",
        "¿Cuánto cuesta un iPhone?",
        "¿Qué pasó ayer?",
        "¿Quién es el presidente actual?",
        "今天天气怎么样？",
        "苹果手机多少钱？",
        "最近有什么新闻？",
        "Quelle est la météo aujourd'hui ?",
    ],
)
def test_what_is_soon_wrong_is_not_kept(question: str) -> None:
    assert _reason(question) == "volatile_question"


@pytest.mark.parametrize(
    "question",
    [
        "My name is Ada Byron, write me a letter.",
        "Send it to ada@example.com please",
        "Call +49 170 1234567 for me",
        "Is 555-123-4567 a valid number?",
        "Where is my order?",
        "What is my account balance?",
        "Where is order number A12345678?",
        "My IBAN is DE89 3704 0044 0532 0130 00, is it valid?",
        "Is 4111 1111 1111 1111 a valid card?",
        "Which of my invoices are open?",
        "How much do I owe?",
        "What did I say before?",
        "Ich heiße Ada, schreibe mir einen Brief.",
        "Wo ist meine Bestellung?",
        "Stimmt die Rechnungsnummer RE-2024-17?",
        "Me llamo Ada, escribe una carta.",
        "¿Dónde está mi pedido?",
        "我叫小明，写一封信。",
        "我的订单在哪里？",
    ],
)
def test_what_is_somebodys_own_is_not_kept(question: str) -> None:
    assert _reason(question) == "personal_question"


@pytest.mark.parametrize(
    "question",
    [
        "How do I reset my password?",
        "Why is my cat purring?",
        "How do I change the delivery address of an order?",
        "When did the Second World War end (1939-1945)?",
        "What is 1,234,567 times 89?",
        "What is an electric current source?",
        "Who won the World Cup in 1998?",
        "Wie kann ich mein Konto löschen?",
        "¿Cómo elimino mi cuenta?",
        "怎么删除我的账户？",
        "What is pi to ten digits: 3.1415926535?",
    ],
)
def test_questions_of_everybody_are_kept(question: str) -> None:
    assert _reason(question) is None


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("As of May 2024 it is 3.", "volatile_answer"),
        ("As of my last update, Rome.", "volatile_answer"),
        ("The train leaves at 17:45.", "volatile_answer"),
        ("It opens at 9 am.", "volatile_answer"),
        ("截至2024年，人口为一千万。", "volatile_answer"),
        ("Write to help@example.com.", "personal_answer"),
        ("Call +1 (555) 123-4567.", "personal_answer"),
        ("Hello Ada, it is Rome.", "personal_answer"),
        ("It was founded in 753 BC, and 12.5 % live there.", None),
        ("From 1939-1945, 70 million died.", None),
    ],
)
def test_answers_that_give_away_time_or_people_are_not_kept(answer: str, reason: str | None) -> None:
    assert _reason(answer=answer) == reason
