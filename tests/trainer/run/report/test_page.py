"""The page as a file: what is in it, how large it is, and that no text is markup."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from small_runs import ANSWER, answer, finish, make_run

import dfpo.run.report
import dfpo.study
from dfpo.__main__ import main
from dfpo.run.report import data
from dfpo.run.report.page import LARGEST, embed, write_report

ASSETS = Path(dfpo.run.report.__file__).parent / "assets"
STUDY = Path(dfpo.study.__file__).parent / "assets"
OWN = [p for folder in (ASSETS, STUDY) for p in folder.glob("*.js") if "uPlot" not in p.name]
HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'>&lt;\u2028${title}"


class Parts(HTMLParser):
    """The page's elements, and the text of each script and style."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, text):
        if self.cdata_elem is not None:
            self.texts.append((self.elements[-1], text))


def data_of(page):
    return json.loads(re.search(r'id="data">(.*)</script>', page).group(1))


@pytest.fixture
def run(tmp_path):
    return finish(make_run(tmp_path / "run"))


def test_the_page_holds_what_the_run_left(run):
    assert main(["report", str(run)]) == 0
    told = data_of((run / "report.html").read_text())
    (only,) = told["runs"]
    assert only["x"] == list(range(10)) and only["curves"]["reward/clean"][3] == 0.3
    assert [a["sample"] for a in only["answers"]] == [0, 1, 2, 40, 41, 42, 90, 91, 92]
    first = only["answers"][0]
    assert (first["told"], first["clean"], first["verdict"]) == (1.0, 0.0, "wrong")
    assert first["tokens"] == ANSWER.tokens and first["changes"] == [0.125, -0.5, 0.125, -0.25]
    assert told["metrics"] == ["reward/clean", "kl", "perf/seconds"]
    # Changes: -0.5, -0.25, 0.125; the page's ends are as far below 0 as above.
    assert told["bounds"]["changes"] == [-0.5, 0.5] and told["bounds"]["values"] == [0.125, 0.625]
    assert data.gather([run])["overview"]["rows"] == [
        ["dfpo", "flip=0.3", "0", "finished", "10 of 10", "0.250, 0.750", "0.500, 0.500"]
    ]


def test_noise_in_tables(run):
    by_domain, pairs = data.gather([run])["runs"][0]["noise_tables"]
    # Of each of three steps one answer of math was told the opposite, one was not.
    assert by_domain["rows"] == [
        ["all", "9", "3 (33 %)", "0.333", "0.667"],
        ["math", "6", "3 (50 %)", "0.500", "1.000"],
        ["science", "3", "0 (0 %)", "0.000", "0.000"],
    ]
    assert pairs["rows"] == [["0", "0", "3 (33 %)"], ["0", "1", "3 (33 %)"], ["1", "1", "3 (33 %)"]]


def test_noise_in_tables_where_rewards_are_missing(tmp_path):
    # One was told what is clean, of one noise took the reward, one had none.
    kept = [answer(told=0.0), answer(told=None), answer(told=None, clean=None)]
    by_domain, pairs = data.noise_tables(kept)
    assert by_domain["rows"][0] == ["all", "3", "1 (33 %)", "0.000", "0.000"]
    assert pairs["rows"] == [
        ["0", "0", "1 (33 %)"], ["0", "none", "1 (33 %)"], ["none", "none", "1 (33 %)"]
    ]  # fmt: skip
    assert data.noise_tables(kept[2:])[0]["rows"][0] == ["all", "1", "0 (0 %)", "-", "-"]
    # More pairs than are listed: how far they moved, of those that have both.
    many = [answer(told=float(i), clean=i - 0.5) for i in range(20)]
    assert data.noise_tables(kept[1:] + many)[1]["rows"] == [
        ["told less clean below"] + ["0.5"] * 7
    ]


def test_settings_that_differ(tmp_path):
    runs = [make_run(tmp_path / f"seed{seed}", seed=seed) for seed in (0, 7)]
    table = data.gather(runs)["settings"]
    assert table["head"] == ["setting", "seed0", "seed7"]
    assert [row["cells"] for row in table["rows"] if row["differs"]] == [["seed", "0", "7"]]
    alone = data.gather(runs[1:])["settings"]
    assert ["seed", "7", "0"] in [row["cells"] for row in alone["rows"] if row["differs"]]


def test_quantiles_survive_packing():
    rows = [[-1.5, 0.25, 2.0], [0.0, float("nan"), float("inf")]]
    packed = data.pack_quantiles(rows, (0.0, 1.0))
    whole = np.frombuffer(base64.b64decode(packed["bytes"]), "<u2").reshape(-1, packed["width"])
    back = packed["low"] + whole / 65534 * (packed["high"] - packed["low"])
    assert back[0] == pytest.approx(rows[0], abs=3.5 / 65534)
    assert back[1, 0] == pytest.approx(0, abs=3.5 / 65534)
    assert whole[1, 1] == whole[1, 2] == 65535
    assert (packed["low"], packed["high"]) == (-1.5, 2.0)
    nothing = data.pack_quantiles([], (0.0, 1.0))
    assert (nothing["low"], nothing["high"], nothing["bytes"]) == (0.0, 1.0, "")


