"""The report: one page that needs nothing else, made from files alone, in a real browser."""

import csv
import itertools
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from leaders.cli.main import main
from leaders.experiments.report.page import _judged, find_runs
from leaders.experiments.results import RESULT
from leaders.experiments.run_directory import CONFIG

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STUDY = """
env: [BiLevel/TollBridge-v0, BiLevel/FourRooms-v0]
iterations: 3
runs: 4
batch: 40
leader: [bchg, naive-pgd]
learning_rate: [0.05, 0.2]
follower: soft_value_iteration
follower_args: {tol: 1.0e-12, solver: auto}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(STUDY)
    main(["sweep", str(folder / "study.yaml"), "--out", str(folder / "out"), "--processes", "1", "--no-progress"])
    main(["report", str(folder / "out")])
    return folder / "out"


class Page(HTMLParser):
    """Attributes that would fetch something, and the ids."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.ids, self.anchors = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.sources += [found[name] for name in ("src", "srcset", "href", "data") if name in found]
        self.ids.add(found.get("id"))


@pytest.mark.slow
def test_the_page_needs_no_other_file_and_its_links_lead_somewhere(study):
    page = Page((study / "report.html").read_text())
    assert sum(source.startswith("data:image/png") for source in page.sources) >= 8  # curves and comparisons, maps
    for source in page.sources:
        assert source.startswith("data:") or (source[0] == "#" and source[1:] in page.ids), source[:80]


@pytest.mark.slow
def test_the_command_of_each_setting_repeats_its_runs(tmp_path, study, monkeypatch):
    commands = re.findall(r"^bilevel train .*$", re.sub("<[^>]*>", "\n", (study / "report.html").read_text()), re.M)
    assert len(commands) == 8
    with open(study / "results.csv") as file:
        rows = list(csv.DictReader(file))
    monkeypatch.chdir(tmp_path)
    command = next(one for one in commands if "TollBridge" in one and "naive" in one and "0.2" in one)
    main(shlex.split(command)[1:])
    [history] = (tmp_path / "repeated").rglob("history.csv")
    with open(history) as file:
        values = [float(line["leader_value"]) for line in csv.DictReader(file) if line["iteration"] == "2"]
    mine = [
        r for r in rows if ("TollBridge" in r["env"], r["leader"], r["learning_rate"]) == (True, "naive-pgd", "0.2")
    ]
    assert values == pytest.approx([float(row["score"]) for row in mine], rel=1e-12)


