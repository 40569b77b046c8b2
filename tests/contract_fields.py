"""The numbers and types of the contract's fields, as published: `python -m tests.contract_fields` adds what is new."""

from __future__ import annotations

import json
from pathlib import Path

from google.protobuf.descriptor import Descriptor

from triserve.v1 import chat_pb2, common_pb2, compute_pb2, sampler_pb2, tokenizer_pb2

PUBLISHED = Path(__file__).parent / "unit" / "triserve" / "contract_fields.json"


def fields_of_the_contract() -> dict[str, list[int]]:
    """`Message.field` to its number and type, of all messages of v1."""
    found: dict[str, list[int]] = {}

    def add(message: Descriptor) -> None:
        for field in message.fields:
            found[f"{message.full_name}.{field.name}"] = [field.number, field.type]
        for inner in message.nested_types:
            add(inner)

    for module in (chat_pb2, common_pb2, compute_pb2, sampler_pb2, tokenizer_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            add(message)
    return dict(sorted(found.items()))


def main() -> None:
    """Writes what is new; refuses if something published has changed."""
    known = json.loads(PUBLISHED.read_text()) if PUBLISHED.exists() else {}
    now = fields_of_the_contract()
    if changed := [name for name in known if now.get(name, known[name]) != known[name]]:
        raise SystemExit(f"published fields have changed: {', '.join(changed)}")
    PUBLISHED.write_text(json.dumps(now, indent=1) + "\n")


if __name__ == "__main__":
    main()
