"""`python -m rrg.model.export POLICY OUT`: the language model of a saved policy as one plain Hugging Face folder.

Contract: OUT holds the model, adapters merged, and its tokenizer; plain transformers and plain vLLM load it by path.
It reads prompts of embeddings (`ReportPolicy.study_prompt`), or of text like any other model.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rrg.command import add_debug, carry_out
from rrg.errors import UserError


def export_llm(policy_dir: Path, out: Path) -> None:
    """Writes the folder. Raises UserError where `policy_dir` is no policy, or `out` is there already."""
    from rrg.model.build import load_policy
    from rrg.model.lora import merged_state_dict, remove_lora

    if out.exists():
        raise UserError(f"{out} exists already: name a new folder")
    policy = load_policy(policy_dir)
    merged = merged_state_dict(policy.llm)
    remove_lora(policy.llm)
    policy.llm.save_pretrained(out, state_dict=merged)
    policy.tokenizer.save_pretrained(out)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rrg.model.export", description="Write a saved policy's language model as a Hugging Face folder."
    )
    parser.add_argument("policy", type=Path, metavar="POLICY", help="folder of a policy, e.g. RUN/checkpoints/final")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write (must not exist)")
    add_debug(parser)
    args = parser.parse_args(arguments)
    # transformers' save loads DeepSpeed where it is installed, which prints that it finds no GPU unless it is told so.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return carry_out(lambda: _export(args), debug=args.debug)


def _export(args: argparse.Namespace) -> int:
    export_llm(args.policy, args.out)
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
