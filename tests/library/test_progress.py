"""A bar's lock is not shared with other processes."""

import io
import os
import sys
import threading
from pathlib import Path

from tqdm import tqdm

from tests.helpers import LOCK_HELD_BY_THE_DEAD
from tests.processes import run_process
from wavlink.progress import Bar

ROOT = Path(__file__).parents[2]


def test_killed_process_with_tqdms_lock_blocks_no_bar():
    code = f"""{LOCK_HELD_BY_THE_DEAD}
from wavlink.progress import Bar
for disable in (True, False):
    with Bar(total=2, disable=disable) as bar:
        bar.set_postfix(loss=1)
        bar.update(2)
        Bar.write("written")
"""
    done = run_process([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "written\n" * 2 and "2/2" in done.stderr


def test_forked_process_has_a_free_lock():
    """As where another thread draws a bar at that moment."""
    code = """
import os, threading
from wavlink.progress import Bar
thread = threading.Thread(target=Bar.get_lock().acquire)
thread.start(), thread.join()
if not (child := os.fork()):
    os._exit(7 if Bar.get_lock().acquire(blocking=False) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0)
"""
    done = run_process([sys.executable, "-uc", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "7\n", done.stderr


def test_bar_does_not_change_tqdms_lock():
    lock = tqdm.get_lock()
    with Bar(total=1, file=io.StringIO()):
        assert tqdm.get_lock() is lock is not Bar.get_lock()
        assert not any(thread.name == "tqdm_monitor" and thread.tqdm_cls is Bar for thread in threading.enumerate())
    with tqdm(total=1, file=open(os.devnull, "w")) as outer, Bar(total=1, file=io.StringIO()) as inner:
        assert (outer.pos, inner.pos) == (0, 1)  # in the next line of a terminal
