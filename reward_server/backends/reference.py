"""The `reference` backend: the packages themselves, one pair at a time. Slow; for checking `published`.

Contract: the components of `published` from independent code: the packages `radgraph` and `bert-score`, CheXbert by
transformers' `BertModel`. Blank reports and F1 are defined as there. Always float32.

Neither package works with transformers 5 as it is; nothing is patched beyond the objects made here:

- `radgraph` asks its tokenizer for `encode_plus` and `build_inputs_with_special_tokens`, which are gone: the tokenizer
  object that it is given gets them. It finds that object in its own cache.
- `bert-score` asks for a prefix space in a way that is now ignored, and fails on an empty text: its tokenizer is
  replaced by one loaded with `add_prefix_space=True` that has `build_inputs_with_special_tokens`.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bert_score
import torch
from radgraph.allennlp.common import cached_transformers
from radgraph.allennlp.common.params import Params
from radgraph.allennlp.data import Vocabulary
from radgraph.allennlp.data.dataloader import PyTorchDataLoader
from radgraph.allennlp.data.dataset_readers import AllennlpDataset
from radgraph.allennlp.data.token_indexers import PretrainedTransformerMismatchedIndexer
from radgraph.allennlp.modules.text_field_embedders import BasicTextFieldEmbedder
from radgraph.allennlp.modules.token_embedders import PretrainedTransformerMismatchedEmbedder
from radgraph.dygie.data.dataset_readers.dygie import DyGIEReader
from radgraph.dygie.models.dygie import DyGIE
from radgraph.rewards import compute_reward
from radgraph.utils import batch_to_device, postprocess_reports, preprocess_reports
from transformers import AutoConfig, AutoTokenizer, BertModel, PreTrainedTokenizerFast

from reward_server.backends.published import COMPONENTS
from reward_server.errors import RewardSetupError
from reward_server.explanation import Explanation
from reward_server.radcliq.radgraph.explain import explain
from reward_server.radcliq.radgraph.graph import from_json
from reward_server.radcliq.weights import WeightsFolder, load_tensors, sha256, weights_file
from reward_server.scorer import Description, Labels, ModelFile, Pair, ScorerOptions
from reward_server.spec import RADCLIQ_V0, RADCLIQ_V1
from reward_server.text import form
from reward_server.text.bleu import bleu2
from reward_server.text.labels import POSITIVE

_BASELINE = Path(bert_score.__file__).parent / "rescale_baseline/en/distilroberta-base.tsv"

RadGraphJson = dict[str, Any]


class ReferenceScorer:
    """`reward_server.scorer.Scorer`; `radcliq_v1` is the composite, lower is better."""

    def __init__(self, options: ScorerOptions) -> None:
        """RewardSetupError names the missing or unfit file."""
        if options.weights is None:
            raise RewardSetupError("the backend 'reference' needs a folder of weights: --weights DIR")
        if options.dtype != "float32":
            raise RewardSetupError(f"--dtype {options.dtype}: the backend 'reference' is float32 only")
        folder = WeightsFolder(Path(options.weights), options.radgraph)
        device = torch.device(options.device)
        self._radgraph = RadGraphPackage(folder.radgraph, folder.backbone, device)
        self._chexbert = CheXbertPlain(folder, device)
        self._bertscore = _bert_scorer(folder.roberta, device, Path(options.idf) if options.idf else None)
        self._description = Description(
            backend="reference",
            definition="radcliq-v1+idf" if options.idf else "radcliq-v1",
            formula="RadCliQ v1 (CXR-Report-Metric) of radgraph, bertscore, semb, bleu2",
            components=COMPONENTS,
            models=(
                ModelFile("CheXbert", sha256(folder.chexbert)),
                ModelFile(options.radgraph, sha256(folder.radgraph)),
                ModelFile("distilroberta-base", sha256(folder.roberta)),
            ),
            versions={name: version(name) for name in ("torch", "transformers", "radgraph", "bert-score")},
        )

    @property
    def description(self) -> Description:
        return self._description

    def score(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        return [self._score(*pair) for pair in pairs]

    def label(self, texts: Sequence[str]) -> list[Labels]:
        return [self._chexbert(text)[1] for text in texts]

    def explain(self, pairs: Sequence[Pair]) -> list[Explanation]:
        return [explain(*pair, *(from_json(self._radgraph(report)) for report in pair)) for pair in pairs]

    def statistics(self) -> Mapping[str, float]:
        return {}

    @torch.no_grad()
    def _score(self, reference: str, hypothesis: str) -> dict[str, float]:
        expected, stated = self._radgraph(reference), self._radgraph(hypothesis)
        entity, relation = set_f1(entities(expected), entities(stated)), set_f1(relations(expected), relations(stated))
        bert = self._bertscore.score([_spaced(hypothesis)], [_spaced(reference)])[2].item()
        simple, partial, complete = compute_reward(stated, expected, "all")
        (first, expected_classes), (second, stated_classes) = self._chexbert(reference), self._chexbert(hypothesis)
        expected_findings, stated_findings = _positive(expected_classes), _positive(stated_classes)
        semb = torch.cosine_similarity(first, second, dim=0).item()
        bleu = bleu2(reference, hypothesis)
        graph = (entity + relation) / 2
        return {
            "radgraph": graph,
            "radgraph_entity": entity,
            "radgraph_relation": relation,
            "radgraph_simple": simple,
            "radgraph_partial": partial,
            "radgraph_complete": complete,
            "bertscore": bert,
            "semb": semb,
            "bleu2": bleu,
            "radcliq_v1": RADCLIQ_V1(graph, bert, semb, bleu),
            "radcliq_v0": RADCLIQ_V0(graph, bert, semb, bleu),
            "repetition": form.repetition(reference, hypothesis),
            "length": form.length(reference, hypothesis),
            "positive_f1": set_f1(expected_findings, stated_findings) if expected_findings | stated_findings else 1.0,
        }


class RadGraphPackage:
    """The package `radgraph` on an unpacked archive. Called with a report, it gives its JSON."""

    def __init__(self, folder: Path, find_backbone: Callable[[str], Path], device: torch.device) -> None:
        """Builds what the package's own class builds, which reads nothing but its cache."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model, reader = config["model"], config["dataset_reader"]
        bert = model["embedder"]["token_embedders"]["bert"]
        backbone = str(find_backbone(bert["model_name"]))
        tokenizer = _with_old_methods(AutoTokenizer.from_pretrained(backbone))
        cached_transformers._tokenizer_cache[(backbone, frozenset({("use_fast", True)}))] = tokenizer
        indexer = PretrainedTransformerMismatchedIndexer(model_name=backbone, max_length=bert["max_length"])
        embedder = PretrainedTransformerMismatchedEmbedder(model_name=backbone, max_length=bert["max_length"])
        vocabulary = _vocabulary(folder)
        left_out = ("type", "embedder", "initializer", "module_initializer")
        self._reader = DyGIEReader(max_span_width=reader["max_span_width"], token_indexers={"bert": indexer})
        self._model = DyGIE(
            vocab=vocabulary,
            embedder=BasicTextFieldEmbedder({"bert": embedder}),
            **{
                name: Params(value) if isinstance(value, dict) else value
                for name, value in model.items()
                if name not in left_out
            },
        )
        self._load(load_tensors(weights_file(folder)))
        self._model.eval().to(device)
        self._device = device
        names = [name.removesuffix("__ner_labels") for name in vocabulary.get_namespaces() if "ner_labels" in name]
        self._dataset = names[0]

    @torch.no_grad()
    def __call__(self, report: str) -> RadGraphJson:
        # Documents of CXR-Report-Metric name no data set; their text is cut as that of "radgraph".
        [document] = preprocess_reports([report], "radgraph" if self._dataset == "None" else self._dataset)
        if not document["sentences"][0]:
            return {"text": "", "entities": {}, "data_source": None, "data_split": "inference"}
        document["dataset"] = self._dataset
        data = AllennlpDataset([self._reader.text_to_instance(document)])
        data.index_with(self._model.vocab)
        [batch] = PyTorchDataLoader(batch_size=1, dataset=data)
        output = self._model(**batch_to_device(batch, self._device))
        found: RadGraphJson = postprocess_reports([self._model.make_output_human_readable(output).to_json()])["0"]
        return found

    def _load(self, tensors: dict[str, torch.Tensor]) -> None:
        """The weights, but for those that other versions of transformers have."""
        missing, unknown = self._model.load_state_dict(tensors, strict=False)
        missing = [name for name in missing if ".pooler." not in name]
        unknown = [name for name in unknown if not name.endswith("position_ids")]
        if missing or unknown:
            raise RewardSetupError(f"RadGraph's weights: missing {missing[:4]}, not expected {unknown[:4]}")


