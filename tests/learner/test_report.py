"""The run report: what it shows of a run, what it says is missing, and that it works offline in a browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from learner.evaluation.bootstrap import Array
from learner.report.__main__ import main
from learner.report.build import FAILED, attempt_report, write_report
from learner.report.charts import MAX_POINTS, line_chart
from learner.report.data import read_run
from learner.report.findings import Piece, compare_texts
from learner.report.gallery import choose
from rrg.data.mentions import Mention, findings_in, mentions_in
from rrg.data.sections import sentences
from rrg.data.study import Study
from tests.learner.browser import fits, opened
from tests.learner.conftest import STUDIES, MakeRun


def test_the_page_shows_goals_measures_curves_and_studies_and_loads_nothing(
    make_run: MakeRun, good: list[str], run_studies: list[Study]
) -> None:
    run = make_run("small", good)
    page = write_report(read_run(run), run_studies).read_text()
    summary = json.loads((run / "summary.json").read_text())
    for goal in summary["goals"]:
        assert goal["goal"].replace("'", "&#39;") in page
    assert "The run came to its end: 5 warm-start steps, 4 RL steps." in page
    assert f"{summary['rl']['reward']:.3f}" in page
    assert "most frequent" in page
    assert page.count("<article") == page.count('src="data:image/jpeg') == STUDIES
    assert 'aria-label="reward of the samples by RL step. mean: 0.1 first, 0.4 last"' in page
    assert "1 min 15 s" in page
    assert "Missing here" not in page
    assert "The tick on a bar" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_values_of_the_table_are_those_of_the_summary(
    make_run: MakeRun, good: list[str], run_studies: list[Study]
) -> None:
    run = make_run("small", good)
    page = write_report(read_run(run), run_studies).read_text()
    summary = json.loads((run / "summary.json").read_text())
    rows = dict(re.findall(r'<tr><th scope="row">(\w+)[^<]*</th>(.*?)</tr>', page, re.DOTALL))
    for name in ("reward", "finding_f1", "bleu4", "rougeL", "reward_abnormal", "unique_share"):
        cells = re.findall(r"<td[^>]*>([-+.\d]+)", rows[name])
        control = summary["controls"]["most_frequent"][name]
        assert cells[:2] == [f"{summary[policy][name]:.3f}" for policy in ("sft", "rl")]
        assert cells[-1] == f"{control:.3f}"


def test_a_matched_a_missed_and_an_invented_finding_are_marked_where_they_stand() -> None:
    found = compare_texts(
        "The heart is enlarged. There is a small pleural effusion.", "the heart is enlarged . no effusion . scoliosis ."
    )
    assert (found.matched, found.missed, found.invented) == (("cardiomegaly",), ("effusion",), ("scoliosis",))
    assert found.hypothesis[0].pieces == (Piece("the "), Piece("heart is enlarged", "matched", ("cardiomegaly",)))
    assert found.hypothesis[1].pieces == (Piece("no effusion"),)
    assert found.hypothesis[2].pieces == (Piece("scoliosis", "invented", ("scoliosis",)),)
    assert found.reference[1].pieces[-1] == Piece("effusion", "missed", ("effusion",))
    assert "cardiac silhouette" in found.hypothesis[0].regions


def test_of_findings_in_the_same_words_the_mark_names_those_that_it_is_about() -> None:
    found = compare_texts("tortuous aorta .", "calcified tortuous aorta .")
    assert found.hypothesis[0].pieces == (Piece("calcified tortuous aorta", "invented", ("aortic_calcification",)),)
    both = compare_texts("calcified tortuous aorta .", "calcified tortuous aorta .").hypothesis[0].pieces
    assert both == (Piece("calcified tortuous aorta", "matched", ("aortic_calcification", "tortuous_aorta")),)


def test_pieces_give_the_sentence_back_and_marks_the_findings_of_the_lexicon() -> None:
    text = "no change in calcified granuloma of the right lung . cardiomegaly without significant change noted ."
    assert mentions_in("no change in the effusion") == [Mention("effusion", 17, 25)]
    found = compare_texts(text, "")
    assert ["".join(piece.text for piece in one.pieces) for one in found.reference] == sentences(text)
    marked = {name for one in found.reference for piece in one.pieces for name in piece.findings}
    assert marked == findings_in(text) == set(found.missed)


def test_the_best_the_median_and_the_worst_are_chosen_and_few_studies_all_shown() -> None:
    rewards = np.random.default_rng(0).permutation(100).astype(float)
    rewards[7] = np.nan
    chosen = choose(rewards.tolist(), each=10)
    order = np.argsort(-np.where(np.isfinite(rewards), rewards, -np.inf))[:99]
    assert [chosen[i] for i in order[:10]] == ["best"] * 10
    assert [chosen[i] for i in order[-10:]] == ["worst"] * 10
    assert [i for i, group in chosen.items() if group == "median"] == order[44:54].tolist()
    assert len(chosen) == 30
    assert 7 not in chosen
    for count in (1, 2, 3, 4, 5, 29, 30):
        assert len(choose(list(map(float, range(count))), each=10)) == count


def test_a_chart_leaves_out_what_is_no_number_and_averages_what_is_too_long() -> None:
    assert line_chart("t", {"a": [(1, float("nan"))]}, "step") is None
    flat = line_chart("t", {"a": [(1, 2.0)], "b": []}, "step")
    assert flat is not None
    assert [line.name for line in flat.lines] == ["a"]
    long = line_chart("t", {"a": [(float(i), float(i)) for i in range(1000)]}, "step")
    assert long is not None
    assert long.lines[0].path.count("L") < MAX_POINTS
    assert long.note == "a: means of 5 points"
    assert long.lines[0].told == "0 first, 999 last"
    both = line_chart("t", {"a": [(float(i), 1.0) for i in range(1000)], "b": [(50.0, 2.0), (100.0, 0.0)]}, "step")
    assert both is not None
    assert both.lines[1].path.count("L") == 1, "a short series beside a long one keeps its points"


def test_an_unfinished_run_has_a_page_that_says_what_is_missing(make_run: MakeRun, good: list[str]) -> None:
    run = make_run("small", good)
    for name in ("summary.json", "per_study_rl.csv", "evidence_rl.jsonl"):
        (run / name).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "rl", "st')  # killed while it wrote
    page = write_report(read_run(run), ()).read_text()
    assert "The run has not come to its end: 5 warm-start steps, 4 RL steps so far." in page
    for name in ("summary.json", "per_study_rl.csv", "evidence_rl.jsonl"):
        assert f"<li>{name}" in page
    assert page.count("<article") == STUDIES


def test_a_run_that_stopped_itself_says_why(make_run: MakeRun, good: list[str]) -> None:
    run = make_run("small", good)
    (run / "stopped.json").write_text(json.dumps({"reason": "KL above <1.0>"}))
    assert "The run stopped itself: KL above &lt;1.0&gt;" in write_report(read_run(run), ()).read_text()


def test_report_text_cannot_become_markup(make_run: MakeRun, run_studies: list[Study], good: list[str]) -> None:
    run = make_run("small", good)
    samples = run / "samples_rl.jsonl"
    samples.write_text(samples.read_text().replace("there is a pneumothorax .", "<script>alert(2)</script>"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("name: small", "name: '</pre><script>alert(1)</script>'"))
    page = write_report(read_run(run), run_studies).read_text()
    assert "<script>alert" not in page
    assert page.count("<script>") == 1


def test_the_command_writes_the_page_of_an_older_run_and_names_what_it_does_not_know(
    make_run: MakeRun, good: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("small", good)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("reward:\n", "reward:\n  of_yore: 3\n", 1))
    assert main([str(run)]) == 0
    assert f"{run}/report.html" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "fields of another version, left out: reward.of_yore" in page
    assert page.count('src="data:image/jpeg') == STUDIES


def test_measures_that_lack_a_component_of_the_reward_leave_out_its_bars_alone(
    make_run: MakeRun, good: list[str]
) -> None:
    run = make_run("small", good)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("graph_f1: 1.0", "graph_f1: 1.0\n    of_yore: 1.0", 1))
    page = write_report(read_run(run), ()).read_text()
    assert "per_study_rl.csv: no bars of what adds to the reward" in page
    assert "&#39;of_yore&#39;" in page
    assert page.count("<article") == STUDIES
    assert "graph_f1" in page


def test_what_learner_evaluate_wrote_can_be_shown_too(make_run: MakeRun, good: list[str], tmp_path: Path) -> None:
    from learner.evaluate import main as evaluate

    run, result = make_run("small", good), tmp_path / "out.json"
    predictions = ["--predictions", str(run / "samples_rl.jsonl"), "--baseline", str(run / "samples_sft.jsonl")]
    assert evaluate([*predictions, "--backend", "none", "--no-meteor", "--bootstrap", "50", "--json", str(result)]) == 0
    assert main([str(run), "--no-pictures", "--evaluation", str(result)]) == 0
    page = (run / "report.html").read_text()
    assert "learner.evaluate: text" in page
    assert "lmrrg.eval|" in page
    assert "left out (--no-pictures)" in page


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.yaml", None, "no config.yaml"),
        ("metrics.jsonl", "nothing\n", "metrics.jsonl, line 1"),
        ("per_study_rl.csv", "id,reward\nother,1\n", "per_study_rl.csv"),
        ("summary.json", "{", "summary.json: not JSON"),
        ("evidence_rl.jsonl", "{}\n", "evidence_rl.jsonl"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(
    make_run: MakeRun, good: list[str], name: str, content: str | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("small", good)
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    assert main([str(run), "--no-pictures"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1
    assert not (run / "report.html").exists()


def test_no_folder_and_an_empty_run_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert main([str(tmp_path)]) == 2
    assert "nothing to report yet" in capsys.readouterr().err


def test_a_report_that_fails_is_told_of_and_does_not_end_the_run(
    make_run: MakeRun, good: list[str], run_studies: list[Study]
) -> None:
    run, told = make_run("small", good), list[str]()
    whole = (run / "per_study_rl.csv").read_text()
    (run / "per_study_rl.csv").write_text("id\n")
    attempt_report(run, run_studies, told.append)
    assert "no report.html" in told[0]
    assert f"python -m learner.report {run}" in told[0]
    assert "Traceback" in (run / FAILED).read_text()
    (run / "per_study_rl.csv").write_text(whole)
    attempt_report(run, run_studies, told.append)
    assert told[1].endswith(f"{run}/report.html")
    assert not (run / FAILED).exists()


def test_no_torch_is_loaded_for_a_report() -> None:
    code = "import sys, learner.report.__main__, learner.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_filters_search_and_order_work_offline(
    make_run: MakeRun, good: list[str], run_studies: list[Study], rewards: Array
) -> None:
    path = write_report(read_run(make_run("small", good)), run_studies)
    ids = [study.id for study in run_studies]
    with opened(path) as page:

        def shown() -> list[str]:
            return page.locator("article.study:visible").evaluate_all("all => all.map(one => one.dataset.id)")

        assert len(shown()) == STUDIES
        best = [ids[i] for i in np.argsort(-rewards, kind="stable")]
        assert shown() == best
        page.get_by_label("Kind").select_option("abnormal")
        abnormal = {study.id for study in run_studies if study.findings}
        assert set(shown()) == abnormal
        assert page.locator("output").inner_text() == f"{len(abnormal)} of {STUDIES} studies"
        page.get_by_label("With").select_option("invented")
        wrong = {ids[i] for i, text in enumerate(good) if "pneumothorax" in text and findings_in(text)}
        assert set(shown()) <= abnormal & wrong
        assert shown()
        page.get_by_role("button", name="Reset").click()
        page.locator("select[name=finding]").select_option("scoliosis")
        assert set(shown()) == {study.id for study in run_studies if "scoliosis" in (study.findings or ())}
        page.get_by_role("button", name="Reset").click()
        page.get_by_label("Search").fill("TEST003")
        assert shown() == ["test003"]
        page.get_by_role("button", name="Reset").click()
        page.get_by_label("Group").select_option("worst")
        assert len(shown()) == STUDIES // 3
        page.get_by_role("button", name="Reset").click()
        page.get_by_label("Sort").select_option("worst first")
        values = [rewards[ids.index(name)] for name in shown()]
        assert values == sorted(values)
        page.get_by_label("Sort").select_option("id")
        assert shown() == sorted(ids)


def test_the_page_fits_a_phone_and_prints(make_run: MakeRun, good: list[str], run_studies: list[Study]) -> None:
    path = write_report(read_run(make_run("small", good)), run_studies)
    with opened(path, width=390) as page:
        assert fits(page)
        assert page.pdf(format="A4").startswith(b"%PDF")
        page.emulate_media(media="print")
        assert not page.locator("form.filters").is_visible()
        assert page.locator("article.study").first.is_visible()


def test_boxes_lie_over_the_picture_in_the_colour_of_their_sentences(
    make_run: MakeRun, good: list[str], run_studies: list[Study]
) -> None:
    path = write_report(read_run(make_run("small", good)), run_studies)
    with opened(path) as page:
        study = page.locator("article.study").filter(has_text="the heart is normal").first
        picture, box = study.locator("img").bounding_box(), study.locator("rect").bounding_box()
        assert picture is not None
        assert box is not None
        assert box["x"] - picture["x"] == pytest.approx(0.4 * picture["width"], abs=2)
        assert box["height"] == pytest.approx(0.4 * picture["height"], abs=3)
        colour = study.locator("rect").get_attribute("stroke")
        dot = study.locator(".report .dot").first
        assert dot.get_attribute("title") == "cardiac silhouette"
        assert colour is not None
        assert colour in (dot.get_attribute("style") or "")
