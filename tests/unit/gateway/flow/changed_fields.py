"""Messages with another value of one field, to see what a name is made of."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor


def with_field(message: Any, field: FieldDescriptor) -> Any:
    """The message with another value of one field."""
    changed = type(message)()
    changed.CopyFrom(message)
    if field.message_type is not None and not field.is_repeated:
        getattr(changed, field.name).regex += "x"
    elif field.message_type is not None:
        getattr(changed, field.name).add(token_ids=[3])
    elif field.is_repeated:
        getattr(changed, field.name).append("x" if field.type == FieldDescriptor.TYPE_STRING else 3)
    else:
        value = getattr(changed, field.name)
        setattr(changed, field.name, value + "x" if isinstance(value, str) else not value if isinstance(value, bool) else value + 1)
    return changed
