"""The atlas in a real browser, opened from disk with the network off."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_atlas import NAMES, Site, decoded, levels_of, make_site, make_sounds, small_m2d

import aape.atlas.content as content
from aape.atlas import Titles, show_neuron
from aape.atlas.scripts import base64_of, read_script, write_script
from aape.collecting.passing import collect
from aape.neurons.selection import select

LEVEL, LEAST = 0.01, 0.3  # of q and of p - p outside, other than the usual ones


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two tasks, and the untrained encoder on one of them."""
    folder = tmp_path_factory.mktemp("browser")
    site = make_site(folder)
    selection = select(site.artifacts, rate=0.05)
    table = selection.table().assign(q=0.01, calibrated=True, auprc=0.42, f1=0.31, iou=0.23)
    written = table.rename(columns={"q": "q_value"})
    written.to_csv(site.artifacts.path / "neurons.csv", index=False)
    where = {"task": "sounds", "model": "small", "target": "a target", "mode": "specific"}
    change = {
        "class": NAMES[0],
        "targeted": True,
        "measure": "accuracy",
        "before": 50,
        "effect": -12.5,
        "kind": "mean",
    }
    pd.DataFrame([where | change]).to_csv(folder / "study" / "ablation_effects.csv", index=False)
    table[["layer", "neuron"]].assign(**where).to_csv(
        folder / "study" / "ablation_neurons.csv", index=False
    )
    site.build(selection=selection, attribute=True)
    other = make_sounds(folder / "other", names=("a", "b"), name="other")
    again = collect(site.encoder, other, folder / "study" / "other_small")
    site.replace(task=other, artifacts=again).build(selection=select(again, rate=0.05))
    twin = small_m2d(5, "twin")
    made = collect(twin, site.task, folder / "study" / "sounds_untrained")
    titles = Titles("study", "twin", "sounds", "untrained twin", "sounds", role="untrained")
    site.replace(encoder=twin, artifacts=made).build(titles=titles)
    return site


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, pd.DataFrame]:
    """Neurons of several classes, each pair with a q and a verdict of its own, and a set that was chosen in folds."""
    site = make_site(tmp_path_factory.mktemp("mixed"), names=("A", "B", "C"))
    selection = select(site.artifacts, rate=1.0, quantile=0.6)
    table = selection.table()
    table["q"] = np.round(np.random.default_rng(0).uniform(0.001, 0.03, len(table)), 5)
    is_large = table.rate - table.rate_outside >= LEAST
    table["calibrated"] = (table.q < LEVEL) & is_large
    verdicts = ["✓ significant and large", "significant but small"]
    table["verdict"] = np.select(
        [table.calibrated, (table.q < LEVEL) & ~is_large], verdicts, "not significant"
    )
    table.rename(columns={"q": "q_value"}).to_csv(site.artifacts.path / "neurons.csv", index=False)
    study, where = (
        site.out.parent,
        {"task": "sounds", "model": "small", "target": "A", "mode": "specific"},
    )
    level = {"task": "sounds", "effect": LEAST, "q_level": LEVEL}
    pd.DataFrame([level]).to_csv(study / "task_level_neuron_statistics_small.csv", index=False)
    first = {"layer": table.layer[0], "neuron": table.neuron[0]}
    sets = [where | {"fold": i, "layer": 0, "neuron": i} for i in range(5)]
    sets += [where | {"fold": i, **first} for i in range(1, 5)]
    pd.DataFrame(sets).to_csv(study / "ablation_neurons.csv", index=False)
    change = {
        "class": "A",
        "targeted": True,
        "measure": "accuracy",
        "effect": -12.5,
        "kind": "mean",
        "neurons": 1.8,
    }
    pd.DataFrame([where | change]).to_csv(study / "ablation_effects.csv", index=False)
    none = np.argwhere(~selection.members.any(axis=2))[0].tolist()  # a neuron of no class
    site.build(selection=selection, neurons=[[first["layer"], first["neuron"]], none])
    return site, table


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that must not report an error or ask for anything but files."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page, wrong = context.new_page(), []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on(
        "request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url)
    )
    yield page
    context.close()
    assert wrong == []


