"""Reading audio: what comes out is what was recorded, and what cannot be read says so in one line."""

import struct
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from helpers_audio import cut, noise, sine, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_hailo_hf import audio
from whisper_hailo_hf.audio import AudioError, check_audio, iter_audio, read_audio


def snr(signal: np.ndarray, reference: np.ndarray) -> float:
    return 10 * np.log10(np.mean(reference**2) / np.mean((signal - reference) ** 2))


def refuse(path: Path, *words: str) -> str:
    """Both ways of reading refuse the file with the same line, which names it and holds these words."""
    messages = set()
    for read in (check_audio, read_audio):
        with pytest.raises(AudioError) as caught:
            read(path)
        messages.add(str(caught.value))
    (message,) = messages
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message
    assert caught.value.exit_status == 2
    return message


# What comes out


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_U8", 2.0**-6),
        ("wav", "PCM_16", 2.0**-14),
        ("wav", "PCM_24", 2.0**-22),
        ("wav", "PCM_32", 2.0**-22),
        ("wav", "FLOAT", 0.0),
        ("wav", "DOUBLE", 0.0),
        ("wav", "ULAW", 2.0**-4),
        ("flac", "PCM_16", 2.0**-14),
        ("flac", "PCM_24", 2.0**-22),
        ("aiff", "PCM_16", 2.0**-14),
        ("au", "PCM_16", 2.0**-14),
        ("caf", "PCM_16", 2.0**-14),
        ("w64", "PCM_16", 2.0**-14),
        ("rf64", "PCM_16", 2.0**-14),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_come_out_as_they_went_in(tmp_path, suffix, subtype, tolerance, channels):
    samples = noise(1.5, channels=channels)
    path = write(tmp_path / f"speech.{suffix}", samples, subtype=subtype)
    got = read_audio(path)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, samples if channels == 1 else samples.mean(axis=1), rtol=0, atol=tolerance)
    info = check_audio(path)
    assert (info.duration, info.sampling_rate, info.channels, info.warning) == (1.5, 16_000, channels, None)


@pytest.mark.parametrize(("name", "subtype"), [("a.ogg", "VORBIS"), ("a.opus", "OPUS"), ("a.mp3", "MPEG_LAYER_III")])
def test_lossy_formats_sound_as_they_did(tmp_path, name, subtype):
    samples = sine(2.0)
    path = tmp_path / name
    soundfile.write(path, samples, 16_000, subtype=subtype, format="OGG" if subtype == "OPUS" else None)
    got = read_audio(path)
    assert len(got) == pytest.approx(len(samples), abs=16)
    assert snr(got[1_600:30_000], samples[1_600:30_000]) > 20


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_any_rate_becomes_16_khz(tmp_path, rate):
    got = read_audio(write(tmp_path / "tone.wav", sine(2.0, rate), rate, "FLOAT"))
    expected = sine(2.0, 16_000)
    assert abs(len(got) - len(expected)) <= 1
    inner = slice(800, 31_000)  # the filter's ends apart
    assert snr(got[inner], expected[inner]) > 80


def test_nothing_above_the_new_rate_folds_back(tmp_path):
    got = read_audio(write(tmp_path / "high.wav", sine(1.0, 48_000, frequency=11_000), 48_000, "FLOAT"))
    assert np.abs(got[800:-800]).max() < 1e-4


def test_another_rate_can_be_asked_for(tmp_path):
    assert read_audio(write(tmp_path / "a.wav", noise(1.0)), sampling_rate=8_000).shape == (8_000,)


def test_opposite_channels_cancel(tmp_path):
    one = noise(0.5)
    assert np.abs(read_audio(write(tmp_path / "a.wav", np.stack([one, -one], axis=1), subtype="FLOAT"))).max() == 0


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("block_seconds", [0.01, 0.37, 2.0, 100.0])
def test_blocks_join_to_the_whole(tmp_path, rate, block_seconds):
    path = write(tmp_path / "a.flac", noise(3.3, rate), rate)
    blocks = list(iter_audio(path, block_seconds=block_seconds))
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio(path))
    whole, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(np.concatenate(blocks), soxr.resample(whole, rate, 16_000, quality="HQ"), atol=1e-6)


