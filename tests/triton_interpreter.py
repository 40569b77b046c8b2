"""Triton's interpreter without what it does again and again to no effect: half of its time.

- Before it runs a kernel it replaces what `triton.language` offers by what computes in numpy, and puts it back after the launch; and it
  replaces all of it once more at each call of a function from a kernel (`tl.sum`, say), though it is in place by then.
- It computes of each sum of integers whether it overflows, for an assertion that `device_assert` drops without debugging.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

_BUILTINS = {
    package: [name for name, member in inspect.getmembers(package) if tl.core.is_builtin(member)]
    for package in (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base)
}
_NP_DTYPES: dict[str, Any] = {}

_patch_lang = interpreter._patch_lang
_get_np_dtype = interpreter._get_np_dtype
_check_overflow = TritonSemantic.binary_op_sanitize_overflow_impl
_run = interpreter.InterpretedFunction.run

# The namespaces of functions for which the language is replaced in this launch.
_patched: set[int] = set()


def _patch_lang_once(fn: FunctionType) -> Any:
    namespace = id(fn.__globals__)
    if namespace in _patched:
        return None  # a call from a kernel, which asks for nothing back
    scope = _patch_lang(fn)
    _patched.add(namespace)
    return scope


def _patch_known_builtins(package: Any, builder: Any, scope: Any) -> None:
    for name in _BUILTINS[package]:
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            interpreter._patch_attr(package, name, member, builder, scope)


def _np_dtype(dtype: Any) -> Any:
    if dtype.name not in _NP_DTYPES:
        _NP_DTYPES[dtype.name] = _get_np_dtype(dtype)
    return _NP_DTYPES[dtype.name]


def _check_overflow_where_it_is_asserted(self: Any, left: Any, right: Any, operation: Any) -> None:
    if self.builder.options.debug:
        _check_overflow(self, left, right, operation)


def _run_from_scratch(self: Any, *arguments: Any, **options: Any) -> Any:
    _patched.clear()
    try:
        return _run(self, *arguments, **options)
    finally:
        _patched.clear()


def hasten() -> None:
    """Replaces these parts of the interpreter; what kernels compute and what is checked of them stays."""
    interpreter._patch_lang = _patch_lang_once
    interpreter._patch_builtin = _patch_known_builtins
    interpreter._get_np_dtype = _np_dtype
    TritonSemantic.binary_op_sanitize_overflow_impl = _check_overflow_where_it_is_asserted
    interpreter.InterpretedFunction.run = _run_from_scratch
