"""`hf-xlt swap-vocab`: give a masked language model another tokenizer, with new embeddings."""

from __future__ import annotations

import typer

from hf_xlt.cli.command import output_option, overwrite_option


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("swap-vocab")
    def swap_vocab(
        model: str = typer.Argument(..., help="Model directory or Hub id, with its own tokenizer."),
        tokenizer: str = typer.Option(..., help="New tokenizer: directory or Hub id."),
        output_dir: str = output_option("Where to save the model.", required=True),
        init: str = typer.Option(
            "overlap", help="overlap (copy pieces that both have), random, or a function as `package.module:function`."
        ),
        seed: int = typer.Option(0, help="Of the random rows."),
        revision: str = typer.Option(None, help="Branch, tag or commit of the model on the Hub."),
        as_json: bool = typer.Option(False, "--json", help="Print one JSON document instead of text."),
        overwrite: bool = overwrite_option("a model with swapped vocabulary"),
        trust_remote_code: bool = typer.Option(
            False, "--trust-remote-code", help="Run Python code that comes with model or tokenizer."
        ),
    ) -> None:
        """Rebuild the embeddings for another tokenizer; the encoder is kept."""
        from dataclasses import asdict
        from pathlib import Path

        from hf_xlt.models import ModelSource, load_tokenizer
        from hf_xlt.pretraining.folders import check_folder, replaced_folder, write_report
        from hf_xlt.pretraining.masked import FILES, save_masked
        from hf_xlt.pretraining.vocabulary import find_init, swap_vocabulary
        from hf_xlt.streams import print_document
        from hf_xlt.written import SWAPPING_NAME

        folder = Path(output_dir)
        what = "a model with swapped vocabulary"
        check_folder(folder, overwrite=overwrite, known=FILES, what=what, marker=SWAPPING_NAME, origin=model)
        init_fn = find_init(init)
        new = load_tokenizer(tokenizer, trust_remote_code=trust_remote_code)
        source = ModelSource.find(model, revision=revision, trust_remote_code=trust_remote_code)
        old, (loaded, notes) = source.load_tokenizer(), source.load_masked_lm(seed)
        report = swap_vocabulary(loaded, old, new, init_fn, seed)
        with replaced_folder(folder) as part:
            notes += save_masked(loaded, new, part)
            write_report(part, SWAPPING_NAME, {**asdict(report), "notes": notes})
        if as_json:
            print_document({"folder": str(folder), **asdict(report), "notes": notes})
            return
        print(report.line())
        print(f"\n{'script':<14}{'pieces':>9}{'copied':>9}{'share':>8}")
        for script, (copied, total) in report.scripts.items():
            print(f"{script:<14}{total:>9,}{copied:>9,}{copied / total:>8.1%}")
        for note in notes:
            print(f"Note: {note}")
        print(f"\nSaved in {folder}, for `AutoModelForMaskedLM.from_pretrained`.")
