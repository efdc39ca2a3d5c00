"""The frames that a parser process and its parent exchange: eight bytes of length, then the bytes.

Belongs here: framing. Does not: what the frames say. Results are JSON, never pickle: the process read untrusted data.
"""

import struct
from typing import BinaryIO

_LENGTH = struct.Struct(">Q")


class FrameTooLong(Exception):
    """The other side announces more bytes than this side accepts."""


def send(stream: BinaryIO, *frames: bytes) -> None:
    """Write the frames and flush."""
    for frame in frames:
        stream.write(_LENGTH.pack(len(frame)))
        stream.write(frame)
    stream.flush()


def receive(stream: BinaryIO, limit: int | None = None) -> bytes:
    """The next frame.

    Raises:
        EOFError: the other side is gone.
        FrameTooLong: it is longer than `limit` bytes; the stream is of no use any more.
    """
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    if limit is not None and length > limit:
        raise FrameTooLong(f"{length} bytes")
    return _exactly(stream, length)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data
