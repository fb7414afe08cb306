"""glibc is told to keep freed blocks; other C libraries are left alone."""

import platform

import pytest

from dpeq import allocation
from dpeq.allocation import keep_freed_blocks


def test_glibc_keeps_freed_blocks():
    assert keep_freed_blocks() == (platform.libc_ver()[0] == "glibc")


@pytest.mark.parametrize("change", [("platform", "darwin"), ("libc", "musl")])
def test_others_are_left_as_they_are(monkeypatch, change):
    def refuse(*args):
        raise AssertionError("no mallopt here")

    if change[0] == "platform":
        monkeypatch.setattr(allocation.sys, "platform", change[1])
    else:
        monkeypatch.setattr(allocation.platform, "libc_ver", lambda: (change[1], "1"))
    monkeypatch.setattr(allocation.ctypes, "CDLL", refuse)
    assert keep_freed_blocks() is False
