"""The registry of encoder families, and how a config becomes a core and its host stage."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whisper_hailo_hf.encoders.host import HostStage
from whisper_hailo_hf.encoders.layers import EncoderCore
from whisper_hailo_hf.errors import RequestError

if TYPE_CHECKING:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from whisper_hailo_hf.configuration_whisper_hailo import WhisperHailoConfig

POSITIONS_PER_SECOND = 50  # one encoder state per 20 ms: hop of 10 ms, halved by the stem (Radford et al. 2022)


@dataclass(frozen=True)
class EncoderFamily:
    """One kind of encoder.

    Attributes:
        name: what `encoder_family` says in the config.
        options: frozen dataclass of its options.
        core: the network on the chip, built from (config, options).
        presets: by name, options and `encoder_layers`.
        positional_map: whether the host adds a learned positional map before the LayerNorm.
        start_from_teacher: puts a stock encoder's weights into a core, as far as they fit.
    """

    name: str
    options: type
    core: Callable[["WhisperHailoConfig", Any], EncoderCore]
    presets: dict[str, dict[str, Any]]
    positional_map: bool
    start_from_teacher: Callable[[EncoderCore, "WhisperEncoder"], None]

    def parse_options(self, options: dict[str, Any]) -> Any:
        """The options dataclass from a plain dict, as it stands in a config."""
        known = {field.name: field for field in dataclasses.fields(self.options)}
        if unknown := sorted(set(options) - set(known)):
            raise RequestError(
                f"the {self.name} family has no option {', '.join(unknown)}: it has {', '.join(sorted(known))}"
            )
        # JSON knows no tuples
        return self.options(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})

    def preset(self, name: str) -> dict[str, Any]:
        """Options of a preset, `encoder_layers` among them."""
        if name not in self.presets:
            choice = f"choose {', '.join(self.presets)}" if self.presets else "leave preset out"
            raise RequestError(f"the {self.name} family has no preset {name!r}: {choice}")
        return dict(self.presets[name])


_FAMILIES: dict[str, EncoderFamily] = {}


def register_family(family: EncoderFamily) -> None:
    """Adds a family under its name."""
    _FAMILIES[family.name] = family


def get_family(name: str) -> EncoderFamily:
    """The family of that name; a `RequestError` lists those that exist."""
    if name not in _FAMILIES:
        raise RequestError(f"unknown encoder family {name!r}: choose {', '.join(sorted(_FAMILIES))}")
    return _FAMILIES[name]


def build_encoder(config: "WhisperHailoConfig") -> tuple[EncoderCore, HostStage]:
    """The core and the host stage that a config describes."""
    family = get_family(config.encoder_family)
    options = family.parse_options(config.encoder_options or {})
    core = family.core(config, options)
    host = HostStage(
        positions=config.max_source_positions,
        d_model=config.d_model,
        window_positions=core.frames // 2,
        tiles=getattr(options, "tiles", "all"),
        time_axis=config.time_axis,
        positional_map=family.positional_map,
    )
    return core, host
