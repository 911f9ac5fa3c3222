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
from rrg.model.saved import policy_in


def export_llm(policy_dir: Path, out: Path) -> None:
    """Writes the folder; `policy_dir` may be a checkpoint's, too. Raises UserError where it is no policy, or `out` is
    there already, before torch is loaded."""
    if out.exists():
        raise UserError(f"{out} exists already: name a new folder")
    found = policy_in(policy_dir)
    if found is None:
        raise UserError(f"{policy_dir} is no policy (policy.json): name RUN/warm_start or RUN/checkpoints/step_N")
    from rrg.model.build import load_policy, share_weights
    from rrg.model.lora import merged_state_dict, remove_lora

    policy = load_policy(found)
    merged = merged_state_dict(policy.llm)
    remove_lora(policy.llm)
    policy.llm.save_pretrained(out, state_dict=merged)
    policy.tokenizer.save_pretrained(out)
    share_weights(out, like=out / "config.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rrg.model.export", description="Write a saved policy's language model as a Hugging Face folder."
    )
    parser.add_argument(
        "policy",
        type=Path,
        metavar="POLICY",
        help="RUN/warm_start, RUN/checkpoints/step_N, or another folder of a policy",
    )
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
