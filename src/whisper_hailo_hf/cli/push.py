"""`whisper-hailo push`: a model folder to the Hub, once it is known what would go and that it may."""

from pathlib import Path
from typing import Annotated, Any

import typer

from whisper_hailo_hf.cli import console


def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a model, or of an encoder alone.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(help="Where to: owner/model.", show_default=False)],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run/--no-dry-run", help="Only say what would go, how large it is, and whether it may."),
    ] = True,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="The same as --no-dry-run.")] = False,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="A repository that is made now. [default: the owner's]")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="Record of facts and figures (YAML or JSON) to make the README.md of.")
    ] = None,
    include_code: Annotated[
        bool, typer.Option("--include-code", help="Send the modelling code along, for trust_remote_code=True.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; made if it is not there. [default: main]")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Upload a model folder to the Hugging Face Hub, in one commit; without --yes, only say what would be done.

    The weights, the hashes and records of the files beside them, the card and its licence are checked first. What is
    there already is not sent again: an upload that was cut off goes on when the command is repeated.
    """
    console.quiet_libraries()
    from whisper_hailo_hf.hub.push import plan_push, push_folder

    plan = plan_push(folder, repo_id, card=card, include_code=include_code)
    go = yes or not dry_run
    done: dict[str, Any] = {"pushed": False, "commit": None}
    if not as_json:
        _show(plan, go)
    if go and not plan.problems:
        commit = push_folder(plan, private=private, revision=revision, message=message)
        done = {"pushed": True, "commit": commit.commit_url}
        if not as_json:
            console.note(f"pushed: {commit.commit_url}")
    elif not as_json and not plan.problems:
        console.note("nothing was sent: --yes sends it")
    if as_json:
        console.print_json(plan.to_dict() | done)
    for problem in plan.problems:
        console.error(problem)
    return 2 if plan.problems else 0


def _show(plan: Any, go: bool) -> None:
    rows = [(file.name, _size(file.size), file.what) for file in plan.files]
    count = "1 file" if len(plan.files) == 1 else f"{len(plan.files)} files"
    verb = "goes" if go else "would go"
    console.print_table(f"{plan.folder} {verb} to {plan.repo_id}: {count}, {_size(plan.size)}", rows)
    for name, why in plan.left_out.items():
        console.note(f"left out: {name}: {why}")
    for line in (*plan.checks, *plan.notes):
        console.note(line)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"
