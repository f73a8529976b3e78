"""The console in a real browser: live figures against /metrics, the playground, hostile text, keys, a keyboard alone, a phone, light
and dark, and a server that goes and comes back. Every request of the page is recorded, and its policy's violations too.

Needs Debian's chromium; skipped where it is not there. Screenshots are left in the folder console/ of the build.
"""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request

from playwright.sync_api import sync_playwright

from harness import BINARY, MODEL, NAME, Server, free_port, wait_for

CHROMIUM = "/usr/bin/chromium"
ADMIN = {"Authorization": "Bearer adm"}
METER = ("--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100", "--usage-extras",
         "--power-signal", "fixed:price=0.6,gco2=400,pue=1.25", "--power-cost", "capex=20000,years=5")
SHOTS = pathlib.Path(BINARY).parent / "console"
RTL = "\u202eevil\u05d0\u05d1\u05d2"
HOSTILE = ("<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<svg/onload=alert(3)>",
           "javascript:alert(4)", RTL, "\"><iframe src=//example.org></iframe>", "w" * 3000)
HOSTILE_MODEL = "<img src=x onerror=alert(5)>"
WATCH = """window.violations = []; document.addEventListener('securitypolicyviolation',
           e => window.violations.push(e.violatedDirective + ' ' + e.blockedURI));"""
CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                       return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
                                                         if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const low = [];
  for (const e of document.body.querySelectorAll('*')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length || e.disabled) continue;
    const style = getComputedStyle(e), text = e instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(rgb(text).slice(0, 3)), light(ground(e).slice(0, 3))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(e.tagName + '.' + e.className + ' ' + (a + 0.05) / (b + 0.05));
  }
  return low; }"""


def setUpModule():
    global PLAYWRIGHT, BROWSER
    if not os.path.exists(CHROMIUM):
        raise unittest.SkipTest("there is no " + CHROMIUM)
    SHOTS.mkdir(exist_ok=True)
    PLAYWRIGHT = sync_playwright().start()
    BROWSER = PLAYWRIGHT.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


def tearDownModule():
    BROWSER.close()
    PLAYWRIGHT.stop()


class Page:
    """A tab on the console of a server; `finish` says what it did that it must not."""

    def __init__(self, test, url, width=1280, height=900, scheme="light"):
        self.test, self.url, self.requests, self.bad = test, url, [], []
        self.context = BROWSER.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.add_init_script(WATCH)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.bad.append("dialog " + dialog.message), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.bad.append(f"error {error}"))
        self.page.on("popup", lambda page: self.bad.append("popup"))
        self.page.goto(url + "/")
        self.wait("document.querySelector('#tile-tokens') || !document.querySelector('#notice').hidden", "the first figures")
        test.addCleanup(self.context.close)

    def ask(self, script):
        return self.page.evaluate(script)

    def wait(self, script, what, seconds=30):
        wait_for(lambda: self.ask(script), what, seconds)

    def use_keys(self, admin="", api=""):
        self.page.click("#keys-toggle")
        self.page.fill("#admin-key", admin)
        self.page.fill("#api-key", api)
        self.page.click("#keys button[type=submit]")
        self.page.click("#keys-toggle")

    def tell(self, prompt, tokens):
        self.wait("document.querySelector('#model').options.length > 0 && !document.querySelector('#send').disabled", "a model")
        done = self.ask("document.querySelectorAll('.turn.assistant').length")
        self.page.fill("#max-tokens", str(tokens))
        self.page.fill("#prompt", prompt)
        self.page.click("#send")
        self.wait(f"document.querySelectorAll('.turn.assistant').length > {done} && document.querySelector('#stop').disabled", "the answer", 60)

    def shot(self, name):
        self.ask("scrollTo({top: 0, behavior: 'instant'})")
        self.page.screenshot(path=str(SHOTS / f"{name}.png"))
        self.page.screenshot(path=str(SHOTS / f"{name}-whole.png"), full_page=True)

    def finish(self):
        self.bad += self.ask("window.violations")
        self.test.assertEqual(self.bad, [])
        self.test.assertTrue(self.requests)
        for url in self.requests:
            self.test.assertTrue(url.startswith(self.url + "/"), url)
            for key in ("adm", "api-secret"):
                self.test.assertNotIn(key, url.removeprefix(self.url).replace("/admin/", "/"))
        self.test.assertEqual(self.ask("document.querySelectorAll('script:not([src]), [onerror], [onload], iframe, main img, style').length"), 0)


class Console(unittest.TestCase):
    def test_headers(self):
        with Server() as server:
            with urllib.request.urlopen(server.url + "/") as answer:
                self.assertEqual(answer.url, server.url + "/console")
                page, told = answer.read().decode(), answer.headers
            self.assertEqual(told["content-security-policy"],
                             "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
                             "frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
            self.assertEqual((told["x-content-type-options"], told["referrer-policy"]), ("nosniff", "no-referrer"))
            self.assertNotIn("http", page.lower())  # nothing from outside
            try:
                urllib.request.urlopen(urllib.request.Request(server.url + "/console", headers={"If-None-Match": told["etag"]}))
                self.fail("not 304")
            except urllib.error.HTTPError as kept:
                self.assertEqual((kept.code, kept.read(), kept.headers["etag"]), (304, b"", told["etag"]))
            for path in ("/console/none.js", "/console/../main.c", "/console/", "/consol"):
                self.assertEqual(server.get(path)[0], 404, path)

    def test_live_figures_are_those_of_metrics(self):
        with Server(*METER, env={"MILLRACE_ADMIN_KEY": "adm"}) as server:
            server.complete(prompt="Once", max_tokens=37, ignore_eos=True)
            server.post("/admin/power", {"cap_w": 83}, ADMIN)
            server.wait_idle()
            page = Page(self, server.url)
            page.wait("document.querySelector('#tile-power').innerText.includes('budget ')", "the budget")
            budget = server.metric("mr_power_setpoint_watts")
            self.assertIn(f"budget {budget:.3g} W", page.ask("document.querySelector('#tile-power').innerText"))
            self.assertIn("37 written since the start", page.ask("document.querySelector('#tile-tokens').innerText"))
            self.assertEqual(server.metric("vllm:generation_tokens_total"), 37)
            self.assertIn("Type in the admin key", page.ask("document.querySelector('#power-facts').innerText"))
            cost = lambda: server.metric("mr_cost_per_million_tokens", part="total")
            shown = lambda: float(page.ask("document.querySelector('#tile-cost .value').firstChild.data").replace(",", ""))
            wait_for(lambda: abs(shown() / cost() - 1) < 0.2, "the cost")
            watts = page.ask("parseFloat(document.querySelector('#tile-power .value').firstChild.data)")
            self.assertTrue(39 <= watts <= 101, watts)
            def earlier(route):  # what the server tells, as if it were 20 minutes old
                told = route.fetch().json() if "wrong" not in route.request.headers["authorization"] else None
                if not told:
                    return route.continue_()
                for minute in told["minutes"]:
                    minute["t"] -= 1200
                self.assertEqual(sum(minute["output_tokens"] for minute in told["minutes"]), 37)
                route.fulfill(json=told)

            page.page.route("**/admin/history", earlier)
            page.use_keys(admin="wrong")
            page.wait("document.querySelector('#notice').innerText.includes('not valid')", "the refusal in words")
            page.use_keys(admin="adm")
            page.wait("document.querySelector('#power-facts').innerText.includes('0.6 a kWh')", "the signal")
            page.wait("document.querySelector('#models').innerText.includes('ready')", "the models")
            page.wait("document.querySelector('#balances').innerText.includes('admin port')", "where balances are")
            page.wait("document.querySelector('#history-note').innerText.includes('memory')", "the server's minutes")
            page.wait("document.querySelectorAll('.chart .line[d*=L]').length > 3", "lines")
            page.page.select_option("#span", "3600")
            for chart in (0, 1, 2, 3, 5):  # each has a point of then and one of now
                line = page.ask(f"document.querySelectorAll('.chart')[{chart}].querySelector('.line').getAttribute('d')")
                self.assertGreaterEqual(line.count("M"), 2, (chart, line))
            page.shot("history")
            page.finish()

    def test_balances_on_the_admin_port(self):
        port = free_port()
        folder = tempfile.mkdtemp(prefix="millrace-console-")
        self.addCleanup(shutil.rmtree, folder)
        with Server("--journal", folder + "/journal", "--enforce", "prepaid", "--admin-port", str(port), env={"MILLRACE_ADMIN_KEY": "adm"}) as server:
            def bill(*arguments):
                done = subprocess.run([BINARY, "bill", *arguments, "--server", f"http://127.0.0.1:{port}"], capture_output=True, text=True,
                                      timeout=60, env={**os.environ, "MILLRACE_ADMIN_KEY": "adm"})
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                return done.stdout

            bill("account", "create", "ada.onerror@mill")
            bill("topup", "ada.onerror@mill", "--tokens", "1234", "--order", "first")
            key = json.loads(bill("key", "create", "--account", "ada.onerror@mill", "--json"))["key"]
            page = Page(self, f"http://127.0.0.1:{port}")
            page.use_keys(admin="adm")
            page.wait("document.querySelector('#balances').innerText.includes('1,234')", "the balance")
            self.assertIn("ada.onerror@mill", page.ask("document.querySelector('#balances').innerText"))
            page.finish()
            own = Page(self, server.url)
            own.use_keys(api=key)
            own.wait("document.querySelector('#balances').innerText.includes('1,234')", "the own balance")
            own.finish()

    def test_chat_streams_and_stops(self):
        with Server(*METER, env={"MILLRACE_ADMIN_KEY": "adm"}) as server:
            page = Page(self, server.url)
            page.use_keys(admin="adm")
            page.tell("What is a mill race? Answer in two sentences.", 60)
            used = page.ask("document.querySelector('.turn.assistant .usage').innerText")
            page.wait("document.querySelector('.turn.assistant .usage').innerText.includes('average')", "the cost")
            for word in ("output tokens", "tokens/s", " J", "first token after"):
                self.assertIn(word, used)
            server.wait_idle()
            self.assertIn(f"+ {server.metric('vllm:generation_tokens_total'):.0f} output", used)
            page.page.fill("#temperature", "0")  # sampled, the answer may be one word
            page.page.fill("#max-tokens", "2000")
            page.page.fill("#prompt", "Write a long story about a mill by a river.")
            page.page.click("#send")
            page.wait("document.querySelectorAll('.turn.assistant .text')[1]?.innerText.length > 20", "a stream")
            self.assertEqual(server.metric("vllm:num_requests_running"), 1)  # text is there before the end
            page.page.click("#stop")
            server.wait_idle()
            page.wait("document.querySelector('#chat-state').innerText === 'Stopped'", "the stop")
            page.page.fill("#max-tokens", "99999")
            page.page.fill("#prompt", "Too much")
            page.page.click("#send")
            page.wait("document.querySelector('.turn .error')?.innerText.includes('tokens')", "the refusal as a sentence")
            self.assertNotIn("{", page.ask("document.querySelector('.turn .error').innerText"))
            page.finish()

    def test_hostile_text_stays_text(self):
        with Server(*METER, env={"MILLRACE_ADMIN_KEY": "adm"}, models={HOSTILE_MODEL: MODEL}) as server:
            page = Page(self, server.url)
            page.use_keys(admin="adm", api="api-secret")
            page.wait("document.querySelector('#models').innerText.includes('onerror')", "the model's name")
            for text in HOSTILE:
                page.tell(text, 4)
                page.page.click("#clear")
            page.page.route("**/v1/chat/completions", lambda route: route.fulfill(
                status=200, content_type="text/event-stream",
                body="".join("data: " + json.dumps({"choices": [{"delta": {"content": text}}]}) + "\n\n" for text in HOSTILE) + "data: [DONE]\n\n"))
            page.tell("Say it", 4)
            self.assertEqual(page.ask("document.querySelector('.turn.assistant .text').textContent"), "".join(HOSTILE))
            self.assertEqual(page.ask("document.querySelector('.turn.assistant .text').children.length"), 0)
            page.page.route("**/admin/cost", lambda route: route.fulfill(json={"cost": None, "cost_missing": HOSTILE[0], "models": [],
                "energy": dict.fromkeys(("meter_uj", "prefill_uj", "decode_uj", "idle_uj", "paced_uj", "green_uj", "ugco2_location", "ugco2_market"), 0),
                "tenants": [{"tenant": text, "requests": 1, "prefill_uj": 1, "decode_uj": 1, "idle_share_uj": 1, "green_uj": 1, "ugco2_location": 1}
                            for text in HOSTILE]}))
            page.wait("document.querySelector('#balances').innerText.includes('onerror')", "the tenants")
            self.assertLessEqual(page.ask("document.documentElement.scrollWidth"), 1280)
            time.sleep(1)  # what would run has had its chance
            page.finish()

    def test_keyboard_phone_light_and_dark(self):
        with Server(*METER, env={"MILLRACE_ADMIN_KEY": "adm"}) as server:
            server.post("/admin/power", {"cap_w": 83}, ADMIN)
            for name, width, height, scheme in (("desktop-light", 1280, 900, "light"), ("desktop-dark", 1280, 900, "dark"),
                                                ("phone-light", 360, 740, "light"), ("phone-dark", 360, 740, "dark")):
                page = Page(self, server.url, width, height, scheme)
                press = page.page.keyboard.press
                press("Tab")
                self.assertEqual(page.ask("document.activeElement.className"), "skip")
                seen = []
                for _ in range(60):
                    press("Tab")
                    seen.append(page.ask("document.activeElement.id || document.activeElement.getAttribute('href') || ''"))
                    self.assertNotEqual(page.ask("getComputedStyle(document.activeElement).outlineStyle"), "none", seen)
                    if seen[-1] == "keys-toggle":
                        press("Enter")
                        page.page.keyboard.type("adm")
                        press("Enter")
                        press("Shift+Tab")
                        press("Enter")  # and closed again
                    if seen[-1] == "max-tokens":
                        page.page.keyboard.type("40")
                    if seen[-1] == "prompt":
                        break
                order = [name for name in ("#now", "keys-toggle", "span", "model", "tier", "temperature", "max-tokens", "log", "prompt")]
                self.assertEqual([name for name in seen if name in order], order)
                page.wait("document.querySelector('#model').options.length > 0 && !document.querySelector('#send').disabled", "a model")
                self.assertEqual(page.ask("document.querySelector('#max-tokens').value"), "40")
                page.page.keyboard.type("What is a mill race?")
                press("Control+Enter")
                page.wait("document.querySelector('.turn.assistant .usage')?.innerText.includes('tokens')", "an answer by keys alone")
                self.assertEqual(page.ask("document.querySelectorAll('svg[role=img]:not([aria-label])').length"), 0)
                self.assertEqual(page.ask("document.querySelectorAll('.chart table').length"), page.ask("document.querySelectorAll('.chart').length"))
                self.assertLessEqual(page.ask("document.documentElement.scrollWidth"), width)
                self.assertEqual(page.ask(CONTRAST), [])
                page.wait("document.querySelector('#models').innerText.includes('ready')", "the models")
                page.shot(name)
                page.finish()

    def test_a_server_that_goes_and_comes_back(self):
        with Server(expect_exit=-signal.SIGKILL) as server:
            page = Page(self, server.url)
            page.wait("document.querySelector('#state').innerText === 'Ready'", "ready")
            server.process.kill()
            server.process.wait()
            page.wait("document.querySelector('#state').innerText === 'Gone'", "that it is gone")
            self.assertIn("does not answer", page.ask("document.querySelector('#notice').innerText"))
            second = Server()
            second_port, free = server.port, Server.__enter__.__globals__["free_port"]
            Server.__enter__.__globals__["free_port"] = lambda: second_port
            try:
                second.__enter__()
            finally:
                Server.__enter__.__globals__["free_port"] = free
            try:
                page.wait("document.querySelector('#state').innerText === 'Ready' && document.querySelector('#notice').hidden", "that it is back")
                page.finish()
            finally:
                second.__exit__(None, None, None)


if __name__ == "__main__":
    unittest.main()
