"""Reading speech: any file that libsndfile (or PyAV, where installed) decodes, as mono float32 at one sampling rate.

Whisper takes 16 kHz mono. Files of hours are read in blocks (`iter_audio`), so memory never holds more than a block of
them. A file that is damaged, cut off or not audio is an `AudioError` of one line: half a recording read in silence
would be half a transcript.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from whisper_hailo_hf.errors import RequestError

SAMPLING_RATE = 16_000
# libsndfile's log of a header that announces more bytes than the file has, as "data : 160000 (should be 79978)".
_SHORT_CHUNK = re.compile(r"(data|data size|ssnd|riff|riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.IGNORECASE)
_SF_ERR_MALFORMED_FILE = 3
# From here up a size means "not known": programs that write to a pipe cannot come back to the header.
_UNKNOWN_SIZE = 0x7FFF0000
# Of a stream that was written to a pipe, libsndfile announces the largest count of frames there is.
_UNKNOWN_LENGTH = 2**62
# Encoders pad and trim their ends, so that a count of frames may be off by less than this without loss.
_LENGTH_TOLERANCE_S = 0.25
# Decoded before a place that is sought, so that what resampler and codec remember is right when it is reached.
_LEAD_S = 0.5
# Containers that FFmpeg may open on our behalf: no playlists, which could name other files or addresses.
_AV_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,asf,avi,amr,ac3,eac3,ape,wv,tta,ogg,flv,mp3,mpeg,mpegts,flac,wav,caf"
)

FloatArray = npt.NDArray[np.float32]
Blocks = Generator[FloatArray, None, None]


class AudioError(RequestError):
    """An audio file that cannot be read whole; the message begins with its path."""


@dataclass(frozen=True)
class AudioInfo:
    """What a file holds, known from reading all of it: seconds, Hz, channels, and a doubt that is no error."""

    path: Path
    duration: float
    sampling_rate: int
    channels: int
    warning: str | None = None


@dataclass
class _Opened:
    """An open file: its own rate, its blocks, (frames, channels) float32, and a doubt that is no error.

    Before the first block, `seek` goes to a frame, or stays at the start, and tells where it is: the `first` read.
    """

    sampling_rate: int
    channels: int
    blocks: Blocks
    warning: str | None = None
    seek: Callable[[int], int] = lambda frame: 0
    first: int = 0


def read_audio(path: str | os.PathLike[str], sampling_rate: int = SAMPLING_RATE) -> FloatArray:
    """Read a whole file as mono: float32, shape (samples,), full scale ±1, at `sampling_rate` Hz.

    Two channels are averaged. Raises `AudioError` for a file that is missing, empty, damaged, cut off, not audio, of
    more than two channels, or with samples that are not finite numbers.
    """
    return np.concatenate(list(iter_audio(path, sampling_rate)))


def iter_audio(
    path: str | os.PathLike[str],
    sampling_rate: int = SAMPLING_RATE,
    block_seconds: float = 30.0,
    start: int = 0,
) -> Blocks:
    """Read a file of any length as `read_audio` does, one block of about `block_seconds` s at a time.

    The blocks, each float32 (samples,), join to exactly what `read_audio` returns. The resampler is soxr's
    high-quality one, which keeps its state from block to block. Errors are those of `read_audio`, raised when the
    reading comes to the fault.

    With `start`, they begin at that sample of the result. What lies before is not decoded, and its faults stay
    unknown, but for MP3 and what FFmpeg reads; the samples are then those of `read_audio` but for rounding.
    """
    opened, mono = _open_mono(Path(path), block_seconds)
    skip = start - _seek(opened, start, sampling_rate)
    with closing(_resampled(opened, mono, sampling_rate)) as blocks:
        for block in blocks:
            if skip < block.size:
                yield block[skip:] if skip else block
            skip = max(0, skip - block.size)


def _seek(opened: _Opened, start: int, sampling_rate: int) -> int:
    """Goes to a little before a sample of the result; tells which sample of it the first one is from there."""
    step = opened.sampling_rate // math.gcd(opened.sampling_rate, sampling_rate)  # frames in which both rates meet
    frame = max(0, int((start / sampling_rate - _LEAD_S) * opened.sampling_rate)) // step * step
    opened.first = opened.seek(frame) if frame else 0
    return opened.first * sampling_rate // opened.sampling_rate


def _resampled(opened: _Opened, mono: Blocks, sampling_rate: int) -> Blocks:
    import soxr

    if opened.sampling_rate == sampling_rate:
        yield from mono
        return
    resampler = soxr.ResampleStream(opened.sampling_rate, sampling_rate, 1, dtype="float32", quality="HQ")
    any_sample = False
    with closing(mono):
        for block in mono:
            resampled = resampler.resample_chunk(block)
            if resampled.size:
                any_sample = True
                yield resampled
    tail = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
    if not any_sample and not tail.size:
        tail = np.zeros(1, np.float32)  # shorter than half a sample of the new rate, but not nothing
    if tail.size:
        yield tail


def check_audio(path: str | os.PathLike[str], progress: Callable[[float], None] | None = None) -> AudioInfo:
    """Read a file to its end without keeping it, and say what it holds. Raises what `read_audio` would raise.

    `progress` is called with the seconds of each block read.
    """
    path = Path(path)
    opened, mono = _open_mono(path, block_seconds=60.0)
    samples = 0
    for block in mono:
        samples += block.size
        if progress is not None:
            progress(block.size / opened.sampling_rate)
    return AudioInfo(path, samples / opened.sampling_rate, opened.sampling_rate, opened.channels, opened.warning)


def _open_mono(path: Path, block_seconds: float) -> tuple[_Opened, Blocks]:
    _check_path(path)
    opened = _open(path, block_seconds)
    if opened.channels > 2:
        opened.blocks.close()
        raise AudioError(
            f"{path}: has {opened.channels} channels, only mono and stereo are read; "
            f"mix it down first, for example: ffmpeg -i {path.name} -ac 1 mono.wav"
        )
    return opened, _checked_mono(path, opened)


def _checked_mono(path: Path, opened: _Opened) -> Blocks:
    """The blocks averaged to (frames,); it is an error if a sample is not a number or if there is none."""
    total = opened.first
    with closing(opened.blocks):
        for block in opened.blocks:
            if not block.size:
                continue
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                first = int(np.argmin(finite))
                kind = "NaN" if np.isnan(block[first]).any() else "infinite"
                seconds = (total + first) / opened.sampling_rate
                raise AudioError(f"{path}: has samples that are not numbers ({kind}), the first at {seconds:.3f} s")
            total += len(block)
            yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
    if not total:
        raise AudioError(f"{path}: has a header but no samples (0 s of audio)")


def _check_path(path: Path) -> None:
    try:
        if path.is_dir():
            raise AudioError(f"{path}: is a folder, not an audio file")
        if not path.is_file():
            if path.exists():
                raise AudioError(f"{path}: is not a regular file; write it to a file first")
            raise AudioError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: is empty (0 bytes)")
        with path.open("rb"):
            pass
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({os.strerror(error.errno or errno.EIO)})") from error


def _open(path: Path, block_seconds: float) -> _Opened:
    import soundfile

    class ForwardSoundFile(soundfile.SoundFile):
        """Never seeks: after each read soundfile does, which fails at the end of a stream of unknown length."""

        def seekable(self) -> bool:
            return False

    try:
        file = ForwardSoundFile(path)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a .raw file needs its rate to be told
        if getattr(error, "code", None) == _SF_ERR_MALFORMED_FILE:
            raise AudioError(f"{path}: is damaged or cut off, libsndfile finds it malformed") from error
        return _open_with_av(path, block_seconds, reason=_reason(error))
    try:
        _check_announced_size(path, file)
        warning = _check_ogg_end(path) if file.format == "OGG" else None
    except AudioError:
        file.close()
        raise
    blocks = _sndfile_blocks(path, file, block_seconds)
    return _Opened(file.samplerate, file.channels, blocks, warning, lambda frame: _sndfile_seek(path, file, frame))


def _sndfile_seek(path: Path, file, frame: int) -> int:  # type: ignore[no-untyped-def]
    import soundfile

    # of an MP3, each frame leans on those before it: libmpg123 finds its way, but fills stderr with complaints
    if file.format == "MP3" or not soundfile.SoundFile.seekable(file) or not frame < file.frames < _UNKNOWN_LENGTH:
        return 0
    try:
        return file.seek(frame)
    except soundfile.LibsndfileError as error:
        seconds = frame / file.samplerate
        raise AudioError(
            f"{path}: is damaged or cut off, what lies at {seconds:.2f} s cannot be read ({_reason(error)})"
        ) from error


def _sndfile_blocks(path: Path, file, block_seconds: float) -> Blocks:  # type: ignore[no-untyped-def]
    import soundfile

    rate, announced = file.samplerate, file.frames
    read = file.tell() if soundfile.SoundFile.seekable(file) else 0
    with file:
        while True:
            try:
                block = file.read(max(1, int(block_seconds * rate)), dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise AudioError(
                    f"{path}: is damaged or cut off, it cannot be decoded to its end ({_reason(error)})"
                ) from error
            if not len(block):
                break
            read += len(block)
            yield block
    if announced < _UNKNOWN_LENGTH and announced - read > _LENGTH_TOLERANCE_S * rate:
        raise AudioError(
            f"{path}: is cut off, it holds {read / rate:.2f} s of the {announced / rate:.2f} s that it announces"
        )


def _check_announced_size(path: Path, file) -> None:  # type: ignore[no-untyped-def]
    """libsndfile shortens a PCM file to the bytes that are there and tells only its log."""
    for chunk, announced, actual in ((c.lower(), int(a), int(b)) for c, a, b in _SHORT_CHUNK.findall(file.extra_info)):
        # A wrong size of the whole file beside a right one of the samples is only a careless writer.
        telling = not chunk.startswith("riff") or file.format in {"W64", "RF64"}
        if telling and actual < announced < _UNKNOWN_SIZE:
            seconds = file.frames / file.samplerate
            if seconds * (announced / max(actual, 1) - 1) > _LENGTH_TOLERANCE_S / 10:
                raise AudioError(
                    f"{path}: is cut off, it holds {actual} of the {announced} bytes of audio that it announces "
                    f"({seconds:.2f} s)"
                )


def _check_ogg_end(path: Path) -> str | None:
    """Look at an Ogg file's last page (RFC 3533, section 6): must be whole, should have the end-of-stream mark."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 2 * 65_307))  # twice the largest page
        tail = stream.read()
    start = tail.rfind(b"OggS\0")
    header = tail[start : start + 27]
    if start < 0 or len(header) < 27:
        return "ends in the middle of a page: it may be cut off"
    table = tail[start + 27 : start + 27 + header[26]]
    if len(table) < header[26] or start + 27 + header[26] + sum(table) > len(tail):
        raise AudioError(f"{path}: is cut off, its last page is not whole")
    if not header[5] & 0x04:
        return "has no end-of-stream mark: it may be cut off"
    return None


