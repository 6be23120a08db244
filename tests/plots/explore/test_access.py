"""Keyboard, names of controls, contrast, phones, the dark theme."""

import re
from importlib import resources

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

PHONE = {"width": 360, "height": 740, "pixelRatio": 2.0, "touch": True}


def press(page, *keys):
    ActionChains(page.driver, duration=0).send_keys(*keys).perform()
    return page.settle()


def focused(page, what="id"):
    return page.driver.switch_to.active_element.get_attribute(what)


def tab_until(page, condition, most=80):
    """Go on with the Tab key until the focus is where it should be."""
    for _ in range(most):
        ActionChains(page.driver, duration=0).send_keys(Keys.TAB).perform()
        if condition():
            return page.settle()
    raise AssertionError(f"{most} presses of Tab did not reach it")


def test_the_keyboard_alone_will_do(page, runs):
    page.load()
    press(page, Keys.TAB)
    skip = page.driver.switch_to.active_element
    assert skip.text == "Skip to the chart"
    assert skip.rect["y"] >= 0
    tab_until(page, lambda: focused(page) == "search")
    press(page, "hydra")
    page.wait(lambda: len(page.rows()) < 20)
    assert {runs[i].label for i in page.rows()} >= {"hydra_s16"}
    press(page, Keys.BACKSPACE * 5)
    page.wait(lambda: len(page.rows()) == 111)
    tab_until(page, lambda: focused(page, "value") == "Baseline")
    press(page, Keys.SPACE)
    assert page.text("#status").startswith("96 of 111")
    tab_until(page, lambda: focused(page) == "x")
    press(page, "parameters")  # a list takes the first entry that begins with what is typed
    assert page.fragment().startswith("#x=params")
    outline = page.js("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    tab_until(page, lambda: focused(page) == "zoom-in")
    before = page.js("return document.getElementById('chart').layout.xaxis.range")
    press(page, Keys.ENTER)
    assert page.js("return document.getElementById('chart').layout.xaxis.range") != before
    tab_until(page, lambda: focused(page, "data-sort") == "throughput")
    press(page, Keys.ENTER)
    rows = page.rows()
    assert rows[0] == max(rows, key=lambda i: runs[i].throughput or 0)
    tab_until(page, lambda: focused(page, "class") == "model")
    assert page.ring() == [rows[0]]
    press(page, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert page.ring() == [rows[2]]
    press(page, Keys.ENTER)
    assert page.one("#card h3").text == runs[rows[2]].label
    assert f"run={rows[2]}" in page.fragment()
    assert page.text("#chosen").startswith(f"{runs[rows[2]].label}: top-1 accuracy ")
    press(page, Keys.END)
    assert page.driver.switch_to.active_element.text.startswith(runs[rows[-1]].label[:8])
    # Focus moves the ring; what was chosen stays chosen.
    press(page, Keys.HOME, Keys.TAB)
    assert page.one("#card h3").text == runs[rows[2]].label


def test_a_row_shows_its_point(page, runs):
    page.click("#rows tr:nth-child(5) .model")
    (run,) = page.ring()
    assert run == page.rows()[4]
    assert page.one("#card h3").text == runs[run].label
    in_view = "const box = document.getElementById('chart').getBoundingClientRect();"
    in_view += "return box.top >= -1 && box.bottom <= innerHeight + 1"
    page.wait(lambda: page.js(in_view))


def test_every_control_has_a_name(page):
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "checkbox", "combobox", "searchbox", "textbox", "link", "img", "table"}
    found = [node for node in tree if node.get("role", {}).get("value") in roles]
    assert len(found) > 160
    assert [node for node in found if not node.get("name", {}).get("value")] == []
    status = page.one("#status")
    assert (status.get_attribute("role"), status.get_attribute("aria-live")) == ("status", "polite")


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast():
    """WCAG 2.2, AA: 4.5 for text, 3 for edges of controls, marks of focus, and lines."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)
    css = resources.files("efficient_vits.plots.explore").joinpath("page.css").read_text()
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", css)
    colours = {name: (light, dark) for name, light, dark in pairs}
    # Text has no colours but these.
    assert not re.search(r"(?<![-\w])color: (?!var\(--)", css)
    used = set(re.findall(r"var\(--([\w-]+)\)", css))
    assert used <= colours.keys()
    text = ["text", "quiet", "accent", "tag"]
    grounds = ["page", "panel", "raised", "chosen"]
    for theme in (0, 1):
        for name in text:
            for ground in grounds:
                found = contrast(colours[name][theme], colours[ground][theme])
                assert found >= 4.5, (name, ground, theme, found)
        assert contrast(colours["on-accent"][theme], colours["accent"][theme]) >= 4.5
        for name in ("edge", "accent", "front"):
            for ground in ("page", "panel", "raised"):
                assert contrast(colours[name][theme], colours[ground][theme]) >= 3


def colours(page):
    return page.js(
        "const {paper_bgcolor, font} = document.getElementById('chart').layout;"
        "return [getComputedStyle(document.body).color, font.color, paper_bgcolor]"
    )


def test_themes(page):
    def system(value):
        feature = {"name": "prefers-color-scheme", "value": value}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        return page.settle()

    light = colours(system("light"))
    dark = colours(system("dark"))
    assert light[0] == light[1] != dark[0] == dark[1]
    assert light[2] != dark[2]
    assert colours(page.choose("theme", "light")) == light
    assert page.fragment() == "#theme=light"
    system("light")
    assert colours(page.choose("theme", "dark")) == dark
    assert colours(page.choose("theme", "")) == light


@pytest.fixture(scope="module")
def phone(open_page, file):
    return open_page(file, mobileEmulation={"deviceMetrics": PHONE})


def test_on_a_phone(phone, runs):
    for fragment in ("", "#x=accuracy_per_parameter&y=training_memory&run=109"):
        phone.load(fragment)
        width, inner = phone.js("return [document.documentElement.scrollWidth, innerWidth]")
        assert (width, inner) == (360, 360)
    assert not phone.one("#search").is_displayed()
    phone.click("#filter-box summary")
    assert phone.one("#search").is_displayed()
    assert phone.js("return document.documentElement.scrollWidth") == 360
    table, box = phone.js(
        "const box = document.querySelector('.scroll'); return [box.scrollWidth, box.clientWidth]"
    )
    assert table > box
    small = phone.js(
        "return [...document.querySelectorAll('button, select, [type=search], .check')]"
        ".filter((e) => e.offsetParent && e.getBoundingClientRect().height < 44)"
        ".map((e) => e.outerHTML)"
    )
    assert small == []


def touch(page, x, y, down=0):
    """Put a finger on the screen, move it, lift it."""

    def send(kind, points):
        event = {"type": kind, "touchPoints": points}
        page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", event)

    send("touchStart", [{"x": x, "y": y}])
    for step in range(1, 9) if down else ():
        send("touchMove", [{"x": x, "y": y + down * step / 8}])
    send("touchEnd", [])


def test_a_tap_chooses_and_a_finger_scrolls(phone, runs):
    phone.load("#class=More+MLPs")
    x, y = phone.js(
        "const chart = document.getElementById('chart');"
        "chart.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const mark = chart.querySelector('.scatterlayer .points path').getBoundingClientRect();"
        "return [mark.left + mark.width / 2, mark.top + mark.height / 2]"
    )
    touch(phone, x, y)
    phone.wait(phone.ring)
    assert runs[phone.ring()[0]].taxonomy_class == "More MLPs"
    before = phone.js("return scrollY")
    touch(phone, x, y, down=-150)
    phone.wait(lambda: phone.js("return scrollY") > before + 100)
