"""Kernels: the sources in caffe2/ops/cuda, compiled for a device when first needed and kept on disk."""
import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "ops" / "cuda"
OPTIONS = ["-std=c++17", "-O3"]


def cache_folder():
    """Where compiled kernels are kept: CAFFE2_CUDA_CACHE, or a folder of the user's cache."""
    given = os.environ.get("CAFFE2_CUDA_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "caffe2", "cuda")


def find_nvcc():
    """Path of the CUDA compiler, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(os.path.join(h, "bin") for h in homes if h)]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def binary(stem, arch):
    """Machine code (bytes) of the kernels in STEM.cu for an architecture such as ``sm_90``.

    Several processes may ask at once: each sees either no file or a whole one.

    Raises
    ------
    RuntimeError
        If there is no compiler, or it fails.
    """
    source = (FOLDER / f"{stem}.cu").read_text()
    key = hashlib.sha256("\0".join([
        source, *(p.read_text() for p in sorted(FOLDER.glob("*.cuh"))), arch, *OPTIONS]).encode()).hexdigest()
    path = cache_folder() / f"{stem}-{arch}-{key[:32]}.cubin"
    with contextlib.suppress(OSError):
        return path.read_bytes()
    code = compile_source(source, arch, stem)
    with contextlib.suppress(OSError):          # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(code)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return code


def compile_source(source, arch, stem):
    """Compile CUDA source with PyCUDA; see `binary`."""
    from pycuda import compiler

    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError(
            "no CUDA compiler is found, which builds the kernels when they are first used: install the CUDA toolkit, "
            "and put nvcc on the PATH or set CUDA_HOME")
    try:
        return compiler.compile(source, nvcc=nvcc, options=list(OPTIONS), no_extern_c=True, arch=arch, cache_dir=False,
                                include_dirs=[str(FOLDER)])
    except Exception as e:
        raise RuntimeError(f"the kernels of {stem}.cu do not compile for {arch} with {nvcc}: {e}") from e
