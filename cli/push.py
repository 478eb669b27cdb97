"""`hf-xlt push`: upload a finished run to the Hub, in one commit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from hf_xlt.hub import PushReport


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("push")
    def push(
        run: str = typer.Argument(..., help="Output directory of a finished run or pre-training."),
        repo_id: str = typer.Argument(..., metavar="USER/NAME", help="Repository on the Hub; created if missing."),
        private: bool = typer.Option(
            None, "--private/--no-private", help="Visibility of a new repository. Default: the Hub's."
        ),
        revision: str = typer.Option(None, help="Branch to push to; created if missing. Default: main."),
        commit_message: str = typer.Option(None, help="First line of the commit."),
        create_pr: bool = typer.Option(False, "--create-pr", help="Open a pull request instead."),
        adapter: bool = typer.Option(False, "--adapter", help="Push the LoRA adapter, not the merged model."),
        tag: str = typer.Option(None, help="Tag set after success, such as v1.0. Default: made of date and hash."),
        no_tag: bool = typer.Option(False, "--no-tag", help="Set no tag."),
        token: str = typer.Option(None, help="Access token. Default: HF_TOKEN, or that of `hf auth login`."),
        dry_run: bool = typer.Option(False, "--dry-run", help="Check everything and print it; needs no network."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of text."),
        force: bool = typer.Option(False, "--force", help="Push a demonstration, or a model that was not scored."),
    ) -> None:
        """Push weights, tokenizer, card, record and results of a run; checkpoints and optimizer states stay here."""
        from hf_xlt.hub import push as push_run

        report = push_run(
            run,
            repo_id,
            private=private,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
            adapter=adapter,
            tag=tag,
            tags=not no_tag,
            token=token,
            dry_run=dry_run,
            force=force,
        )
        print(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else _describe(report))


def _describe(report: PushReport) -> str:
    visibility = {True: "private", False: "public", None: "visibility as the Hub's default"}[report.private]
    lines = [f"  {name:<32} {size:>14,} bytes" for name, size in report.files.items()]
    lines.append(f"{len(report.files)} files, {sum(report.files.values()):,} bytes")
    lines += [f"Note: {note}" for note in report.notes]
    lines += [f"Removed from the repository: {name}, left by an earlier push" for name in report.removed]
    if report.dry_run:
        tagged = f"tag {report.tag}" if report.tag else "no tag"
        lines += ["", report.card.rstrip(), ""]
        lines.append(
            f"Would push to {report.url}, branch {report.revision}, {tagged}, {visibility}. Nothing was sent "
            "(--dry-run)."
        )
    elif report.changed:
        lines.append(f"Pushed to {report.url} ({visibility}, {report.revision}, commit {report.commit[:12]})")
    else:
        lines.append(f"{report.url} ({visibility}, {report.revision}) has all of it already; nothing was sent.")
    if report.tag and not report.dry_run:
        lines.append(f'Tagged {report.tag}: `from_pretrained("{report.repo_id}", revision="{report.tag}")`')
    return "\n".join(lines)
