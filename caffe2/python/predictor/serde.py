"""Messages to bytes and back."""
from google.protobuf.message import Message


def serialize_protobuf_struct(protobuf_struct: Message) -> bytes:
    """Serialize a message."""
    return protobuf_struct.SerializeToString()


def deserialize_protobuf_struct(serialized_protobuf: bytes, struct_type: type) -> Message:
    """Parse a message of class `struct_type`."""
    return struct_type.FromString(serialized_protobuf)
