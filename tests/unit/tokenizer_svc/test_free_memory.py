"""What a long text took is not kept after it."""

from __future__ import annotations

import platform
from collections.abc import Callable

import psutil
import pytest

from tokenizer_svc.free_memory import release_free_memory
from tokenizer_svc.tokenizer import Tokenizer


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library here has no such call")
def test_the_memory_of_a_long_text_goes_back_to_the_system(make_tokenizer: Callable[[str], Tokenizer]) -> None:
    tokenizer = make_tokenizer("byte_level_bpe")
    process = psutil.Process()
    release_free_memory()
    before = process.memory_info().rss
    text = "The quick brown fox, " * 20_000
    assert tokenizer.encode(text, add_special_tokens=False, field="prompt")
    kept = process.memory_info().rss - before
    release_free_memory()
    assert process.memory_info().rss - before < max(kept / 2, 4_000_000)
