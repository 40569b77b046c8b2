"""The body of OpenAI's embeddings."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import PlainValidator

from gateway.flow.call import Wishes
from gateway.http.openai.fields import Refused
from gateway.http.openai.values import Body, Label, Prompts, encode_requests, prompts_of
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import compute_pb2, tokenizer_pb2


class EmbeddingBody(Body):
    """Body of POST /v1/embeddings."""

    # Of others' servers: what would be a chat, another precision, or another width than the model has.
    refused: ClassVar[Refused] = {"messages": ([],), "embed_dtype": ("float32",), "endianness": ("native", "little"), "stream": (False,)}

    model: Label = ""
    input: Annotated[list[str] | list[list[int]], PlainValidator(prompts_of, json_schema_input_type=Prompts)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    # Whether an embedding is the mean over all tokens, or the last one's vector.
    pooling: Literal["mean", "last"] | None = None
    # Whether it has the length 1.
    normalize: bool | None = None
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    priority: int | None = None
    user: Label | None = None

    @property
    def n(self) -> int | None:
        """One embedding of each input."""
        return None

    @property
    def search(self) -> None:
        """Nothing is drawn."""
        return None

    @property
    def is_rewritten(self) -> bool:
        """They are of what is given."""
        return False

    @property
    def template_must_read(self) -> tuple[str, ...]:
        """No template is used."""
        return ()

    @property
    def reading(self) -> None:
        """There is no text."""
        return None

    @property
    def cache(self) -> None:
        """The prompt cache has no embeddings."""
        return None

    @property
    def stream(self) -> bool | None:
        """They come whole."""
        return None

    @property
    def hidden_states(self) -> compute_pb2.HiddenStates.ValueType:
        """Of what they are made."""
        return compute_pb2.HIDDEN_STATES_LAST if self.pooling == "last" else compute_pb2.HIDDEN_STATES_MEAN

    def wishes(self) -> Wishes:
        """Nothing is to be drawn."""
        return Wishes(temperature=0.0, max_tokens=0, may_be_empty=True)

    def prompts(self) -> tuple[tokenizer_pb2.EncodeRequest | tuple[int, ...], ...]:
        """Texts for the tokenizer, or token ids."""
        return encode_requests(self.input, add_special_tokens=self.add_special_tokens)

    def check_size(self, hidden_size: int) -> None:
        """Refuses embeddings of another size than the model's.

        Args:
            hidden_size: of the model; 0 = its replicas give no embeddings.

        Raises:
            InvalidRequest: naming the field.
        """
        if not hidden_size:
            raise InvalidRequest("the model gives no embeddings here", field="model")
        if self.dimensions not in (None, hidden_size):
            raise InvalidRequest(f"dimensions is {self.dimensions}, it must be {hidden_size}, which the model has", field="dimensions")
