"""What a file system can hold that is no file, or is called in a way that breaks things."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from broken.case import ACCEPTED, broken
from broken.write import series

NO_FILE = "no file (a pipe, a socket or a device)"


@broken(NO_FILE)
def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "a.dcm")


@broken(NO_FILE)
def a_socket(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)  # the path of a socket is at most 107 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("a.dcm")
    finally:
        os.chdir(here)


@broken(NO_FILE)
def a_link_to_a_device(folder: Path) -> None:
    (folder / "a.dcm").symlink_to("/dev/zero")


@broken("a link to nothing")
def links_to_nothing(folder: Path) -> None:
    (folder / "a.dcm").symlink_to("nothing")
    (folder / "self").symlink_to("self")
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")


@broken("a folder", indexed="a link to a folder, which is not followed")
def links_to_folders(folder: Path) -> None:
    """Upwards, to itself and out of the tree: whoever follows them never ends."""
    (folder / "up").symlink_to("..")
    (folder / "here").symlink_to(".")
    (folder / "root").symlink_to("/")


@broken({"link": "a copy of another file", "*": ACCEPTED})
def a_link_to_a_file_of_the_tree(folder: Path) -> None:
    series(folder)
    (folder / "link").symlink_to("2.dcm")


@broken("not an image (text)")
def a_link_to_a_file_outside(folder: Path) -> None:
    (folder / "a.dcm").symlink_to("/etc/hosts")


@broken("an empty file")
def names_that_break_things(folder: Path) -> None:
    for name in NAMES:
        (folder / os.fsdecode(name)).touch()


@broken(ACCEPTED)
def images_under_names_that_break_things(folder: Path) -> None:
    series(folder, len(NAMES))
    for number, name in enumerate(NAMES):
        (folder / f"{number}.dcm").rename(folder / os.fsdecode(name))


NAMES = [
    "Größe Ø 影像.dcm".encode(),
    "e\u0301 and \u00e9".encode(),
    "\u202egnp.exe".encode(),
    b"\xff\xfe not UTF-8 \x80.dcm",
    b"n" * 255,
    b"new\nline",
    b"car\rriage",
    b"comma,and;semicolon",
    b"\"quotes\" and 'others'",
    b"=1+1",
    b"-rf",
    b"--out",
    b"%s%n{0}$HOME`id`",
    b" ",
    b"tab\tand\x01control\x1b[31m",
    b"back\\slash",
    b".hidden",
    b"con.nii.gz",
]


@broken("an empty file")
def a_path_of_4000_bytes(folder: Path) -> None:
    where = folder
    while len(os.fsencode(where)) < 3700:
        where = where / ("d" * 200)
    where.mkdir(parents=True)
    (where / "a.dcm").touch()


@broken("not an image (text)")
def texts(folder: Path) -> None:
    for name, content in (("a.csv", "patient,label\n"), ("b.json", "{}"), ("c.html", "<html>"), ("d.dcm", "DICM")):
        (folder / name).write_text(content)


@broken("not an image (macOS metadata)")
def finder_metadata(folder: Path) -> None:
    (folder / "._a.nii.gz").write_bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(100))
    (folder / ".DS_Store").write_bytes(b"\0\0\0\x01Bud1\0\0\x10\0" + bytes(100))
