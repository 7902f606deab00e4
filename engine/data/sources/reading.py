"""The bytes of one image file, and what is raised where there are none."""

from pathlib import Path


class Unreadable(Exception):
    """A file that cannot be used; the message is the reason."""


class Unreachable(Unreadable):
    """A file that the disk does not give now; it may be there later."""


def read(path: str) -> bytes:
    """The file's bytes; raises Unreachable for a file that is missing or forbidden, Unreadable for an empty one."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise Unreachable(error.strerror or str(error)) from None
    if not data:
        raise Unreadable("the file is empty")
    return data
