"""Builds the classes of a generated module from its descriptor."""

import sys

from google.protobuf import descriptor_pool
from google.protobuf.internal import builder


def define(module: str, descriptor: bytes) -> None:
    """Put the messages and enums of a serialized FileDescriptorProto into a module."""
    names = vars(sys.modules[module])
    names["DESCRIPTOR"] = file = descriptor_pool.Default().AddSerializedFile(descriptor)
    builder.BuildTopDescriptorsAndMessages(file, module, names)
    # Devices are known by their short names too (CPU, CUDA, ...).
    if devices := file.enum_types_by_name.get("DeviceTypeProto"):
        for value in devices.values:
            names[value.name.removeprefix("PROTO_")] = value.number
