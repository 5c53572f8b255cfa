"""This module has tf.train.Example, the message in TensorFlow Datasets' files.

It is declared here because TensorFlow, which has it, is not needed otherwise.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "vgg_jax"
_FIELD = descriptor_pb2.FieldDescriptorProto


def _declare() -> Any:
    """Makes the class of the message; it has further fields, of numbers with fractions.

    message BytesList { repeated bytes value = 1; }
    message Int64List { repeated int64 value = 1; }
    message Feature { BytesList bytes_list = 1; Int64List int64_list = 3; }
    message Features { map<string, Feature> feature = 1; }
    message Example { Features features = 1; }
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}/tf_example.proto", package=_PACKAGE, syntax="proto3"
    )
    messages = {
        name: file.message_type.add(name=name)
        for name in ("BytesList", "Int64List", "Feature", "Features", "Example")
    }
    entry = messages["Features"].nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True  # what `map` stands for

    def add(
        message: Any, name: str, number: int, kind: int | str, repeated: bool = False
    ) -> None:
        field = message.field.add(name=name, number=number)
        field.label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
        if isinstance(kind, str):
            field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
        else:
            field.type = kind

    add(messages["BytesList"], "value", 1, _FIELD.TYPE_BYTES, repeated=True)
    add(messages["Int64List"], "value", 1, _FIELD.TYPE_INT64, repeated=True)
    add(messages["Feature"], "bytes_list", 1, "BytesList")
    add(messages["Feature"], "int64_list", 3, "Int64List")
    add(entry, "key", 1, _FIELD.TYPE_STRING)
    add(entry, "value", 2, "Feature")
    add(messages["Features"], "feature", 1, "Features.FeatureEntry", repeated=True)
    add(messages["Example"], "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"{_PACKAGE}.Example")
    )


TfExample = _declare()
