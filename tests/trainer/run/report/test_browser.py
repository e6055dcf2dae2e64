"""The page in a real browser, opened from disk: what it shows, keys, zoom, colours, no script but
its own. Needs playwright and a Chromium; skipped, with the reason, where there is neither."""

import io
import threading

import pytest
from PIL import Image, ImageColor
from small_runs import answer, answers_of, finish, make_run

from dfpo.run.kept import write
from dfpo.run.report.live import LiveServer
from dfpo.run.report.page import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'>&lt;\u2028"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Two runs of one seed on a page, one of them without noise, and a hostile run."""
    folder = tmp_path_factory.mktemp("pages")
    metrics = [{"reward/clean": 0.1 * i, "kl": 10.0**-i if i else 0.0} for i in range(10)]
    one = finish(make_run(folder / "one", metrics=metrics))
    two = make_run(folder / "two", algorithm="ppo", kept={9: answers_of(9)}, metrics=metrics[:5])
    hostile = {
        0: [answer(prompt=HOSTILE, answer=HOSTILE, domain=HOSTILE, expected=HOSTILE,
                   tokens=[HOSTILE, "\u202e", "\x00", ""])]
    }  # fmt: skip
    odd = make_run(folder / HOSTILE.replace("/", ""), hostile, [{HOSTILE: 1.0, "__proto__": 2.0}])
    empty = make_run(folder / "empty", kept={}, metrics=[])
    gone = {"advantages": [], "values": [], "spreads": [], "quantiles": [], "final": []}
    kept = {0: [answer(told=None, clean=None, **gone), answer(sample=1, told=None, **gone)]}
    unscored = make_run(folder / "unscored", kept)
    made = {"both": [one, two], "hostile": [odd], "empty": [empty], "unscored": [unscored]}
    return {k: write_report(runs, folder / f"{k}.html").as_uri() for k, runs in made.items()}


@pytest.fixture
def visit(browser, pages):
    """Opens a page; fails on any error in it and on any request but the page itself."""
    opened, wrong = [], []

    def open_page(name, **options):
        context = browser.new_context(**options)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
        allowed = (pages[name], "data:")
        page.on(
            "request",
            lambda asked: None if asked.url.startswith(allowed) else wrong.append(asked.url),
        )
        page.goto(pages[name])
        opened.append(context)
        return page

    yield open_page
    for context in opened:
        context.close()
    assert wrong == []


def until(page, expression, seconds=20):
    """Waits; playwright's own way is a string that is made a script, which the page forbids."""
    for _ in range(seconds * 10):
        try:
            if page.evaluate(expression):
                return
        except playwright.Error:
            pass  # loaded anew meanwhile
        page.wait_for_timeout(100)
    raise AssertionError(f"{expression} did not come about")


def texts(page, selector):
    return page.locator(selector).all_inner_texts()


def test_runs_are_overlaid_and_hidden(visit):
    page = visit("both")
    assert page.title() == "DFPO: one, two"
    assert texts(page, ".u-title") == ["reward/clean", "kl"]
    assert len(texts(page, "#charts .uplot >> nth=0 >> .u-series")) == 3  # steps and two runs
    page.locator("#summary input").first.uncheck()
    assert len(texts(page, "#charts .uplot >> nth=0 >> .u-series")) == 2
    page.fill("#metric-search", "REWARD")
    assert texts(page, ".u-title") == ["reward/clean"]


def test_hover_says_the_values(visit):
    page = visit("both")
    over = page.locator(".u-over").first
    box = over.bounding_box()
    # Step 3 of 0 to 9.
    over.hover(position={"x": box["width"] / 3 + 1, "y": 40})
    legend = texts(page, "#charts .uplot >> nth=0 >> .u-value")
    assert legend == ["3", "0.3", "0.3"]