class CheXbertPlain:
    """CheXbert on transformers' own BERT. Called with a report, it gives the embedding and the classes of the heads."""

    def __init__(self, folder: WeightsFolder, device: torch.device) -> None:
        tensors = {name.removeprefix("module."): tensor for name, tensor in load_tensors(folder.chexbert).items()}
        self._tokenizer = AutoTokenizer.from_pretrained(folder.bert)
        self._bert = BertModel(AutoConfig.from_pretrained(folder.bert), add_pooling_layer=False).eval()
        self._heads = torch.nn.ModuleList()
        own = {name.removeprefix("bert."): tensor for name, tensor in tensors.items() if name.startswith("bert.")}
        missing, _ = self._bert.load_state_dict(own, strict=False)
        if missing:
            raise RewardSetupError(f"{folder.chexbert}: missing {missing[:4]}")
        for i in range(14):
            weight = tensors[f"linear_heads.{i}.weight"]
            head = torch.nn.Linear(weight.shape[1], weight.shape[0])
            head.load_state_dict({"weight": weight, "bias": tensors[f"linear_heads.{i}.bias"]})
            self._heads.append(head)
        self._bert.to(device)
        self._heads.to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, report: str) -> tuple[torch.Tensor, Labels]:
        text = re.sub(r"\s+", " ", report).strip()
        ids = self._tokenizer(text, truncation=True, max_length=512, return_tensors="pt")["input_ids"]
        embedding = self._bert(input_ids=ids.to(self._device)).last_hidden_state[0, 0]
        return embedding, tuple(int(head(embedding).argmax()) for head in self._heads)


