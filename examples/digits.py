#!/usr/bin/env python3
"""Train a LeNet on handwritten digits, save it, and classify with it in a fresh process.

The images go into two databases, one to train with, in shifted copies, and one that is held out.
The net reads its batches from them. The output folder receives the databases, a picture of the
training curve and the predictor: init_net.pb, which fills the parameters, and predict_net.pb.
"""
import argparse
import gzip
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from caffe2.proto import caffe2_pb2
from caffe2.python import brew, core, model_helper, optimizer, utils, workspace
from caffe2.python.predictor import mobile_exporter

DATA = Path(__file__).resolve().parent / "data/digits.csv.gz"
HELD_OUT = 360
COPIES = 4
TEST_BATCH = 90


def load_digits():
    """Return images of 28 x 28 pixels from 0 to 16, and labels, in random order."""
    with gzip.open(DATA, "rt") as f:
        table = np.loadtxt(f, delimiter=",", dtype=np.uint8)
    table = table[np.random.default_rng(0).permutation(len(table))]
    small = table[:, :-1].reshape(-1, 1, 8, 8)
    images = np.pad(small.repeat(3, axis=2).repeat(3, axis=3), ((0, 0), (0, 0), (2, 2), (2, 2)))
    return images, table[:, -1].astype(np.int32)


def shifted(images, labels):
    """Return copies of the images, each shifted by up to two pixels, in random order."""
    rng = np.random.default_rng(1)
    order = rng.permutation(COPIES * len(images)) % len(images)
    shifts = rng.integers(-2, 3, (len(order), 2))
    moved = [np.roll(images[i], shift, axis=(1, 2)) for i, shift in zip(order, shifts)]
    return np.stack(moved), labels[order]


def write_database(path, db_type, images, labels):
    """Write each image with its label as one record."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    db = workspace.C.create_db(db_type, str(path), workspace.C.Mode.new)
    transaction = db.new_transaction()
    for i, (image, label) in enumerate(zip(images, labels)):
        record = caffe2_pb2.TensorProtos(protos=[
            utils.NumpyArrayToCaffe2Tensor(image), utils.NumpyArrayToCaffe2Tensor(label)])
        transaction.put(f"{i:05d}", record.SerializeToString())
    transaction.commit()
    del transaction
    db.close()


def read_database(path, db_type):
    """Return the images and labels of a database."""
    db = workspace.C.create_db(db_type, str(path), workspace.C.Mode.read)
    cursor = db.new_cursor()
    records = []
    while cursor.valid():
        protos = caffe2_pb2.TensorProtos.FromString(cursor.value()).protos
        records.append([utils.Caffe2TensorToNumpyArray(p) for p in protos])
        cursor.next()
    images, labels = zip(*records)
    return np.stack(images), np.array(labels)


def add_input(model, path, db_type, batch_size, device):
    """Read a batch, on the CPU, and scale its pixels to the range from 0 to 1, on the device."""
    with core.DeviceScope(core.DeviceOption(caffe2_pb2.CPU)):
        pixels, label = model.TensorProtosDBInput(
            [], ["pixels", "label"], batch_size=batch_size, db=str(path), db_type=db_type)
    if device.device_type != caffe2_pb2.CPU:
        pixels, label = [model.net.CopyCPUToGPU(b, f"{b}_copy") for b in (pixels, label)]
    data = model.net.Cast(pixels, "data", to=core.DataType.FLOAT)
    data = model.net.Scale(data, data, scale=1 / 16)
    return model.net.StopGradient(data, data), label


def add_lenet(model, data):
    """Two convolutions and two fully connected layers."""
    conv1 = brew.conv(model, data, "conv1", dim_in=1, dim_out=20, kernel=5)
    pool1 = brew.max_pool(model, conv1, "pool1", kernel=2, stride=2)
    conv2 = brew.conv(model, pool1, "conv2", dim_in=20, dim_out=50, kernel=5)
    pool2 = brew.max_pool(model, conv2, "pool2", kernel=2, stride=2)
    fc3 = brew.fc(model, pool2, "fc3", dim_in=50 * 4 * 4, dim_out=500)
    relu3 = brew.relu(model, fc3, fc3)
    pred = brew.fc(model, relu3, "pred", dim_in=500, dim_out=10)
    return brew.softmax(model, pred, "softmax")


def add_training(model, softmax, label, steps):
    """Add loss, gradients and the optimizer."""
    xent = model.net.LabelCrossEntropy([softmax, label], "xent")
    loss = model.net.AveragedLoss(xent, "loss")
    model.AddGradientOperators([loss])
    optimizer.build_sgd(
        model, base_learning_rate=0.02, momentum=0.9, policy="step",
        stepsize=max(1, 2 * steps // 3), gamma=0.1)


def progress(step, steps, text):
    """Draw a bar on a terminal; elsewhere, write a line at the end of an epoch."""
    width = 30
    done = width * step // steps
    if sys.stderr.isatty():
        end = "\n" if step == steps else ""
        print(f"\r[{'#' * done}{'.' * (width - done)}] {text}\033[K", end=end, file=sys.stderr,
              flush=True)
    elif text.endswith("%"):
        print(text, file=sys.stderr, flush=True)


def train(args):
    """Train, and return loss and held-out accuracy of each epoch."""
    per_epoch = args.images // args.batch_size
    steps = args.epochs * per_epoch
    device = core.DeviceOption(getattr(caffe2_pb2, args.device.upper()))
    with core.DeviceScope(device):
        train_model = model_helper.ModelHelper(name="train")
        data, label = add_input(train_model, args.train_db, args.db_type, args.batch_size, device)
        softmax = add_lenet(train_model, data)
        brew.accuracy(train_model, [softmax, label], "accuracy")
        add_training(train_model, softmax, label, steps)

        test_model = model_helper.ModelHelper(name="test", init_params=False)
        data, label = add_input(test_model, args.test_db, args.db_type, TEST_BATCH, device)
        brew.accuracy(test_model, [add_lenet(test_model, data), label], "test_accuracy")

    train_model.param_init_net.set_rand_seed(args.seed)
    for model in (train_model, test_model):
        model.net.Proto().type = args.net_type
        model.net.Proto().num_workers = 2
        workspace.RunNetOnce(model.param_init_net)
        workspace.CreateNet(model.net)

    curve = []
    for epoch in range(1, args.epochs + 1):
        losses = []
        for i in range(per_epoch):
            workspace.RunNet(train_model.net)
            losses.append(float(workspace.FetchBlob("loss")))
            accuracy = float(workspace.FetchBlob("accuracy"))
            progress((epoch - 1) * per_epoch + i, steps,
                     f"epoch {epoch}/{args.epochs}  loss {losses[-1]:.4f}  "
                     f"accuracy {accuracy:.3f}")
        correct = []
        for _ in range(HELD_OUT // TEST_BATCH):
            workspace.RunNet(test_model.net)
            correct.append(float(workspace.FetchBlob("test_accuracy")))
        curve.append((np.mean(losses), np.mean(correct)))
        progress(epoch * per_epoch, steps,
                 f"epoch {epoch}/{args.epochs}  loss {curve[-1][0]:.4f}  "
                 f"held-out accuracy {100 * curve[-1][1]:.2f} %")
    return np.array(curve)


def draw(curve, path):
    """Save a picture of the training curve."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("The picture needs matplotlib: pip install 'caffe2[draw]'")
    epochs = np.arange(1, len(curve) + 1)
    figure = Figure(figsize=(6, 4), layout="constrained")
    loss = figure.subplots()
    loss.plot(epochs, curve[:, 0], "o-", markersize=3, color="tab:blue")
    loss.set(xlabel="epoch", yscale="log")
    loss.set_ylabel("training loss", color="tab:blue")
    error = loss.twinx()
    error.plot(epochs, 100 * (1 - curve[:, 1]), "o-", markersize=3, color="tab:orange")
    error.set_ylim(bottom=0)
    error.set_ylabel("held-out error (%)", color="tab:orange")
    figure.savefig(path, dpi=150)


