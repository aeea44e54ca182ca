"""Every kernel compiles for the architectures we promise."""
import subprocess

import pytest

from caffe2._core import cuda_compiler

STEMS = sorted(p.stem for p in cuda_compiler.FOLDER.glob("*.cu"))
NVCC = cuda_compiler.find_nvcc()


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("stem", STEMS)
def test_kernels(tmp_path, stem):
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (75, 80, 90)]
    done = subprocess.run(
        [NVCC, *cuda_compiler.OPTIONS, *targets, "-fatbin", str(cuda_compiler.FOLDER / f"{stem}.cu"), "-o",
         str(tmp_path / "kernels.fatbin")], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
