"""lm-evaluation-harness: what its generative and its likelihood tasks ask of `local-completions` and `local-chat-completions`."""

from __future__ import annotations

import json
import math
import urllib.request
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


def posted(url: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def loglikelihood(url: str) -> None:
    model = LocalCompletionsAPI(
        base_url=f"{url}/v1/completions", model=MODEL, tokenizer_backend="remote", max_length=1024, max_retries=1, batch_size=2
    )
    context, continuations = "The capital of France is", [" Paris", " a", " Paris, which is"]
    asked = [Instance("loglikelihood", {}, (context, text), index) for index, text in enumerate(continuations)]
    answers = model.loglikelihood(asked, disable_tqdm=True)
    require(len(answers) == 3 and all(value < 0 for value, _ in answers), "a log-probability of each continuation")
    likeliest = posted(url, "/v1/completions", {"prompt": context, "max_tokens": 1, "temperature": 0, "logprobs": 1})["choices"][0]
    (value,) = likeliest["logprobs"]["token_logprobs"]
    ((again, is_greedy),) = model.loglikelihood([Instance("loglikelihood", {}, (context, likeliest["text"]), 0)], disable_tqdm=True)
    require(
        is_greedy and math.isclose(value, again, abs_tol=1e-3),
        f"what was generated has the log-probability it was drawn with: {value}, {again}",
    )


def rolling(url: str) -> None:
    model = LocalCompletionsAPI(base_url=f"{url}/v1/completions", model=MODEL, tokenizer_backend="remote", max_length=16, max_retries=1)
    text = "A merge step has the tokens of many requests in it, " * 3
    (value,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    require(value < 0, "a log-probability of a text longer than the context")


run(
    "lm_eval",
    {
        "generate_until of local-completions": completions,
        "generate_until of local-chat-completions": chats,
        "loglikelihood": loglikelihood,
        "loglikelihood_rolling": rolling,
    },
)