def _open_with_av(path: Path, block_seconds: float, reason: str) -> _Opened:
    try:
        import av
    except ImportError as error:
        raise AudioError(
            f"{path}: is not audio that libsndfile can read ({reason}); "
            "if it is mp4, m4a, aac or webm, `pip install av` adds them"
        ) from error
    av.logging.set_level(av.logging.PANIC)
    try:
        container = av.open(str(path), options={"format_whitelist": _AV_FORMATS, "protocol_whitelist": "file"})
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(f"{path}: is not audio that libsndfile or FFmpeg can read ({reason})") from error
    if not container.streams.audio:
        container.close()
        raise AudioError(f"{path}: holds no audio")
    stream = container.streams.audio[0]
    context = stream.codec_context
    if not context.sample_rate or not context.channels:
        container.close()
        raise AudioError(f"{path}: is damaged or cut off, its header gives no rate or channels")
    announced = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
    if announced is None and container.duration and "matroska" in container.format.name:
        announced = container.duration / av.time_base  # elsewhere FFmpeg may have estimated it from the bit rate
    blocks = _av_blocks(path, container, stream, block_seconds, announced)
    return _Opened(context.sample_rate, context.channels, blocks)


def _av_blocks(path: Path, container, stream, block_seconds: float, announced: float | None) -> Blocks:  # type: ignore[no-untyped-def]
    import av

    rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
    # Only the sample format is converted here: float32 planes at the file's own rate.
    to_float = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=rate)
    pending: list[FloatArray] = []
    waiting = total = 0
    with container:
        try:
            for frame in container.decode(stream):
                for part in to_float.resample(frame):
                    pending.append(np.asarray(part.to_ndarray(), np.float32))
                    waiting += pending[-1].shape[1]
                if waiting >= block_seconds * rate:
                    total, waiting = total + waiting, 0
                    yield np.concatenate(pending, axis=1).T
                    pending = []
        except av.FFmpegError as error:
            raise AudioError(
                f"{path}: is damaged or cut off, it cannot be decoded to its end ({error.strerror})"
            ) from error
        for part in to_float.resample(None):
            pending.append(np.asarray(part.to_ndarray(), np.float32))
        if pending:
            last = np.concatenate(pending, axis=1).T
            total += len(last)
            yield last.reshape(-1, channels)
    if announced is not None and announced - total / rate > _LENGTH_TOLERANCE_S:
        raise AudioError(
            f"{path}: is cut off, it holds {total / rate:.2f} s of the {announced:.2f} s that it announces"
        )


def _reason(error: Exception) -> str:
    """libsndfile's own words, without the path that it puts in front."""
    text = getattr(error, "error_string", None) or str(error).splitlines()[0]
    return str(text).removeprefix("Error : ").strip().rstrip(".")
