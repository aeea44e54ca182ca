"""Message classes, generated from the .proto files of the source tree's proto/."""
