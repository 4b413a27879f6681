"""The thread's alternate stack for signals, which OpenVINO replaces."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_DISABLED = 2  # SS_DISABLE


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """A context after which this thread has the alternate signal stack that it had before (sigaltstack(2)).

    OpenVINO's CPU plugin gives the thread that loads it a stack of its own, and unmaps this memory with the last
    compiled model without taking the stack back. The next signal whose handler runs there, such as that of a process
    that has ended, then kills this process. Elsewhere than on Linux nothing is done.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        none = _Stack(None, _DISABLED, 0)
        stack = none if before.flags & _DISABLED else _Stack(before.address, 0, before.size)
        if libc.sigaltstack(ctypes.byref(stack), None):  # too small for registers that are in use by now
            libc.sigaltstack(ctypes.byref(none), None)
