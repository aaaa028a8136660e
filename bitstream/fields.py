"""Fields of a payload: bytes and LEB128 varints."""

from __future__ import annotations

from .errors import FormatError, Truncated


class ByteReader:
    """Reads the fields of a payload from front to back; its errors name the payload."""

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        self._at = 0
        self._name = name

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > self.left:
            raise Truncated(
                f"expected {size} bytes at byte {self._at} of {self._name}, found {self.left}: "
                "the file is damaged"
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def peek(self) -> int:
        """The next byte, which is not taken."""
        byte = self.take(1)[0]
        self._at -= 1
        return byte

    def varint(self) -> int:
        """LEB128, unsigned, below 2**63, in as few bytes as it takes."""
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift > 0:
                    break
                return value
        raise FormatError(
            "expected a varint of at most 9 bytes and no more than it takes, found another before "
            "byte "
            f"{self._at} of {self._name}: the file is damaged"
        )

    def end(self) -> None:
        """FormatError if anything is left."""
        if self.left:
            raise FormatError(
                f"expected the end of {self._name}, found {self.left} bytes more: the file is "
                "damaged"
            )


def pack_varint(value: int) -> bytes:
    """LEB128 of 0 <= value < 2**63."""
    if not 0 <= value < 1 << 63:
        raise ValueError(f"expected a number from 0 to 2**63 - 1, found {value}")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
