"""Speech in many forms to one: tables, folders of audio and data sets of the Hub become utterances."""

from whisper_hailo_hf.sources.utterances import (
    TEXT_COLUMNS,
    Utterance,
    open_source,
    read_audio_folder,
    read_part,
    read_tsv,
    split_long,
)

__all__ = [
    "TEXT_COLUMNS",
    "Utterance",
    "open_source",
    "read_audio_folder",
    "read_part",
    "read_tsv",
    "split_long",
]
