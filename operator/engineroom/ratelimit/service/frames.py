"""Boundaries of HTTP/2 frames in a stream of bytes (RFC 9113, 4.1)."""

from __future__ import annotations

#: Bytes of a client's connection preface, and of a frame's header.
_PREFACE, _HEAD = 24, 9
_HEADERS, _CONTINUATION, _END_HEADERS = 1, 9, 4


class FrameReader:
    """Follows the frames that a client sends, without their contents."""

    __slots__ = ("_head", "_open", "_skip", "began")

    def __init__(self) -> None:
        #: True if the last bytes contained the header of a frame.
        self.began = False
        # Bytes until the next frame's header; the received part of it.
        self._skip = _PREFACE
        self._head = b""
        # True while a list of headers continues in another frame.
        self._open = False

    def ends_inside(self, data: bytes) -> bool:
        """Return True if ``data`` ends inside a frame or a list of headers."""
        if self._head:
            data = self._head + data
        position, size, start = self._skip, len(data), -1
        while position + _HEAD <= size:
            start = position
            length = data[position] << 16 | data[position + 1] << 8 | data[position + 2]
            position += _HEAD + length
        self.began = start >= 0
        if self.began:
            kind, flags = data[start + 3], data[start + 4]
            self._open = kind in (_HEADERS, _CONTINUATION) and not flags & _END_HEADERS
        self._skip = max(0, position - size)
        self._head = data[position:]
        return bool(self._skip or self._head or self._open)
