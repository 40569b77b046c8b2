"""One kernel for one GPU: registers, spills, shared memory, and which matrix instructions it uses."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Dynamic shared memory that one block may have, bytes: CUDA C++ programming guide, table of compute capabilities.
SHARED_LIMITS = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel as a launch compiles it.

    Attributes:
        name: What is compiled: kernel, dtypes and shape.
        kernel: A function decorated with triton.jit.
        signature: Type of each argument that is no constexpr, in Triton's words: "*bf16", "i32", "fp32".
        constexprs: Value of each that is one; None for a pointer that is not given.
        divisible: Arguments that are multiples of 16, which a launch finds out by itself: most pointers and strides.
        num_warps: Of a program.
        num_stages: Of its pipelined loops.
        instructions: Matrix instructions that it must use, as PTX begins to name them ("wgmma", "mma.sync"); none = none need be there.
        capabilities: Of the GPUs that a launch compiles it for; none = all.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    divisible: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    instructions: tuple[str, ...] = field(default=())
    capabilities: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a kernel uses of a GPU.

    Attributes:
        capability: Compute capability of the GPU, times 10.
        registers: Of a thread.
        spilled_bytes: Of a thread, in local memory.
        shared_bytes: Of a program.
        instructions: Matrix instructions, as PTX begins to name them.
        is_serialised: Whether the assembler has made each wgmma wait for the one before, which takes most of what they are for.
    """

    capability: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: tuple[str, ...]
    is_serialised: bool


def compile_case(case: Case, capability: int) -> Compiled:
    """Compiles; no GPU is needed, and Triton must not be in its interpreter."""
    names = case.kernel.arg_names
    signature = {name: "constexpr" if name in case.constexprs else case.signature[name] for name in names}
    constexprs = {(names.index(name),): value for name, value in case.constexprs.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in case.divisible}
    source = ASTSource(case.kernel, signature, constexprs, attributes)
    target = GPUTarget("cuda", capability, 32)
    log = io.StringIO()
    # What the assembler says is not in the cache.
    with knobs.nvidia.scope(), knobs.compilation.scope(), contextlib.redirect_stdout(log):
        knobs.nvidia.dump_ptxas_log = True
        knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=target, options={"num_warps": case.num_warps, "num_stages": case.num_stages})
    used = _resources(compiled.asm["cubin"])
    found = {match[1] for match in re.finditer(r"\b(wgmma|mma\.sync)\b", compiled.asm["ptx"])}
    return Compiled(
        capability,
        used["REG"],
        used["STACK"] + used["LOCAL"],
        compiled.metadata.shared,
        tuple(sorted(found)),
        "serialized" in log.getvalue(),
    )


def _resources(cubin: bytes) -> dict[str, int]:
    """REG, STACK, LOCAL and others of the one function in a cubin, by the tool that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    line = next(line for line in told.splitlines() if "REG:" in line)
    return {name: int(value) for name, value in re.findall(r"([A-Z]+)(?:\[\d+\])?:(\d+)", line)}
