"""All scopes together stay within the bound, and the one used longest ago goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.vectors.resident_scopes import ResidentScopes


@given(st.lists(st.tuples(st.sampled_from(["use", "keep", "drop"]), st.sampled_from("abcd"), st.integers(0, 60))))
def test_it_keeps_what_a_list_in_order_of_use_would(steps: list[tuple[str, str, int]]) -> None:
    scopes: ResidentScopes[int] = ResidentScopes(100)
    model: list[tuple[str, int]] = []
    for verb, scope, size in steps:
        known = [pair for pair in model if pair[0] == scope]
        others = [pair for pair in model if pair[0] != scope]
        if verb == "use":
            assert scopes.use(scope) == (known[0][1] if known else None)
            model = others + known
        elif verb == "drop":
            scopes.drop(scope)
            model = others
        else:
            scopes.keep(scope, size, size)
            model = [*others, (scope, size)]
            while sum(size for _, size in model) > 100:
                model.pop(0)
        assert scopes.num_bytes == sum(size for _, size in model) <= 100
        assert len(scopes) == len(model)


def test_what_is_larger_than_the_bound_is_kept_alone() -> None:
    scopes: ResidentScopes[str] = ResidentScopes(10)
    scopes.keep("a", "a", 5)
    scopes.keep("b", "b", 50)
    assert (scopes.use("a"), scopes.use("b"), scopes.num_bytes) == (None, "b", 50)
