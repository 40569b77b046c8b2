"""The protobuf message in a sentencepiece tokenizer.model, as far as a tokenizer.json needs it.

Declared here because the package that ships the whole of it also ships a native library and wants a newer protobuf than gRPC's.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "triserve.sentencepiece"
_TYPES = descriptor_pb2.FieldDescriptorProto
# Message: field, number, type, default as protobuf writes it. Enumerations are read as their numbers.
_FIELDS: dict[str, tuple[tuple[str, int, int | str, str | None], ...]] = {
    "Piece": (
        ("piece", 1, _TYPES.TYPE_STRING, None),
        ("score", 2, _TYPES.TYPE_FLOAT, None),
        ("type", 3, _TYPES.TYPE_INT32, "1"),
    ),
    "TrainerSpec": (
        ("model_type", 3, _TYPES.TYPE_INT32, "1"),
        ("unk_id", 40, _TYPES.TYPE_INT32, "0"),
        ("bos_id", 41, _TYPES.TYPE_INT32, "1"),
        ("eos_id", 42, _TYPES.TYPE_INT32, "2"),
        ("pad_id", 43, _TYPES.TYPE_INT32, "-1"),
    ),
    "NormalizerSpec": (
        ("precompiled_charsmap", 2, _TYPES.TYPE_BYTES, None),
        ("add_dummy_prefix", 3, _TYPES.TYPE_BOOL, "true"),
        ("remove_extra_whitespaces", 4, _TYPES.TYPE_BOOL, "true"),
    ),
    "Model": (
        ("pieces", 1, "Piece", None),
        ("trainer_spec", 2, "TrainerSpec", None),
        ("normalizer_spec", 3, "NormalizerSpec", None),
    ),
}
_REPEATED = ("pieces",)


def parse_model(content: bytes) -> Any:
    """The message, its fields as attributes: `pieces`, `trainer_spec`, `normalizer_spec`.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    message = _message_class()()
    message.ParseFromString(content)
    return message


def _message_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="sentencepiece.proto", package=_PACKAGE, syntax="proto2")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, default in fields:
            label = _TYPES.LABEL_REPEATED if field_name in _REPEATED else _TYPES.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _TYPES.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                field.type = kind  # type: ignore[assignment]
            if default is not None:
                field.default_value = default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Model"))
