"""MP3 files that do not state their length, which libsndfile estimates from the first bit rate.

Header fields: ISO/IEC 11172-3, section 2.4.2.3.
"""

from __future__ import annotations

# By the version bits of a frame's header: MPEG-1, MPEG-2, MPEG-2.5.
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_TAGS = (b"Xing", b"Info", b"VBRI")  # in the first frame of a file that states its length


def length_is_a_guess(data: bytes) -> bool:
    """Whether an MP3 has a variable bit rate and no frame that states its length."""
    position = _first_frame(data)
    if any(tag in data[position : position + 200] for tag in _TAGS):
        return False
    bit_rates: set[int] = set()
    while len(bit_rates) < 2:
        frame = _frame(data[position : position + 4])
        if frame is None:
            return False
        bit_rate, size = frame
        bit_rates.add(bit_rate)
        position += size
    return True


def _first_frame(data: bytes) -> int:
    """Where the first frame begins, after an ID3 tag and whatever else is before it."""
    position = 0
    if data[:3] == b"ID3":
        size = 0
        for byte in data[6:10]:
            size = size << 7 | byte
        position = 10 + size
    while position < len(data):
        frame = _frame(data[position : position + 4])
        if (
            frame is not None
            and _frame(data[position + frame[1] : position + frame[1] + 4]) is not None
        ):
            return position
        position += 1
    return position


def _frame(header: bytes) -> tuple[int, int] | None:
    """Bit rate in kbit/s and size in bytes of a frame of layer III; None if there is no such frame."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version = header[1] >> 3 & 3
    rate = header[2] >> 2 & 3
    bit_rate = header[2] >> 4
    if version not in _RATES or rate == 3 or bit_rate in (0, 15):
        return None
    padding = header[2] >> 1 & 1
    kbps, samples = _KBPS_2[bit_rate], 576
    if version == 3:
        kbps, samples = _KBPS_1[bit_rate], 1152
    return kbps, samples * kbps * 125 // _RATES[version][rate] + padding
