"""What every registered operator must say of itself."""
import pytest

from caffe2._core.schema import OpSchema
from caffe2.python import workspace

# Their outputs are no tensors, or have shapes that only the values tell.
NOT_INFERRED = """
    CreateAtomicBool CreateCounter CreateDB CreateMutex Free Python PythonDLPack PythonDLPackGradient PythonGradient
    Snapshot SparseToDenseMaskGradient SplitByLengths TensorProtosDBInput TileGradient
""".split()
OPERATORS = workspace.RegisteredOperators()


@pytest.mark.parametrize("type_", OPERATORS)
def test_it_is_described(type_):
    schema = OpSchema.get(type_)
    assert schema.doc
    assert len(schema.input_desc) >= schema.min_input and len(schema.output_desc) >= schema.min_output
    assert all(name and meaning for name, meaning in [*schema.input_desc, *schema.output_desc])
    assert all(arg.description for arg in schema.args)


def test_shapes_are_inferred_where_inputs_tell_them():
    silent = [t for t in OPERATORS if OpSchema.get(t)._infer is None and OpSchema.get(t).max_output]
    assert silent == NOT_INFERRED
