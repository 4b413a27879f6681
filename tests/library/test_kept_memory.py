"""Memory that a process keeps: freed blocks, the heaps of threads, and what oneDNN caches."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from wavlink import kept_memory

# A block of 16 MB that is freed makes glibc take all smaller ones from the heap; the last tensor keeps the heap's end.
FREED = """
import sys
import torch
from wavlink.kept_memory import limit_kept_memory
from wavlink.training.memory import peak_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 >> 10

if sys.argv[1] == "True":
    print(limit_kept_memory())
block = torch.ones(1 << 22)
del block
before = resident()
tensors = [torch.ones((1 << 20) - 512 * i) for i in range(100)]
assert resident() > before + 200 and peak_memory() >= resident() - 1
del tensors[:-1]
print(resident() - before)
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")


def run(returned: bool, code: str = FREED, **environment) -> list[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE", "LRU_", "ONEDNN_"))
    }
    command = [sys.executable, "-c", code, str(returned)]
    options = {"capture_output": True, "text": True, "check": True, "timeout": 300}
    return subprocess.run(command, env={**clean, **environment}, **options).stdout.split()


@pytest.mark.slow
@glibc
def test_freed_tensors_go_back_to_the_system():
    """In MiB, of 390 freed: by itself glibc keeps them."""
    assert int(run(False)[-1]) > 200
    answer, kept = run(True)
    assert answer == "True" and int(kept) < 50


@pytest.mark.slow
@glibc
def test_settings_of_the_environment_stay():
    assert run(True, MALLOC_TRIM_THRESHOLD_="100000000")[0] == "False"


# Products in bf16 of ever other lengths: what oneDNN keeps of all of them is much more than of the last 32.
LENGTHS = """
import sys
import torch
from wavlink.kept_memory import limit_kept_memory, return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 >> 10

if sys.argv[1] == "True":
    limit_kept_memory()
layer = torch.nn.Linear(384, 1536).bfloat16()
for length in range(100, 300):
    if length == 110:
        before = resident()
    layer(torch.ones(8 * length, 384, dtype=torch.bfloat16)).sum().backward()
    return_freed_memory()
print(resident() - before)
"""


@pytest.mark.slow
@glibc
def test_new_lengths_take_no_new_memory():
    """In MiB, over 190 lengths; 916 without the limits, on a CPU whose products in bf16 are oneDNN's."""
    assert int(run(True, code=LENGTHS)[-1]) < 100


THREADS = """
import ctypes
import sys
import threading
from wavlink.kept_memory import limit_kept_memory

limit_kept_memory(embedding=sys.argv[1] == "True")
together = threading.Barrier(6)

def work():
    block = bytearray(1 << 16)
    together.wait()

threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
large = bytearray(1 << 23)
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, file)
libc.fflush(file)
"""


@glibc
@pytest.mark.parametrize("embedding", [False, True])
def test_threads_that_embed_share_one_heap_from_which_large_blocks_come_too(embedding):
    """Each batch has them, and to map each takes a quarter of its time."""
    words = run(embedding, code=THREADS)
    heaps = words.count("<heap")
    mapped = int(words[max(place for place, word in enumerate(words) if 'type="mmap"' in word) + 2].split('"')[1])
    assert heaps == 1 and mapped < 1 << 23 if embedding else heaps > 1 and mapped >= 1 << 23


def test_a_library_without_these_functions_changes_nothing(monkeypatch):
    """As musl, on which a program made for glibc may run."""
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "1")
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.17"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not kept_memory.limit_kept_memory(embedding=True)
    kept_memory.return_freed_memory()