def show(page: Any, out: Path, **address: Any) -> None:
    page.goto("about:blank")
    query = page.evaluate(
        "a => new URLSearchParams(a).toString()", {k: str(v) for k, v in address.items()}
    )
    page.goto(f"file://{out}/index.html#{query}")
    page.wait_for_selector("main[data-ready]")


def settled(page: Any, action: Any) -> None:
    """Do something that draws a new page, and wait for it."""
    before = page.get_attribute("main", "data-ready")
    action()
    page.wait_for_function("b => document.querySelector('main').dataset.ready !== b", arg=before)


def changed(site: Site, to: Path, key: str, change: Callable[[Any], None]) -> Path:
    """A copy of an atlas in which one of its scripts has other content."""
    shutil.copytree(site.out, to)
    value = read_script(to, key)
    change(value)
    write_script(to, key, value)
    return to


@pytest.fixture(scope="module")
def neuron(site: Site) -> dict[str, Any]:
    """A neuron with clips and a map that is not empty."""
    return max(site.records(), key=lambda record: record["top"])


def address(record: dict[str, Any]) -> dict[str, Any]:
    return {"m": "small", "t": "sounds", "l": record["l"], "n": record["n"]}


def heading_of(record: dict[str, Any]) -> str:
    return f"Layer {record['l']}, neuron {record['n']}"


def test_from_the_first_page_to_a_class_and_a_neuron_and_along_the_list(page, site, neuron):
    show(page, site.out)
    assert page.locator(
        "figure.clip"
    ).count() == 3 and "What do neurons listen to" in page.inner_text("h1")
    settled(page, lambda: page.click(f".chips a:has-text('{NAMES[0]}') >> nth=0"))
    assert page.inner_text("h1") == NAMES[0]
    settled(page, lambda: page.click("tbody a >> nth=0"))
    assert page.inner_text("h1").startswith("Layer") and page.locator("figure.clip").count() >= 15
    page.wait_for_function(
        "document.body.innerText.includes('in the untrained twin')"
    )  # where it would rank there
    show(page, site.out, **address(neuron))
    assert page.inner_text("h1") == heading_of(neuron)
    said = page.inner_text("main")
    for part in (
        "on held-out clips",
        "0.42",
        "0.31",
        "0.23",
        "silencing this neuron alone",
        "a target (specific), replaced by",
        "-12.5 points",
    ):
        assert part in said
    rank = (
        page.locator("section:has-text('silencing this neuron alone') tbody tr >> nth=0")
        .inner_text()
        .split()[-1]
    )
    assert rank in {f"{r:,}" for r in neuron["attribution"]["rank"]}
    key = "ArrowRight" if page.locator("#next").count() else "ArrowLeft"
    settled(page, lambda: page.keyboard.press(key))
    assert page.inner_text("h1") != heading_of(neuron)
    settled(page, lambda: page.go_back())
    assert page.inner_text("h1") == heading_of(neuron)


def test_sounds_play_the_cursor_moves_and_one_sounds_at_a_time(page, site, neuron):
    show(page, site.out, **address(neuron))
    assert page.evaluate(
        """() => Promise.all([...document.querySelectorAll("audio")].map((a) => new Promise((done) => {
             if (a.readyState) done(a.duration); else a.onloadedmetadata = () => done(a.duration); })))
           .then((all) => all.every((d) => d > 0.2))"""
    )
    page.locator("button.play").nth(0).click()
    page.wait_for_function("document.querySelector('audio').currentTime > 0.05")
    assert page.locator("figure.on").count() == 1
    assert float(page.evaluate("parseFloat(document.querySelector('.cursor').style.left)")) > 0
    page.locator("button.play").nth(1).click()
    page.wait_for_function("document.querySelectorAll('audio')[1].currentTime > 0")
    assert page.evaluate("document.querySelectorAll('audio')[0].paused")
    page.wait_for_function("document.querySelectorAll('audio')[1].ended")
    rests = "parseFloat(document.querySelectorAll('.meter i')[1].style.width) === 0"
    page.wait_for_function(rests)  # it rests when nothing sounds
    original = page.get_attribute("audio >> nth=0", "src")
    page.click("text=Filtered by this neuron")
    page.wait_for_function("document.querySelector('audio').currentTime > 0.05")
    assert page.get_attribute("audio >> nth=0", "src") == f"clips/{neuron['filtered']}" != original
    page.wait_for_function("document.querySelector('audio').ended")
    page.keyboard.press("p")  # all of the most active, one after the other
    page.wait_for_function("document.querySelectorAll('audio')[2].currentTime > 0.02")


