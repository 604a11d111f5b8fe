"""tf.Example records, as TFDS writes them into ArrayRecord, read without TensorFlow.

The messages are those of tensorflow/core/example: an Example holds a map of names to features, a
feature one list of bytes, floats or integers. Their description is built here, so that no compiled
schema has to be installed.
"""

from collections.abc import Collection
from functools import cache
from typing import Any

# Numbers of FieldDescriptorProto: types and labels of fields.
_FLOAT, _INT64, _STRING, _MESSAGE, _BYTES = 2, 3, 9, 11, 12
_OPTIONAL, _REPEATED = 1, 3
_LISTS = {
  "bytes_list": ("BytesList", _BYTES),
  "float_list": ("FloatList", _FLOAT),
  "int64_list": ("Int64List", _INT64),
}


def decode(data: bytes, names: Collection[str]) -> dict[str, Any] | None:
  """{name: first value} of these features of a tf.Example; None where the bytes are none.

  Bytes become text. A feature that is not there or empty is left out.

  Raises:
    UnicodeDecodeError: a value of bytes is not UTF-8.
  """
  from google.protobuf.message import DecodeError

  if data[:1] != b"\n":  # the tag of `features`, the only field there is
    return None
  example = _example()()
  try:
    example.ParseFromString(data)
  except DecodeError:
    return None
  if not example.features.feature:  # text that begins like one and names nothing
    return None
  record = {}
  for name, feature in example.features.feature.items():
    kind = feature.WhichOneof("kind")
    values = getattr(feature, kind).value if kind else ()
    if values and name in names:
      record[name] = values[0].decode("utf-8") if isinstance(values[0], bytes) else values[0]
  return record


@cache
def _example():
  from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

  file = descriptor_pb2.FileDescriptorProto(
    name="moe_parity/example.proto", package="moe_parity", syntax="proto3"
  )
  for name, kind in _LISTS.values():
    message = file.message_type.add(name=name)
    message.field.add(name="value", number=1, label=_REPEATED, type=kind)
  feature = file.message_type.add(name="Feature")
  feature.oneof_decl.add(name="kind")
  for number, (field, (name, _)) in enumerate(_LISTS.items(), 1):
    _add(feature, field, number, _OPTIONAL, name).oneof_index = 0
  features = file.message_type.add(name="Features")
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  entry.field.add(name="key", number=1, label=_OPTIONAL, type=_STRING)
  _add(entry, "value", 2, _OPTIONAL, "Feature")
  _add(features, "feature", 1, _REPEATED, "Features.FeatureEntry")
  _add(file.message_type.add(name="Example"), "features", 1, _OPTIONAL, "Features")
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("moe_parity.Example"))


def _add(message, name: str, number: int, label: int, kind: str):
  return message.field.add(
    name=name, number=number, label=label, type=_MESSAGE, type_name=f".moe_parity.{kind}"
  )