def test_long_curves_are_means_of_steps():
    metrics = [{"step": i, "kl": float(i), "late": 1.0 if i == 5 else None} for i in range(10)]
    x, curves, each = data.fit_curves(metrics, 0)
    assert each == 1, "twenty points are always there"
    x, curves, each = data.fit_curves(metrics * 5, 0)
    assert each == 3 and x[:2] == [2, 5]
    assert curves["kl"][:2] == [1.0, 4.0] and curves["late"][:2] == [None, 1.0]


def test_answers_are_thinned_to_their_budget():
    kept = {step: [answer(step=step)] * 4 for step in range(9)}
    size = len(embed(data.pack(ANSWER, (0.0, 1.0))))
    assert data.fit_answers(kept, (0.0, 1.0), 10**6)[0] == 9
    steps, answers = data.fit_answers(kept, (0.0, 1.0), 14 * size)
    assert steps == 3 and [a["step"] for a in answers[::4]] == [0, 4, 8]
    steps, answers = data.fit_answers(kept, (0.0, 1.0), 2 * size + 10)
    assert (steps, [a["step"] for a in answers]) == (1, [8, 8])


def test_a_long_run_of_long_answers_stays_below_the_limit(tmp_path):
    # Each "<" takes six bytes where it is embedded.
    long = answer(
        prompt="<" * 8192, answer="\u4e2d" * 8192, tokens=["token"] * 512, token_ids=[1] * 512,
        values=[0.123456] * 512, spreads=[0.1] * 512, advantages=[-0.123456] * 512,
        quantiles=[[0.1] * 16] * 512, final=[0.1] * 16,
    )  # fmt: skip
    metrics = [{f"critic/metric{k}": 0.123456 * i for k in range(60)} for i in range(5000)]
    run = make_run(tmp_path / "run", kept={s: [long] * 16 for s in (0, 4, 9, 14)}, metrics=metrics)
    (run / "plots").mkdir()
    for name in ("a", "b"):
        (run / "plots" / f"{name}.png").write_bytes(b"x" * 1_500_000)
    page = write_report([run], tmp_path / "page.html").read_bytes()
    assert 3_000_000 < len(page) < LARGEST
    notes = data_of(page.decode())["notes"]
    assert re.fullmatch("; the page has room for [123] of 4 kept steps of run", notes["answers"])
    assert re.fullmatch(r"; each point of run is the mean of \d+ steps", notes["curves"])
    assert page.count(b"<img") == 1 and b"run: a</figcaption>" in page


def hostile_run(folder):
    kept = {
        0: [answer(prompt=HOSTILE, answer=HOSTILE, domain=HOSTILE, expected=HOSTILE,
                   tokens=[HOSTILE, "\u202e", "\x00", ""])]
    }  # fmt: skip
    return make_run(
        folder, kept=kept, metrics=[{HOSTILE: 1.0, "__proto__": 2.0}], system_prompt=HOSTILE
    )


def test_hostile_text_is_text(tmp_path):
    run = hostile_run(tmp_path / "<img src=x onerror=1>")
    page = write_report([run], tmp_path / "page.html").read_text()
    parts = Parts(page)
    assert [tag for tag, _ in parts.elements].count("script") == 2
    assert "img" not in [tag for tag, _ in parts.elements]
    told = data_of(page)["runs"][0]
    assert told["answers"][0]["prompt"] == HOSTILE and HOSTILE in told["curves"]


def test_no_letter_of_markup_in_what_is_embedded():
    assert embed(["<>&\u2028\u2029"]) == r'["\u003c\u003e\u0026\u2028\u2029"]'
    assert json.loads(embed([HOSTILE])) == [HOSTILE]


def test_the_browser_may_run_this_script_and_nothing_else(run):
    page = write_report([run], run / "page.html").read_text()
    parts = Parts(page)
    policy = next(a["content"] for tag, a in parts.elements if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for (tag, attributes), text in parts.texts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        wanted = "type" not in attributes  # the data is no script
        assert (f"{tag}-src 'sha256-{digest}'" in policy) == wanted
    assert not any("src" in a or ("href" in a and a["href"][0] != "#") for _, a in parts.elements)


def test_our_script_makes_no_markup_of_text_and_stays_readable():
    assert len(OWN) == 5
    for path in OWN:
        text = path.read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function\(", text
        )
        assert max(map(len, text.splitlines())) <= 100, path


@pytest.mark.parametrize("page", ["answers.js curves.js report.js", "study.js"])
def test_the_script_of_each_page_is_short(page):
    """Of a run's and of a comparison's."""
    names = ["elements.js", *page.split()]
    assert set(names) <= {path.name for path in OWN}
    lines = [x for path in OWN if path.name in names for x in path.read_text().splitlines()]
    assert len(lines) < 400


def test_wrong_input_is_one_line(tmp_path, run, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(run), "-o", str(tmp_path / "no" / "page.html")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "must be the directory of a run" in lines[0] and "output: is " in lines[1]
    assert len(lines) == 2
