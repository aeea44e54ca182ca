"""Compile a .proto file into a module of message classes.

usage: proto.py FOLDER FILE MODULE: FOLDER/FILE becomes MODULE (.py), and its stub (.pyi) beside it.

The module holds the file's descriptor and builds its classes with whatever protobuf runtime is
installed. Modules that protoc itself writes refuse runtimes other than their own major version.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2

PACKAGE = "caffe2/proto"
TEMPLATE = '''\
"""Message classes of {name}."""

from caffe2.proto._messages import define
{imports}
define(
    __name__,
{data},
)
'''


def protoc(*arguments):
    if importlib.util.find_spec("grpc_tools"):
        command = [sys.executable, "-m", "grpc_tools.protoc"]
    elif found := shutil.which("protoc"):
        command = [found]
    else:
        sys.exit("proto.py needs protoc: install grpcio-tools or put protoc on the path")
    subprocess.run([*command, *arguments], check=True)


def module_name(proto):
    return proto.removesuffix(".proto").replace("/", ".") + "_pb2"


def main(folder, file, target):
    name = f"{PACKAGE}/{file}"
    with tempfile.TemporaryDirectory() as out:
        protoc(
            f"--proto_path={PACKAGE}={folder}",
            f"--descriptor_set_out={out}/set",
            f"--pyi_out={out}",
            name,
        )
        descriptors = descriptor_pb2.FileDescriptorSet.FromString(Path(out, "set").read_bytes())
        stub = Path(out, name.removesuffix(".proto") + "_pb2.pyi").read_text()
    (descriptor,) = descriptors.file
    data = descriptor.SerializeToString()
    text = TEMPLATE.format(
        name=name,
        imports="".join(f"import {module_name(d)}  # noqa: F401\n" for d in descriptor.dependency),
        data="\n".join(f"    {data[i : i + 64]!r}" for i in range(0, len(data), 64)),
    )
    Path(target).write_text(text)
    Path(target).with_suffix(".pyi").write_text(stub)


if __name__ == "__main__":
    main(*sys.argv[1:])
