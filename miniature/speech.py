"""Speech from eSpeak NG, through the C library and the voice data that the ``espeakng_loader`` wheel brings.

The library keeps one global state, so each rendering process has its own. It is used in its synchronous mode, where
a callback receives the samples and no audio device is opened.
"""

from __future__ import annotations

import _ctypes
import ctypes

import numpy as np
import soxr

from miniature.midi import SAMPLE_RATE

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: a missing data folder is an error code, not the end of the process
_UTF8 = 1  # espeakCHARS_UTF8
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class _Engine:
    """A freshly loaded library: its flutter and noise are static variables that no call resets, so that a sentence
    would sound a little different after another one. Loading takes 10 ms and makes every clip stand for itself."""

    def __init__(self) -> None:
        import espeakng_loader

        self.pieces: list[np.ndarray] = []
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.library.espeak_Initialize.argtypes = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
        ]
        self.library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        folder = espeakng_loader.get_data_path()
        self.rate = self.library.espeak_Initialize(
            _SYNCHRONOUS, 0, folder.encode(), _DONT_EXIT
        )  # Hz
        if self.rate <= 0:
            raise RuntimeError(
                f"eSpeak NG could not start with its data in {folder} (code {self.rate})"
            )
        self.callback = _CALLBACK(self._receive)  # kept alive as long as the library may call it
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples, count, events) -> int:
        if samples and count > 0:
            self.pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def close(self) -> None:
        self.library.espeak_Terminate()
        unload = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # type: ignore[attr-defined]
        unload(self.library._handle)


def speak(
    text: str,
    voice: str,
    *,
    rate: int = 175,
    pitch: int = 50,
    pitch_range: int = 50,
    volume: int = 100,
    seed: int = 1,
) -> np.ndarray:
    """Speak ``text``: float32 [samples] at 16 kHz, not normalised, without the silence around it.

    ``voice``: language and variant, such as ``en-us+f2``. ``rate``: words a minute, 80 to 450. ``pitch`` and
    ``pitch_range``: 0 to 99. ``volume``: 0 to 200, 100 is eSpeak's own.
    Raises ValueError for a voice that is not installed, RuntimeError if nothing was spoken.
    """
    engine = _Engine()
    try:
        library = engine.library
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(
                f"eSpeak NG has no voice {voice!r}; expected language+variant such as 'en-us+f2'"
            )
        for parameter, value in (
            (_RATE, rate),
            (_VOLUME, volume),
            (_PITCH, pitch),
            (_RANGE, pitch_range),
        ):
            library.espeak_SetParameter(parameter, int(value), 0)
        data = text.encode() + b"\0"
        library.espeak_Synth(data, len(data), 0, 1, 0, _UTF8, None, None)
    finally:
        engine.close()
    if not engine.pieces:
        raise RuntimeError(f"eSpeak NG spoke nothing for {text!r} with the voice {voice!r}")
    wave = np.concatenate(engine.pieces).astype(np.float32) / 32768
    return _trimmed(soxr.resample(wave, engine.rate, SAMPLE_RATE).astype(np.float32))


def _trimmed(wave: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(wave) > 1e-3 * np.abs(wave).max())
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave
