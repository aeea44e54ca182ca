"""The runtime: tensors, blobs, workspaces, schemas, operators, nets, plans, threads. It knows no operator."""
import os

# Between two parallel loops OpenMP's threads spin. GCC's library would have them do so for tens of milliseconds, in
# which they keep a busy machine's cores from those who compute; it reads this when it is loaded. A few thousand turns
# (about 0.2 ms) bridge the serial operators of a small net; waking a thread that sleeps costs some 0.05 ms.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "3000"
    from caffe2._core import threads  # noqa: F401

    del os.environ["GOMP_SPINCOUNT"]
