"""Message definitions agree with the recorded descriptors."""

import pytest

from conformance import check

RESULT = check.check_protos()


def test_every_definition_is_compared():
    assert len(RESULT) == 277


@pytest.mark.parametrize("file", check.reference("protos.json"))
def test_definitions(file):
    assert {k: v for k, v in RESULT.items() if k.startswith(file) and v} == {}
