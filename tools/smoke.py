"""What an installed package must do: train a small net, save it, load it, stay small."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from caffe2.python import brew, core, model_helper, optimizer, workspace

LIMIT = 20 * 2**20


def main():
    model = model_helper.ModelHelper(name="smoke")
    zeros = ("ConstantFill", {})  # random ones may start near the end
    brew.fc(model, "data", "fc", dim_in=4, dim_out=2, weight_init=zeros)
    _, loss = model.net.SoftmaxWithLoss(["fc", "label"], ["softmax", "loss"])
    model.AddGradientOperators([loss])
    optimizer.build_sgd(model, base_learning_rate=0.1)

    data = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
    workspace.FeedBlob("data", data)
    workspace.FeedBlob("label", (data[:, 0] > 0).astype(np.int32))
    workspace.RunNetOnce(model.param_init_net)
    workspace.CreateNet(model.net)
    workspace.RunNet(model.net)
    before = workspace.FetchBlob(loss)
    workspace.RunNet(model.net, 100)
    after = workspace.FetchBlob(loss)
    assert np.isclose(before, np.log(2)) and after < before / 2, (before, after)

    weights = workspace.FetchBlob("fc_w")
    with tempfile.TemporaryDirectory() as folder:
        db = dict(db=str(Path(folder, "weights")), db_type="minidb", absolute_path=True)
        workspace.RunOperatorOnce(core.CreateOperator("Save", ["fc_w"], [], **db))
        workspace.ResetWorkspace()
        workspace.RunOperatorOnce(core.CreateOperator("Load", [], ["fc_w"], **db))
    assert np.array_equal(workspace.FetchBlob("fc_w"), weights)

    package = Path(importlib.util.find_spec("caffe2").origin).parent
    files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    size = sum(p.stat().st_size for p in files)
    assert size <= LIMIT, f"installed size is {size / 2**20:.1f} MiB"
    print(f"works; {size / 2**20:.1f} MiB installed; loss {before:.3f} -> {after:.3f}")


if __name__ == "__main__":
    main()
