"""What `configure_allocator` does to a process that handles a request's worth of memory again and again."""

import os
import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from alexnet_server.machine import configure_allocator

if sys.argv[1] == "keep":
    print(configure_allocator(), file=sys.stderr)

def handle():
    rows = [np.ones(196_608, np.uint8) for _ in range(4)]
    return b"".join(row.data for row in rows)

for _ in range(10):
    handle()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    handle()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100)
"""


def page_faults(how, **environ):
    """Page faults a request, and what `configure_allocator` said."""
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=True)
    return float(done.stdout), done.stderr.strip()


def environment():
    """This process's, with nothing chosen."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}


def test_a_request_gets_the_memory_of_the_one_before():
    kept, said = page_faults("keep", **environment())
    assert said == "True"
    assert kept < 1
    assert page_faults("as it is", **environment())[0] > 50


def test_what_an_operator_has_chosen_stays():
    assert page_faults("keep", **environment(), MALLOC_ARENA_MAX="2")[1] == "False"
    tunable = "glibc.malloc.mmap_threshold=200000"
    assert page_faults("keep", **environment(), GLIBC_TUNABLES=tunable)[1] == "False"
    assert page_faults("keep", **environment(), GLIBC_TUNABLES="glibc.malloc.hugetlb=1")[1] == "True"
