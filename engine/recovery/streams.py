"""Standard output and standard error that take nothing any more: a closed terminal, a log on a full disk.

A training run's results lie in its folder, and it may last for days behind a connection that breaks: it neither ends by
that, nor loses what it would save when it is told to stop. What other programs print is their result: they end.
"""

from __future__ import annotations

import errno
import io
import sys

UNHEARD = (errno.EIO, errno.ENXIO, errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ESTALE)
"""What terminals that were closed, pipes without a reader, and disks answer to a write."""


class _Unended(io.FileIO):
    """A file descriptor, written to; what cannot be is dropped, and the first cause kept."""

    failed: OSError | None = None

    def write(self, data) -> int | None:
        """Bytes that are done with."""
        if self.failed is None:
            try:
                return super().write(data)
            except OSError as error:
                if error.errno not in UNHEARD:
                    raise
                self.failed = error
        return memoryview(data).nbytes


_unended: dict[str, _Unended] = {}
"""By the stream's name."""


def go_on_unheard() -> None:
    """Let what this process prints be dropped where it cannot be written, from now on."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != descriptor:
            continue  # none, or one that a notebook or a test put there
        stream.flush()
        raw = _Unended(descriptor, "w", closefd=False)
        buffer = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)  # raw under python -u
        settings = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
        setattr(sys, name, io.TextIOWrapper(buffer, stream.encoding, stream.errors, **settings))
        _unended[name] = raw


def trains() -> bool:
    """Whether this process goes on unheard: it trains."""
    return bool(_unended)


def unheard() -> OSError | None:
    """Why standard output did not take everything; None where it did."""
    sys.stdout.flush()
    return _unended["stdout"].failed if "stdout" in _unended else None