def test_drag_zooms_all_curves_and_a_field_says_where(visit):
    page = visit("both")
    over = page.locator(".u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 2 / 9, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 6 / 9, box["y"] + 40, steps=3)
    page.mouse.up()
    ranges = "charts.map((c) => [Math.round(c.scales.x.min), Math.round(c.scales.x.max)])"
    until(page, "document.getElementById('zoom-to').value !== ''")
    assert page.evaluate(ranges) == [[2, 6], [2, 6]]
    assert page.locator(".u-select").first.bounding_box()["width"] == 0
    assert (page.input_value("#zoom-from"), page.input_value("#zoom-to")) == ("2", "6")

    # A new drawing stays where it was; by keys the same; a double click shows all.
    page.locator("#smoothing").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate(ranges) == [[2, 6], [2, 6]]
    page.fill("#zoom-from", "4")
    page.press("#zoom-from", "Tab")
    assert page.evaluate(ranges) == [[4, 6], [4, 6]]
    page.locator(".u-over").first.dblclick()
    until(page, "document.getElementById('zoom-to').value === ''")
    assert page.evaluate(ranges) == [[0, 9], [0, 9]]
    assert page.input_value("#zoom-from") == ""


def test_smoothing_is_a_mean_of_what_came_before(visit):
    page = visit("both")
    # Weight 1/2: (0 * 1/4 + 1 * 1/2) / (3/4) at the second; what is missing is passed over.
    assert page.evaluate("smooth([0, 1, null, 1], 0.5)") == pytest.approx(
        [0, 2 / 3, None, 6 / 7], abs=1e-9
    )
    page.locator("#smoothing").fill("0.8")
    assert page.locator("#charts .uplot >> nth=0 >> .u-series").count() == 5  # raw beside smooth
    assert page.locator("#charts .uplot >> nth=0 >> .u-series:visible").count() == 3


def test_a_log_axis_leaves_out_what_has_no_logarithm(visit):
    page = visit("both")
    page.check("#log")
    assert page.evaluate("charts[1].scales.y.distr") == 3
    assert page.evaluate("charts[1].data[1].slice(0, 3)") == [None, 0.1, 0.01]
    assert "left out of a log axis" in page.inner_text("#curves .note")
    page.uncheck("#log")
    assert page.inner_text("#curves .note") == "2 of 2 metrics"


def test_filters(visit):
    page = visit("both")

    def count(**chosen):
        for name, value in chosen.items():
            page.select_option(f"#f-{name}", label=value)
        shown = page.locator("#list li").count()
        page.evaluate("COLUMNS.forEach((field) => { field.value = ''; })")
        page.evaluate("drawList()")
        return shown

    # Three answers of each of four kept steps.
    assert count() == 12
    assert count(run="two") == 3
    assert count(step="9") == 6
    assert count(domain="science") == 4
    assert count(verdict="right") == 4
    assert count(noise="changed by noise", run="one") == 3
    page.fill("#f-search", "WORK")
    assert page.locator("#list li").count() == 4
    assert page.inner_text("#answers-note") == "4 of 12 answers"


def test_arrow_keys_show_each_tokens_distribution(visit):
    page = visit("both")
    words = page.locator(".words")
    first = words.inner_text()
    assert first.startswith("token 1 of 4 “it”: value 0.5 ± 0.5, 5 to 95 % 0 to 1")
    assert "the token moves it by +0.125, advantage +0.5" in first
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert words.inner_text().startswith("token 3 of 4 “4”: value 0.125 ± 0.25")
    # Two dots on 0, two on a quarter of the way.
    dots = page.locator(".dot").evaluate_all(
        "(all) => all.map((dot) => ['cx', 'cy'].map((name) => Number(dot.getAttribute(name))))"
    )
    assert dots == [[40, 124], [40, 116], [177.5, 124], [177.5, 116]]
    page.keyboard.press("ArrowLeft")
    page.locator(".token").nth(3).hover()
    assert words.inner_text().startswith("token 4 of 4")
    assert page.locator(".token.chosen").inner_text() == "<eos>"


def test_tokens_are_coloured_by_what_is_asked_for(visit):
    page = visit("both")

    def colour(place):
        # Left of the text; a pixel's colour is a hundredth of the span off at most.
        picture = Image.open(io.BytesIO(page.locator(".token").nth(place).screenshot()))
        return picture.convert("RGB").getpixel((2, picture.height // 2))

    def near(hexadecimal):
        return pytest.approx(ImageColor.getrgb(hexadecimal), abs=5)

    def ink(place):
        return page.locator(".token").nth(place).evaluate("(t) => getComputedStyle(t).color")

    # The ends of cividis at the least and the greatest value: 0.125 and 0.625.
    page.locator(".token").nth(3).hover()
    assert (colour(1), ink(1)) == (near("#ffe945"), "rgb(0, 0, 0)")
    assert (colour(2), ink(2)) == (near("#00204c"), "rgb(255, 255, 255)")
    # 0.5 is three quarters of the way, where the fourth of its five colours is.
    assert colour(0) == near("#bbad6c")
    page.select_option("#paint", label="change")
    # +1/8, -1/2, +1/8, -1/4, of at most 1/2 either way; 0 is grey.
    assert (colour(1), ink(1)) == (near("#b35806"), "rgb(255, 255, 255)")
    # A quarter of the way from grey to blue is half of the way to the colour between them.
    assert colour(0) == near("#acccdf") and colour(0) == colour(2)
    page.keyboard.press("Escape")
    page.locator("h2").first.click()
    page.keyboard.press("v")
    assert page.input_value("#paint") == "advantages"
    page.locator(".token").nth(3).hover()
    assert colour(2) == near("#b35806")
    page.select_option("#paint", label="none")
    painted = "[...document.querySelectorAll('.token')].map((t) => t.style.cssText)"
    assert page.evaluate(painted) == ["", "", "", ""]
    assert page.locator("#scale").is_hidden()


def test_two_answers_to_one_prompt_side_by_side(visit):
    page = visit("both")
    page.select_option("#f-run", label="one")
    choices = texts(page, ".panel option")
    assert choices[0] == "7 more on this prompt"
    page.select_option(".panel select", label="two, step 9, answer 91: ✓ right, reward 1")
    assert [t.split(" hold")[0].split(" let")[0] for t in texts(page, ".panel h3")] == [
        "one, step 0, answer 0", "two, step 9, answer 91",
    ]  # fmt: skip
    page.locator("h2").first.click()
    page.keyboard.press("ArrowRight")
    assert [t[:12] for t in texts(page, ".words")] == ["token 2 of 4"] * 2
    page.keyboard.press("Escape")
    assert page.locator(".panel").count() == 1


def test_keys_walk_and_hold_answers(visit):
    page = visit("both")
    for key in "jjkb":
        page.keyboard.press(key)
    page.keyboard.press("j")
    heads = texts(page, ".panel h3")
    assert "answer 1 " in heads[0] + " " and "answer 2 " in heads[1] + " "
    assert page.locator("#list [aria-current=true]").count() == 1
    page.keyboard.press("/")
    page.keyboard.type("jvb")
    assert page.input_value("#f-search") == "jvb", "letters that are typed are letters"
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    box = page.locator("#keys").bounding_box()
    assert box["y"] > 0 and box["y"] + box["height"] < page.viewport_size["height"]
    page.keyboard.press("Escape")
    assert page.locator("#keys").is_hidden()


def test_settings_and_noise(visit):
    page = visit("both")
    names = texts(page, "#settings-table td:first-child:visible")
    assert "algorithm" in names and "seed" not in names
    page.uncheck("#differing")
    assert "seed" in texts(page, "#settings-table td:first-child:visible")
    assert "6 (50 %)" not in texts(page, "#noise td") and "3 (50 %)" in texts(page, "#noise td")


def test_hostile_text_is_text(visit):
    page = visit("hostile")
    assert page.evaluate("typeof hacked") == "undefined"
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2
    assert page.locator(".panel dd").first.text_content() == HOSTILE
    assert page.locator(".token").all_text_contents() == [HOSTILE, "\u202e", "\x00", "·"]
    assert sorted(page.locator(".u-title").all_text_contents()) == sorted([HOSTILE, "__proto__"])


def test_the_policy_stops_a_script_that_got_in_all_the_same(browser, pages):
    page = browser.new_page()
    page.goto(pages["both"])
    page.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='hacked=1'>`)")
    page.evaluate(
        "const s = document.createElement('script'); s.text = 'hacked = 1'; document.body.append(s)"
    )
    page.wait_for_timeout(100)
    assert page.evaluate("typeof hacked") == "undefined"
    page.close()


def test_an_answer_without_a_reward(visit):
    page = visit("unscored")
    assert [t.split("\n")[0] for t in texts(page, "#list button")] == [
        "step 0, math, no reward", "step 0, math, ✗ wrong, told none, clean 0",
    ]  # fmt: skip
    assert page.locator(".predicted").is_hidden() and page.locator(".unpredicted").is_visible()
    assert page.inner_text(".words") == "token 1 of 4 “it”: advantage –"
    page.select_option("#f-verdict", label="no reward")
    assert page.locator("#list li").count() == 1


def test_a_run_of_nothing_yet(visit):
    page = visit("empty")
    assert page.inner_text("#answers-note") == "No answers were kept."
    assert page.inner_text("#curves-note") == "0 of 0 metrics"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_stands_out_from_paper(visit, scheme):
    page = visit("both", color_scheme=scheme)

    def luminance(name):
        text = page.evaluate(f"getComputedStyle(document.body).{name}")
        parts = [int(x) / 255 for x in text[4:-1].split(",")]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ink, paper = luminance("color"), luminance("backgroundColor")
    # WCAG's contrast, of which 7 is its strictest bound.
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 7
    assert (paper < ink) == (scheme == "dark")


def test_a_phone_scrolls_one_way(visit):
    page = visit("both", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".token").nth(2).tap()
    assert page.locator(".words").inner_text().startswith("token 3 of 4")


def test_a_live_page_loads_itself_and_stays_as_it_was_set(browser, tmp_path, monkeypatch):
    # Time enough for three settings before it loads itself, on a slow machine too.
    monkeypatch.setattr("dfpo.run.report.live.SECONDS", 8)
    run = make_run(tmp_path / "run")
    with LiveServer([run], 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        page = browser.new_page()
        page.goto(server.address)
        page.select_option("#f-domain", label="science")
        page.select_option("#paint", label="advantage")
        page.keyboard.press("j")
        write(run, 6, answers_of(6))
        until(page, "answers.length === 12")
        assert page.inner_text("#answers-note") == "4 of 12 answers"
        assert page.input_value("#paint") == "advantages"
        assert "answer 42" in page.inner_text(".panel h3")
        page.close()
        server.shutdown()
        thread.join()
