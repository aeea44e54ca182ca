"""Parameters shared between name scopes."""
import pytest

from caffe2.python import brew, model_helper
from caffe2.python.modeling.parameter_sharing import ParameterSharing, parameter_sharing_context
from caffe2.python.scope import NameScope

name = parameter_sharing_context.get_parameter_name


def test_nothing_shared():
    assert name("w") == "w"
    with NameScope("a"), NameScope("b"):
        assert name("w") == "a/b/w"


def test_shared():
    with NameScope("global"), ParameterSharing({"b": "a"}):
        assert name("w") == "global/w"
        with NameScope("b"):
            assert name("w") == "global/a/w"
            with ParameterSharing({"shared": ""}):
                assert name("w") == "global/a/w"
                with NameScope("shared"):
                    assert name("w") == "global/a/w"
                with NameScope("other"):
                    assert name("w") == "global/a/other/w"
        with NameScope("bb"):
            assert name("w") == "global/bb/w"
    with NameScope("global"), NameScope("b"):
        assert name("w") == "global/b/w"


@pytest.mark.parametrize("end", ["", "/"])
def test_subscopes(end):
    with ParameterSharing({"g/b" + end: "g/a"}), NameScope("g"):
        for scope, resolved in (("a", "g/a/w"), ("b", "g/a/w"), ("c", "g/c/w")):
            with NameScope(scope):
                assert name("w") == resolved


def test_prefix_is_refused():
    with pytest.raises(AssertionError, match="Illegal override"), ParameterSharing({"a": "a/b"}):
        pass
    assert name("w") == "w"


def test_ends_with_an_exception():
    with pytest.raises(ValueError), ParameterSharing({"b": "a"}):
        raise ValueError
    with NameScope("b"):
        assert name("w") == "b/w"


def test_layers():
    model = model_helper.ModelHelper(name="test")
    outputs = set()

    def layer():
        outputs.add(str(brew.fc(model, "x", "y", 4, 4)))

    with NameScope("g"):
        with NameScope("a"):
            layer()
        with ParameterSharing({"b": "a"}), NameScope("b"):
            with ParameterSharing({"shared_1": "", "shared_2": ""}):
                for scope in ("shared_1", "shared_2", "own"):
                    with NameScope(scope):
                        layer()
    assert outputs == {"g/a/y", "g/b/shared_1/y", "g/b/shared_2/y", "g/b/own/y"}
    assert model.params == ["g/a/y_w", "g/a/y_b", "g/a/own/y_w", "g/a/own/y_b"]
    model.Validate()