def _positive(classes: Labels) -> frozenset[object]:
    # The last head is "No Finding".
    return frozenset(i for i, label in enumerate(classes[:-1]) if label == POSITIVE)


def _vocabulary(folder: Path) -> Vocabulary:
    """The archive's labels. Read from a copy: the package leaves a lock file where it reads."""
    with tempfile.TemporaryDirectory() as copy:
        return Vocabulary.from_files(str(shutil.copytree(folder / "vocabulary", Path(copy) / "vocabulary")))


def entities(graph: RadGraphJson) -> frozenset[object]:
    """{(words, label)}, as `CXR-Report-Metric` compares them."""
    return frozenset((entity["tokens"], entity["label"]) for entity in graph["entities"].values())


def relations(graph: RadGraphJson) -> frozenset[object]:
    """{((words, label) of the source, the same of the target, type)}."""
    found = graph["entities"]
    return frozenset(
        ((source["tokens"], source["label"]), (found[target]["tokens"], found[target]["label"]), kind)
        for source in found.values()
        for kind, target in source["relations"]
    )


def set_f1(expected: frozenset[object], stated: frozenset[object]) -> float:
    """F1 of two sets; empty against empty is 0."""
    both = len(expected & stated)
    precision = both / len(stated) if stated else 0.0
    recall = both / len(expected) if expected else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _bert_scorer(folder: Path, device: torch.device, idf: Path | None) -> bert_score.BERTScorer:
    scorer = bert_score.BERTScorer(
        model_type=str(folder),
        num_layers=5,
        lang="en",
        idf=idf is not None,
        rescale_with_baseline=True,
        baseline_path=str(_BASELINE),
        device=str(device),
        nthreads=0,  # forks nothing
    )
    scorer._tokenizer = _with_old_methods(AutoTokenizer.from_pretrained(folder, add_prefix_space=True))
    if idf is not None:
        scorer.compute_idf([_spaced(line) for line in idf.read_text(encoding="utf-8").splitlines() if line.strip()])
    return scorer


def _with_old_methods(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """This tokenizer object with the two methods of transformers 4 that the packages call."""
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    tokenizer.encode_plus = tokenizer.__call__
    tokenizer.build_inputs_with_special_tokens = lambda ids: [first, *ids, last]
    return tokenizer


def _spaced(report: str) -> str:
    """As `CXR-Report-Metric` prepares a text for BERTScore."""
    return re.sub(" +", " ", report)
