"""A model folder to the Hub: what of it would go, whether it may, and the upload in one commit."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from whisper_hailo_hf import artefacts
from whisper_hailo_hf.errors import RequestError
from whisper_hailo_hf.hailo.hef import read_hef
from whisper_hailo_hf.hub.code import FOLDER, SHIM, auto_map, code_files
from whisper_hailo_hf.hub.explain import LOG_IN, one_line
from whisper_hailo_hf.model_card import CardRecord, check_card, make_card, plain_card
from whisper_hailo_hf.version import __version__

CARD = "README.md"
# what makes a model beside its weights and what config.json records
_OF_A_MODEL = {
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "normalizer.json", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.jinja", CARD, "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE"),
    f"{SHIM}.py",
}
_WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class PlannedFile:
    """A file that would go: its name in the repository, its size in bytes, and what it is."""

    name: str
    size: int
    what: str
    content: bytes | None = field(default=None, repr=False)  # made for the push, not in the folder


@dataclass(frozen=True)
class PushPlan:
    """What a push would do.

    Attributes:
        folder, repo_id: from where to where.
        files: what would go.
        left_out: names of what would stay, and why.
        checks: what was looked at and found good.
        problems: what forbids the push, a line each.
        notes: what to know.
    """

    folder: str
    repo_id: str
    files: list[PlannedFile]
    left_out: dict[str, str]
    checks: list[str]
    problems: list[str]
    notes: list[str]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        files = [{"name": one.name, "size": one.size, "what": one.what} for one in self.files]
        return asdict(self) | {"files": files, "size": self.size}


def plan_push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    card: str | os.PathLike | None = None,
    include_code: bool = False,
) -> PushPlan:
    """What a push of a model folder would upload, and whether it may. The Hub is not asked.

    Checked are the weights, the files that config.json records (their hashes, that they were made from these weights,
    and that a HEF says what its record says), the card and its licence.

    Args:
        folder: of a model, or of an encoder alone.
        repo_id: `owner/model`.
        card: a record of a card (see `model_card.CardRecord`) to make the README.md of, in place of the folder's own.
        include_code: send this package's modelling code along, for `trust_remote_code=True`.

    Raises:
        RequestError: no model of ours there, or no name of a repository.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise RequestError(f"{repo_id} is no name of a repository: it is of the form owner/model") from error
    folder = Path(folder).expanduser()
    if repo_id.count("/") != 1:
        raise RequestError(f"{repo_id} is no name of a repository: it is of the form owner/model")
    config = _config(folder)
    plan = PushPlan(str(folder), repo_id, [], {}, [], [], [])
    made: dict[str, bytes] = {}
    if include_code:
        made |= {name: text.encode() for name, text in code_files(True).items()}
        config["auto_map"] = _with_code(config)
        made["config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    if card is not None:
        record = CardRecord.read(card)
        made[CARD] = make_card(record, config, artefacts.stored_parameters(folder)).encode()
    _list_files(folder, config, made, plan)
    _check_weights(folder, config, plan)
    _check_card(folder, made, plan)
    if config.get("architectures") != ["HailoWhisperEncoder"]:
        names = {file.name for file in plan.files}
        if not names & {"tokenizer.json", "vocab.json"} or not names & {
            "processor_config.json",
            "preprocessor_config.json",
        }:
            plan.notes.append(
                "no processor: save that of the original Whisper beside the model, or pipeline() finds none"
            )
    return plan


def push_folder(
    plan: PushPlan,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> Any:
    """Uploads what a plan names, in one commit: until all is there, the repository stays as it was.

    Large files that are there already are not sent again, so that a push that was cut off goes on when it is repeated.

    Args:
        plan: from `plan_push`, without problems.
        private: of a repository that is made.
        token: of the Hub; None is the one that is logged in with.
        revision: branch; made if it is not there.
        message: of the commit.

    Returns:
        The commit, as `huggingface_hub.CommitInfo`.

    Raises:
        RequestError: the plan has problems; no token or a wrong one, no right to write there.
        WhisperHailoError: no connection, or one that broke off.
    """
    if plan.problems:
        raise RequestError(plan.problems[0])
    folder = Path(plan.folder)
    operations = [
        CommitOperationAdd(file.name, folder / file.name if file.content is None else file.content)
        for file in plan.files
    ]
    message = message or f"Upload with whisper_hailo_hf {__version__}"
    return _commit(plan.repo_id, operations, message, private=private, token=token, revision=revision)


def push_model(
    save: Callable[[Path], None],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    tags: list[str] | None = None,
    card: str | None = None,
    **commit: Any,
) -> Any:
    """Uploads what `save` writes into a folder; see `push_to_hub` of the models."""
    with one_line(repo_id), tempfile.TemporaryDirectory(prefix="whisper-hailo-") as room:
        save(Path(room))
        return push_saved(Path(room), repo_id, private=private, token=token, tags=tags, card=card, **commit)


def push_saved(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    tags: list[str] | None = None,
    card: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> Any:
    """Uploads a model folder without questions: what makes the model, and a card if the repository has none."""
    config = _config(folder)
    plan = PushPlan(str(folder), repo_id, [], {}, [], [], [])
    _list_files(folder, config, {}, plan)
    operations = [CommitOperationAdd(one.name, folder / one.name) for one in plan.files if one.name != CARD]
    api = HfApi()
    with one_line(repo_id):
        if card is None and not _has_card(api, repo_id, token):
            card = plain_card(config, tags)
    if card is not None:
        operations.append(CommitOperationAdd(CARD, card.encode()))
    message = commit_message or f"Upload with whisper_hailo_hf {__version__}"
    return _commit(
        repo_id,
        operations,
        message,
        private=private,
        token=token,
        revision=revision,
        description=commit_description,
        create_pr=create_pr,
    )


def _has_card(api: HfApi, repo_id: str, token: str | bool | None) -> bool:
    return api.file_exists(repo_id, CARD, token=token)


def _commit(
    repo_id: str,
    operations: list[CommitOperationAdd],
    message: str,
    *,
    private: bool | None,
    token: str | bool | None,
    revision: str | None,
    description: str | None = None,
    create_pr: bool = False,
) -> Any:
    if not token and get_token() is None:
        raise RequestError(f"there is no token to push {repo_id} with: {LOG_IN}")
    api = HfApi()
    with one_line(repo_id):
        name = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(name, branch=revision, token=token, exist_ok=True)
        return api.create_commit(
            name,
            operations,
            commit_message=message,
            commit_description=description,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{folder} is no model folder: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict) or config.get("model_type") != "whisper_hailo":
        raise RequestError(f"{folder} holds no model of this package: make one with whisper-hailo init")
    return config


def _with_code(config: dict[str, Any]) -> dict[str, str]:
    known = {name: reference.rpartition(".")[2] for name, reference in (config.get("auto_map") or {}).items()}
    model = (config.get("architectures") or ["WhisperHailoForConditionalGeneration"])[0]
    return auto_map("WhisperHailoConfig", model, tuple(name for name in known if name != "AutoConfig"), True)


def _list_files(folder: Path, config: dict[str, Any], made: dict[str, bytes], plan: PushPlan) -> None:
    records = artefacts.checked_names(config.get("artefacts") or {})
    weights = {path.name for path in artefacts.weight_files(folder)}
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    code_here = f"{FOLDER}/" in json.dumps(config.get("auto_map") or {})
    for name, path in sorted(found.items()):
        if name in made:
            continue
        what = None
        if name in weights or (name == _WEIGHTS_INDEX and weights):
            what = "weights"
        elif name in records:
            what = "artefact"
        elif name in _OF_A_MODEL or (name.startswith(f"{FOLDER}/") and name.endswith(".py") and code_here):
            what = "card" if name == CARD else "code" if name.endswith(".py") else "model"
        if what:
            plan.files.append(PlannedFile(name, path.stat().st_size, what))
        elif name.endswith((".hef", ".onnx")):
            plan.left_out[name] = "config.json does not record it: whisper-hailo compile or quantize make what it does"
        elif not name.startswith("."):
            top, slash, _ = name.partition("/")
            plan.left_out[top + slash] = "no part of a model"
    for name, content in made.items():
        what = "card" if name == CARD else "code" if name.endswith(".py") else "model"
        plan.files.append(PlannedFile(name, len(content), what, content))
    plan.files.sort(key=lambda file: file.name)


def _check_weights(folder: Path, config: dict[str, Any], plan: PushPlan) -> None:
    try:
        weights = artefacts.stored_fingerprint(folder)
    except RequestError as error:
        plan.problems.append(str(error))
        return
    plan.checks.append("weights: readable")
    records = config.get("artefacts") or {}
    for name, entry in records.items():
        verb = "compile" if "hailo" in name.partition("/")[0] else "quantize"
        if not (folder / name).is_file():
            plan.problems.append(f"config.json records {name}, which is not there: make it with whisper-hailo {verb}")
        elif reason := artefacts.why_unfit(folder / name, entry, weights) or _why_not_its_hef(folder / name, entry):
            plan.problems.append(f"{name}: {reason}: make it anew with whisper-hailo {verb}")
    if records and not plan.problems:
        plan.checks.append(f"{len(records)} files beside the weights: as recorded, and made from these weights")


def _why_not_its_hef(path: Path, entry: dict[str, Any]) -> str | None:
    if path.suffix != ".hef":
        return None
    try:
        hef = read_hef(path)
    except RequestError as error:
        return str(error)
    if entry.get("hw_arch") not in (None, hef.architecture):
        return f"it is for {hef.architecture}, and config.json says {entry['hw_arch']}"
    return None


def _check_card(folder: Path, made: dict[str, bytes], plan: PushPlan) -> None:
    if CARD in made:
        text = made[CARD].decode()
    elif (folder / CARD).is_file():
        text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    else:
        plan.problems.append(
            f"no {CARD}: give --card a record of the model's facts and figures (docs/hub.md), or write one"
        )
        return
    if problems := check_card(text):
        plan.problems.extend(problems)
    else:
        plan.checks.append("card: front matter and licence")
