"""What CUDA is there: ``python -m caffe2.cuda_info`` prints it, and runs one kernel on each device."""
import sys

import numpy as np

from caffe2._core import cuda, cuda_compiler


def libraries():
    """dict of str to str: versions of the bindings and libraries, or why one is missing."""
    from caffe2.ops.cuda.libraries import cublas, cudnn

    found = {}
    for name, version in (("cuBLAS", lambda: cublas().get_version(cublas().create())),
                          ("cuDNN", lambda: cudnn().backend_version())):
        try:
            found[name] = str(version())
        except Exception as e:
            found[name] = f"not usable: {e}"
    return found


def check(index):
    """Run a kernel on a device; what came of it, in words."""
    from caffe2.proto import caffe2_pb2
    from caffe2.python import core, workspace

    x = np.linspace(-1, 1, 1001, dtype=np.float32)
    option = core.DeviceOption(caffe2_pb2.CUDA, index)
    try:
        workspace.FeedBlob("cuda_info/x", x, option)
        workspace.RunOperatorOnce(core.CreateOperator("Relu", ["cuda_info/x"], ["cuda_info/y"], device_option=option))
        right = np.array_equal(workspace.FetchBlob("cuda_info/y"), np.maximum(x, 0))
    except RuntimeError as e:
        return f"a kernel does not run: {e}"
    return "a kernel ran, and its result is right" if right else "a kernel ran, and its result is WRONG"


def main():
    """Print all of it; returns 0 where everything works."""
    why = cuda.unavailable()
    print(f"compiler: {cuda_compiler.find_nvcc() or 'nvcc is neither on the PATH nor in CUDA_HOME/bin'}")
    print(f"compiled kernels: {cuda_compiler.cache_folder()}")
    if why:
        print(f"no CUDA device: {why}")
        return 1
    print(f"driver: supports CUDA {cuda.driver_version() // 1000}.{cuda.driver_version() % 1000 // 10}")
    works = True
    for i in range(cuda.device_count()):
        p, m = cuda.properties(i), cuda.get_device(i).memory()
        print(f"device {i}: {p['name']}, compute capability {p['major']}.{p['minor']}, {p['multiProcessorCount']} "
              f"multiprocessors, {m['free'] >> 20} of {m['total'] >> 20} MiB free")
        with cuda.get_device(i):
            for name, version in (libraries() if i == 0 else {}).items():
                print(f"{name}: {version}")
                works &= not version.startswith("not usable")
        said = check(i)
        works &= said.endswith("right")
        print(f"device {i}: {said}")
    return 0 if works else 1


if __name__ == "__main__":
    sys.exit(main())
