"""mr_budget of ledger.lua against its rule in Python (budget.c is held to it in tests/unit/server/test_budgets.c): thousands of
questions of several nodes, periods that end, clocks that went back, arguments and stored values that are none."""
import datetime
import random
import time

import harness

MAX = 2**53 - 1
KEY = "mr:{b007}:u:00000000000000ab"


def number_of(period, offset_s, now_s):
    at = datetime.datetime.fromtimestamp(now_s + offset_s, datetime.timezone.utc)
    return {"total": 0, "day": int(now_s + offset_s) // 86400, "month": at.year * 100 + at.month}[period]


def decide(units, known, have, want, reserve, release, before, others):
    base = have if known else before
    room = max(0, max(0, units - others) - base)
    given = min(want, room)
    taken = base + given + min(reserve, (room - given) // 8)
    return base, taken if release else max(taken, before)


def library():
    """A connection to a new Redis that has the Functions."""
    redis = harness.Server().start().connect()
    redis("FUNCTION", "LOAD", "REPLACE", harness.LIBRARY)
    return redis


class Model:
    def __init__(self):
        self.period, self.number, self.taken = None, None, {}

    def ask(self, period, number, producer, units, look, known, of, have, want, reserve, release):
        if self.period == period and self.number > number:
            number = self.number
        same = (self.period, self.number) == (period, number)
        taken = self.taken if same else {}
        before, others = taken.get(producer, 0), sum(v for k, v in taken.items() if k != producer)
        if look:
            return [number, before, before, others]
        base, now = decide(units, known, have if of == number else 0, want, reserve, release, before, others)
        self.period, self.number, self.taken = period, number, {**taken, producer: now}
        return [number, base, now, others]


def call(redis, key, *words):
    told = redis("FCALL", "mr_budget", "1", key, *(str(int(w)) if not isinstance(w, str) else w for w in words))
    return [word.decode() for word in told]


def test_rule():
    redis, model, dice = library(), Model(), random.Random(7)
    for i in range(4000):
        period = dice.choice(["day", "month", "total"]) if i % 200 == 0 else model.period
        offset = 0 if i % 500 else dice.randrange(-50400, 50401, 1800)
        producer = dice.choice(["1", "00000000000000f2", "ffffffffffffffff"])
        units = dice.choice([0, 5, 1000, 1000, 1000, MAX])
        large = dice.random() < 0.02
        amount = lambda: dice.randrange(0, 2**51 if large else 400)
        now = number_of(period, offset, time.time())
        words = (units, dice.random() < 0.1, dice.random() < 0.7, dice.choice([now, now, now, now + 1]), amount(), amount(), amount(),
                 dice.random() < 0.2)
        if sum(model.taken.values()) > 2**52:
            redis("DEL", KEY)
            model = Model()
        told = call(redis, KEY, period, offset + 86400, producer, *words)
        if number_of(period, offset, time.time()) != now:  # midnight has passed in between
            redis("DEL", KEY)
            model = Model()
            continue
        assert told[0] == "OK", (told, words)
        wanted = model.ask(period, now, producer, *words)
        assert [int(n) for n in told[1:]] == wanted, (i, words, told, wanted)


def test_months():
    """The civil date of Lua is the calendar's, over two centuries: what is added to Redis' clock may be anything."""
    redis, dice = library(), random.Random(3)
    for _ in range(3000):
        offset = dice.randrange(0, 200 * 365 * 86400)
        redis("DEL", KEY)
        before = time.time()
        told = call(redis, KEY, "month", offset + 86400, "1", 10, 1, 0, 0, 0, 0, 0, 0)
        assert int(told[1]) in (number_of("month", offset, before), number_of("month", offset, time.time())), (offset, told)


def test_time_that_goes_back():
    redis = library()
    redis("DEL", KEY)
    redis("HSET", KEY, "p", "month:999912", "1", "400")
    told = call(redis, KEY, "month", 86400, "2", 1000, 0, 0, 0, 0, 700, 0, 0)
    assert told == ["OK", "999912", "0", "600", "400"], told


def test_nonsense():
    redis = library()
    redis("DEL", KEY)
    good = ["month", "86400", "1", "1000", "0", "0", "0", "0", "10", "0", "0"]
    assert call(redis, KEY, *good)[0] == "OK"
    for place in range(len(good)):
        for value in ("", "-1", "x", "1.5", "1e3", "007", str(2**53), "9" * 30):
            if place == 2 and value in ("007", "1e3", str(2**53), "9" * 30):
                continue  # hex digits
            words = [*good]
            words[place] = value
            assert call(redis, KEY, *words) == ["BADARG"], (place, value)
    assert call(redis, KEY, *good[:-1]) == ["BADARG"]
    assert call(redis, "mr:{b007}:a:1", *good) == ["BADARG"]
    assert redis("FCALL", "mr_budget", "2", KEY, KEY, *good) == [b"BADARG"]
    assert sorted(redis("HGETALL", KEY)[::2]) == [b"1", b"p"]  # nothing of that was written
    redis("HSET", KEY, "1", "many")
    assert call(redis, KEY, *good) == ["BADSTATE"]
    redis("DEL", KEY)
    redis("HSET", KEY, "p", "month")
    assert call(redis, KEY, *good)== ["BADSTATE"]
    redis("DEL", KEY)
    redis("SET", KEY, "1")
    assert call(redis, KEY, *good) == ["BADSTATE"]


if __name__ == "__main__":
    harness.main([test_rule, test_months, test_time_that_goes_back, test_nonsense])