def test_runs_that_had_folders_of_their_own_are_repeated_in_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, rate in itertools.product(("0", "1"), ("0.1", "0.2")):
        run = ["train", "--env", "BiLevel/TollBridge-v0", "--runs", "1", "--batch", "40", "--iterations", "1"]
        main([*run, "--seed", seed, "--learning-rate", rate, "--no-progress", "--out", f"all/{seed}-{rate}"])
    main(["report", "all"])
    commands = re.findall(r"bilevel train .*$", re.sub("<[^>]*>", "\n", Path("all/report.html").read_text()), re.M)
    assert sorted(command.rpartition(" --out ")[2] for command in commands) == [
        f"repeated/{number}" for number in range(4)
    ]
    for command in commands:
        main(shlex.split(command)[1:])
    assert {path.parent.name for path in Path("repeated").rglob("history.csv")} == {"0", "1", "2", "3"}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_tables_sort_and_filter_and_pictures_show_in_a_browser(study):
    playwright = pytest.importorskip("playwright.sync_api")
    complaints, fetched = [], []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        for width, scheme in ((1280, "light"), (390, "light"), (1280, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: fetched.append(request.url))
            page.goto(f"file://{study / 'report.html'}")
            widths = page.eval_on_selector_all(
                "img", "images => images.map(image => [image.naturalWidth, image.width])"
            )
            assert all(natural > 300 and 0 < shown <= width for natural, shown in widths), widths
            assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing sticks out

            def column(name, page=page):
                head = page.locator("#each th").all_inner_texts()
                cells = page.locator(f"#each tbody tr:not([hidden]) td:nth-child({head.index(name) + 1})")
                return cells.evaluate_all("cells => cells.map(cell => cell.dataset.v)")

            before = [float(value) for value in column("score")]
            page.click("#each th >> text=score")
            assert [float(value) for value in column("score")] == sorted(before)
            page.click("#each th >> text=score")
            assert [float(value) for value in column("score")] == sorted(before, reverse=True)
            page.fill("input[data-table=each]", "tollbridge NAIVE")
            assert set(column("leader")) == {"naive-pgd"}
            assert set(column("env")) == {"BiLevel/TollBridge-v0"}
            assert len(column("env")) == 8
        browser.close()
    assert complaints == []
    assert {url.partition(":")[0] for url in fetched} <= {"file", "data"}


@pytest.mark.slow
def test_the_curves_are_those_of_the_histories(study):
    from leaders.experiments.report.page import _below, _curve

    runs = find_runs(study, {})
    results = {_below(runs, one): one for one in runs.results}
    rows = next(iter(runs.table.groups().values()))
    curve = _curve("x", rows, results)
    with open(study / str(rows[0]["folder"]) / "history.csv") as file:
        lines = [line for line in csv.DictReader(file) if int(line["run"]) in {row["run"] for row in rows}]
    values = np.array([float(line["leader_value"]) for line in lines]).reshape(len(rows), 3)
    np.testing.assert_array_equal(curve.value, values.T)
    np.testing.assert_array_equal(curve.budgets["env_steps"], [float(line["env_steps"]) for line in lines[:3]])


def run_of(folder, config=None, **changed):
    row = {"run": 0, "seed": 0, "start": 0.0, "score": 1.0, "env_steps": 1, "follower_solves": 1, "follower_steps": 0}
    folder.mkdir(parents=True)
    told = {
        "format": 1,
        "config": config or {"env": "a", "leader": "b"},
        "runs": [row | {"measured": "leader_value"} | changed],
    }
    (folder / RESULT).write_text(json.dumps(told))


def test_a_setting_is_chosen_on_other_seeds_than_it_is_shown_on(tmp_path):
    """Of leader b, rate 1 is better on seeds 0 and 2, rate 2 on seeds 1 and 3; leader c has one setting."""
    scores = {
        ("b", 1): [9, 0, 9, 1],
        ("b", 2): [0, 99, 0, 99],
        ("c", None): [3, 4, 5, 6],
        ("d", 1): [1, 2],
        ("d", 2): [1, 3],
    }
    for (leader, rate), values in scores.items():
        for seed, score in enumerate(values):
            row = {"leader": leader, "learning_rate": rate, "seed": seed, "score": float(score), "best_known": 10.0}
            run_of(tmp_path / f"{leader}-{rate}-{seed}", config={"env": "a", "leader": leader}, **row)
    judged = _judged(find_runs(tmp_path, {}).table)
    got = {leader: tasks[next(iter(tasks))].tolist() for leader, tasks in judged.scores(share=False).items()}
    assert got == {"b": [0.0, 1.0], "c": [3.0, 4.0, 5.0, 6.0]}
    caption = judged.over(judged.scores(share=True), "Profiles")
    assert "the highest mean on every other seed is taken there, and shown on the seeds that remain" in caption
    assert "Left out, with several settings and fewer than 4 seeds: d." in caption


def test_words_of_a_stranger_are_text_not_markup(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    run_of(tmp_path / "run" / "one", note=evil)
    main(["report", str(tmp_path / "run")])
    text = (tmp_path / "run" / "report.html").read_text()
    assert evil not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_damaged_file_is_counted_and_hides_no_other(tmp_path):
    run_of(tmp_path / "one")
    run_of(tmp_path / "two")
    (tmp_path / "two" / RESULT).write_text('{"format": 1')
    main(["report", str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    assert re.search(r"<b>1</b>damaged file<", text)


def test_jobs_in_no_line_of_a_studys_table_are_named_and_not_shown(tmp_path):
    for name in ("kept", "left"):
        run_of(tmp_path / "study" / "jobs" / name)
    run_of(tmp_path / "alone")
    (tmp_path / "study" / "study.json").write_text("{}")
    assert len(find_runs(tmp_path, {}).results) == 3  # no table yet
    (tmp_path / "study" / "results.csv").write_text("env,folder\na,jobs/kept\n")
    runs = find_runs(tmp_path, {})
    assert [one.folder.name for one in runs.results] == ["alone", "kept"]
    assert runs.outside == ["study/jobs/left"]
    main(["report", str(tmp_path)])
    assert "In no line of results.csv, and not shown: study/jobs/left" in (tmp_path / "report.html").read_text()


def test_runs_without_a_result_are_counted_and_named(tmp_path):
    run_of(tmp_path / "one")
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / CONFIG).write_text("{}")
    main(["report", str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    assert re.search(r"<b>1</b>run without a result<", text)
    assert "Failed, or not ended yet: failed" in text


@pytest.mark.parametrize("case", ["empty", "file", "out"])
def test_what_is_no_folder_of_runs_is_refused_by_name(tmp_path, capsys, case):
    (tmp_path / "a").write_text("")
    arguments = {"empty": [tmp_path], "file": [tmp_path / "a"], "out": [tmp_path, "--out", tmp_path / "x.png"]}[case]
    with pytest.raises(SystemExit, match="2"):
        main(["report", *map(str, arguments)])
    told = {
        "empty": "`directory` must be the folder of a study",
        "file": "`directory` must be a folder",
        "out": "`out`",
    }
    assert told[case] in capsys.readouterr().err
    assert [Path(one).name for one in tmp_path.iterdir()] == ["a"]
