"""Context-managed classes."""
import threading

import pytest

from caffe2.python import context


class Strict(context.Managed):
    pass


class Lenient(context.DefaultManaged):
    pass


class Child(Strict):
    pass


def test_current_is_the_innermost():
    with Strict() as outer:
        assert Strict.current() is outer
        with Strict() as inner:
            assert Strict.current() is inner
        assert Strict.current() is outer


def test_none_active():
    assert Strict.current(required=False) is None
    with pytest.raises(AssertionError, match="required"):
        Strict.current()


def test_default_instance_is_kept():
    assert Lenient.current() is Lenient.current()
    assert isinstance(Lenient.current(), Lenient)


def test_given_value_is_checked():
    value = Strict()
    assert Strict.current(value) is value
    with pytest.raises(AssertionError, match="Wrong context type"):
        Strict.current(Lenient())


def test_child_counts_for_its_parent():
    with Child() as child:
        assert Child.current() is child
        assert Strict.current() is child
    with Strict():
        assert Child.current(required=False) is None


def test_left_when_the_body_raises():
    with pytest.raises(KeyError), Strict():
        raise KeyError
    assert Strict.current(required=False) is None


def test_decorator():
    @Strict()
    def inside():
        return Strict.current()

    assert isinstance(inside(), Strict)
    assert Strict.current(required=False) is None


def test_threads_have_stacks_of_their_own():
    seen = []

    def work():
        for _ in range(100):
            with Strict() as mine:
                seen.append(Strict.current() is mine)

    with Strict():
        threads = [threading.Thread(target=work) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(seen) == 800 and all(seen)
