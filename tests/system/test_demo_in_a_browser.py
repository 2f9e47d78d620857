"""The page of `hf-nullspace demo` in a real browser: drop a picture, move the slider, read the prediction."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launching import free_port
from PIL import Image


pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the demo needs Gradio: pip install 'hf_nullspace[demo]'")
webdriver = pytest.importorskip("selenium.webdriver", reason="driving a browser needs selenium")
for program in ("chromium", "chromedriver"):
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} on this machine", allow_module_level=True)

By = pytest.importorskip("selenium.webdriver.common.by").By
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
APP = Path(__file__).parents[2] / "examples" / "space" / "app.py"
FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync window-size=1300,1000"
)


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """Where the server's temporary files go."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def address(temporary):
    """A running page on the digits; at the end it is interrupted, must leave without an error, and nothing behind."""
    port = free_port()
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(APP), "--digits_max_steps", "60", "--server_port", str(port)]
    with (temporary / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/"
    try:
        wait(lambda: server.poll() is not None or answers(address), 240)
        assert server.poll() is None, (temporary / "log").read_text()
        yield address
    finally:
        server.send_signal(signal.SIGINT)
        code = server.wait(60)
    assert code == 0, (temporary / "log").read_text()
    assert not list(temporary.glob("hf-nullspace-demo-*"))


@pytest.fixture(scope="module")
def browser(address, tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(address)
        WebDriverWait(driver, 60).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#model-0 .verdict"))
        yield driver
    finally:
        driver.quit()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def wait(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.2)


def panel(browser) -> str:
    return browser.find_element(By.ID, "model-0").text


def rms(browser) -> float:
    return float(re.search(r"root mean square ([\d.]+)", panel(browser))[1])


def slide(browser, strength: int) -> None:
    before = panel(browser)
    number = browser.find_element(By.CSS_SELECTOR, "#strength input[type=number]")
    number.send_keys(webdriver.Keys.CONTROL, "a")
    number.send_keys(str(strength), webdriver.Keys.ENTER)
    wait(lambda: panel(browser) != before, 60)


def choose(browser, label: str, word: str) -> None:
    """Clicks a kind of noise, and waits for a word of what is said of it."""
    labels = browser.find_elements(By.CSS_SELECTOR, "#kind label")
    next(each for each in labels if each.text.strip() == label).click()
    wait(lambda: word in panel(browser), 120)


def drop(browser, path: Path) -> None:
    browser.find_element(By.CSS_SELECTOR, "#upload input[type=file]").send_keys(str(path))


def test_the_slider_moves_the_noise_and_not_the_prediction(browser, tmp_path):
    slide(browser, 40)
    quiet = rms(browser)
    slide(browser, 80)
    assert rms(browser) == pytest.approx(2 * quiet, rel=0.02) and quiet > 0.05
    assert "Prediction unchanged" in panel(browser) and "96 directions of its pixels" in panel(browser)
    browser.save_screenshot(str(tmp_path / "page.png"))
    with Image.open(tmp_path / "page.png") as page:
        assert page.width >= 1200 and len(page.convert("RGB").getcolors(10**6)) > 500


def test_a_dropped_picture_is_read_and_leaves_no_file(browser, temporary, tmp_path):
    before = panel(browser)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(tmp_path / "mine.png")
    drop(browser, tmp_path / "mine.png")
    wait(lambda: panel(browser) != before, 60)
    (folder,) = temporary.glob("hf-nullspace-demo-*")
    assert [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size] == []
    slide(browser, 60)
    assert "Prediction unchanged" in panel(browser)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("exact nullspace noise, permuted", "The control"),
        ("encoder noise in pixels", "ertified"),
        ("corruption", "at severity"),
        ("PGD attack", "10 steps of PGD"),
        ("exact nullspace noise", "Exact for every picture"),
    ],
)
def test_every_kind_of_noise_says_what_is_guaranteed_of_it(browser, kind, word):
    choose(browser, kind, word)


def test_a_broken_picture_is_said_in_a_line_and_deleted(browser, temporary, tmp_path):
    before = panel(browser)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    drop(browser, tmp_path / "broken.png")
    WebDriverWait(browser, 60).until(lambda browser: "broken.png cannot be read" in browser.page_source)
    assert before in panel(browser)
    assert not list(temporary.rglob("broken.png"))


def test_nothing_is_asked_of_another_machine(browser, address):
    sent = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    urls = [event["params"]["request"]["url"] for event in sent if event["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith(address) for url in urls)
    others = [url for url in urls if not url.startswith((address, "data:", "blob:", "chrome"))]
    assert others == []
    assert not re.search(r"<(script|link)[^>]*https?://(?!127\.0\.0\.1)", browser.page_source)
