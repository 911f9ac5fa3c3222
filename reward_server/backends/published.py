"""The `published` backend: RadCliQ from the published weights of CheXbert, RadGraph and distilroberta-base.

Contract: numerically `CXR-Report-Metric`, by batched inference of our own; a pair's scores are the same bits alone, in
any batch and in any order (on one kind of processor with one number of threads). A report is read once, whoever asks,
and kept by text while the cache has room. A report without text has no graph (F1 0), a BERTScore of -5.55 and the
CheXbert embedding of `[CLS] [SEP]`: an empty hypothesis scores about 10.9.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch

from reward_server.cache import LRUCache
from reward_server.errors import RewardSetupError
from reward_server.explanation import Explanation
from reward_server.radcliq.bertscore import BertScore, Pieces
from reward_server.radcliq.chexbert import CheXbert, ReportLabels, positive_f1, similarity
from reward_server.radcliq.radgraph.explain import explain
from reward_server.radcliq.radgraph.graph import Graph, complete_f1, graph_f1, partial_f1, simple_f1
from reward_server.radcliq.radgraph.model import RadGraphModel
from reward_server.radcliq.weights import WeightsFolder, sha256
from reward_server.scorer import Description, Labels, ModelFile, Pair, ScorerOptions
from reward_server.spec import RADCLIQ_V0, RADCLIQ_V1
from reward_server.text import form
from reward_server.text.bleu import bleu2

COMPONENTS = (
    "radgraph",
    "radgraph_entity",
    "radgraph_relation",
    "radgraph_simple",
    "radgraph_partial",
    "radgraph_complete",
    "bertscore",
    "semb",
    "bleu2",
    "radcliq_v1",
    "radcliq_v0",
    "repetition",
    "length",
    "positive_f1",
)
# Most of a report's features are its word pieces' states: 3 kB a piece.
_CACHE_BYTES = 256 * 2**20
_LABEL_CACHE = 32_768  # texts that were labelled and not scored
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

T = TypeVar("T")


@dataclass(frozen=True)
class _Report:
    labels: ReportLabels
    pieces: Pieces
    graph: Graph


class PublishedScorer:
    """A `Scorer` with the components `COMPONENTS`; `radcliq_v1` is the composite: lower is better."""

    def __init__(self, options: ScorerOptions) -> None:
        """Loads all weights (a few seconds); RewardSetupError names the missing or unfit file."""
        device, dtype = _device(options)
        if options.weights is None:
            raise RewardSetupError("the backend 'published' needs a folder of weights: --weights DIR")
        folder = WeightsFolder(Path(options.weights), options.radgraph)
        self._chexbert = CheXbert(folder.chexbert, folder.bert, options.device, dtype)
        self._radgraph = RadGraphModel.load(folder.radgraph, folder.backbone, device, dtype)
        self._bertscore = BertScore(folder.roberta, options.device, dtype, Path(options.idf) if options.idf else None)
        self._description = _describe(options, folder)
        self._reports: LRUCache[_Report] = LRUCache(_CACHE_BYTES, _bytes)
        self._labels: LRUCache[Labels] = LRUCache(_LABEL_CACHE)
        self._seconds = dict.fromkeys(("chexbert", "bertscore", "radgraph", "pairs"), 0.0)
        self._hits, self._misses = 0, 0

    @property
    def description(self) -> Description:
        return self._description

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        reports = self._read({report for pair in pairs for report in pair})
        scores: dict[Pair, dict[str, float]] = {}
        started = time.perf_counter()
        for pair in pairs:
            if pair not in scores:
                scores[pair] = self._score(pair, reports[pair[0]], reports[pair[1]])
        self._seconds["pairs"] += time.perf_counter() - started
        return [dict(scores[pair]) for pair in pairs]

    def label(self, texts: Sequence[str]) -> list[Labels]:
        """CheXbert's classes. Only CheXbert runs, and not on texts that were scored or labelled before."""
        found = {text: self._known_labels(text) for text in sorted(set(texts))}
        new = [text for text, labels in found.items() if labels is None]
        self._hits, self._misses = self._hits + len(found) - len(new), self._misses + len(new)
        if new:
            for text, read in zip(new, self._timed("chexbert", self._chexbert.label, new), strict=True):
                found[text] = read.classes
                self._labels.put(text, read.classes)
        return [labels for text in texts if (labels := found[text]) is not None]

    def explain(self, pairs: Sequence[Pair]) -> list[Explanation]:
        """RadGraph's graphs. Reports are read as for `score`, and kept for it."""
        reports = self._read({report for pair in pairs for report in pair})
        return [explain(*pair, *(reports[report].graph for report in pair)) for pair in pairs]

    def statistics(self) -> Mapping[str, float]:
        """Counters since the start: reports found in the cache and not, seconds of each model and of the pairs."""
        seconds = {f"{name}_seconds": value for name, value in self._seconds.items()}
        return {"cache_hits": self._hits, "cache_misses": self._misses, **seconds}

    def _known_labels(self, text: str) -> Labels | None:
        report = self._reports.get(text)
        return self._labels.get(text) if report is None else report.labels.classes

    def _read(self, texts: Iterable[str]) -> dict[str, _Report]:
        found: dict[str, _Report] = {}
        new: list[str] = []
        for text in sorted(texts):
            report = self._reports.get(text)
            if report is None:
                new.append(text)
            else:
                found[text] = report
        self._hits, self._misses = self._hits + len(found), self._misses + len(new)
        if new:
            labels = self._timed("chexbert", self._chexbert.label, new)
            pieces = self._timed("bertscore", self._bertscore.encode, new)
            graphs = self._timed("radgraph", self._radgraph.annotate, new)
            for text, report in zip(new, map(_Report, labels, pieces, graphs), strict=True):
                found[text] = report
                self._reports.put(text, report)
        return found

    def _timed(self, name: str, read: Callable[[Sequence[str]], list[T]], texts: Sequence[str]) -> list[T]:
        started = time.perf_counter()
        result = read(texts)
        self._seconds[name] += time.perf_counter() - started
        return result

    def _score(self, pair: Pair, reference: _Report, hypothesis: _Report) -> dict[str, float]:
        graph = graph_f1(reference.graph, hypothesis.graph)
        bert = self._bertscore.score(reference.pieces, hypothesis.pieces)
        labels = similarity(reference.labels, hypothesis.labels)
        bleu = bleu2(*pair)
        return {
            "radgraph": graph.mean,
            "radgraph_entity": graph.entity,
            "radgraph_relation": graph.relation,
            "radgraph_simple": simple_f1(reference.graph, hypothesis.graph),
            "radgraph_partial": partial_f1(reference.graph, hypothesis.graph),
            "radgraph_complete": complete_f1(reference.graph, hypothesis.graph),
            "bertscore": bert,
            "semb": labels,
            "bleu2": bleu,
            "radcliq_v1": RADCLIQ_V1(graph.mean, bert, labels, bleu),
            "radcliq_v0": RADCLIQ_V0(graph.mean, bert, labels, bleu),
            "repetition": form.repetition(*pair),
            "length": form.length(*pair),
            "positive_f1": positive_f1(reference.labels, hypothesis.labels),
        }


