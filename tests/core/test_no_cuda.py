"""Without CUDA software every name exists, and whoever asks for a device is told what to install."""
import subprocess
import sys

SCRIPT = """
import sys
sys.modules["pycuda"] = None
import numpy as np
from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace
assert not workspace.has_gpu_support and not workspace.has_cuda_support
assert workspace.NumCudaDevices() == 0 and workspace.GetCUDAVersion() == 0
assert workspace.GetDeviceProperties(0) is None and workspace.GetGPUMemoryInfo() is None
gpu = core.DeviceOption(caffe2_pb2.CUDA, 0)
workspace.FeedBlob("x", np.ones(2, np.float32))
for fail in (lambda: workspace.FeedBlob("y", np.ones(2, np.float32), gpu),
             lambda: workspace.RunOperatorOnce(core.CreateOperator("Relu", ["x"], ["z"], device_option=gpu)),
             lambda: workspace.RunOperatorOnce(core.CreateOperator("CopyCPUToGPU", ["x"], ["z"], device_option=gpu))):
    try:
        fail()
    except RuntimeError as e:
        assert "no CUDA device 0" in str(e) and "pip install 'caffe2[cuda]'" in str(e), e
    else:
        raise AssertionError("no error")
assert workspace.Blobs() == ["x"]
from caffe2 import cuda_info
assert cuda_info.main() == 1
"""


def test_without_pycuda():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no CUDA device: PyCUDA cannot be imported" in done.stdout