def test_the_overlay_is_the_records_map_and_can_be_switched_off(page, site, neuron):
    show(page, site.out, **address(neuron))
    pixels = page.evaluate(
        """() => [...document.querySelectorAll("canvas[data-place]")].map((c) => [Number(c.dataset.place), c.width, c.height,
             Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data).filter((_, i) => i % 4 === 3)])"""
    )
    levels = levels_of(neuron["maps"])
    assert len(pixels) == len(neuron["clips"]) and levels.max() == 15
    for place, columns, rows, alpha in pixels:
        size = rows * columns
        expected = levels[place * size : (place + 1) * size].reshape(rows, columns)[
            ::-1
        ]  # low frequencies below
        assert (
            np.abs(np.array(alpha).reshape(rows, columns) - 200 * expected.astype(float) / 15).max()
            <= 1
        )
    overlay = page.locator("canvas[data-place]").first
    assert overlay.is_visible()
    page.keyboard.press("o")
    assert not overlay.is_visible() and not page.is_checked("[data-maps]")
    page.check("[data-maps]")
    assert overlay.is_visible()


def test_the_meter_and_the_most_active_second_follow_the_map(page, site, neuron):
    show(page, site.out, **address(neuron))
    rows, columns = site.pair()["grid"]
    levels = levels_of(neuron["maps"])[: len(neuron["clips"]) * rows * columns].reshape(
        -1, rows, columns
    )
    course = levels.mean(axis=1)
    shown = page.evaluate(
        "async ([layer, n]) => { const pair = await pairOf(index.pairs[0]), record = await recordOf(pair, layer * pair.width + n); "
        "return record.clips.map((_, place) => courseOf(pair, record, place)); }",
        [neuron["l"], neuron["n"]],
    )
    assert np.allclose(shown, course / course.max(), atol=1e-6)
    seconds = page.evaluate(
        "[4, 1.2].map((s) => mostActiveSecond({ map_seconds: 4 }, [0, 0, 0.2, 0, 1, 0.5, 0, 0.1], s))"
    )
    assert seconds == [2, None]


def test_the_first_clips_hide_their_class_until_they_are_played(page, site):
    show(page, site.out)
    label = page.locator("figure.clip .what").first
    assert not label.is_visible() and page.locator("figure.secret").count() == 3
    page.locator("button.play").first.click()
    label.wait_for(state="visible")
    page.click("text=Reveal the classes")
    assert page.locator("figure.secret").count() == 0


def test_a_search_finds_classes_of_every_task_and_takes_a_space_for_an_underscore(
    page, site, tmp_path
):
    def rename(index: dict[str, Any]) -> None:
        index["pairs"][1]["classes"][0][0] = "sea_waves"

    out = changed(site, tmp_path / "atlas", "index", rename)
    show(page, out, m="small", t="sounds", find=1, q="sea wave")
    assert page.locator(".chips a").all_inner_texts() == ["sea_waves other"]
    show(page, site.out, m="twin", t="sounds")
    page.fill("#search", "low")
    settled(page, lambda: page.keyboard.press("Enter"))
    assert page.inner_text("h1") == "low" and "untrained twin" in page.inner_text(".trail")


def test_search_narrows_sorting_sorts_and_the_address_holds_both(page, site, tmp_path):
    show(page, site.out, m="small", t="sounds", find=1)
    for name, column in (("aape", 4), ("name", 0), ("p", 2)):
        for _ in range(2):
            settled(page, lambda name=name: page.click(f"#sort-{name}"))
            cells = page.locator(f"tbody tr > :nth-child({column + 1})").all_inner_texts()
            values: list = [cell.split("\u202f")[0].split()[0] for cell in cells]
            values = [
                [int(part) for part in x.split("/")] if name == "name" else float(x) for x in values
            ]
            falling = page.get_attribute(f"th:has(#sort-{name})", "aria-sort") == "descending"
            assert len(values) > 1 and values == sorted(values, reverse=falling)
    page.keyboard.press("/")
    page.keyboard.type("1/7")
    settled(page, lambda: page.keyboard.press("Enter"))
    assert page.locator("tbody tr").count() == 1 and "1/7" in page.inner_text("tbody tr")
    url = page.url
    page.goto("about:blank")
    page.goto(url)
    page.wait_for_selector("main[data-ready]")
    assert "1 of 512" in page.inner_text("#found")
    names = {
        "3/4": "3/4",
        "0.5": "0.5",
        "E\u0301cole": "\u00e9co",
    }  # an accent as a character of its own

    def rename(pair: dict[str, Any]) -> None:
        for row, name in zip(pair["classes"], names, strict=True):
            row["name"] = name

    out = changed(site, tmp_path / "atlas", "small-sounds/pair", rename)
    for c, text in enumerate(names.values()):
        show(page, out, m="small", t="sounds", find=1, q=text)
        assert (
            page.inner_text("#found").split()[0] == str(site.pair()["classes"][c]["neurons"]) != "0"
        )


