"""Messages that a peer without manners might send: anything the schema can say, anything it cannot, and bytes that are nothing."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from triserve.rpc.channel import MAX_MESSAGE_BYTES
from triserve.v1 import sampler_pb2

_GIANT = 3000
_INTEGERS = (0, 1, 2, 3, 4, 5, 7, 23, 24, 255, 256, 257, 2**31 - 1)
_FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 100.0, 3e38, float("inf"), float("-inf"), float("nan"))
_STRINGS = ("", "x", "user", "system", "\0", "a\nb", "é🙂", "\ufffd", "x" * 300)
_LARGEST = {
    FieldDescriptor.CPPTYPE_UINT32: 2**32 - 1,
    FieldDescriptor.CPPTYPE_UINT64: 2**64 - 1,
    FieldDescriptor.CPPTYPE_INT32: 2**31 - 1,
    FieldDescriptor.CPPTYPE_INT64: 2**63 - 1,
}
# Bytes that are a message themselves.
_NESTED = {"triserve.v1.Parcel.delta_frame": sampler_pb2.DeltaFrame, "triserve.v1.GenerateResponse.parcels": sampler_pb2.DeltaFrame}

Changes = Mapping[str, Any]


def hostile_bytes(kind: type[Message]) -> st.SearchStrategy[bytes]:
    """What a stream of these messages might carry instead: any message, one that was cut or bent, or garbage."""
    whole = hostile_messages(kind).map(_serialised)
    bent = st.builds(_bent, whole, st.integers(0, 1 << 16), st.integers(0, 255))
    return st.one_of(whole, whole, whole, bent, st.binary(max_size=40))


def hostile_messages(kind: type[Message]) -> st.SearchStrategy[Any]:
    """Any message of this kind: each field unset, zero, extreme or random, columns of any length."""
    return hostile_changes(kind).map(lambda fields: kind(**fields))


def hostile_changes(kind: type[Message]) -> st.SearchStrategy[dict[str, Any]]:
    """Some fields of a message of this kind; of a oneof at most one."""
    return _fields(kind.DESCRIPTOR, 2)


def changed(message: Message, changes: Changes) -> Message:
    """A copy of a message with some fields replaced."""
    copy = type(message)()
    copy.CopyFrom(message)
    for name, value in changes.items():
        copy.ClearField(name)
        copy.MergeFrom(type(message)(**{name: value}))
    return copy


def _serialised(message: Message) -> bytes:
    return message.SerializeToString()


def _bent(content: bytes, place: int, value: int) -> bytes:
    if not content:
        return bytes([value])
    place %= len(content)
    return content[:place] + bytes([value]) + content[place + 1 :] if value % 2 else content[:place]


@functools.cache
def _fields(descriptor: Descriptor, depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Any fields. Of a message that has messages of its own kind, there are so many levels more."""
    fields = [field for field in descriptor.fields if field.message_type is None or field.message_type.full_name != descriptor.full_name]
    members = {field.name for oneof in descriptor.oneofs for field in oneof.fields if len(oneof.fields) > 1}
    loose = {field.name: _values(field) for field in fields if field.name not in members}
    if depth:
        kind = GetMessageClass(descriptor)
        inner = (
            _fields(descriptor, depth - 1).map(lambda changes: kind(**changes)) if len(fields) < len(descriptor.fields) else st.nothing()
        )
        loose |= {field.name: st.lists(inner, max_size=3) for field in descriptor.fields if field not in fields}
    parts = [st.fixed_dictionaries({}, optional=loose)]
    for oneof in descriptor.oneofs:
        if len(oneof.fields) > 1:
            parts.append(st.one_of(st.just({}), *(st.fixed_dictionaries({field.name: _values(field)}) for field in oneof.fields)))
    return st.tuples(*parts).map(lambda found: {name: value for part in found for name, value in part.items()})


def _values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        # A map whose values are messages cannot be filled by a dictionary; none here matters.
        return st.just({}) if value.message_type is not None else st.dictionaries(_value(key), _value(value), max_size=4)
    one = _value(field)
    if not field.is_repeated:
        return one
    lists = st.lists(one, max_size=4)
    if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        return lists
    return st.one_of(lists, lists, lists, one.map(_giant))


def _giant(value: Any) -> list[Any]:
    """Very many of a value. Of long bytes, which may be a giant themselves, only so many that their message is too long to be sent."""
    size = len(value) if isinstance(value, bytes) else 0
    return [value] * (min(_GIANT, MAX_MESSAGE_BYTES // size + 1) if size else _GIANT)


def _value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if field.message_type is not None:
        return hostile_messages(GetMessageClass(field.message_type))
    if field.enum_type is not None:
        return st.sampled_from([*field.enum_type.values_by_number, 99, -1])
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return st.sampled_from(_FLOATS)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        if field.type == FieldDescriptor.TYPE_BYTES:
            nested = _NESTED.get(field.full_name)
            return st.binary(max_size=40) if nested is None else hostile_bytes(nested)
        return st.sampled_from(_STRINGS)
    return st.sampled_from([*_INTEGERS, _LARGEST[kind]])
