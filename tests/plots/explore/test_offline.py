"""Nothing leaves the page, nothing in the data becomes part of it, and nothing goes wrong."""

import base64
import dataclasses
import hashlib
import http.server
import json
import re
import threading

import pytest

from efficient_vits.plots import explore


def requests(driver):
    """Addresses that the browser asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def use_everything(page):
    page.choose("x", "params").choose("ys", "log").choose("theme", "dark")
    page.search("vit")
    page.click("[data-group=px][value='384']").click("#zoom-in").click("#zoom-reset")
    page.click("[data-sort=flops]").click("#rows .model").click("#csv").click("#picture")
    page.click("#reset")


def test_no_request_and_no_error(page):
    driver = page.driver
    requests(driver)
    driver.get_log("browser")
    page.load("#q=vit")
    use_everything(page)
    asked = requests(driver)
    assert page.url in {address.partition("#")[0] for address in asked}
    allowed = ("file:", "data:", "blob:", "about:")
    assert [address for address in asked if not address.startswith(allowed)] == []
    assert {a.partition("#")[0] for a in asked if a.startswith("file:")} == {page.url}
    assert driver.get_log("browser") == []


@pytest.fixture
def server():
    """A server on this machine, and the paths that it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


SEND = """
const [address, done] = arguments;
const image = (path) => new Promise((end) => {
  const one = new Image();
  one.onload = one.onerror = end;
  one.src = address + path;
});
const fetched = fetch(address + "/fetch").then(() => "sent", () => "refused");
Promise.all([fetched, image("/image")]).then(([result]) => done(result));
"""


def test_the_page_cannot_connect(page, server, tmp_path):
    address, asked = server
    assert page.driver.execute_async_script(SEND, address) == "refused"
    assert asked == []
    page.driver.get_log("browser")  # where the browser says that it refused
    # The same without the policy does connect, so this would be seen.
    bare = tmp_path / "bare.html"
    bare.write_text("<!doctype html><title>bare</title>")
    page.driver.get(bare.as_uri())
    assert page.driver.execute_async_script(SEND, address) == "sent"
    assert sorted(asked) == ["/fetch", "/image"]
    page.load()


def test_a_script_that_is_not_the_pages_does_not_run(page):
    page.js(
        "const script = document.createElement('script');"
        "script.textContent = 'window.broken = 2'; document.body.append(script)"
    )
    assert page.js("return window.broken") is None
    page.driver.get_log("browser")
    page.load()


def test_names_are_text_wherever_they_stand(page, runs, evil):
    run = next(i for i, r in enumerate(runs) if r.name == evil)
    label = f"{evil}@192x256"
    page.go(f"run={run}")
    assert page.one("#card h3").text == label
    assert page.one(f"[data-run='{run}'] .model span").get_attribute("textContent") == label
    named = page.js(
        "return [...document.querySelectorAll('#chart .annotation-text')].map(e => e.textContent)"
    )
    assert label in named
    assert page.js("return window.broken") is None
    assert page.all("img") == []


def test_the_file_holds_everything_and_asks_for_nothing(file, evil):
    html = file.read_text(encoding="utf-8")
    head, _, rest = html.partition("<style>")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', head)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["connect-src"] == "'none'"
    scripts = re.findall(r"<script>(.*?)</script>", rest, re.DOTALL)
    assert len(scripts) == 2
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert rules["script-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)
    own = html.replace(scripts[0], "").replace(scripts[1], "")
    assert not re.search(r"<(link|script|img|iframe)[^>]*(src|href)=.(?!data:)", own)
    assert "{{" not in own + scripts[1]
    assert evil not in html


def test_many_own_runs(open_page, tmp_path, runs):
    """The table grows on demand; the chart has all points."""
    own = [
        dataclasses.replace(runs[-1], name=f"net_{i}", top1=60 + i % 997 / 50, source="mine")
        for i in range(1500)
    ]
    page = open_page(explore(tmp_path / "many.html", [*runs, *own])).load()
    assert len(page.points()) == 108 + 1500
    assert len(page.rows()) == 250
    page.click("#more")
    assert len(page.rows()) == 500
    page.search("net_149")
    assert len(page.rows()) == 11
    assert not page.one("#more").is_displayed()
