"""The page of a real server in a real browser: ask, see the call come, open it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SHOTS = Path(__file__).parents[2] / "screenshots"
PATIENCE = 30_000  # ms; the machine may be busy

expect.set_options(timeout=PATIENCE)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium package")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[str]:
    """A server started as a user starts it, with a call log of its own."""
    home = tmp_path_factory.mktemp("home")
    (home / "headrace.yaml").write_text(f"models: {{small: {{source: '{smollm2}'}}}}\n")
    command = [sys.executable, "-m", "headrace.cli.main", "serve", "headrace.yaml", "--port", "0"]
    environment = {**os.environ, "HEADRACE_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield next(line.split()[1].removesuffix("/v1") for line in lines if "address" in line)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, opened fresh; any complaint of the browser fails the test."""
    context = browser.new_context(viewport={"width": 1360, "height": 860})
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    strangers: list[str] = []

    def asked(request: Request) -> None:
        if not request.url.startswith((address, "data:")):
            strangers.append(request.url)

    opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", asked)
    opened.goto(address)
    yield opened
    context.close()
    assert complaints == []
    assert strangers == []


def ask(page: Page, question: str, *, stop: bool = False) -> None:
    """Send a question; wait for the whole answer, or stop it once it has begun."""
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Enter")
    expect(page.locator(".about a").last).to_be_visible()
    if stop:
        page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_chat_streams_and_its_call_can_be_opened(page: Page) -> None:
    question = "What is the capital of France? Answer in one sentence."
    ask(page, question)
    answer = page.locator(".chat .turn.assistant pre").inner_text()
    assert answer
    row = page.get_by_label("Calls").get_by_role("link").filter(has_text=question).first
    expect(row).to_be_visible()
    row.click()
    call = page.get_by_label("One call")
    expect(call.get_by_text("model:small", exact=True)).to_be_visible()
    expect(call.locator(".turn.user pre")).to_have_text(question)
    expect(call.locator(".turn.assistant pre")).to_have_text(answer)
    for phase in ("prefill", "decode"):
        expect(call.locator("figcaption")).to_contain_text(phase)
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / "call.png")


def test_text_of_a_call_is_never_markup(page: Page) -> None:
    question = "<img src=x onerror=\"document.title='broken'\"><script>alert(1)</script>"
    ask(page, question, stop=True)
    expect(page.locator(".about").last).to_contain_text("stopped")
    page.locator(".about a").last.click()
    expect(page.get_by_label("One call").locator(".status")).to_have_text("cancelled")
    expect(page.get_by_label("One call").locator(".turn.user pre")).to_have_text(question)
    assert page.title() == "Headrace"
    assert page.locator("img[src=x]").count() == 0


def test_keys_lead_through_the_page(page: Page) -> None:
    ask(page, "Tell me a long story.", stop=True)
    page.keyboard.press("Escape")  # leaves the text box
    page.keyboard.press("j")
    expect(page.get_by_label("One call")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_label("One call")).to_have_count(0)
    page.keyboard.press("c")
    expect(page.get_by_label("Question")).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_of_a_small_screen(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": 360, "height": 740})
    ask_at = page.url.partition("#")[0]
    for place in ("#/", "#/chat"):
        page.goto(ask_at + place)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"small-{scheme}.png")
