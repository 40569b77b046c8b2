"""What is asked of a request before it may wait for its turn."""

from __future__ import annotations

from compute_svc.wire.request import Request
from triserve.rpc.errors import InvalidRequest


def require_known_ids(request: Request, logits_width: int) -> None:
    """Every id must have a logit.

    Raises:
        InvalidRequest: One has none, or there is no prompt; names the field.
    """
    if not request.prompt.size:
        raise InvalidRequest("token_ids is empty, it must have at least one id", field="token_ids")
    for field, ids in (("token_ids", request.prompt), ("generated_token_ids", request.generated)):
        wrong = ids[(ids < 0) | (ids >= logits_width)]
        if wrong.size:
            raise InvalidRequest(f"{field} has id {int(wrong[0])}, the limit is {logits_width - 1}", field=field)
