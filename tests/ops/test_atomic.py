"""Mutexes, atomic additions and flags."""

import threading

import numpy as np
import pytest

from caffe2.python import core, workspace


def run(op, inputs, outputs):
    workspace.RunOperatorOnce(core.CreateOperator(op, inputs, outputs))


@pytest.mark.parametrize("op, dtype", [("AtomicFetchAdd", np.int32), ("AtomicFetchAdd64", np.int64)])
def test_fetch_add(op, dtype):
    run("CreateMutex", [], ["m"])
    workspace.FeedBlob("a", np.array([5], dtype))
    workspace.FeedBlob("b", np.array([-7], dtype))
    run(op, ["m", "a", "b"], ["a", "before"])
    for name, want in (("a", -2), ("before", 5)):
        value = workspace.FetchBlob(name)
        assert value == want and value.shape == () and value.dtype == dtype
    workspace.FeedBlob("a", np.array([np.iinfo(dtype).max], dtype))
    workspace.FeedBlob("b", np.array([1], dtype))
    run(op, ["m", "a", "b"], ["a", "before"])
    assert workspace.FetchBlob("a") == np.iinfo(dtype).min


def test_threads_lose_no_addition():
    run("CreateMutex", [], ["m"])
    workspace.FeedBlob("a", np.array(0))
    workspace.FeedBlob("b", np.array(3))
    nets = []
    for i in range(4):
        net = core.Net(f"add{i}")
        net.Proto().op.extend([
            core.CreateOperator("AtomicFetchAdd64", ["m", "a", "b"], ["a", f"before{i}"])])
        workspace.CreateNet(net)
        nets.append(net)
    threads = [threading.Thread(target=workspace.RunNet, args=(n, 500)) for n in nets]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert workspace.FetchBlob("a") == 4 * 500 * 3


def test_flag():
    run("CreateAtomicBool", [], ["flag"])
    for condition, want in ((False, False), (True, True), (False, True)):
        workspace.FeedBlob("c", np.array([condition]))
        run("ConditionalSetAtomicBool", ["flag", "c"], [])
        run("CheckAtomicBool", ["flag"], ["y"])
        np.testing.assert_array_equal(workspace.FetchBlob("y"), [want])


def test_mutex_survives_serialization():
    run("CreateMutex", [], ["m"])
    workspace.DeserializeBlob("n", workspace.SerializeBlob("m"))
    workspace.FeedBlob("a", np.array([1], np.int32))
    run("AtomicFetchAdd", ["n", "a", "a"], ["b", "c"])
    assert workspace.FetchBlob("b") == 2


def test_refuses():
    run("CreateMutex", [], ["m"])
    workspace.FeedBlob("a", np.array([1], np.int32))
    workspace.FeedBlob("two", np.array([1, 2], np.int32))
    bad = [("AtomicFetchAdd", ["a", "a", "a"]), ("AtomicFetchAdd", ["m", "a", "two"]),
           ("AtomicFetchAdd64", ["m", "a", "a"]), ("CheckAtomicBool", ["m"])]
    for op, inputs in bad:
        with pytest.raises(RuntimeError, match=op):
            run(op, inputs, ["x", "y"][:2 if len(inputs) > 1 else 1])
    with pytest.raises(RuntimeError, match="ConditionalSetAtomicBool"):
        run("ConditionalSetAtomicBool", ["a", "a"], [])
    # A failed addition has let the mutex go.
    run("AtomicFetchAdd", ["m", "a", "a"], ["x", "y"])
