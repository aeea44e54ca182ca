"""Nets: order, iterations, task graphs, threads, observers, timing, Ctrl-C."""
import _thread
import threading
import time

import numpy as np
import pytest
from caffe2._core.executor import chains, dependencies
from caffe2._core.threads import get_num_threads, set_num_threads

from caffe2._core.observer import Observer
from caffe2.proto import caffe2_pb2
from caffe2.python import core, workspace

ALL_TYPES = ["simple", "dag", "async_dag", "async_scheduling", "async_polling", "prof_dag"]


def counting(log):
    """A Python operator that notes its output's name."""
    def f(inputs, outputs):
        outputs[0].feed(np.array(len(log), dtype=np.int64))
        log.append(1)
    return f


@pytest.mark.parametrize("type_", ALL_TYPES)
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_all_executors_agree(type_, workers):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 8)).astype(np.float32)
    workspace.FeedBlob("x0", x)
    net = core.Net("n")
    net.Proto().type = type_
    net.Proto().num_workers = workers
    want = {"x0": x}
    for i in range(30):
        # a mixture of chains, forks and joins, and of updates in place
        a, b = f"x{i // 2}", f"x{i // 3}"
        net.MatMul([a, b], f"x{i + 1}")
        net.Sigmoid(f"x{i + 1}", f"x{i + 1}")
        want[f"x{i + 1}"] = 1 / (1 + np.exp(-(want[a].astype(np.float64) @ want[b])))
    workspace.CreateNet(net)
    for _ in range(3):
        workspace.RunNet(net, 2)
        for name, value in want.items():
            assert np.allclose(workspace.FetchBlob(name), value, atol=1e-4), name


@pytest.mark.parametrize("type_", ALL_TYPES)
def test_iterations(type_):
    log = []
    net = core.Net("n")
    net.Proto().type = type_
    net.Python(counting(log))([], ["y"])
    workspace.CreateNet(net)
    workspace.RunNet(net, 7)
    assert len(log) == 7
    assert workspace.FetchBlob("y") == 6


@pytest.mark.parametrize("type_", ALL_TYPES)
def test_a_failure_stops_the_net_and_is_raised(type_):
    def fails(inputs, outputs):
        raise ValueError("as it must")
    log = []
    net = core.Net("n")
    net.Proto().type = type_
    net.Python(fails)([], ["y"])
    net.Python(counting(log))(["y"], ["z"])
    workspace.CreateNet(net)
    with pytest.raises(RuntimeError, match="as it must.*Python.*of net 'n"):
        workspace.RunNet(net)
    assert not log
    assert workspace.RunNet(net, allow_fail=True) is False


def test_dependencies():
    net = core.Net("n")
    net.Relu("x", "a")      # 0
    net.Relu("x", "b")      # 1
    net.Relu("a", "a")      # 2 after 0
    net.MatMul(["a", "b"], "c")  # 3 after 1, 2
    net.Relu("x", "b")      # 4 overwrites b: after its writer and its reader
    net.Relu("c", "d")      # 5 after 3
    net.Relu("d", "e")      # 6 after 5
    parents = dependencies(net.Proto())
    assert parents == [set(), set(), {0}, {1, 2}, {1, 3}, {3}, {5}]
    assert chains(parents) == [[0, 2], [1], [3], [4], [5, 6]]


def test_branches_run_side_by_side():
    meeting = threading.Barrier(2, timeout=10)

    def meet(inputs, outputs):
        meeting.wait()
        outputs[0].feed(np.zeros(1))
    net = core.Net("n")
    net.Proto().type = "dag"
    net.Proto().num_workers = 2
    net.Python(meet)([], ["a"])
    net.Python(meet)([], ["b"])
    workspace.RunNetOnce(net)
    assert workspace.HasBlob("a") and workspace.HasBlob("b")


def test_one_worker_runs_one_operator_at_a_time():
    running, most = [], []

    def f(inputs, outputs):
        running.append(1)
        most.append(len(running))
        time.sleep(0.002)
        running.pop()
        outputs[0].feed(np.zeros(1))
    net = core.Net("n")
    net.Proto().type = "dag"
    net.Proto().num_workers = 1
    for i in range(5):
        net.Python(f)([], [f"y{i}"])
    workspace.RunNetOnce(net)
    assert max(most) == 1


def test_nets_of_several_threads_do_not_mix():
    errors = []

    def work(k):
        try:
            ws = workspace.C.Workspace()
            ws.feed_blob("x", np.full((50, 50), k, dtype=np.float32))
            net = core.Net(f"n{k}")
            for i in range(20):
                net.Relu("x" if i == 0 else f"y{i - 1}", f"y{i}")
            bound = ws.create_net(net)
            for _ in range(200):
                bound.run()
                assert (ws.fetch_blob("y19") == k).all()
        except BaseException as e:
            errors.append(e)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


