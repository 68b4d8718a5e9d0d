"""Moves the clock that Python's programs see; found through PYTHONPATH at their start.

By the seconds that the file PROVE_CLOCK holds at the moment. Only the time of day:
what measures how long something takes is another clock.
"""

import ctypes
import datetime
import gc
import os
import time
from pathlib import Path

_file = Path(os.environ["PROVE_CLOCK"])
_now, _time, _time_ns = datetime.datetime.now, time.time, time.time_ns


def _moved() -> float:
    return float(_file.read_text())


def _moved_now(cls: type, tz: datetime.tzinfo | None = None) -> datetime.datetime:
    return _now(tz) + datetime.timedelta(seconds=_moved())


# In the type itself: libraries in C know no other than that.
_names = gc.get_referents(datetime.datetime.__dict__)[0]
_names["now"] = classmethod(_moved_now)
_names["utcnow"] = classmethod(
    lambda cls: _moved_now(cls, datetime.UTC).replace(tzinfo=None)
)
ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime.datetime))
time.time = lambda: _time() + _moved()
time.time_ns = lambda: _time_ns() + int(_moved() * 1e9)
