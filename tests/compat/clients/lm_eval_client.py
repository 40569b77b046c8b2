"""lm-evaluation-harness: what its generative tasks ask of `local-completions` and `local-chat-completions`."""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI

from tests.compat.clients.checks import MODEL, require, run

WISHES = {"until": ["\n\n", "Question:"], "max_gen_toks": 16, "do_sample": False, "temperature": 0}


def generated(model: Any, prompts: list[Any]) -> list[str]:
    asked = [Instance("generate_until", {}, (prompt, WISHES), index) for index, prompt in enumerate(prompts)]
    answers: list[str] = model.generate_until(asked, disable_tqdm=True)
    return answers


def completions(url: str) -> None:
    for concurrent in (1, 4):
        model = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions",
            model=MODEL,
            tokenizer_backend=None,
            tokenized_requests=False,
            max_length=1024,
            num_concurrent=concurrent,
            max_retries=1,
        )
        answers = generated(model, [f"Question: {n}\nAnswer:" for n in range(6)])
        require(len(answers) == 6 and all(isinstance(text, str) for text in answers), "an answer to each prompt")
        require(not any("Question:" in text for text in answers), "answers that end before a stop string")


def chats(url: str) -> None:
    model = LocalChatCompletion(base_url=f"{url}/v1/chat/completions", model=MODEL, max_length=1024, max_retries=1)
    prompts = [model.apply_chat_template([{"role": "user", "content": f"What is step {n}?"}]) for n in range(3)]
    answers = generated(model, prompts)
    require(len(answers) == 3 and all(answers), "an answer to each chat")


run("lm_eval", {"generate_until of local-completions": completions, "generate_until of local-chat-completions": chats})
