"""Settings of a distillation run."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from whisper_hailo_hf.errors import RequestError

_WEIGHTS = (
    "whitened_mse_weight",
    "cosine_weight",
    "decoder_view_weight",
    "hint_weight",
    "outlier_weight",
    "kl_weight",
    "ce_weight",
    "non_speech_weight",
)


@dataclass
class EncoderDistillationArguments(TrainingArguments):
    r"""
    Settings of [`EncoderDistillationTrainer`]: those of [`~transformers.TrainingArguments`], some with other defaults,
    and its own. The defaults suit one CPU or one GPU.

    Args:
        > Losses on the encoder states

        whitened_mse_weight (`float`, *optional*, defaults to 1.0):
            Weight of the squared error in units of each channel's standard deviation.
        cosine_weight (`float`, *optional*, defaults to 1.0):
            Weight of 1 - cosine between the whitened states of a frame.
        decoder_view_weight (`float`, *optional*, defaults to 1.0):
            Weight of the error in the keys and values of the decoder's cross-attention. Needs a decoder, or its
            cross-attention weights.
        hint_weight (`float`, *optional*, defaults to 0.0):
            Weight of each hint. With a weight the teacher always runs: a cache has no inner layers.
        hints (`list[str]`, *optional*, defaults to `[]`):
            Pairs `LAYER:BLOCK`: the teacher's residual stream after so many layers teaches the student's after so many
            blocks, through a linear adapter that is thrown away at the end.
        outlier_weight (`float`, *optional*, defaults to 0.01):
            Weight of the penalty on core outputs beyond `outlier_limit`, for the sake of 8 bits.
        outlier_limit (`float`, *optional*, defaults to 8.0):
            Size of a core output that is still free, in typical standard deviations of its channels.
        non_speech_weight (`float`, *optional*, defaults to 0.2):
            Weight of a frame of padding, silence or noise, where a frame of speech weighs 1.

        > Losses through the decoder, where there is one with its token embedding and the data have `labels`

        kl_weight (`float`, *optional*, defaults to 1.0):
            Weight of the divergence of next-token distributions, as in Distil-Whisper.
        ce_weight (`float`, *optional*, defaults to 0.8):
            Weight of the transcript's cross-entropy, as in Distil-Whisper.
        temperature (`float`, *optional*, defaults to 2.0):
            Temperature of the divergence, as in Distil-Whisper.
        train_decoder (`bool`, *optional*, defaults to `False`):
            Also train the student's decoder. It is frozen otherwise.

        > Teacher

        statistics_path (`str`, *optional*):
            File with the teacher's statistics: read if it is there, else measured and written. By default
            `teacher_statistics.safetensors` in `output_dir`.
        statistics_windows (`int`, *optional*, defaults to 512):
            Windows of the training data that the statistics are measured on.
        start_positional_map (`bool`, *optional*, defaults to `True`):
            Start a positional map that is still zero from the teacher's mean by position.

        > Training

        muon (`bool`, *optional*, defaults to `True`):
            Train the hidden convolutions with Muon and only the rest with AdamW, which learns far more from the same
            windows; see [`MuonWithAdamW`]. Set it to `False` for the optimizer that `optim` names, and under FSDP or
            DeepSpeed, where no process holds whole matrices.
        quantization_aware (`bool`, *optional*, defaults to `False`):
            Round weights and activations in the forward as the 8-bit graph will, with gradients passed straight
            through: weights by output channel, with the normalisation folded in, activations by tensor. Evaluations
            during the run are rounded too; the saved student is an ordinary one.
        quantization_start (`float`, *optional*, defaults to 0.5):
            Share of the steps that are trained in float before.
        sixteen_bit (`list[str]`, *optional*, defaults to `[]`):
            What is rounded to 16 bits instead: `residual_adds`, `output`, names of layers or patterns of them.
        weight_bits (`int`, *optional*, defaults to 8):
            Bits of the weights, 8 or 4.
        ema_decay (`float`, *optional*, defaults to 0.0):
            Decay of a moving average of the weights, which is then evaluated and saved in their place; 0 for none.
        channels_last (`bool`, *optional*, defaults to `True`):
            Keep the student's convolutions in channels-last memory format.

        > Evaluation

        predict_with_generate (`bool`, *optional*, defaults to `False`):
            Also transcribe, from the student's and from the teacher's states, and report both word error rates. Needs
            a decoder with its token embedding, `labels` in the data, and a processor or tokenizer.
        generation_max_new_tokens (`int`, *optional*, defaults to 200):
            Most tokens of a transcript.
    """

    output_dir: str | None = field(default="distilled", metadata={"help": "Folder of checkpoints and result."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of convolutions."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The scheduler type to use."})
    warmup_steps: float = field(default=0.02, metadata={"help": "Steps of warm-up; below 1, a share of all."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate, if there is a data set for it."})
    eval_steps: float | None = field(default=500, metadata={"help": "Steps between evaluations."})
    save_steps: float = field(default=500, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept; the best always is."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between log lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "A loss that is not finite ends the run."})
    # the parser of the command line takes the first type after None
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard", metadata={"help": "Where to log: tensorboard, wandb, none, ..."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    metric_for_best_model: str | None = field(default="whitened_cosine", metadata={"help": "What best means."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether more of it is better."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "All are used."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches are complete as they are."})

    whitened_mse_weight: float = field(default=1.0, metadata={"help": "Weight of the whitened squared error."})
    cosine_weight: float = field(default=1.0, metadata={"help": "Weight of 1 - cosine of whitened states."})
    decoder_view_weight: float = field(default=1.0, metadata={"help": "Weight of the error in keys and values."})
    hint_weight: float = field(default=0.0, metadata={"help": "Weight of each hint."})
    hints: list[str] = field(default_factory=list, metadata={"help": "Pairs LAYER:BLOCK."})
    outlier_weight: float = field(default=0.01, metadata={"help": "Weight of the penalty on outliers."})
    outlier_limit: float = field(default=8.0, metadata={"help": "Standard deviations that are free of it."})
    non_speech_weight: float = field(default=0.2, metadata={"help": "Weight of a frame without speech."})
    kl_weight: float = field(default=1.0, metadata={"help": "Weight of the token divergence."})
    ce_weight: float = field(default=0.8, metadata={"help": "Weight of the token cross-entropy."})
    temperature: float = field(default=2.0, metadata={"help": "Temperature of the token divergence."})
    train_decoder: bool = field(default=False, metadata={"help": "Also train the student's decoder."})
    statistics_path: str | None = field(default=None, metadata={"help": "File with the teacher's statistics."})
    statistics_windows: int = field(default=512, metadata={"help": "Windows that they are measured on."})
    start_positional_map: bool = field(default=True, metadata={"help": "Start the map from the teacher's mean."})
    muon: bool = field(default=True, metadata={"help": "Train the hidden convolutions with Muon."})
    quantization_aware: bool = field(default=False, metadata={"help": "Round as the 8-bit graph will."})
    quantization_start: float = field(default=0.5, metadata={"help": "Share of the steps in float before."})
    sixteen_bit: list[str] = field(default_factory=list, metadata={"help": "What is rounded to 16 bits."})
    weight_bits: int = field(default=8, metadata={"help": "Bits of the weights: 8 or 4."})
    ema_decay: float = field(default=0.0, metadata={"help": "Decay of the averaged weights; 0 for none."})
    channels_last: bool = field(default=True, metadata={"help": "Channels-last memory format."})
    predict_with_generate: bool = field(default=False, metadata={"help": "Also report word error rates."})
    generation_max_new_tokens: int = field(default=200, metadata={"help": "Most tokens of a transcript."})

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ImportError as error:
            raise RequestError("training needs accelerate: pip install 'whisper-hailo-hf[train]'") from error
        for name in _WEIGHTS:
            if getattr(self, name) < 0:
                raise RequestError(f"{name} is {getattr(self, name)}: a weight is 0 or more")
        if not 0 <= self.ema_decay < 1:
            raise RequestError(f"ema_decay is {self.ema_decay}: choose 0 for none, or 0.99 to 0.9999")
        if self.hint_weight and not self.hints:
            raise RequestError("hint_weight without hints: name pairs such as --hints 2:6 4:10")
        if self.temperature <= 0 or self.outlier_limit <= 0:
            raise RequestError("temperature and outlier_limit must be above 0")
        if not 0 <= self.quantization_start < 1:
            raise RequestError(f"quantization_start is {self.quantization_start}: a share of the steps, 0 to below 1")
        if self.statistics_windows < 1:
            raise RequestError(f"statistics_windows is {self.statistics_windows}: choose 1 or more")
