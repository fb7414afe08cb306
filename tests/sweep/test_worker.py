"""A cell's process waits for the end of its standard input without standing in anybody's way."""

import subprocess
import sys

CODE = """
import multiprocessing, threading, time
from dpeq.sweep import worker

threading.Thread(target=worker._stop_with_the_sweep, daemon=True).start()
time.sleep(0.2)
child = multiprocessing.get_context("fork").Process(target=int)
child.start()
child.join(20)
print(child.exitcode, flush=True)
child.kill()
time.sleep(60)
"""


def test_processes_that_read_images_begin_while_it_waits_and_its_end_stops_training():
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout.readline() == b"0\n"  # None: the child hangs where it closes its standard input
        process.stdin.close()
        assert process.wait(30) == -15
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
