"""How close two implementations of an operation must be: one table, by dtype."""

from __future__ import annotations

import torch

# (relative, absolute). float32 sums in another order; bfloat16 also rounds in other places.
_TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1.6e-2, 1.6e-2)}


def assert_kernel_close(operation: str, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Fails with the operation, its dtype, the greatest error and where it is."""
    relative, absolute = _TOLERANCES[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=relative, atol=absolute, msg=lambda text: f"{operation} in {actual.dtype}: {text}")
