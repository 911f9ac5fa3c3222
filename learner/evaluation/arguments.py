"""The flags of `python -m learner.evaluate`."""

from __future__ import annotations

import argparse

from learner.evaluation.measures import RENDERED
from learner.evaluation.predictions import SECTIONS
from learner.evaluation.scoring import NO_BACKEND, ScoringOptions
from learner.evaluation.studies import CONTROLS
from reward_server.backends import BACKENDS
from reward_server.scorer import ScorerOptions
from rrg.command import add_debug
from rrg.data.formats import FORMATS


def parser() -> argparse.ArgumentParser:
    """All flags, in the groups that --help shows."""
    made = argparse.ArgumentParser(
        prog="python -m learner.evaluate",
        description="Measures generated reports: of a predictions file, or of a run's policy. "
        "Exit status 1: some pairs could not be scored; 2: an error that its message tells.",
    )
    add_debug(made)
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--predictions", metavar="FILE", help=".jsonl with id, reference, hypothesis; .csv, .tsv; ReXrank's .json"
    )
    source.add_argument("--run", metavar="DIR", help="a run directory of learner.main: its policy writes the reports")
    _run_arguments(made.add_argument_group("reports of a run"))
    _data_arguments(made.add_argument_group("predictions and their data set"))
    _model_arguments(made.add_argument_group("what scores"))
    _output_arguments(made.add_argument_group("statistics and outputs"))
    return made


def scoring_options(args: argparse.Namespace) -> ScoringOptions:
    """What scores, by the flags."""
    weights = {"weights": args.weights, "radgraph": args.radgraph, "device": args.device, "dtype": args.dtype}
    weights["idf"] = args.idf
    return ScoringOptions(
        ScorerOptions(args.backend, **weights),
        args.threads,
        args.reward_address,
        args.reward_wait,
        args.reward_timeout,
        args.tls_ca,
        args.tls_server_name,
        args.token_file,
    )


def _run_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--checkpoint", default="latest", metavar="NAME", help="warm_start, latest, best or a folder (latest)"
    )
    group.add_argument("--out", metavar="FILE", help="JSON lines of the reports; one that is there is gone on with")
    group.add_argument("--limit", type=_positive, metavar="N", help="only the first N studies of the split")
    group.add_argument("--regions", action="store_true", help="table of boxes, significance and findings of regions")


def _data_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--baseline", metavar="FILE", help="another system's predictions for the same studies")
    group.add_argument(
        "--columns", nargs=2, metavar=("REF", "HYP"), default=("reference", "hypothesis"), help="fields with the texts"
    )
    group.add_argument("--section", choices=SECTIONS, default="findings", help="of the reports (default: findings)")
    group.add_argument("--split", choices=("train", "val", "test"), help="of the data set (test)")
    group.add_argument("--verbatim", action="store_true", help="models read the texts as they stand, not cleaned")
    group.add_argument(
        "--format", choices=(RENDERED, *FORMATS), help="data set of the studies: for pictures, findings and controls"
    )
    group.add_argument("--root", metavar="DIR", help="where the data set lies")
    group.add_argument("--reports", metavar="DIR", help="MIMIC-CXR: folder or zip of the report texts (in --root)")
    group.add_argument("--cache-dir", metavar="DIR", help="rendered images and features ($LMRRG_CACHE or .cache)")
    group.add_argument(
        "--controls", default=",".join(CONTROLS), metavar="NAMES", help="of %(default)s (all); '' for none"
    )


def _model_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--backend", choices=(*BACKENDS, NO_BACKEND), help="in this process (embedded; of a run: the run's own)"
    )
    group.add_argument("--weights", metavar="DIR", help="folder of the weights of published and reference")
    group.add_argument("--radgraph", default="radgraph", metavar="NAME", help="RadGraph archive in it (radgraph)")
    group.add_argument("--idf", metavar="FILE", help="corpus of BERTScore's idf (none, as RadCliQ is defined)")
    group.add_argument("--device", default="cpu", help="torch device (cpu)")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(float32)")
    group.add_argument("--threads", type=_positive, metavar="N", help="torch threads (all cores)")
    group.add_argument("--reward-address", metavar="HOST:PORT[,...]", help="ask these reward servers instead")
    group.add_argument("--reward-wait", type=float, default=10.0, metavar="S", help="seconds for them to be ready (10)")
    group.add_argument("--reward-timeout", type=float, default=600.0, metavar="S", help="seconds for a request (600)")
    group.add_argument("--tls-ca", metavar="FILE", help="certificates that vouch for the servers (PEM)")
    group.add_argument("--tls-server-name", metavar="NAME", help="name in the servers' certificates (host)")
    group.add_argument("--token-file", metavar="FILE", help="file with the token that the servers ask for")
    group.add_argument("--no-meteor", action="store_true", help="leave METEOR (Java) out")


def _output_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--bootstrap", type=_positive, default=2000, metavar="N", help="resamples, permutations (2000)")
    group.add_argument("--seed", type=int, default=0, help="(0)")
    group.add_argument("--json", metavar="FILE", help="every number")
    group.add_argument("--rexrank", metavar="FILE", help="a run on data=rexrank: its JSON with model_prediction")
    group.add_argument("--per-study", metavar="FILE", help="CSV with a row a study; no report text")
    group.add_argument(
        "--worst",
        metavar="FILE",
        help="the worst studies: .html with pictures and reports, or .png of X-rays and labels",
    )
    group.add_argument("--worst-count", type=_positive, default=20, metavar="N", help="how many (20)")
    group.add_argument(
        "--pictures",
        nargs=2,
        metavar=("N", "FILE"),
        help=".html of N studies: pictures, regions, reports; those with the most significant regions first",
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
