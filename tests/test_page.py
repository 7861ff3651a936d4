"""The web page, in a real browser without a screen; skipped where there is no gradio, selenium or chromium."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image

from tcl_d2.data.shapes import draw_scene
from tests.conftest import ROOT

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.by import By  # noqa: E402  (after the check that it is there)
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs chromium and its driver")


@pytest.fixture(scope="module")
def address():
    env = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "demo/app.py", "--port", "7871"]
    page = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in page.stdout:
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            yield found[0]
            break
    else:
        pytest.fail("the page did not start")
    page.terminate()
    page.wait()


@pytest.fixture
def browser(address):
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.get(address)
    WebDriverWait(driver, 60).until(lambda d: d.find_elements(By.ID, "segment"))
    yield driver
    driver.quit()


def wait_for(driver, look, seconds: float = 60):
    return WebDriverWait(driver, seconds, ignored_exceptions=(Exception,)).until(look)


def type_words(driver, *words: str) -> None:
    field = driver.find_element(By.CSS_SELECTOR, "#words input")
    for word in words:
        field.send_keys(word, Keys.ENTER)
    field.send_keys(Keys.ESCAPE)


def areas(driver) -> str:
    return driver.find_element(By.CSS_SELECTOR, "#areas textarea").get_attribute("value")


def show_heat_map(driver) -> None:
    """Clicks the first word of the result."""
    wait_for(driver, lambda d: d.find_element(By.CSS_SELECTOR, "#result .legend-item")).click()
    wait_for(driver, lambda d: d.find_element(By.CSS_SELECTOR, "#heat img").is_displayed())


def test_picture_and_words_in_masks_out(browser, tmp_path):
    """Upload, type words, run: the shares of the picture are shown; a click on a word shows its scores."""
    Image.fromarray(draw_scene(seed=7, index=2, size=96, objects=(3, 4)).image).save(tmp_path / "scene.png")
    browser.find_element(By.CSS_SELECTOR, "input[type=file]").send_keys(str(tmp_path / "scene.png"))
    wait_for(browser, lambda d: d.find_elements(By.CSS_SELECTOR, "img[src*='scene.png']"))
    type_words(browser, "brick", "grass, sand")
    browser.find_element(By.ID, "segment").click()
    text = wait_for(browser, areas)
    assert re.search(r"(brick|grass|sand) \d+ %", text)
    show_heat_map(browser)


def test_missing_input_is_said(browser):
    browser.find_element(By.ID, "segment").click()
    assert wait_for(browser, lambda d: "Give a picture first" in d.find_element(By.TAG_NAME, "body").text)


def test_examples_fill_the_form(browser):
    wait_for(browser, lambda d: d.find_elements(By.CSS_SELECTOR, "tr.tr-body, .gallery-item"))[0].click()
    wait_for(browser, lambda d: len(d.find_elements(By.CSS_SELECTOR, "#words .token")) >= 2)
    browser.find_element(By.ID, "segment").click()
    assert "%" in wait_for(browser, areas)
    if path := os.environ.get("PAGE_SCREENSHOT"):  # README's picture, see CONTRIBUTING.md
        show_heat_map(browser)
        browser.set_window_size(1280, 1160)
        webdriver.ActionChains(browser).move_to_element(browser.find_element(By.TAG_NAME, "h1")).perform()
        time.sleep(1)  # until the page has settled
        browser.save_screenshot(path)
