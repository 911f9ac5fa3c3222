"""`python -m learner.evaluate`: numbers, flags, files and exit statuses, with the embedded backend."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from rich.console import Console

from configs.schema import Config, DataConfig, ModelConfig, RewardConfig
from learner import evaluate, generation
from learner.evaluation import scoring
from learner.evaluation.bootstrap import draw_resamples, interval, mean
from learner.evaluation.labels import label_statistics
from learner.evaluation.system import inverse
from learner.evaluation.tables import print_result
from reward_server.backends import create_scorer
from reward_server.errors import PairError
from reward_server.scorer import ScorerOptions
from rrg.model.evidence import RegionEvidence, evidence_line
from tests.evaluation.conftest import PAIRS
from tests.evaluation.test_metrics import PYCOCOEVALCAP_ROUGE_L
from tests.reward_server.conftest import RunningServer

HYPOTHESES = [hypothesis for _, hypothesis in PAIRS]


def predictions(path: Path, hypotheses: list[str] = HYPOTHESES) -> Path:
    rows = [
        {"id": f"s{index}", "reference": reference, "hypothesis": hypothesis}
        for index, ((reference, _), hypothesis) in enumerate(zip(PAIRS, hypotheses, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def result(tmp_path: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    out = tmp_path / "out.json"
    assert evaluate.main([*arguments, "--no-meteor", "--bootstrap", "100", "--json", str(out)]) == status
    found: dict[str, Any] = json.loads(out.read_text(), parse_constant=pytest.fail)
    return found


def test_the_published_backend_gives_radcliq_with_all_its_components_and_label_f1(tmp_path: Path) -> None:
    from benchmarks.checkpoints import write_checkpoints

    write_checkpoints(tmp_path / "weights", "mini")  # random weights in the published formats
    flags = ["--backend", "published", "--weights", str(tmp_path / "weights"), "--threads", "1"]
    found = result(tmp_path, "--predictions", str(predictions(tmp_path / "preds.jsonl")), *flags)
    values = {name: entry["value"] for name, entry in found["metrics"]["reward"].items()}
    assert {f"radgraph_{level}" for level in ("simple", "partial", "complete")} <= set(values)
    assert {"radcliq_v1", "radcliq_v0", "bertscore", "semb", "radgraph", "reward_bleu2"} <= set(values)
    assert values["radcliq_v1_inverse"] in (None, pytest.approx(1 / values["radcliq_v1"]))
    assert "labels5_uncertain_negative_macro_f1" in found["metrics"]["labels"]
    assert "backend:published|models:" in found["signatures"]["reward"]


def test_one_over_radcliq_is_that_of_the_mean_and_undefined_across_its_pole() -> None:
    resamples = draw_resamples(4, 50, 0)
    found = interval(inverse(mean([1.0, 2.0, 3.0, 2.0])), resamples)
    assert found.value == 0.5
    assert 1 / 3 <= found.low < 0.5 < found.high <= 1
    assert np.isnan(interval(inverse(mean([-1.0, 1.0, -1.0, 1.0])), resamples).low)


def test_a_text_that_cannot_be_labelled_leaves_its_study_out_of_the_label_table_alone() -> None:
    def label(texts: Sequence[str]) -> list[tuple[int, ...]]:
        if "bad" in texts:
            raise PairError("no labels")
        return [(1, *[0] * 13) for _ in texts]

    about = create_scorer(ScorerOptions("embedded")).description
    some = scoring.Scoring(about, lambda pairs: [], label)
    assert some.labels(["good", "bad", "fine"], lambda *_: None) == [(1, *[0] * 13), None, (1, *[0] * 13)]
    one, none = (1, *[0] * 13), (0,) * 14
    all_known, partly = (label_statistics([one, one], [one, none], known) for known in (None, [True, False]))
    for average in ("micro", "example"):
        name = f"labels14_uncertain_positive_{average}_recall"
        assert (all_known[name].value, partly[name].value) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--run", "r", "--section", "impression"], "are for --predictions"),
        (["--run", "r", "--verbatim"], "are for --predictions"),
        (["--predictions", "p", "--cache-dir", "c"], "need --format"),
        (["--predictions", "p", "--worst", "w.png"], r"--worst FILE\.png needs --format"),
        (["--predictions", "p", "--rexrank", "r.json"], "are for --run"),
        (["--predictions", "p", "--regions"], "--regions is for --run"),
        (["--run", "r", "--pictures", "0", "p.html"], "must be a number of studies"),
        (["--run", "r", "--pictures", "3", "p.png"], r"ends in \.html"),
    ],
)
def test_flags_that_would_be_ignored_or_fail_late_are_refused_at_once(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(flags) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Six training studies and the four of PAIRS as test, in people's own format."""
    root = tmp_path / "data"
    root.mkdir()
    rng = np.random.default_rng(0)
    texts = ["Lungs are clear."] * 3 + ["The heart is enlarged.", "There is a right pneumothorax.", "Heart is normal."]
    studies = [(f"t{i}", "train", text) for i, text in enumerate(texts)]
    studies += [(f"s{i}", "test", reference) for i, (reference, _) in enumerate(PAIRS)]
    rows = []
    for study_id, split, text in studies:
        PILImage.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(root / f"{study_id}.png")
        rows.append({"id": study_id, "split": split, "image_path": [f"{study_id}.png"], "findings": text})
    (root / "studies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_every_group_is_in_the_file_and_on_the_screen_with_its_signature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = result(tmp_path, "--predictions", str(predictions(tmp_path / "p.jsonl")))
    assert list(found["metrics"]) == ["reward", "text", "findings", "labels"]
    assert len(found["metrics"]["labels"]) == 36
    assert found["metrics"]["reward"]["reward"]["value"] == -found["metrics"]["reward"]["embedded"]["value"]
    assert found["backend"]["name"] == "embedded"
    shown = capsys.readouterr().out
    for line in found["signatures"].values():
        assert line in shown
        assert line.startswith("lmrrg.eval|v:1|")
        assert line.endswith("section:findings|split:unknown|n:4|boot:100|seed:0")
    assert f"backend:embedded|models:{found['backend']['models'][0]['sha256'][:8]}" in found["signatures"]["labels"]
    assert "control nearest_image: needs the data set" in shown
    assert not any(reference in shown or hypothesis in shown for reference, hypothesis in PAIRS)


def test_findings_of_scene_graphs_have_a_table_too(tmp_path: Path) -> None:
    found = result(tmp_path, "--predictions", str(predictions(tmp_path / "p.jsonl")))
    found["protocol"]["finding_truth"] = "scene-graph+reference"
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_result(found, console)
    assert "against those of the scene graph, or of the report where it has none" in console.export_text()


def test_numbers_are_those_of_pycocoevalcap_on_the_cleaned_texts(tmp_path: Path) -> None:
    # Bleu(4), Rouge() and Cider() of the package on `clean` of PAIRS, run once by hand.
    text = result(tmp_path, "--predictions", str(predictions(tmp_path / "p.jsonl")), "--backend", "none")["metrics"]
    assert text["text"]["bleu4"]["value"] == pytest.approx(0.437001, abs=1e-6)
    assert text["text"]["rougeL"]["value"] == pytest.approx(0.704059, abs=1e-6)
    assert text["text"]["rougeL"]["value"] != pytest.approx(PYCOCOEVALCAP_ROUGE_L, abs=1e-3)  # not cleaned
    assert text["text"]["cider"]["value"] == pytest.approx(4.753125, abs=1e-6)
    assert "reward" not in text
    assert "labels" not in text


def test_a_baseline_has_deltas_with_intervals_and_p(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = predictions(tmp_path / "b.jsonl", ["Lungs are clear."] * 4)
    copy = predictions(tmp_path / "p.jsonl", [reference for reference, _ in PAIRS])
    found = result(tmp_path, "--predictions", str(copy), "--baseline", str(base))
    entry = found["metrics"]["text"]["rougeL"]
    value, low, high = entry["baseline"]["difference"]
    assert 0 < low <= value <= high
    assert value == pytest.approx(1.0 - entry["baseline"]["value"])
    assert 0 < entry["baseline"]["p"] <= 1
    assert "difference [95 %]" in capsys.readouterr().out
    same = result(tmp_path, "--predictions", str(copy), "--baseline", str(copy))["metrics"]["reward"]["reward"]
    assert same["baseline"]["difference"] == [0.0, 0.0, 0.0]
    assert same["baseline"]["p"] == 1.0


def test_a_data_set_brings_controls_and_a_constant_is_not_told_from_its_exchange(
    tmp_path: Path, data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = predictions(tmp_path / "p.jsonl", ["lungs are clear ."] * 4)
    places = ["--format", "jsonl", "--root", str(data_set), "--cache-dir", str(tmp_path / "cache")]
    page, sheet, table = tmp_path / "w.html", tmp_path / "w.png", tmp_path / "s.csv"
    outputs = ["--worst", str(page), "--worst-count", "2", "--per-study", str(table)]
    found = result(tmp_path, "--predictions", str(constant), *places, *outputs)
    reward = found["metrics"]["reward"]["reward"]
    assert set(reward["controls"]) == {"most_frequent", "nearest_image", "shuffled"}
    assert {"most_frequent", "shuffled"} <= set(reward["not_told_from"])
    assert reward["controls"]["most_frequent"]["difference"] == [0.0, 0.0, 0.0]
    assert "does not tell from" in capsys.readouterr().out
    html = page.read_text()
    assert html.count("<article ") == html.count("data:image/jpeg") == 2
    rows = list(csv.DictReader(table.open()))
    assert [row["id"] for row in rows] == ["s0", "s1", "s2", "s3"]
    assert "lungs are clear" not in table.read_text()
    assert np.mean([float(row["reward"]) for row in rows]) == pytest.approx(reward["value"])
    worst = min(rows, key=lambda row: float(row["reward"]))
    first_id = html.split('data-id="')[1].split('"')[0]
    assert first_id == worst["id"]
    result(tmp_path, "--predictions", str(constant), *places, "--backend", "none", "--worst", str(sheet))
    assert PILImage.open(sheet).width > 300


def test_studies_that_the_split_does_not_have_are_told(
    tmp_path: Path, data_set: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--format", "jsonl", "--root", str(data_set), "--split", "train", "--backend", "none"]
    assert evaluate.main(["--predictions", str(predictions(tmp_path / "p.jsonl")), *flags]) == 2
    assert "4 ids of the predictions are no studies of the split train, the first is 's0'" in capsys.readouterr().err


def test_empty_reports_are_counted(tmp_path: Path) -> None:
    found = result(tmp_path, "--predictions", str(predictions(tmp_path / "p.jsonl", ["", " ", *HYPOTHESES[2:]])))
    assert "2 of 4 generated reports are empty; they count as they are" in found["notes"]


def test_a_pair_without_a_score_is_left_out_counted_and_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(scorer: Any) -> scoring.Scoring:
        found = original(scorer)
        plain = found._score_each
        found._score_each = lambda pairs: [
            PairError("too long") if pair[1] == "the lungs are clear ." else plain([pair])[0] for pair in pairs
        ]
        return found

    original = scoring.local
    monkeypatch.setattr(scoring, "local", failing)
    table = tmp_path / "s.csv"
    arguments = ["--predictions", str(predictions(tmp_path / "p.jsonl")), "--per-study", str(table), "--controls", ""]
    found = result(tmp_path, *arguments, status=1)
    assert found["failed"] == 1
    assert "system: 1 studies have no score, the first because: too long" in found["notes"]
    rewards = [row["reward"] for row in csv.DictReader(table.open())]
    assert [bool(value) for value in rewards] == [True, True, False, True]
    known = [float(value) for value in rewards if value]
    assert found["metrics"]["reward"]["reward"]["value"] == pytest.approx(np.mean(known))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--root", "x"], "--root needs --format"),
        (["--controls", "best"], "--controls: 'best' is none of"),
        (["--worst", "w.pdf"], "must end in .html or .png"),
        (["--json", "nowhere/out.json"], "--json nowhere/out.json: its folder does not exist"),
        (["--backend", "published"], "--backend published needs --weights"),
        (["--weights", "w"], "mean nothing to --backend embedded"),
        (["--limit", "3"], "--out, --limit and --rexrank are for --run"),
        (["--baseline", "none.jsonl"], "none.jsonl is missing"),
        (["--reward-address", "127.0.0.1:9", "--reward-wait", "0.3"], "--reward-address 127.0.0.1:9 "),
    ],
)
def test_a_mistake_ends_with_status_2_and_its_message(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = predictions(tmp_path / "p.jsonl")
    assert evaluate.main(["--predictions", str(path), "--no-meteor", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["--run", str(tmp_path)]) == 2
    assert "config.yaml does not exist" in capsys.readouterr().err


def test_text_measures_load_neither_torch_nor_grpc(tmp_path: Path) -> None:
    path = predictions(tmp_path / "p.jsonl")
    program = (
        "import sys; from learner import evaluate; "
        f"status = evaluate.main(['--predictions', {str(path)!r}, '--backend', 'none', '--no-meteor']); "
        "sys.exit(status or ('torch' in sys.modules) * 3 or ('grpc' in sys.modules) * 4)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_meteor_is_in_the_table_or_the_note_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--predictions", str(predictions(tmp_path / "p.jsonl")), "--backend", "none", "--controls", ""]
    assert evaluate.main([*arguments, "--bootstrap", "50"]) == 0
    shown = capsys.readouterr().out
    assert ("meteor ↑" in shown) == (shutil.which("java") is not None)
    assert ("METEOR: no Java" in shown) == (shutil.which("java") is None)


def test_the_options_of_a_backend_are_handed_on() -> None:
    args = evaluate.parser().parse_args(["--predictions", "p", "--backend", "published", "--weights", "w"])
    assert evaluate.scoring_options(args).scorer == ScorerOptions("published", "w")


def test_a_run_is_measured_as_the_predictions_that_its_policy_writes(
    tmp_path: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine that writes the reports is tested in test_generation.py; here it is a file."""
    config = Config(data=DataConfig("jsonl", root=str(data_set), cache_dir=str(tmp_path / "cache")))
    config.model, config.reward = ModelConfig(), RewardConfig()
    rows = [json.loads(line) for line in predictions(tmp_path / "p.jsonl").read_text().splitlines()]
    asked: list[tuple[Any, ...]] = []

    def write(cfg: Config, policy: Path, studies: Any, split: str, out: Path, show: Any, limit: int | None) -> Any:
        asked.append((policy, split, out, limit))
        evidence = (RegionEvidence("right lung", 0.9, (0.1, 0.1, 0.4, 0.8), {"opacity": 0.8}, "right lung opacity ."),)
        out.parent.mkdir()
        generation.evidence_file(out).write_text("".join(evidence_line(row["id"], evidence) for row in rows))
        return rows

    monkeypatch.setattr(generation, "run_config", lambda run_dir: config)
    monkeypatch.setattr(generation, "policy_folder", lambda run_dir, checkpoint: run_dir / checkpoint / "policy")
    monkeypatch.setattr(generation, "generate_reports", write)
    run_dir = tmp_path / "run"
    page = tmp_path / "p.html"
    seen = ["--regions", "--pictures", "3", str(page)]
    found = result(tmp_path, "--run", str(run_dir), "--checkpoint", "warm_start", "--limit", "4", *seen)
    policy = run_dir / "warm_start" / "policy"
    assert asked == [(policy, "test", run_dir / "reports_warm_start_test.jsonl", 4)]
    assert set(found["metrics"]["text"]["rougeL"]["controls"]) == {"most_frequent", "nearest_image", "shuffled"}
    assert found["protocol"]["reward"] == "of-the-run"
    assert found["regions"]["truth"] == {"boxes": None, "labels": "lexicon over the report"}
    shown = capsys.readouterr().out
    assert "Regions, of the policy" in shown
    assert "right lung opacity" not in shown
    html = page.read_text()
    assert html.count("<article ") == html.count("right lung opacity") == 3
    assert "split:test" in found["signatures"]["reward"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--baseline", "missing.jsonl"], "missing.jsonl"),
        (["--reward-address", "127.0.0.1:9", "--reward-wait", "0.3"], "--reward-address 127.0.0.1:9 "),
    ],
)
def test_what_is_missing_is_told_before_a_policy_writes_its_reports(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generation, "run_config", lambda run_dir: Config(reward=RewardConfig()))
    monkeypatch.setattr(generation, "policy_folder", lambda *_: pytest.fail("the reports are on their way"))
    assert evaluate.main(["--run", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err


def test_reward_servers_give_the_numbers_of_the_backend_in_this_process(tmp_path: Path) -> None:
    path = str(predictions(tmp_path / "p.jsonl"))
    running = RunningServer(create_scorer(ScorerOptions("embedded")))
    try:
        far = result(tmp_path, "--predictions", path, "--reward-address", running.address)
    finally:
        running.stop()
    near = result(tmp_path, "--predictions", path)
    # Batches may differ: a pair's scores are the same to 1e-5 in any.
    assert dict(leaves(far["metrics"])) == pytest.approx(dict(leaves(near["metrics"])), abs=1e-5)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of what JSON holds, by their place."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{path}/{name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from leaves(part, f"{path}/{index}")
    elif value is not None:
        yield path, value


def test_models_read_texts_as_they_stand_if_asked_to_and_text_measures_do_not(tmp_path: Path) -> None:
    path = str(predictions(tmp_path / "p.jsonl"))
    clean, verbatim = (result(tmp_path, "--predictions", path, *flags) for flags in ([], ["--verbatim"]))
    assert clean["metrics"]["text"] == verbatim["metrics"]["text"]
    assert "|text:verbatim|" in verbatim["signatures"]["reward"]
    assert "|case:lower|text:r2gen-clean|" in clean["signatures"]["reward"]
    assert clean["metrics"]["reward"]["bertscore"] != verbatim["metrics"]["reward"]["bertscore"]
