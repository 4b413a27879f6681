"""A bar's clock and its lock."""

import io
import os
import sys
import threading
from pathlib import Path

from tqdm import tqdm

from modeling_wavlink.progress import Bar

from .helpers import LOCK_HELD_BY_THE_DEAD
from .processes import run_process

DAY = 86400.0
ROOT = Path(__file__).parents[1]


def test_a_bar_goes_on_where_the_clock_is_put_back(monkeypatch):
    clock = [1e9]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])

    def shown(kind: type) -> bool:
        told = io.StringIO()
        bar = kind(total=3, file=told, mininterval=0, miniters=1)
        bar.update()
        clock[0] -= DAY
        bar.update()
        return "2/3" in told.getvalue()

    assert shown(Bar) and not shown(tqdm)


def test_a_killed_process_that_held_tqdms_lock_stops_no_bar():
    code = f"""{LOCK_HELD_BY_THE_DEAD}
from modeling_wavlink.progress import Bar
for disable in (True, False):
    with Bar(total=2, disable=disable) as bar:
        bar.set_postfix(loss=1)
        bar.update(2)
        Bar.write("written")
"""
    done = run_process([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "written\n" * 2 and "2/2" in done.stderr


def test_a_process_forked_while_the_lock_is_held_has_a_free_one():
    """As where another thread draws a bar at that moment."""
    code = """
import os, threading
from modeling_wavlink.progress import Bar
thread = threading.Thread(target=Bar.get_lock().acquire)
thread.start(), thread.join()
if not (child := os.fork()):
    os._exit(7 if Bar.get_lock().acquire(blocking=False) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""
    done = run_process([sys.executable, "-uc", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "7\n", done.stderr


def test_a_bar_leaves_tqdms_own_lock_as_it_is():
    lock = tqdm.get_lock()
    with Bar(total=1, file=io.StringIO()):
        assert tqdm.get_lock() is lock is not Bar.get_lock()
        assert not any(thread.name == "tqdm_monitor" and thread.tqdm_cls is Bar for thread in threading.enumerate())
    assert not isinstance(Bar(total=1, disable=True), tqdm)
    with tqdm(total=1, file=open(os.devnull, "w")) as outer, Bar(total=1, file=io.StringIO()) as inner:
        assert (outer.pos, inner.pos) == (0, 1)  # in the next line of a terminal