def test_a_row_its_place_and_whether_it_is_found_are_of_one_class(page, mixed):
    site, table = mixed
    by_pair, calibrated = table.set_index(["layer", "neuron", "class"]), table[table.calibrated]
    several = table.groupby(["layer", "neuron"]).calibrated.agg(["size", "min", "max"])
    assert (several["size"] > 1).any() and (several["min"] != several["max"]).any(), (
        "else nothing can be mixed up"
    )
    for chosen in ({}, {"c": "B"}):
        found = (
            calibrated[calibrated["class"] == "B"]
            if chosen
            else calibrated.drop_duplicates(["layer", "neuron"])
        )
        for sort, only in (("q", "specific"), ("p", "specific"), ("p", "calibrated")):
            show(page, site.out, m="small", t="sounds", find=1, s=sort, only=only, **chosen)
            rows = page.evaluate(
                "[...document.querySelectorAll('tbody tr')].map((r) => [...r.children].map((c) => c.innerText))"
            )
            values = [float(row[{"q": 5, "p": 2}[sort]].split("\u202f")[0]) for row in rows]
            assert rows and values == sorted(values, reverse=sort == "p")
            assert only == "specific" or page.inner_text("#found").split()[0] == str(len(found))
            for number, _, p, outside, _, q, verdict, names in rows:
                place = tuple(map(int, number.split()[0].split("/")))
                wanted = by_pair.loc[(*place, chosen.get("c", names.split(",")[0]))]
                shares = [float(x.split("\u202f")[0]) / 100 for x in (p, outside)]
                assert shares == pytest.approx([wanted.rate, wanted.rate_outside], abs=0.0075)
                assert float(q) == pytest.approx(wanted.q, rel=0.06) and verdict == wanted.verdict
    titles = page.evaluate(
        "[...document.querySelectorAll('tbody td:nth-child(7) span')].map((e) => e.title)"
    )
    assert {title for title in titles if title} == {
        f"q below {LEVEL}, and p larger than in the other classes by at least {LEAST}"
    }
    show(page, site.out, m="small", t="sounds", l=table.layer[0], n=table.neuron[0])
    said = page.inner_text("section:has(h2:has-text('Silenced together with others'))")
    assert "1.8 neurons are silenced together" in said and "in 4 of the 5 folds" in said


