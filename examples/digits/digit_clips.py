"""Recordings of single spoken digits, each with the times at which its speech begins and ends.

Two sources: a folder in the form of the Free Spoken Digit Dataset
(https://github.com/Jakobovski/free-spoken-digit-dataset, files named `{digit}_{speaker}_{n}.flac` or `.wav`), and the
speech synthesiser espeak-ng, where it is installed.
"""

import io
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_FILE_NAME = re.compile(r"^(\d)_(\w+?)_(\d+)\.(flac|wav)$")
_FRAME = SAMPLE_RATE // 100

ESPEAK_VOICES = (
    "en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc",
)  # fmt: skip
ESPEAK_VARIANTS = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5", "klatt", "klatt2", "klatt3",
    "klatt4", "Alex", "Alicia", "Andrea", "Andy", "Annie", "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee",
    "Marco", "Mario", "Michael", "Mike", "Nguyen", "adam", "anika", "antonio", "aunty", "belinda", "benjamin",
    "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa", "gustave", "iven", "john", "linda", "marcelo",
    "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby",
    "steph", "travis", "victor",
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """One spoken digit: mono float32 samples at 16 kHz, and the bounds of its speech in seconds from their start."""

    samples: np.ndarray
    start: float
    end: float
    word: str
    speaker: str
    name: str


def speech_bounds(samples: np.ndarray) -> tuple[float, float]:
    """Where speech begins and ends, in seconds, by the energy of 10 ms frames.

    A frame counts as speech when it lies within 30 dB of the loudest and 8 dB above the quietest tenth; that second
    condition is waived down to 18 dB below the loudest, so that a recording without any silence keeps its ends.
    """
    n_frames = max(1, len(samples) // _FRAME)
    frames = np.resize(samples, n_frames * _FRAME).reshape(n_frames, _FRAME)
    energy = 10 * np.log10(np.mean((frames - frames.mean(axis=1, keepdims=True)) ** 2, axis=1) + 1e-12)
    peak = float(energy.max())
    threshold = min(max(peak - 30.0, float(np.percentile(energy, 10)) + 8.0), peak - 18.0)
    active = energy > threshold
    # one lone loud frame is a click of the recording, not speech
    supported = active & (np.roll(active, 1) | np.roll(active, -1)) if n_frames > 2 else active
    where = np.flatnonzero(supported if supported.any() else active)
    return float(where[0]) * 0.01, float(where[-1] + 1) * 0.01


def make_clip(samples: np.ndarray, word: str, speaker: str, name: str) -> Clip:
    """Finds the bounds of the speech and trims what lies 60 ms before or 100 ms after them, with 8 ms fades."""
    samples = np.asarray(samples, dtype=np.float32)
    start, end = speech_bounds(samples)
    first = max(0, int((start - 0.06) * SAMPLE_RATE))
    last = min(len(samples), int((end + 0.10) * SAMPLE_RATE))
    cut = samples[first:last].copy()
    fade = np.linspace(0.0, 1.0, min(128, len(cut)), dtype=np.float32)
    cut[: len(fade)] *= fade
    cut[len(cut) - len(fade) :] *= fade[::-1]
    offset = first / SAMPLE_RATE
    return Clip(cut, start - offset, min(end - offset, len(cut) / SAMPLE_RATE), word, speaker, name)


def digit_files(folder: str | Path) -> list[tuple[Path, int, str, int]]:
    """Every recording of the folder as (path, digit, speaker, number), sorted by name.

    Raises:
        FileNotFoundError: the folder is missing or holds no file named `{digit}_{speaker}_{n}.flac` or `.wav`.
    """
    folder = Path(folder)
    matches = [(path, _FILE_NAME.match(path.name)) for path in sorted(folder.glob("*"))] if folder.is_dir() else []
    found = [(path, int(m[1]), m[2], int(m[3])) for path, m in matches if m]
    if not found:
        raise FileNotFoundError(f"{folder}: no recordings named {{digit}}_{{speaker}}_{{n}}.flac or .wav there")
    return found


def load_digits(files: Iterable[tuple[Path, int, str, int]]) -> list[Clip]:
    """Reads and trims recordings as `digit_files` lists them, at any sample rate."""
    clips = []
    for path, digit, speaker, _ in files:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)
        clips.append(make_clip(mono, DIGIT_WORDS[digit], speaker, path.name))
    return clips


def espeak_clips(
    voices: Sequence[str] = ESPEAK_VOICES, variants: Sequence[str] = ESPEAK_VARIANTS, seed: int = 0, threads: int = 2
) -> list[Clip]:
    """Every digit in every variant of every voice, each at its own random pitch and speed, from espeak-ng.

    Raises:
        FileNotFoundError: espeak-ng is not installed.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise FileNotFoundError("espeak-ng is not installed (Debian and Ubuntu: apt install espeak-ng)")
    rng = np.random.default_rng(seed)
    jobs = []
    for voice in voices:
        for variant in variants:
            pitch = int(rng.integers(15, 86))
            for word in DIGIT_WORDS:
                options = ["-p", str(pitch + int(rng.integers(-8, 9))), "-s", str(int(rng.integers(110, 230)))]
                jobs.append((f"{voice}+{variant}", word, options))

    def speak(job: tuple[str, str, list[str]]) -> Clip | None:
        voice, word, options = job
        done = subprocess.run([program, "-v", voice, *options, "--stdout", word], capture_output=True, check=False)
        if done.returncode or len(done.stdout) <= 44:
            return None
        samples, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
        if np.abs(samples).max(initial=0.0) < 1e-3:
            return None
        return make_clip(soxr.resample(samples, rate, SAMPLE_RATE), word, f"espeak:{voice}", f"{voice}:{word}")

    with ThreadPoolExecutor(threads) as pool:
        return [clip for clip in pool.map(speak, jobs) if clip is not None]


def stretched(clip: Clip, tempo: float, semitones: float) -> Clip:
    """The clip at `tempo` times its speed and moved by `semitones`, the two independent of each other."""
    from python_stretch import Signalsmith

    stretch = Signalsmith.Stretch()
    stretch.preset(1, SAMPLE_RATE)
    stretch.timeFactor = tempo
    stretch.setTransposeSemitones(semitones)
    padded = np.pad(clip.samples, 800)[None]
    return make_clip(stretch.process(padded)[0], clip.word, clip.speaker, clip.name)


def resampled(clip: Clip, factor: float) -> Clip:
    """The clip played `factor` times as fast: pitch, formants and tempo move together, as from another speaker."""
    n = max(2, int(len(clip.samples) / factor))
    samples = np.interp(np.arange(n) * factor, np.arange(len(clip.samples)), clip.samples).astype(np.float32)
    return replace(clip, samples=samples, start=clip.start / factor, end=clip.end / factor)
