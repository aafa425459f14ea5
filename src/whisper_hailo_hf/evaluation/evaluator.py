"""Speech recognition for `evaluate.evaluator`: the library's own stops at TensorFlow, which Transformers 5 has not.

from whisper_hailo_hf.evaluation.evaluator import SpeechRecognitionEvaluator

result = SpeechRecognitionEvaluator().compute(pipe, dataset, metric=WordErrorRate(), input_column="audio",
                                              label_column="text")
"""

from typing import Any

from evaluate import EvaluationModule
from evaluate.evaluator import AutomaticSpeechRecognitionEvaluator
from transformers import Pipeline, PreTrainedModel, pipeline

from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.evaluation.metrics import WordErrorRate
from whisper_hailo_hf.sources.hub import read_cell


class SpeechRecognitionEvaluator(AutomaticSpeechRecognitionEvaluator):
    """`evaluate.evaluator("automatic-speech-recognition")` that works with Transformers 5, offline.

    Args:
        normalizer: of both texts, for metrics of this package: "basic", "letters", "english" or "none".

    `compute` is that of `evaluate`, but that the default metric is `WordErrorRate`, that `generation_kwargs` are those
    of `generate()`, and that the input column may hold whatever `datasets` stores of audio: paths, undecoded bytes, or
    samples with their rate. Audio is decoded by this package: neither torchcodec nor ffmpeg is needed.
    """

    def __init__(self, task: str = "automatic-speech-recognition", normalizer: str = "none") -> None:
        super().__init__(task)
        # the library's are one dictionary of the class, which each call with generation_kwargs would add to
        self.PIPELINE_KWARGS: dict[str, Any] = {}
        self.METRIC_KWARGS: dict[str, Any] = {} if normalizer == "none" else {"normalizer": normalizer}

    def compute(self, *args: Any, generation_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """As in `evaluate`: rates and their parts, and the time that the pipeline took."""
        self.PIPELINE_KWARGS = {} if generation_kwargs is None else {"generate_kwargs": dict(generation_kwargs)}
        return super().compute(*args, **kwargs)

    def prepare_data(self, data: Any, input_column: str, label_column: str, *args: Any, **kwargs: Any) -> Any:
        """References, and samples at 16 kHz for the pipeline."""
        from datasets import Audio

        self.check_required_columns(data, {"input_column": input_column, "label_column": label_column})
        if isinstance(data.features[input_column], Audio):
            data = data.cast_column(input_column, Audio(decode=False))
        inputs = _Inputs(data.select_columns([input_column]), input_column)
        return {"references": list(data[label_column])}, inputs

    def prepare_pipeline(
        self, model_or_pipeline: Any, tokenizer: Any = None, feature_extractor: Any = None, device: Any = None
    ) -> Any:
        """The pipeline as it is, or one of a model or its name."""
        if isinstance(model_or_pipeline, str | PreTrainedModel):
            settings = {"tokenizer": tokenizer, "feature_extractor": feature_extractor, "device": device}
            return pipeline(self.task, model=model_or_pipeline, **settings)
        if isinstance(model_or_pipeline, Pipeline) and model_or_pipeline.task != self.task:
            raise RequestError(f"the pipeline is for {model_or_pipeline.task}, not for {self.task}")
        if not callable(model_or_pipeline):
            raise RequestError("name the model: a pipeline, a model, a folder or a Hub id")
        return model_or_pipeline

    def prepare_metric(self, metric: Any) -> EvaluationModule:
        """`WordErrorRate` where none is named."""
        return WordErrorRate() if metric is None else super().prepare_metric(metric)

    def predictions_processor(self, predictions: Any, label_mapping: Any) -> dict[str, list[str]]:
        """The transcripts without spaces at their ends."""
        return {"predictions": [one["text"].strip() for one in predictions]}


class _Inputs(list):
    """What the pipeline is to hear, decoded when it is asked for; a list, since the pipeline maps over lists."""

    def __init__(self, data: Any, column: str) -> None:
        super().__init__(range(len(data)))
        self.data, self.column = data, column

    def __getitem__(self, index: Any) -> Any:
        samples = read_cell(str(index), self.data[index][self.column])
        return {"raw": samples, "sampling_rate": 16_000}

    def __iter__(self) -> Any:
        return (self[index] for index in range(len(self)))