@pytest.mark.parametrize("table_is", ["complete", "the largest of each neuron"])
def test_numbers_are_copied_and_written_as_exactly_as_they_are_known(
    page, mixed, tmp_path, monkeypatch, table_is
):
    site, table = mixed
    selection = select(site.artifacts, rate=1.0, quantile=0.6)
    if table_is != "complete":
        monkeypatch.setattr(content, "WHOLE_TABLE", 0)
        monkeypatch.setattr(content, "TOP", 1)
        site = site.replace(out=tmp_path / "atlas")
        site.build(selection=selection)
        assert "p" not in site.pair()
    weaker = table[table.duplicated(["layer", "neuron"])].iloc[-1]  # not the neuron's largest p
    show(page, site.out, m="small", t="sounds", l=weaker.layer, n=weaker.neuron, c=weaker["class"])
    said = float(page.inner_text(".lead .hot >> nth=0").split("\u202f")[0]) / 100
    assert said == pytest.approx(weaker.rate, abs=0.0075)
    show(page, site.out, m="small", t="sounds", find=1)
    page.evaluate(
        "navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }"
    )
    page.click("text=Copy as CSV")
    copied = page.evaluate("window.copied")
    assert all(
        len(line.split(",")[column]) == 4 for line in copied.splitlines()[1:] for column in (3, 4)
    )
    both = pd.read_csv(io.StringIO(copied)).merge(
        table, on=["layer", "neuron", "class"], suffixes=("", "_true")
    )
    assert len(both) == len(table) and (both.rate - both.rate_true).abs().max() < 0.0075
    show(page, site.out, m="small", t="sounds", find=1, c="B")
    page.evaluate(
        "navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }"
    )
    page.click("text=Copy as int_neurons")
    pairs = json.loads(page.evaluate("window.copied").removeprefix("int_neurons: "))
    assert sorted(map(tuple, pairs)) == sorted(map(tuple, selection.neurons("B").tolist()))
    page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', { value: undefined })"
    )  # as over plain http
    page.click("text=Copy address")
    page.wait_for_selector("#said >> text=The browser does not let it be copied.")
    written = page.evaluate("[0.0001, 0.00096, 3.2e-12].map(small)")
    assert written == ["1\u202f×\u202f10⁻⁴", "1\u202f×\u202f10⁻³", "3\u202f×\u202f10⁻¹²"]
    fixed = page.evaluate("[-0.001, 0, -0.006, -1, 10].map((x) => fixed(x, 2))")
    assert fixed == ["0.00", "0.00", "-0.01", "-1.00", "10.00"]


def test_what_a_page_says_of_contrasts_ranks_and_groups(page, mixed, site, neuron, tmp_path):
    of_mixed, table = mixed
    many = table.groupby(["layer", "neuron"]).size()
    by_number = {many.get((record["l"], record["n"]), 0): record for record in of_mixed.records()}
    for classes in (0, 1, 2):
        record = by_number[classes]
        first = "ABC"[record["own"][0]]
        own = [f"{first}, its strongest class", first, "its 2 classes"][classes]
        show(page, of_mixed.out, **address(record))
        said = page.inner_text("main")
        assert (
            f"Among clips that are not of {own}, the neuron" in said
            and f"Among clips of {own}, the neuron" in said
        )
        assert f"{own} ({sum(record['histogram'][0])} clips)" in said
    dead = next(
        n
        for n in range(256)
        if n not in select(site.artifacts, rate=0.05).table().neuron.to_numpy()
    )

    def silence(pair: dict[str, Any]) -> None:
        aape = decoded(pair["aape"], "<f4").copy()
        p = decoded(pair["p"], "u1").reshape(len(aape), -1).copy()
        aape[dead], p[dead] = np.inf, 0
        pair |= {"aape": base64_of(aape), "p": base64_of(p), "own_picture": False}

    silenced = changed(site, tmp_path / "atlas", "small-sounds/pair", silence)
    show(page, silenced, m="small", t="sounds", l=0, n=dead)
    page.wait_for_function("document.body.innerText.includes('would rank – in the untrained twin')")
    assert page.inner_text("dl.facts div:has-text('Rank of its AAPE') dd").split("\n")[0] == "–"
    assert page.inner_text(".lead") == "Specific to no class here; it is never active on this task."
    ranks = "[0.5, 0.1, 3, Infinity].map((x) => rankOf(x, { sorted: [0.2, 0.5, 1], size: 3 }))"
    assert page.evaluate(ranks) == ["2 of 3", "1 of 3", "above all 3", "–"]
    for share, said in ((0.1, None), (0.25, "Part of its response"), (0.5, "Most of its response")):
        text = page.evaluate(f"groupEffect({{ groups: {share}, crowd: [] }})[0].innerText")
        assert said in text if said else "of its response" not in text
    for out, said in ((site.out, False), (silenced, True)):
        show(page, out, **address(neuron))
        assert ("The pictures are plain mel spectrograms" in page.inner_text("main")) is said


