"""What may be asked: method, path, body and answer of every route that speaks JSON."""

from __future__ import annotations

from typing import NamedTuple

from gateway.http.messages.schema import CountBody, MessagesBody
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.completion_body import CompletionBody
from gateway.http.openai.embedding_body import EmbeddingBody
from gateway.http.openai.tokenize_bodies import DetokenizeBody, TokenizeBody
from gateway.http.openai.values import Body
from gateway.http.responses.schema import ResponsesBody


class Operation(NamedTuple):
    """One route under its usual name; it has others, see `gateway.http.paths`."""

    method: str
    path: str
    summary: str
    # Name of the schema of the answer with status 200.
    answer: str
    body: type[Body] | None = None
    # Whether `stream: true` gives events.
    streams: bool = False
    # Whether no key is needed.
    is_public: bool = False
    # Name of the schema of every other answer.
    error: str = "Error"

    @property
    def id(self) -> str:
        """Unique, in lower case."""
        words = [word for word in self.path.removeprefix("/v1").split("/") if word and not word.startswith("{")]
        one = "_one" if "{" in self.path else ""
        return "_".join([self.method.lower(), *words]).replace(".", "_") + one


OPERATIONS = (
    Operation("POST", "/v1/chat/completions", "Answers a chat", "ChatCompletion", ChatBody, streams=True),
    Operation("POST", "/v1/completions", "Continues prompts", "Completion", CompletionBody, streams=True),
    Operation("POST", "/v1/embeddings", "A vector of each input", "Embeddings", EmbeddingBody),
    Operation("POST", "/v1/responses", "Answers a chat, in the form of a response", "Response", ResponsesBody, streams=True),
    Operation(
        "POST",
        "/v1/messages",
        "Answers a chat, in the form of a message",
        "MessageAnswer",
        MessagesBody,
        streams=True,
        error="MessageError",
    ),
    Operation("POST", "/v1/messages/count_tokens", "How many tokens a prompt would have", "TokenCount", CountBody, error="MessageError"),
    Operation("GET", "/v1/models", "The names under which the model is served", "ModelList"),
    Operation("GET", "/v1/models/{name}", "One of them", "Model"),
    Operation("GET", "/v1/capabilities", "What may be asked, and of which size", "Capabilities"),
    Operation("POST", "/tokenize", "Token ids of a text or a chat", "Tokens", TokenizeBody),
    Operation("POST", "/detokenize", "Text of token ids", "Detokenized", DetokenizeBody),
    Operation("GET", "/tokenizer_info", "What a client needs to tokenize itself", "TokenizerInfo"),
    Operation("GET", "/version", "The version of the package", "Version"),
    Operation("GET", "/health", "Whether requests are served", "Health", is_public=True, error="Health"),
    Operation("GET", "/ping", "The same, by another name", "Health", is_public=True, error="Health"),
    Operation("POST", "/ping", "The same, by another name", "Health", is_public=True, error="Health"),
    Operation("GET", "/v1/cache", "What the prompt cache has done", "CacheStats"),
    Operation("DELETE", "/v1/cache", "Forgets the tenant's kept answers", "CachePurged"),
    Operation("POST", "/v1/cache/explain", "Why a kept answer would be given or not", "CacheExplained", ChatBody),
)