def save(path: Path, samples: np.ndarray, rate: int, subtype: str | None = None) -> Path:
    """In pieces: libsndfile's Vorbis encoder takes no long ones."""
    kind = "OGG" if subtype == "OPUS" else None
    with soundfile.SoundFile(path, "w", rate, samples.ndim, subtype, format=kind) as file:
        for start in range(0, len(samples), 4_096):
            file.write(samples[start : start + 4_096])
    return path


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """How many frames each read of a file gives."""
    counts, read = [], soundfile.SoundFile.read

    def counted(self, *args, **kwargs):
        found = read(self, *args, **kwargs)
        counts.append(len(found))
        return found

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    return counts


@pytest.mark.parametrize(
    ("name", "rate", "subtype"),
    [
        ("a.wav", 16_000, "PCM_16"),
        ("a.wav", 44_100, "FLOAT"),
        ("a.flac", 22_050, None),
        ("a.flac", 11_025, None),
        ("a.ogg", 44_100, "VORBIS"),
        ("a.opus", 48_000, "OPUS"),
        ("a.mp3", 44_100, None),
    ],
)
def test_a_later_part_is_sought(tmp_path, decoded, name, rate, subtype, capfd):
    path = save(tmp_path / name, noise(20.0, rate), rate, subtype)
    whole = read_audio(path)
    for start in (1, 4_000, 16_000, 100_003, 288_001, len(whole) - 1, len(whole), len(whole) + 9):
        decoded.clear()
        found = np.concatenate([np.zeros(0, np.float32), *iter_audio(path, start=start)])
        assert len(found) == max(0, len(whole) - start)
        np.testing.assert_allclose(found, whole[start:], rtol=0, atol=1e-6)
        if name != "a.mp3" and start < len(whole):
            assert sum(decoded) <= (20.6 - start / 16_000) * rate
    assert capfd.readouterr().err == ""  # libmpg123 would have complained


def test_a_fault_behind_the_place_that_is_sought_is_found(tmp_path):
    samples = noise(20.0)
    short = cut(write(tmp_path / "a.flac", samples), 0.6)
    for start in (5 * 16_000, 15 * 16_000):
        with pytest.raises(AudioError, match=r"cut-a\.flac: is (damaged or )?cut off"):
            list(iter_audio(short, start=start))
    samples[16 * 16_000] = np.nan
    path = write(tmp_path / "b.wav", samples, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"not numbers \(NaN\), the first at 16\.000 s"):
        list(iter_audio(path, start=10 * 16_000))
    assert len(np.concatenate(list(iter_audio(path, start=18 * 16_000)))) == 2 * 16_000


def test_a_long_file_is_never_whole_in_memory(tmp_path):
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 8_000, 1, "PCM_U8") as file:
        for _ in range(60):
            file.write(noise(60.0, 8_000))  # an hour: 230 MB as 16 kHz float32
    tracemalloc.start()
    samples = sum(len(block) for block in iter_audio(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert samples == 3600 * 16_000
    assert peak < 20e6


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 5_000), rate=st.sampled_from([8_000, 16_000, 22_050, 44_100]), channels=st.integers(1, 2))
def test_length_follows_the_rates(tmp_path, count, rate, channels):
    samples = noise(count / rate, rate, channels)[:count]
    path = write(tmp_path / "any.wav", samples, rate, "FLOAT")
    assert check_audio(path).duration == pytest.approx(count / rate)
    got = read_audio(path)
    assert np.isfinite(got).all()
    assert abs(len(got) - count * 16_000 / rate) <= 1
    assert len(got) >= 1


# What is refused


def test_missing(tmp_path):
    refuse(tmp_path / "none.wav", "no such file")


def test_folder(tmp_path):
    refuse(tmp_path, "is a folder")


def test_empty(tmp_path):
    (tmp_path / "empty.wav").touch()
    refuse(tmp_path / "empty.wav", "is empty (0 bytes)")


def test_text_named_wav(tmp_path):
    path = tmp_path / "text.wav"
    path.write_text("This is not a recording.\n" * 40)
    refuse(path, "is not audio")


def test_no_samples(tmp_path):
    refuse(write(tmp_path / "none.wav", np.zeros(0)), "no samples")


