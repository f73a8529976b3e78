"""A thousand requests of every shape that counting could trip over, the same on every machine and every Python.

Completions of text and of token ids, chats with and without a system message and earlier turns; English, code, numbers,
white space, twenty scripts, emoji; prompts of one token to more than a thousand; at most 1 to 32 new tokens; with no stop
string or up to four, some of which lie across tokens. No text holds the name of a control token: others take it for the token,
our server for so many characters. Used by make_usage.py, which asks the oracles, and by tests/e2e/test_usage.py, which asks our
server. Random numbers are splitmix64's, because Python's own may change their
meaning with the version; digest() tells whether two programs speak of the same requests.
"""
import hashlib
import json
import pathlib

REQUESTS = 1000
VOCABULARY = 49152
ENGLISH = pathlib.Path(__file__).with_name("english.txt").read_text()


class Random:
    """splitmix64 (Steele, Lea, Flood 2014)."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n

    def pick(self, items):
        return items[self.below(len(items))]

    def chance(self, percent):
        return self.below(100) < percent


# --- texts ---------------------------------------------------------------------------------------------------------------

def english(random, length):
    begin = random.below(len(ENGLISH) - length)
    return ENGLISH[begin:begin + length]


WORDS = ("mill wheel stone grain river sluice flour gear shaft sack miller baker bread weir pond race lock barley "
         "harvest toll cart beam dam bolt sieve").split()


def words(random, count):
    return " ".join(random.pick(WORDS) for _ in range(count))


def python(random):
    name, other, n = random.pick(WORDS), random.pick(WORDS), random.below(1000)
    return random.pick([
        f"def {name}_{n}({other}, factor={n}):\n    \"\"\"Return the {name} of {other}.\"\"\"\n    return ",
        f"class {name.title()}:\n    def __init__(self, {other}=None):\n        self.{other} = {other} or []\n\n    def ",
        f"for i in range({n}):\n    if i % {n % 7 + 2} == 0:\n        print(f\"{{i:>8}} {other}\")\n    else:\n",
        f"import numpy as np\n\n{name} = np.zeros(({n}, 3), dtype=np.float32)\n{name}[:, 0] = "])


def code(random):
    name, n = random.pick(WORDS), random.below(100000)
    return random.pick([
        python(random),
        f"#include <stdint.h>\n\nstatic uint32_t {name}_sum(const uint32_t *values, size_t count)\n{{\n    uint32_t sum = {n};\n",
        f"{{\"{name}\": {{\"id\": {n}, \"open\": true, \"weights\": [0.5, 1e-3, -{n}.25], \"next\": null}}, \"",
        f"SELECT {name}, COUNT(*) FROM stock WHERE id > {n} GROUP BY {name} ORDER BY 2 DESC LIMIT ",
        f"<ul class=\"{name}\">\n\t<li id=\"n{n}\">{name} &amp; co</li>\n\t<li>",
        f"$ git log --oneline -n {n % 9 + 1}\n{n:07x} {name}: fix the {random.pick(WORDS)}\n",
        f"fn {name}(x: &mut Vec<u{n % 2 * 32 + 32}>) -> Option<usize> {{\n    x.iter().position(|&v| v == {n})\n}}\n\nfn ",
        f"| {name} | count |\n|---|---:|\n| a | {n} |\n| b |"])


PHRASES = [
    "水车是一种古老的机械，它利用水流的力量来", "昔々、小さな村に水車小屋がありました。", "물레방아는 흐르는 물의 힘으로", "الطاحونة المائية هي آلة",
    "טחנת המים עומדת ליד הנחל", "Водяная мельница стоит на берегу реки", "Ο νερόμυλος βρίσκεται δίπλα στο ποτάμι",
    "पनचक्की नदी के किनारे खड़ी है", "กังหันน้ำเป็นเครื่องจักร", "Die alte Mühle am rauschenden Bach", "Le vieux moulin à eau, près de la forêt",
    "Stary młyn wodny nad rzeką został", "El viejo molino de agua está junto al río", "Cối xay nước nằm bên bờ sông",
    "Su değirmeni derenin kenarında", "Η μυλόπετρα γυρίζει", "ჯერ კიდევ მუშაობს წყლის წისქვილი", "ջրաղացը գետի ափին է",
    "நீர் ஆலை ஆற்றங்கரையில் உள்ளது", "জলচাকা নদীর ধারে"]
EMOJI = ["☀️", "🌧️", "👨‍👩‍👧‍👦", "🇫🇷", "😀", "👍🏽", "⚙️", "🍞", "🌊", "1️⃣", "❤️‍🔥", "→", "½", "№", "™", "ﬁ"]
# Blocks whose letters are older than any table that a tokenizer may carry.
BLOCKS = [(0x21, 0x7E), (0xA1, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x627, 0x64A), (0x905, 0x939),
          (0xE01, 0xE2E), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0x1F600, 0x1F64F),
          (0x2190, 0x21FF), (0x300, 0x345)]


def scripts(random):
    return " ".join(random.pick(PHRASES) for _ in range(1 + random.below(3)))


def scattered(random):
    """Letters of any script, side by side, with marks and spaces between."""
    out = []
    for _ in range(4 + random.below(40)):
        low, high = random.pick(BLOCKS)
        out.append(chr(low + random.below(high - low + 1)))
        if random.chance(20):
            out.append(random.pick([" ", "  ", "\n", "\t", "\u00a0", "\u200d", "\u3000"]))
    return "".join(out)


def emoji(random):
    return "".join(random.pick(EMOJI) + random.pick(["", " ", ", ", "\n"]) for _ in range(2 + random.below(10)))


def numbers(random):
    rows = [f"{random.below(10**random.below(12)):,}" if random.chance(50) else f"{random.below(10**9) / 1000:.3f}"
            for _ in range(1 + random.below(12))]
    return random.pick([" ", " + ", ", ", "\n", "\t"]).join(rows) + random.pick(["", " =", ",", "\n"])


def spaces(random):
    out = ""
    for _ in range(2 + random.below(8)):
        out += random.pick([" ", "  ", "     ", "\n", "\n\n\n", "\t\t", "\r\n", " \n "]) + random.pick(WORDS)
    return out + random.pick(["", " ", "\n", "\n\n"])


def punctuation(random):
    return "".join(random.pick(WORDS + ["...", "--", "?!", "'s", "'LL", "\"", "(", ")", "[1]", "_", "\\", "://", "@", "#", ";"])
                   + random.pick(["", "", " "]) for _ in range(3 + random.below(20)))


def inventory(random, lines):
    rows = [f"{i}. Shelf {random.below(9)} holds {random.below(99)} {random.pick(WORDS)}s, day {random.below(28) + 1}."
            for i in range(1, lines + 1)]
    return "Inventory of the mill's storehouse.\n" + "\n".join(rows) + "\n"


def text(random):
    kind = random.below(100)
    if kind < 30:
        return english(random, 1 + random.below(120 if random.chance(70) else 700))
    if kind < 50:
        return code(random)
    makers = [scripts, scattered, emoji, numbers, spaces, punctuation, lambda r: words(r, 1 + r.below(12)), scripts, numbers]
    return random.pick(makers)(random)


# --- requests --------------------------------------------------------------------------------------------------------------

STOPS = [".", "\n", ",", " the", "ing", " and", "?", "\n\n", ". ", "e", "0", "1.", ":", "as a", " is a", "\"", "</", "    ", ";\n",
         "er ", "th", "。", "的", "а", "```", "END", "never to be seen", " of the ", "\n-", "\n1"]
QUESTIONS = ["Say hi.", "Answer with yes or no: is water wet?", "What is 2 + 2? Answer with the number alone.", "Name one grain.",
             "What is a mill race?", "Translate into French: good morning.", "Reply with the single word: ready",
             "What is the capital of France?", "Write a haiku about a river.", "Count from 1 to 5.", "Repeat: stone",
             "Give me a JSON object with the key \"mill\".", "Who are you?", "Thanks, bye!", "OK"]
SYSTEMS = ["You answer in one short sentence.", "", "You are a miller.", "Antworte auf Deutsch.", "You say as little as you can."]
LENGTHS = [1, 1, 2, 3, 4, 6, 8, 8, 8, 12, 12, 16, 16, 16, 24, 24, 32, 32]


def question(random):
    kind = random.below(100)
    if kind < 45:
        return random.pick(QUESTIONS)
    if kind < 60:
        return "What does this do?\n\n" + code(random)
    if kind < 75:
        return "Continue: " + text(random)
    return text(random)


def chat(random):
    messages = []
    if random.chance(40):
        messages.append({"role": "system", "content": random.pick(SYSTEMS)})
    for _ in range(random.pick([0, 0, 0, 1, 1, 2])):
        messages += [{"role": "user", "content": question(random)}, {"role": "assistant", "content": english(random, 5 + random.below(90))}]
    return messages + [{"role": "user", "content": question(random)}]


def request(number):
    """(path, body without the model's name)"""
    random = Random(0xB111 + number)
    body = {"max_tokens": random.pick(LENGTHS), "temperature": 0}
    if random.chance(45):
        stops = []
        for _ in range(random.pick([1, 1, 1, 2, 3, 4])):
            stop = random.pick(STOPS)
            stops += [] if stop in stops else [stop]
        body["stop"] = stops[0] if len(stops) == 1 and random.chance(50) else stops
    if number % 100 == 99:  # long ones
        body["prompt"] = inventory(random, 40 + random.below(30)) if random.chance(50) else english(random, 3000 + random.below(2500))
    elif random.chance(50):
        return "/v1/chat/completions", body | {"messages": chat(random)}
    elif random.chance(12):
        body["prompt"] = [3 + random.below(VOCABULARY - 3) for _ in range(1 + random.below(40))]
    elif random.chance(6):
        body["prompt"] = f"Question: {random.pick(QUESTIONS)}\nAnswer:"
    else:
        body["prompt"] = text(random)
    return "/v1/completions", body


def requests():
    return [request(number) for number in range(REQUESTS)]


def digest():
    return hashlib.sha256(json.dumps(requests(), sort_keys=True).encode()).hexdigest()