def save_predictor(output):
    """Save the parameters in the workspace and the net that predicts with them."""
    model = model_helper.ModelHelper(name="digits", init_params=False)
    model.net.AddExternalOutput(add_lenet(model, "data"))
    nets = mobile_exporter.Export(workspace, model.net, model.params)
    for name, net in zip(("init_net.pb", "predict_net.pb"), nets):
        (output / name).write_bytes(net.SerializeToString())


def classify(args):
    """Load the predictor and classify the held-out images."""
    try:
        predictor = workspace.Predictor(*[
            (args.output / name).read_bytes() for name in ("init_net.pb", "predict_net.pb")])
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing; run without 'classify' first")
    images, labels = read_database(args.test_db, args.db_type)
    probabilities, = predictor.run([images.astype(np.float32) / 16])
    predicted = probabilities.argmax(axis=1)
    print("held-out images:  " + " ".join(map(str, labels[:20])))
    print("classified as:    " + " ".join(map(str, predicted[:20])))
    right = np.count_nonzero(predicted == labels)
    print(f"{right} of {len(labels)} are right: {100 * right / len(labels):.2f} %")


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "command", nargs="?", choices=["train", "classify"], default="train",
        help="train and then classify (the default), or only classify with what was saved")
    parser.add_argument("--db-type", default="minidb", choices=["minidb", "lmdb"],
                        help="kind of the databases (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=8,
                        help="passes over the training images (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64,
                        help="images a step (default %(default)s)")
    parser.add_argument("--net-type", default="simple",
                        help="executor: simple, dag, async_scheduling ... (default %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu",
                        help="where the nets run; reading stays on the CPU (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1,
                        help="of the first parameters (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("examples/output"),
                        help="folder for everything that is written (default %(default)s)")
    args = parser.parse_args(arguments)
    if args.epochs < 1 or args.batch_size < 1:
        parser.error("--epochs and --batch-size must be at least 1")
    args.train_db, args.test_db = [
        args.output / f"{name}.{args.db_type}" for name in ("train", "test")]
    return args


def main():
    args = parse()
    if args.command == "classify":
        classify(args)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    images, labels = load_digits()
    write_database(args.test_db, args.db_type, images[:HELD_OUT], labels[:HELD_OUT])
    images, labels = shifted(images[HELD_OUT:], labels[HELD_OUT:])
    write_database(args.train_db, args.db_type, images, labels)
    args.images = len(images)
    if args.batch_size > args.images:
        sys.exit(f"--batch-size must be at most {args.images}")

    start = time.perf_counter()
    curve = train(args)
    print(f"{args.epochs} epochs in {time.perf_counter() - start:.1f} s, "
          f"held-out accuracy {100 * curve[-1, 1]:.2f} %")
    save_predictor(args.output)
    draw(curve, args.output / "training_curve.png")
    print(f"saved {', '.join(sorted(p.name for p in args.output.iterdir()))} in {args.output}")
    subprocess.run(
        [sys.executable, __file__, "classify", "--db-type", args.db_type,
         "--output", args.output], check=True)


if __name__ == "__main__":
    main()
