"""Counters: counting up and down, running out, saving."""

import threading

import numpy as np
import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace


def run(op, inputs=("c",), outputs=("y",), **args):
    workspace.RunOperatorOnce(core.CreateOperator(op, list(inputs), list(outputs), **args))
    return workspace.FetchBlob(outputs[0]) if outputs and op != "CreateCounter" else None


def create(count):
    run("CreateCounter", [], ["c"], init_count=count)


def test_counts_down_and_up():
    create(1)
    done = run("CountDown")
    assert done.dtype == bool and done.shape == () and not done
    assert run("CheckCounterDone")
    assert run("CountDown")                 # from 0 to -1
    assert run("RetrieveCount") == -1
    before = run("CountUp")
    assert before.dtype == np.int64 and before.shape == () and before == -1
    assert run("RetrieveCount") == 0


def test_reset():
    create(3)
    assert run("ResetCounter", init_count=7) == 3
    assert run("ResetCounter") == 7
    assert run("RetrieveCount") == 0
    run("ResetCounter", outputs=[], init_count=2)
    assert run("RetrieveCount") == 2
    assert not run("CheckCounterDone")


def test_survives_serialization():
    create(5)
    run("CountDown")
    data = workspace.SerializeBlob("c")
    message = caffe2_pb2.BlobProto.FromString(data)
    assert message.type == "std::unique_ptr<Counter<int64_t>>"
    assert list(message.tensor.int64_data) == [4]
    workspace.ResetWorkspace()
    workspace.DeserializeBlob("c", data)
    assert run("RetrieveCount") == 4


def test_threads_lose_no_count():
    create(0)
    net = core.Net("count")
    net.Proto().op.extend([core.CreateOperator("CountUp", ["c"], ["y"])])
    workspace.CreateNet(net)
    threads = [threading.Thread(target=workspace.RunNet, args=(net, 500)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert run("RetrieveCount") == 2000


def test_refuses():
    for op in ("CreateCounter", "ResetCounter"):
        with pytest.raises(RuntimeError, match="init_count must not be negative"):
            create(1)
            run(op, ["c"] if op == "ResetCounter" else [], ["c" if op == "CreateCounter" else "y"],
                init_count=-1)
    assert run("RetrieveCount") == 1
    workspace.FeedBlob("x", np.zeros(1))
    with pytest.raises(RuntimeError, match="CountUp.*x"):
        run("CountUp", ["x"])
