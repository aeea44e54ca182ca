"""Statistics that operators publish: named integers, all of one process in one table."""
import threading

_lock = threading.Lock()
_values = {}


def add(name, value):
    """Add to a statistic, which starts at 0."""
    with _lock:
        _values[name] = _values.get(name, 0) + int(value)


def export(reset=False):
    """dict of str to int: all statistics; `reset` sets them to 0 at the same time."""
    with _lock:
        values = dict(_values)
        if reset:
            for name in _values:
                _values[name] = 0
    return values
