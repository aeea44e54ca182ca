"""First values of parameters."""
import numpy as np
import pytest

from caffe2.python import brew, core, model_helper, workspace
from caffe2.python.modeling.initializers import (
    ExternalInitializer,
    Initializer,
    PseudoFP16Initializer,
    ReversePseudoFP16Initializer,
    update_initializer,
)


def test_update():
    init = Initializer()
    init.update("ConstantFill", {"value": 2.0})
    assert (init.operator_name, init.operator_kwargs) == ("ConstantFill", {"value": 2.0})
    with pytest.raises(Exception, match="not allowed"):
        init.update("XavierFill", {})


def test_update_initializer():
    given, default = ("ConstantFill", {"value": 2.0}), ("XavierFill", {})
    assert update_initializer(None, given, default).operator_name == "ConstantFill"
    assert update_initializer(None, None, default).operator_name == "XavierFill"
    special = update_initializer(PseudoFP16Initializer, given, default)
    assert isinstance(special, PseudoFP16Initializer)
    assert special.operator_kwargs == {"value": 2.0}


def test_external():
    net = core.Net("init")
    for name in (core.BlobReference("w"), "w"):
        info = ExternalInitializer().create_param(name, net, [2])
        assert info.blob == "w" and info.shape == [2]
    assert len(net.Proto().op) == 0
    with pytest.raises(TypeError):
        ExternalInitializer().create_param(3, net, [2])


@pytest.mark.parametrize("initializer, dtypes, copy_type", [
    (PseudoFP16Initializer, {"y_w": np.float16, "y_w_fp32": np.float32}, core.DataType.FLOAT),
    (ReversePseudoFP16Initializer, {"y_w": np.float32, "y_w_fp16": np.float16},
     core.DataType.FLOAT16),
])
def test_two_precisions(initializer, dtypes, copy_type):
    model = model_helper.ModelHelper(name="test")
    brew.fc(model, "x", "y", 4, 3, WeightInitializer=initializer)
    workspace.RunNetOnce(model.param_init_net)
    values = {name: workspace.FetchBlob(name) for name in dtypes}
    assert {name: v.dtype for name, v in values.items()} == dtypes
    half, single = sorted(values.values(), key=lambda v: v.itemsize)
    np.testing.assert_array_equal(half, single.astype(np.float16))
    copies = model.get_param_info(model.params[0]).blob_copy
    assert list(copies) == [copy_type]
    assert str(copies[copy_type]) in dtypes