def _device(options: ScorerOptions) -> tuple[torch.device, torch.dtype]:
    """The device and number format; RewardSetupError where this machine does not have them."""
    try:
        device = torch.device(options.device)
    except RuntimeError as error:
        raise RewardSetupError(f"--device {options.device}: not a torch device; cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise RewardSetupError(f"--device {options.device}: cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RewardSetupError(
            f"--device {options.device}: torch {torch.__version__} sees no GPU here; use --device cpu"
        )
    if options.dtype not in _DTYPES:
        raise RewardSetupError(f"--dtype {options.dtype}: one of {', '.join(_DTYPES)}")
    if device.type == "cpu" and options.dtype != "float32":
        raise RewardSetupError(f"--dtype {options.dtype}: on CPUs float32 only; half precision needs --device cuda")
    return device, _DTYPES[options.dtype]


def _describe(options: ScorerOptions, folder: WeightsFolder) -> Description:
    models = [
        ModelFile("CheXbert", sha256(folder.chexbert)),
        ModelFile(options.radgraph, sha256(folder.radgraph)),
        ModelFile("distilroberta-base", sha256(folder.roberta)),
        ModelFile("bert-base-uncased (tokenizer)", sha256(folder.bert)),
    ]
    # Another RadGraph is another measure.
    definition = "radcliq-v1" if options.radgraph == "radgraph" else f"radcliq-v1+{options.radgraph}"
    if options.idf:
        models.append(ModelFile("idf corpus", sha256(Path(options.idf))))
        definition += "+idf"
    if options.dtype != "float32":
        definition += f"+{options.dtype}"
    return Description(
        backend="published",
        definition=definition,
        formula="RadCliQ v1 (CXR-Report-Metric) of radgraph, bertscore, semb, bleu2",
        components=COMPONENTS,
        models=tuple(models),
        versions={name: version(name) for name in ("torch", "transformers", "tokenizers", "bert-score")},
    )


def _bytes(report: _Report) -> int:
    states = report.pieces.states
    return states.numel() * states.element_size() + report.labels.embedding.numel() * 4 + 200 * len(report.graph.tokens)
