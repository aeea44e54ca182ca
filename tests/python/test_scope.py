import threading

import pytest

from caffe2.proto import caffe2_pb2
from caffe2.python import core, scope


def cuda(device_id, **kwargs):
    return core.DeviceOption(caffe2_pb2.CUDA, device_id, **kwargs)


def test_name_scopes_nest_and_end():
    assert scope.CurrentNameScope() == ""
    with scope.NameScope("a"):
        with scope.NameScope("b"):
            assert scope.CurrentNameScope() == "a/b/"
        with scope.NameScope(None), scope.NameScope(""):
            assert scope.CurrentNameScope() == "a/"
        with scope.NameScope("c", reset=True):
            assert scope.CurrentNameScope() == "c/"
        with scope.EmptyNameScope():
            assert scope.CurrentNameScope() == ""
        assert scope.CurrentNameScope() == "a/"
    assert scope.CurrentNameScope() == ""


def test_device_scopes_replace_each_other():
    assert scope.CurrentDeviceScope() is None
    with scope.DeviceScope(cuda(1)):
        with scope.DeviceScope(cuda(2)):
            assert scope.CurrentDeviceScope() == cuda(2)
        with scope.EmptyDeviceScope():
            assert scope.CurrentDeviceScope() is None
        assert scope.CurrentDeviceScope() == cuda(1)
    assert scope.CurrentDeviceScope() is None


def test_device_scope_copies_its_option():
    option = cuda(1)
    with scope.DeviceScope(option):
        option.device_id = 5
        assert scope.CurrentDeviceScope().device_id == 1


def test_node_name_is_inherited_and_overridden():
    with scope.DeviceScope(cuda(0, node_name="outer")):
        with scope.DeviceScope(cuda(1)):
            assert scope.CurrentDeviceScope().node_name == "outer"
        with scope.DeviceScope(cuda(1, node_name="inner")):
            assert scope.CurrentDeviceScope().node_name == "inner"
        with scope.DeviceScope(cuda(1), node_name="given"):
            assert scope.CurrentDeviceScope().node_name == "given"
    with scope.DeviceScope(None, node_name="alone"):
        assert scope.CurrentDeviceScope() == caffe2_pb2.DeviceOption(node_name="alone")


def test_extra_info_accumulates():
    with scope.DeviceScope(cuda(0, extra_info=["b:1"])):
        with scope.DeviceScope(cuda(0, extra_info=["a:1"])):
            assert list(scope.CurrentDeviceScope().extra_info) == ["a:1", "b:1"]
        assert list(scope.CurrentDeviceScope().extra_info) == ["b:1"]


@pytest.mark.parametrize(
    "enter",
    [
        lambda: scope.NameScope("a"),
        lambda: scope.DeviceScope(cuda(1)),
        scope.EmptyNameScope,
        scope.EmptyDeviceScope,
    ],
)
def test_exceptions_pass_and_end_scopes(enter):
    with pytest.raises(KeyError, match="inner"), enter():
        raise KeyError("inner")
    assert scope.CurrentNameScope() == ""
    assert scope.CurrentDeviceScope() is None


@pytest.mark.parametrize(
    "enter",
    [
        lambda: scope.NameScope(1),
        lambda: scope.DeviceScope("cpu"),
        lambda: scope.DeviceScope(None),
    ],
)
def test_wrong_arguments(enter):
    with pytest.raises(AssertionError), enter():
        pass


def test_scopes_belong_to_their_thread():
    seen = {}
    barrier = threading.Barrier(3)

    def work(i):
        before = scope.CurrentNameScope(), scope.CurrentDeviceScope()
        with scope.NameScope(f"thread{i}"), scope.DeviceScope(cuda(i)):
            barrier.wait(10)
            seen[i] = before, scope.CurrentNameScope(), scope.CurrentDeviceScope().device_id

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    with scope.NameScope("main"), scope.DeviceScope(cuda(7)):
        for t in threads:
            t.start()
        for t in threads:
            t.join(10)
        assert scope.CurrentNameScope() == "main/"
    assert seen == {i: (("", None), f"thread{i}/", i) for i in range(3)}
