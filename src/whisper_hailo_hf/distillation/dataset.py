"""Data sets of windows for distillation: log-mel features, speech mask and, where known, the transcript's tokens.

An item is a dict::

    {
        "input_features": float32 (n_mels, 2 * positions),
        "speech_mask": bool (positions,), True on speech,
        "id": str,
        "labels": list of token ids,  # only where a tokenizer is given and the window's text is known
    }

`DistillationDataset` (map-style) is for sets with a length; its windows depend on (seed, epoch, index) alone, whatever
the number of workers. `StreamingDistillationDataset` is for sources without end. Both are made for `DataLoader`
workers, which run torch on one thread each.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from whisper_hailo_hf.audio import AudioError, FloatArray
from whisper_hailo_hf.distillation.audio_store import AudioStore, Samples16
from whisper_hailo_hf.distillation.augmentation import Augmenter
from whisper_hailo_hf.distillation.windows import POSITIONS, SAMPLES_PER_POSITION, Window, WindowMix, WindowPacker
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.sources.utterances import Utterance

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

FORMAT = 1  # to be raised whenever the same settings give other windows than before

logger = logging.getLogger(__name__)


class LogMel:
    """Log-mel features as `transformers.WhisperFeatureExtractor` computes them, in some 6 ms for 30 s on one thread.

    The extractor's own STFT, mel filters, floor and scaling; frames are taken as a strided view and transformed by a
    real FFT, which is quicker than `torch.stft`. Audio of the window's exact length only.

    Args:
        n_mels: 80, or 128 for large-v3.
        positions: encoder positions of a window; the audio has 320 samples for each.
    """

    def __init__(self, n_mels: int = 80, positions: int = POSITIONS) -> None:
        from transformers import WhisperFeatureExtractor

        extractor = WhisperFeatureExtractor(feature_size=n_mels)
        self.n_mels, self.samples = n_mels, positions * SAMPLES_PER_POSITION
        self._n_fft, self._hop = extractor.n_fft, extractor.hop_length
        self._window = torch.hann_window(self._n_fft)
        self._filters = torch.from_numpy(extractor.mel_filters).float()

    def __call__(self, audio: FloatArray) -> Tensor:
        """Float32 (samples,) to float32 (n_mels, 2 * positions)."""
        if audio.shape != (self.samples,):
            raise ValueError(f"a window has {self.samples} samples, not {audio.shape}")
        half, frames = self._n_fft // 2, self.samples // self._hop
        # The padding is zeros, whose power is 0: only frames that reach into the recording are computed.
        heard = np.flatnonzero(audio.reshape(-1, self._hop).any(1))
        wanted = min(frames, int(heard[-1]) + 1 + -(-half // self._hop)) if heard.size else 0
        log_mel = torch.full((frames, self.n_mels), -10.0)
        if wanted:
            padded = torch.nn.functional.pad(torch.from_numpy(audio)[None], (half, half), mode="reflect")[0]
            spectrum = torch.fft.rfft(padded.unfold(0, self._n_fft, self._hop)[:wanted] * self._window)
            power = torch.view_as_real(spectrum).square().sum(-1)
            log_mel[:wanted] = (power @ self._filters).clamp(min=1e-10).log10()
        log_mel = torch.maximum(log_mel, log_mel.max() - 8.0)
        return ((log_mel + 4.0) / 4.0).T.contiguous()


class _Windows:
    """What both kinds of data set do with a window."""

    def __init__(self, packer: WindowPacker, n_mels: int, tokenizer: WhisperTokenizer | None, positions: int) -> None:
        self.packer, self.n_mels, self.positions = packer, n_mels, positions
        self.log_mel = LogMel(n_mels, positions)
        # A copy, since its language is set in turn.
        self.tokenizer = copy.deepcopy(tokenizer)
        # Without <|startoftranscript|>: the model puts its start token before the labels itself.
        self._prefixes: dict[str | None, list[int]] = {}
        if self.tokenizer is not None:
            self._prefixes[None] = list(self.tokenizer.prefix_tokens)[1:]

    def item(self, name: str, window: Window, said: Sequence[Utterance]) -> dict[str, Any]:
        item: dict[str, Any] = {
            "input_features": self.log_mel(window.audio),
            "speech_mask": torch.from_numpy(window.speech_mask),
            "id": name,
        }
        labels = self._labels(window, said)
        return item if labels is None else item | {"labels": labels}

    def _labels(self, window: Window, said: Sequence[Utterance]) -> list[int] | None:
        """What the decoder should say after its start token; None if it is not known or in several languages."""
        languages = {utterance.language for utterance in said}
        if self.tokenizer is None or not window.intact or len(languages) > 1:
            return None
        texts = [utterance.text for utterance in said]
        if any(text is None for text in texts):
            return None
        prefix = self._prefix(next(iter(languages), None))
        words = " ".join(str(text).strip() for text in texts)
        ids = self.tokenizer(" " + words if words else "", add_special_tokens=False).input_ids
        return [*prefix, *ids, self.tokenizer.eos_token_id]

    def _prefix(self, language: str | None) -> list[int]:
        if language not in self._prefixes:
            assert self.tokenizer is not None
            try:
                self.tokenizer.set_prefix_tokens(language=language, task="transcribe", predict_timestamps=False)
                self._prefixes[language] = list(self.tokenizer.prefix_tokens)[1:]
            except ValueError as error:
                raise RequestError(f"{language!r} is no language of Whisper's: name it as 'fr' or 'french'") from error
        return self._prefixes[language]


class DistillationDataset(_Windows, Dataset[dict[str, Any]]):
    """Windows packed from a list of utterances; each epoch has other ones.

    Args:
        utterances: from `sources`, or an `AudioStore` of them.
        n_mels: mel bins, 80 or 128.
        positions: encoder positions of a window.
        mix: kinds of windows and how often.
        augmenter: None leaves the audio as it is.
        seed: with epoch and index, all that chance depends on.
        windows_per_epoch: length; None takes one window for each utterance. In an epoch of at least that many, every
            utterance opens a window (unless its kind holds no speech).
        memory_gb: of audio that may be kept decoded, see `AudioStore`.
        tokenizer: Whisper's, for `labels`. Where an utterance names its `language`, the labels do so too, as
            multilingual models have it; for an English-only model the source names none.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance] | AudioStore,
        *,
        n_mels: int = 80,
        positions: int = POSITIONS,
        mix: WindowMix | None = None,
        augmenter: Augmenter | None = None,
        seed: int = 0,
        windows_per_epoch: int | None = None,
        memory_gb: float = 4.0,
        tokenizer: WhisperTokenizer | None = None,
    ) -> None:
        super().__init__(WindowPacker(positions, mix, augmenter, seed), n_mels, tokenizer, positions)
        self.store = utterances if isinstance(utterances, AudioStore) else AudioStore(utterances, memory_gb)
        if windows_per_epoch is not None and windows_per_epoch < 1:
            raise RequestError(f"windows_per_epoch is {windows_per_epoch}, it must be at least 1")
        self.windows_per_epoch = windows_per_epoch or len(self.store)
        # In shared memory: workers that live through several epochs see the change.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._orders: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the windows of another epoch, also in the workers of a `DataLoader` that keeps them."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.windows_per_epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.window_item(self.epoch, index)

    def window(self, epoch: int, index: int) -> Window:
        """Any window of any epoch, as audio."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        turn, place = divmod(index, len(self.store))
        key = (epoch, turn)
        if key not in self._orders:
            # Each turn through the utterances has its own order; those of former epochs are not needed again soon.
            if len(self._orders) > 8:
                self._orders.clear()
            self._orders[key] = self.packer.order(epoch * 1_000_003 + turn, len(self.store))
        first = int(self._orders[key][place])
        return self.packer.pack(self.packer.generator(epoch, index), first, len(self.store), self.store.__getitem__)

    def window_item(self, epoch: int, index: int) -> dict[str, Any]:
        """Any window of any epoch, as an item."""
        window = self.window(epoch, index)
        said = [self.store.utterances[i] for i in window.utterances]
        return self.item(f"{epoch}-{index}-{window.kind}", window, said)

    def settings(self) -> dict[str, Any]:
        """All that the windows depend on, for JSON."""
        digest = hashlib.sha256()
        for utterance in self.store.utterances:
            digest.update((utterance.identity() + "\n").encode())
        augmenter = self.packer.augmenter
        return {
            "format": FORMAT,
            "windows": type(self).__name__,
            "utterances": len(self.store),
            "utterances_sha256": digest.hexdigest(),
            "windows_per_epoch": len(self),
            "n_mels": self.n_mels,
            "positions": self.positions,
            "seed": self.packer.seed,
            "mix": asdict(self.packer.mix),
            "augmentation": None if augmenter is None else augmenter.settings(),
        }

    def fingerprint(self) -> str:
        """SHA-256 of the settings, as hex: data sets of the same fingerprint have the same windows in every epoch."""
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()


class EvaluationDataset(DistillationDataset):
    """Each utterance at the start of its own window, in order, the same in all epochs, nothing done to the audio.

    The ids are the utterances' own. An utterance longer than a window is cut at the window's end.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance] | AudioStore,
        *,
        n_mels: int = 80,
        positions: int = POSITIONS,
        memory_gb: float = 4.0,
        tokenizer: WhisperTokenizer | None = None,
    ) -> None:
        super().__init__(utterances, n_mels=n_mels, positions=positions, memory_gb=memory_gb, tokenizer=tokenizer)

    def window(self, epoch: int, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return self.packer.evaluation(index, self.store[index])

    def window_item(self, epoch: int, index: int) -> dict[str, Any]:
        utterance = self.store.utterances[index]
        return self.item(utterance.id, self.window(epoch, index), [utterance])


class StreamingDistillationDataset(_Windows, IterableDataset[dict[str, Any]]):
    """Windows packed from a stream of utterances, one for each utterance that comes.

    The utterances go through a buffer, out of which each leaves at random and in which further ones for a window are
    found. Speech that cannot be read is left out with a warning: a stream of weeks should not end for one bad file.
    The windows are the same again for the same seed, epoch and number of workers.

    Args:
        source: gives `Utterance`s each time that it is iterated; if it has `set_epoch`, it is told the epoch.
        buffer_size: utterances held in 16 bits; 2000 of 10 s take 0.64 GB in each worker.
        n_mels, positions, mix, augmenter, seed, tokenizer: as for `DistillationDataset`.

    Raises:
        RequestError: when iterated, if the source gives nothing that can be read.
    """

    def __init__(
        self,
        source: Iterable[Utterance],
        *,
        buffer_size: int = 500,
        n_mels: int = 80,
        positions: int = POSITIONS,
        mix: WindowMix | None = None,
        augmenter: Augmenter | None = None,
        seed: int = 0,
        tokenizer: WhisperTokenizer | None = None,
    ) -> None:
        super().__init__(WindowPacker(positions, mix, augmenter, seed), n_mels, tokenizer, positions)
        self.source, self.buffer_size = source, max(1, buffer_size)
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Another epoch: other windows and, if the source can, another order."""
        self._epoch.fill_(epoch)
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        number = 0 if worker is None else worker.id
        epoch, index = int(self._epoch), number
        buffer: list[tuple[Utterance, Samples16]] = []
        shuffle = np.random.default_rng([self.packer.seed, epoch, number, 2])

        def audio_of(place: int) -> FloatArray:
            return buffer[place][1].audio()

        def take() -> dict[str, Any]:
            nonlocal index
            first = int(shuffle.integers(len(buffer)))
            window = self.packer.pack(self.packer.generator(epoch, index), first, len(buffer), audio_of)
            said = [buffer[place][0] for place in window.utterances]
            item = self.item(f"{epoch}-{index}-{window.kind}", window, said)
            index += 1 if worker is None else worker.num_workers
            buffer[first] = buffer[-1]
            buffer.pop()
            return item

        for decoded in self._decoded(worker is None or worker.num_workers == 1):
            buffer.append(decoded)
            if len(buffer) >= self.buffer_size:
                yield take()
        while buffer:
            yield take()

    def _decoded(self, alone: bool) -> Iterator[tuple[Utterance, Samples16]]:
        read = failed = 0
        for utterance in self._share():
            try:
                samples = Samples16.of(utterance.load())
            except AudioError as error:
                failed += 1
                logger.warning("left out: %s", error)
                continue
            read += 1
            yield utterance, samples
        if not read and (alone or failed):
            raise RequestError(f"the data set is empty: of its stream {failed} utterances came, none could be read")

    def _share(self) -> Iterable[Utterance]:
        """This worker's utterances. A stream of `datasets` divides itself; of any other, each takes every n-th."""
        from whisper_hailo_hf.sources.hub import DatasetStream

        worker = torch.utils.data.get_worker_info()
        if worker is None or isinstance(self.source, DatasetStream):
            return self.source
        return (u for place, u in enumerate(self.source) if place % worker.num_workers == worker.id)