def test_some_of_the_operators():
    net = core.Net("some")
    for i in range(4):
        net.Negative(f"x{i}", f"x{i + 1}")
    workspace.FeedBlob("x0", np.float32([1]))
    bound = workspace.C.Workspace.current.create_net(net.Proto())
    for first, last, there in ((0, 2, 3), (2, 3, 4), (3, 9, 5)):
        bound.run(1, first, last)
        assert [workspace.FetchBlob(f"x{i}") for i in range(there)] == [(-1) ** i for i in range(there)]
        for i in range(there, 5):
            with pytest.raises(RuntimeError, match="holds nothing yet"):
                workspace.FetchBlob(f"x{i}")


def test_a_net_runs_once_at_a_time():
    net = core.Net("n")
    net.Python(lambda inputs, outputs: workspace.RunNet(net.Name()))([], ["y"])
    workspace.CreateNet(net)
    with pytest.raises(RuntimeError, match="running already"):
        workspace.RunNet(net)


@pytest.mark.parametrize("type_", ["simple", "dag"])
def test_ctrl_c_ends_a_run(type_):
    net = core.Net("n")
    net.Proto().type = type_
    net.ConstantFill([], "x", shape=[100, 100])
    net.Relu("x", "y")
    workspace.CreateNet(net)
    timer = threading.Timer(0.2, _thread.interrupt_main)
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workspace.RunNet(net, 10**9)
    assert time.monotonic() - start < 20
    assert workspace.RunNet(net)


def test_observers_see_every_operator():
    class Log(Observer):
        def __init__(self):
            self.seen = []

        def start(self, net):
            self.seen.append("start")

        def start_operator(self, net, operator):
            self.seen.append(operator.type)

        def stop(self, net):
            self.seen.append("stop")

    workspace.FeedBlob("x", np.ones(3, np.float32))
    net = core.Net("n")
    net.Relu("x", "y")
    net.Sigmoid("y", "z")
    workspace.CreateNet(net)
    log = workspace.C.add_observer_to_net(net.Name(), Log())
    timer = workspace.C.add_observer_to_net(net.Name(), "TimeObserver")
    assert workspace.C.num_observers_on_net(net.Name()) == 2
    workspace.RunNet(net, 2)
    assert log.seen == ["start", "Relu", "Sigmoid", "stop"] * 2
    assert timer.runs == 2 and timer.average_time() >= timer.average_time_children() > 0
    workspace.C.remove_observer_from_net(net.Name(), log)
    workspace.RunNet(net)
    assert len(log.seen) == 8 and timer.runs == 3
    counter = workspace.C.add_observer_to_net(net.Name(), "RunCountObserver")
    workspace.RunNet(net, 3)
    assert counter.count == 6 and "6 times" in counter.debug_info()
    with pytest.raises(RuntimeError, match="TimeObserver"):
        workspace.C.add_observer_to_net(net.Name(), "Nothing")


def test_costs_are_observed():
    workspace.FeedBlob("x", np.ones(100, np.float32))
    net = core.Net("n")
    net.Relu("x", "y")
    workspace.CreateNet(net)
    observer = workspace.C.add_observer_to_net(net.Name(), "CostObserver")
    workspace.RunNet(net)
    assert observer.by_type["Relu"]["bytes_read"] == 400


def test_benchmark():
    workspace.FeedBlob("x", np.ones(3, np.float32))
    net = core.Net("n")
    net.Relu("x", "y")
    net.Relu("y", "z")
    workspace.CreateNet(net)
    times = workspace.BenchmarkNet(net.Name(), 1, 10, True)
    assert len(times) == 3 and min(times) > 0
    assert len(workspace.BenchmarkNet(net.Name(), 1, 10, False)) == 1
    with pytest.raises(ValueError):
        workspace.BenchmarkNet(net.Name(), -1, 10, False)


def test_net_device_reaches_operators_that_have_none():
    net = caffe2_pb2.NetDef(name="n")
    net.op.add(type="Relu", input=["x"], output=["y"])
    net.device_option.device_type = caffe2_pb2.CUDA
    workspace.FeedBlob("x", np.ones(3, np.float32))
    with pytest.raises(RuntimeError, match="CUDA"):
        workspace.CreateNet(net)


def test_the_number_of_threads():
    before = get_num_threads()
    try:
        set_num_threads(3)
        assert get_num_threads() == 3
        with pytest.raises(ValueError):
            set_num_threads(0)
    finally:
        set_num_threads(before)


def test_fetching_while_a_net_resizes_the_blob():
    net = caffe2_pb2.NetDef(name="n")
    for i, size in enumerate((10, 100_000, 3, 1_000_000)):
        net.op.append(core.CreateOperator("ConstantFill", [], "x", shape=[size], value=float(i)))
    net.op.append(core.CreateOperator("Free", "x", "x"))
    workspace.CreateNet(net)
    stop = threading.Event()

    def run():
        while not stop.is_set():
            workspace.RunNet("n", 10)
    runner = threading.Thread(target=run)
    runner.start()
    fetched = 0
    try:
        while fetched < 50:
            try:
                x = workspace.FetchBlob("x")
            except RuntimeError:    # between Free and the next fill
                continue
            assert x.size in (10, 100_000, 3, 1_000_000)
            fetched += 1
    finally:
        stop.set()
        runner.join()
