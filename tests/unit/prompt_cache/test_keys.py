"""Different questions have different names; tenants never share."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.keys import CacheKey, CacheScope, KeyMaker, SemanticScope
from tests.fakes.semantic_parts import SCOPE as SEMANTIC

KEYS = KeyMaker(b"0123456789abcdef")
SCOPE = CacheScope(tenant="a", model="m", weights_revision="w", computation="c", tokenizer_sha256="t", sampling=b"s")

scopes = st.builds(
    CacheScope,
    tenant=st.text(max_size=4),
    model=st.text(max_size=4),
    weights_revision=st.text(max_size=4),
    computation=st.text(max_size=4),
    tokenizer_sha256=st.text(max_size=4),
    sampling=st.binary(max_size=4),
)
prompts = st.lists(st.integers(0, 2**32 - 1), max_size=5)


@given(scopes, prompts, scopes, prompts)
def test_keys_are_equal_exactly_when_scope_and_prompt_are(
    scope: CacheScope, prompt: list[int], other: CacheScope, other_prompt: list[int]
) -> None:
    assert (KEYS.key(scope, prompt) == KEYS.key(other, other_prompt)) == ((scope, prompt) == (other, other_prompt))


@given(scopes, prompts)
def test_a_question_has_the_same_key_every_time(scope: CacheScope, prompt: list[int]) -> None:
    assert KEYS.key(scope, prompt) == KEYS.key(replace(scope), tuple(prompt))


@given(scopes, prompts, st.text(max_size=4))
def test_another_tenant_has_another_namespace_and_another_digest(scope: CacheScope, prompt: list[int], tenant: str) -> None:
    mine, theirs = KEYS.key(scope, prompt), KEYS.key(replace(scope, tenant=tenant), prompt)
    if tenant != scope.tenant:
        assert mine.namespace != theirs.namespace
        assert mine.digest != theirs.digest


def another(value: Any) -> Any:
    return value + 1 if isinstance(value, int) else value + (b"x" if isinstance(value, bytes) else "x")


@pytest.mark.parametrize("name", [item.name for item in fields(CacheScope)])
def test_every_field_of_the_scope_is_part_of_the_key(name: str) -> None:
    assert KEYS.key(replace(SCOPE, **{name: another(getattr(SCOPE, name))}), [1]) != KEYS.key(SCOPE, [1])


@pytest.mark.parametrize("name", [item.name for item in fields(SemanticScope)])
def test_every_field_of_a_semantic_scope_is_part_of_its_name(name: str) -> None:
    assert KEYS.scope(replace(SEMANTIC, **{name: another(getattr(SEMANTIC, name))})) != KEYS.scope(SEMANTIC)


def test_scopes_of_two_tenants_have_not_even_a_namespace_in_common() -> None:
    mine, theirs = KEYS.scope(SEMANTIC), KEYS.scope(replace(SEMANTIC, tenant="b"))
    assert mine[:16] == KEYS.namespace("a") and theirs[:16] == KEYS.namespace("b") != mine[:16] and mine[16:] != theirs[16:]


def test_text_moved_from_one_field_to_the_next_changes_the_key() -> None:
    assert KEYS.key(replace(SCOPE, model="mw", weights_revision=""), [1]) != KEYS.key(replace(SCOPE, model="m", weights_revision="w"), [1])


def test_another_secret_gives_other_names() -> None:
    other = KeyMaker(b"fedcba9876543210").key(SCOPE, [1])
    mine = KEYS.key(SCOPE, [1])
    assert (other.namespace != mine.namespace) and (other.digest != mine.digest)


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_an_id_that_is_no_token_id_is_refused(token_id: int) -> None:
    with pytest.raises(OverflowError):
        KEYS.key(SCOPE, [token_id])


def test_the_name_in_redis_shows_neither_tenant_nor_model() -> None:
    name = KEYS.key(replace(SCOPE, tenant="acme", model="llama"), [1]).redis_name
    assert "acme" not in name and "llama" not in name


def test_names_in_redis_begin_with_schema_version_and_namespace() -> None:
    assert CacheKey("0a", "ff").redis_name == "triserve:cache:3:0a:x:ff"
