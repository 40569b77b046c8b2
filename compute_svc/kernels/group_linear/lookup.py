"""Tables of 16 values in bfloat16, looked up by bytes: PTX that has a table among its instructions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Eight codes of 4 bits in $4, of which those of one part lie 16 bits apart, to four times two bfloat16. A permutation finds four bytes among
# eight by three bits of each code; one for the lower half of the table and one for the upper, and a third takes from these by the fourth bit.
# Lower bytes of values and upper ones are found apart, and put together in the end.
_PROGRAM = """
{{
.reg .b32 three, fourth, a, b, low0, high0, low1, high1, t<8>;
{moves}
and.b32 three, $4, 0x77777777;
shr.u32 fourth, $4, 1;
lop3.b32 fourth, fourth, 0x44444444, 0x32103210, 0xEA;
prmt.b32 a, t0, t1, three;
prmt.b32 b, t2, t3, three;
prmt.b32 low0, a, b, fourth;
prmt.b32 a, t4, t5, three;
prmt.b32 b, t6, t7, three;
prmt.b32 high0, a, b, fourth;
shr.u32 three, three, 16;
shr.u32 fourth, fourth, 16;
prmt.b32 a, t0, t1, three;
prmt.b32 b, t2, t3, three;
prmt.b32 low1, a, b, fourth;
prmt.b32 a, t4, t5, three;
prmt.b32 b, t6, t7, three;
prmt.b32 high1, a, b, fourth;
prmt.b32 a, low0, high0, 0x5140;
prmt.b32 b, low1, high1, 0x5140;
prmt.b32 $0, a, b, 0x5410;
prmt.b32 $1, a, b, 0x7632;
prmt.b32 a, low0, high0, 0x7362;
prmt.b32 b, low1, high1, 0x7362;
prmt.b32 $2, a, b, 0x5410;
prmt.b32 $3, a, b, 0x7632;
}}
"""


def lookup_program(table: Sequence[float]) -> str:
    """Of 16 values, each rounded to bfloat16.

    Its only input are two numbers of 16 bits with four codes each, in one register; its outputs are the values of the first code of both, of
    the second, and so on.
    """
    values = torch.tensor(table, dtype=torch.float32).bfloat16().view(torch.int16).tolist()
    lower, upper = [value & 255 for value in values], [value >> 8 & 255 for value in values]
    words = [
        sum(byte << 8 * place for place, byte in enumerate(half[first : first + 4])) for half in (lower, upper) for first in range(0, 16, 4)
    ]
    return _PROGRAM.format(moves="\n".join(f"mov.b32 t{index}, {word:#010x};" for index, word in enumerate(words)))
