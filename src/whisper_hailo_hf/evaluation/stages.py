"""The stages of the ladder: the forms that one encoder takes on its way from training to the chip.

A stage is a name and a callable from features to states. Those that are backends are opened through their registry;
for the forms inside Hailo's Dataflow Compiler, `compile.compiler_stages` gives openers.
"""

from collections.abc import Callable, Iterable, Mapping

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.backends import backend_class, backend_names, make_backend
from whisper_hailo_hf.errors import RequestError, WhisperHailoError
from whisper_hailo_hf.fidelity import Stage as Stage
from whisper_hailo_hf.fidelity import StageAbsent as StageAbsent
from whisper_hailo_hf.modeling_whisper_hailo import HailoWhisperEncoder

Opener = Callable[[HailoWhisperEncoder], Stage]


def _backend(name: str, artefact: str | None = None) -> Opener:
    def open_backend(encoder: HailoWhisperEncoder) -> Stage:
        if name not in backend_names():
            raise StageAbsent(f"this release has no backend {name!r}")
        status = backend_class(name).status()
        if not status.available:
            raise StageAbsent(status.reason)
        path = encoder.artefacts.get(artefact) if artefact else None
        if artefact and path is not None:
            # otherwise a backend might make the file anew, and what lies beside the weights would not be looked at
            weights = artefacts.fingerprint(encoder.core)
            record = encoder.config.artefacts.get(artefact)
            reason = artefacts.why_unfit(path, record, weights, time_axis=encoder.config.time_axis)
            if reason is not None:
                raise WhisperHailoError(reason)
        try:
            backend = make_backend(name, encoder.backend.parts)
        except RequestError as error:
            if path is not None:
                raise WhisperHailoError(str(error)) from error
            raise StageAbsent(str(error)) from error
        return Stage(name, backend.encode, backend.info, close=backend.close)

    return open_backend


def _absent(encoder: HailoWhisperEncoder) -> Stage:
    raise StageAbsent("needs Hailo's Dataflow Compiler: name the Python that it is installed for with --dfc-python")


_LADDER: dict[str, Opener] = {
    "torch": _backend("torch"),
    "onnx": _backend("onnx", artefacts.ONNX_PATH),
    "emulator": _backend("emulator", artefacts.ONNX_INT8_PATH),
    "har-native": _absent,
    "har-quantized": _absent,
    "hef": _backend("hef", artefacts.HEF_PATH),
}


def stage_names() -> list[str]:
    """The stages of the ladder, from the first to the last."""
    return list(_LADDER)


def register_stage(name: str, opener: Opener, *, before: str | None = None) -> None:
    """Puts a stage on the ladder, or another opener in place of a known stage's.

    Args:
        name: the stage.
        opener: opens it for an encoder; raises `StageAbsent` where it cannot be had, `WhisperHailoError` where it
            should be there and is broken.
        before: the stage that a new one stands before; None is the end.

    Raises:
        RequestError: there is no stage `before`.
    """
    if name in _LADDER:
        _LADDER[name] = opener
        return
    if before is not None and before not in _LADDER:
        raise RequestError(f"no stage {before!r}: there are {', '.join(_LADDER)}")
    order = list(_LADDER)
    place = order.index(before) if before is not None else len(order)
    entries = list(_LADDER.items())
    entries.insert(place, (name, opener))
    _LADDER.clear()
    _LADDER.update(entries)


def openers(
    wanted: Iterable[str | Stage] | None, instead: Mapping[str, Opener] | None = None
) -> list[tuple[str, Opener]]:
    """Names and openers of the stages asked for, in the order given; None is the whole ladder.

    Args:
        wanted: names of stages, or stages that are open.
        instead: openers to take for stages of these names, in place of the ladder's own.

    Raises:
        RequestError: an unknown name, or one twice.
    """
    if unknown := set(instead or {}) - set(_LADDER):
        raise RequestError(f"an opener for an unknown stage {min(unknown)!r}: there are {', '.join(_LADDER)}")
    ladder = _LADDER | dict(instead or {})
    if wanted is None:
        return list(ladder.items())
    found: list[tuple[str, Opener]] = []
    for stage in wanted:
        if isinstance(stage, Stage):
            found.append((stage.name, lambda encoder, stage=stage: stage))  # type: ignore[misc]
        elif stage in ladder:
            found.append((stage, ladder[stage]))
        else:
            raise RequestError(f"unknown stage {stage!r}: choose from {', '.join(ladder)}")
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise RequestError(f"stage {max(names, key=names.count)!r} is named twice")
    return found
