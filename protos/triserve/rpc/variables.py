"""Which variables of the environment are meant for a service and are none of its settings: misspelt, or of another version. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

# What Kubernetes and Docker links put into the environment of every container for a service of the same name: GATEWAY_SERVICE_HOST,
# GATEWAY_PORT=tcp://..., GATEWAY_PORT_8000_TCP_ADDR.
_LINK_NAME = re.compile(r".*_SERVICE_HOST|.*_SERVICE_PORT(_.+)?|.*_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|.*_ENV_.+")
_LINK_PORT = re.compile(r"(tcp|udp|sctp)://\S+")


def unknown_variables(environment: Mapping[str, str], *, prefix: str, known: Collection[str]) -> list[str]:
    """A line for each variable that has a service's prefix and is no setting of it; names the closest one that is.

    Args:
        environment: of the process.
        prefix: of the service's variables, in capitals.
        known: names of its variables, in capitals.
    """
    lines = []
    for name, value in sorted(environment.items()):
        capitals = name.upper()
        if not capitals.startswith(prefix) or capitals in known or _is_link(capitals, value):
            continue
        closest = difflib.get_close_matches(capitals, known, n=1, cutoff=0.0)
        lines.append(
            f"{name} is no setting of this service, the closest is {closest[0]}" if closest else f"{name} is no setting of this service"
        )
    return lines


def _is_link(name: str, value: str) -> bool:
    return bool(_LINK_NAME.fullmatch(name) or (name.endswith("_PORT") and _LINK_PORT.fullmatch(value)))
