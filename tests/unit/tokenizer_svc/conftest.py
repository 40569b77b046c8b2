"""Chat encoders over the fake model folders, each made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from tests.fakes.tokenizers import TEMPLATES, write_model_folder
from tokenizer_svc.chat_encoder import ChatEncoder
from tokenizer_svc.chat_template import ChatTemplate, RenderLimits
from tokenizer_svc.model_folder import ModelFolder, read_model_folder
from tokenizer_svc.system_prompts import SystemPrompts
from tokenizer_svc.tokenizer import Tokenizer

MakeFolder = Callable[[str, str], ModelFolder]
MakeTokenizer = Callable[[str], Tokenizer]
MakeEncoder = Callable[[str, str], ChatEncoder]


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Reads the fake model folder of a kind of tokenizer and a style of template."""

    @cache
    def make(kind: str, style: str) -> ModelFolder:
        return read_model_folder(write_model_folder(tmp_path_factory.mktemp("model"), kind=kind, template=TEMPLATES[style]))

    return make


@pytest.fixture(scope="session")
def make_tokenizer(make_folder: MakeFolder) -> MakeTokenizer:
    """Loads the tokenizer of a kind."""
    return cache(lambda kind: Tokenizer(make_folder(kind, "chatml")))


@pytest.fixture(scope="session")
def make_encoder(make_folder: MakeFolder) -> MakeEncoder:
    """Builds the chat encoder of a kind and a style."""

    @cache
    def make(kind: str, style: str) -> ChatEncoder:
        folder = make_folder(kind, style)
        assert folder.chat_template is not None
        template = ChatTemplate(folder.chat_template, folder.special_tokens, limits=RenderLimits())
        tokenizer = Tokenizer(folder, frames_with=template.frames_with)
        return ChatEncoder(template, tokenizer, SystemPrompts(max_entries=64, max_bytes=1 << 20))

    return make