@pytest.mark.parametrize("channels", [3, 6])
def test_more_than_two_channels(tmp_path, channels):
    refuse(
        write(tmp_path / "round.wav", noise(0.2, channels=channels)), f"has {channels} channels", "ffmpeg -i round.wav"
    )


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite")])
def test_samples_that_are_not_numbers(tmp_path, value, word):
    samples = noise(100.0, channels=2)
    samples[16_000 * 90 :, 1] = value
    refuse(write(tmp_path / "bad.wav", samples, subtype="FLOAT"), word, "the first at 90.000 s")


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("a.flac", "PCM_16"),
        ("a.wav", "PCM_16"),
        ("a.wav", "FLOAT"),
        ("a.aiff", "PCM_16"),
        ("a.au", "PCM_16"),
        ("a.w64", "PCM_16"),
        ("a.rf64", "PCM_16"),
        ("a.caf", "PCM_16"),
        ("a.ogg", "VORBIS"),
        ("a.opus", "OPUS"),
        ("a.mp3", "MPEG_LAYER_III"),
    ],
)
@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_a_file_that_is_cut_off_is_never_half_read(tmp_path, name, subtype, fraction):
    path = tmp_path / name
    container = "OGG" if name.endswith("opus") else None
    soundfile.write(path, noise(8.0), 16_000, subtype=subtype, format=container)
    assert check_audio(path).duration == pytest.approx(8.0, abs=0.01)
    refuse(cut(path, fraction), "cut off")


def test_an_ogg_stream_without_its_end_is_read_with_a_warning(tmp_path):
    path = write(tmp_path / "a.ogg", noise(8.0))
    content = path.read_bytes()
    last = content.rindex(b"OggS")
    path.with_name("b.ogg").write_bytes(content[:last])
    info = check_audio(path.with_name("b.ogg"))
    assert "may be cut off" in info.warning
    assert info.duration < 8.0


def test_a_wav_written_to_a_pipe_is_whole(tmp_path):
    path = write(tmp_path / "a.wav", noise(1.0), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFFFFFF)  # sizes not known when the header was written
    assert content[36:40] == b"data"
    path.write_bytes(content)
    assert check_audio(path).duration == 1.0
    assert read_audio(path).shape == (16_000,)


def test_a_wav_whose_outer_size_alone_is_wrong_is_whole(tmp_path):
    path = write(tmp_path / "a.wav", noise(1.0), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    content[4:8] = struct.pack("<I", 10 * len(content))
    path.write_bytes(content)
    assert check_audio(path).duration == 1.0


def test_a_flac_of_unknown_length_is_whole(tmp_path):
    path = write(tmp_path / "a.flac", noise(5.0))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's 36 bits of total samples: 0 means not known (RFC 9639, section 8.2)
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert check_audio(path).duration == 5.0
    assert read_audio(path).shape == (80_000,)
    assert sum(block.size for block in iter_audio(path, start=50_000)) == 30_000


def test_a_playlist_is_not_followed(tmp_path):
    write(tmp_path / "secret.wav", noise(1.0))
    path = tmp_path / "list.wav"
    path.write_text("#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n")
    refuse(path, "is not audio")
    path.write_text("ffconcat version 1.0\nfile secret.wav\n")
    refuse(path, "is not audio")


# Other formats, through PyAV


@pytest.fixture
def av():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("av")


def encode(av, path: Path, samples: np.ndarray, rate: int, codec: str, layout: str = "stereo") -> Path:
    channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        interleaved = (np.repeat(samples[:, None], channels, axis=1) * 32_767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("suffix", "codec", "rate"), [("m4a", "aac", 44_100), ("mp4", "aac", 16_000), ("webm", "libopus", 48_000)]
)
@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_other_formats_through_pyav(tmp_path, av, suffix, codec, rate, layout):
    path = encode(av, tmp_path / f"a.{suffix}", sine(3.0, rate), rate, codec, layout)
    got = read_audio(path)
    assert len(got) / 16_000 == pytest.approx(3.0, abs=0.1)
    spectrum = np.abs(np.fft.rfft(got[8_000:40_000]))
    assert np.argmax(spectrum) * 16_000 / 32_000 == pytest.approx(440, abs=1)
    assert check_audio(path).channels == {"mono": 1, "stereo": 2}[layout]


def test_six_channels_through_pyav(tmp_path, av):
    refuse(encode(av, tmp_path / "a.m4a", noise(1.0, 48_000), 48_000, "aac", "5.1"), "has 6 channels")


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus")])
def test_cut_off_through_pyav(tmp_path, av, suffix, codec):
    path = encode(av, tmp_path / f"a.{suffix}", noise(5.0, 48_000), 48_000, codec)
    refuse(cut(path, 0.5))


def test_without_pyav_the_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x1cftypM4A \0\0\0\0" + bytes(100))
    refuse(path, "pip install av")


def test_reading_needs_neither_torch_nor_transformers():
    source = Path(audio.__file__).read_text(encoding="utf-8")
    assert "torch" not in source
    assert "transformers" not in source