def test_tasks_share_neurons_where_layers_have_the_same_names(page, site, neuron, tmp_path):
    show(page, site.out, **address(neuron))
    page.click("[role=tab]:has-text('other')")
    page.wait_for_selector("#bars >> text=Both side by side")
    settled(page, lambda: page.click("text=Both side by side"))
    assert "on two tasks" in page.inner_text("h1") and page.locator("section h2").count() == 2
    show(page, site.out, m="small", t="other", c="a", d="b")
    assert page.inner_text("h1") == "a and b" and "Jaccard" in page.inner_text("main")
    show(page, site.out, m="small", t="sounds", c=NAMES[0], d="a", u="other")
    assert "(other)" in page.inner_text("h1")

    def rename(index: dict[str, Any]) -> None:
        entry = next(entry for entry in index["pairs"] if entry["t"] == "other")
        entry["layer_names"] = [f"another {name}" for name in entry["layer_names"]]

    for out, tabs in ((site.out, 2), (changed(site, tmp_path / "atlas", "index", rename), 0)):
        show(page, out, **address(neuron))
        assert page.locator("[role=tab]").count() == tabs
        show(page, out, m="small", t="sounds", c=NAMES[0])
        assert page.locator("option:has-text('(other)')").count() == tabs
    show(page, site.out, m="twin", t="sounds")  # there is no page of the twin on the other task
    for pick, value, shown in (
        ("t", "other", ("small", "other")),
        ("m", "twin", ("twin", "sounds")),
    ):
        settled(page, lambda pick=pick, value=value: page.select_option(f"#pick-{pick}", value))
        assert (page.input_value("#pick-m"), page.input_value("#pick-t")) == shown
        assert page.locator("[role=alert]").count() == 0 and page.inner_text("h1") == shown[1]


def test_names_are_text_and_what_is_not_there_or_not_known_is_said(page, site):
    for name in NAMES:
        show(page, site.out, m="small", t="sounds", c=name)
        assert page.inner_text("h1") == name and page.locator("[onclick], h1 b").count() == 0
        assert "not known here" in page.inner_text(
            "main"
        )  # only neurons.csv is there, as after `dissect`
    for wrong, message in (
        ({"m": "none", "t": "x"}, "has no model"),
        ({"m": "small", "t": "sounds", "c": "<img>"}, "has no class “<img>”"),
        ({"m": "small", "t": "sounds", "l": 9, "n": 1}, "count from 0 to 1"),
    ):
        show(page, site.out, **wrong)
        assert message in page.inner_text("[role=alert]")
    paged = site.pair()["pages"].get("0", [])
    show(
        page, site.out, m="small", t="sounds", l=0, n=next(n for n in range(256) if n not in paged)
    )
    assert "No clips were built" in page.inner_text("main")


def test_a_neurons_page_works_in_a_notebooks_frame(page, site, neuron):
    view = show_neuron(site.artifacts, site.encoder, site.task, neuron["l"], neuron["n"])
    page.set_content(view._repr_html_())
    frame = page.frame_locator("iframe")
    assert frame.locator("h1").inner_text() == heading_of(neuron)
    frame.locator("button.play").first.click()
    frame.locator("figure.on").wait_for()
    frame.locator(".chips a, ul.bars a").first.click()
    frame.locator("h1:not(:has-text('Layer'))").wait_for()


ADDRESSES = (
    {},
    {"m": "small", "t": "sounds"},
    {"m": "small", "t": "sounds", "c": NAMES[1]},
    {"m": "small", "t": "sounds", "find": 1},
    {"m": "small", "t": "other", "c": "a", "d": "b"},
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_kind_of_page_fits_a_phone_is_labelled_and_has_contrast(page, site, neuron, scheme):
    page.emulate_media(color_scheme=scheme)
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        for where in (*ADDRESSES, address(neuron)):
            show(page, site.out, **where)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, where
            assert page.evaluate(UNLABELLED) == [], where
            assert page.evaluate(FAINT) == [], where
            assert page.locator("h1").count() == 1 and page.title()
            if "find" in where:  # the verdict is the last thing to be left out
                assert page.locator("td:has-text('significant and large')").first.is_visible()


UNLABELLED = """() => [...document.querySelectorAll("button, a, input, select, [role=img], img")].filter((e) =>
  e.checkVisibility({ visibilityProperty: true }) && !(e.innerText || "").trim() && !e.getAttribute("aria-label") && !e.labels?.length && e.alt === undefined).map((e) => e.outerHTML)"""
# text whose contrast with what lies behind it is below 4.5 (WCAG 2 AA)
FAINT = """() => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((x) => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
    .filter((e) => { const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05) < 4.5; })
    .map((e) => e.outerHTML.slice(0, 120));
}"""
