"""The nets that are timed, shared by the asv suite and peers.py."""

import numpy as np

from caffe2.python import brew, cnn, core, model_helper, optimizer, workspace

F = np.float32
rng = np.random.default_rng(0)


def walk_through(where=None, gradients=True):
    """Feed and bind the introduction's net: FC, Sigmoid and SoftmaxWithLoss on 16 rows.

    Parameters
    ----------
    where : Workspace, optional
        By default the current one.

    Returns
    -------
    model, net
        The model helper, and the net as it is bound.
    """
    if where is None:       # one without blobs counts as false
        where = workspace.C.Workspace.current
    model = cnn.CNNModelHelper(name="walk_through")
    fc1 = model.FC("data", "fc1", dim_in=100, dim_out=10)
    pred = model.Sigmoid(fc1, "pred")
    _, loss = model.SoftmaxWithLoss([pred, "label"], ["softmax", "loss"])
    if gradients:
        model.AddGradientOperators([loss])
    where.feed_blob("data", rng.random((16, 100), dtype=F))
    where.feed_blob("label", rng.integers(0, 10, 16).astype(np.int32))
    where.run(model.param_init_net)
    return model, where.create_net(model.net)


def lenet(batch=64, train=True):
    """Feed and bind the LeNet of the original's MNIST tutorial, with a step of SGD.

    Returns
    -------
    str
        The net's name.
    """
    model = model_helper.ModelHelper(name="lenet", arg_scope={"order": "NCHW"})
    conv1 = brew.conv(model, "images", "conv1", dim_in=1, dim_out=20, kernel=5)
    pool1 = brew.max_pool(model, conv1, "pool1", kernel=2, stride=2)
    conv2 = brew.conv(model, pool1, "conv2", dim_in=20, dim_out=50, kernel=5)
    pool2 = brew.max_pool(model, conv2, "pool2", kernel=2, stride=2)
    fc3 = brew.fc(model, pool2, "fc3", dim_in=50 * 4 * 4, dim_out=500)
    fc3 = brew.relu(model, fc3, fc3)
    pred = brew.fc(model, fc3, "pred", 500, 10)
    softmax = brew.softmax(model, pred, "softmax")
    if train:
        xent = model.LabelCrossEntropy([softmax, "labels"], "xent")
        loss = model.AveragedLoss(xent, "loss")
        model.AddGradientOperators([loss])
        optimizer.build_sgd(model, base_learning_rate=0.1, policy="step", stepsize=1, gamma=0.999)
    workspace.FeedBlob("images", rng.random((batch, 1, 28, 28), dtype=F))
    workspace.FeedBlob("labels", rng.integers(0, 10, batch).astype(np.int32))
    workspace.RunNetOnce(model.param_init_net)
    workspace.CreateNet(model.net)
    return model.net.Name()


def relus(count, size=1, net_type="simple"):
    """Feed and bind a chain of Relu operators on tiny tensors.

    Returns
    -------
    str
        The net's name.
    """
    net = core.Net("relus")
    net.Proto().type = net_type
    workspace.FeedBlob("x0", np.ones(size, F))
    for i in range(count):
        net.Relu(f"x{i}", f"x{i + 1}")
    workspace.CreateNet(net)
    return net.Name()


def one_operator(op, arrays, outputs=("y",), **args):
    """Feed the inputs of an operator, x0, x1 and so on, and bind a net of it alone.

    Returns
    -------
    str
        The net's name.
    """
    inputs = [f"x{i}" for i in range(len(arrays))]
    for name, value in zip(inputs, arrays):
        workspace.FeedBlob(name, value)
    net = core.Net("one")
    net.Proto().op.extend([core.CreateOperator(op, inputs, outputs, **args)])
    workspace.CreateNet(net)
    return net.Name()


def normal(*shape, dtype=F):
    """Random values, normally distributed."""
    return rng.standard_normal(shape).astype(dtype)
