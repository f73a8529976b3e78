"""The ledger a third time, in Python integers: written from the rules (server/billing/README.md, section 6; ledger.h) and not
from ledger.lua or ledger.c. Dictionaries and sorting, nothing clever.

`Ledger` takes records and orders in the order they happened and knows what each must have done. It does not check epochs or
sequences: who feeds it has (a log, a journal)."""
import collections

from records import UNITS_MAX

PACKAGE_MAX, COUNTER_ROOM, PACKAGES_MAX = 46 * 10**17, 91 * 10**17, 256


class Package:
    def __init__(self, o):
        self.gr = self.av = o.units
        self.rs = self.us = self.xp = 0
        self.pr, self.ef, self.ex, self.cr, self.mk = o.priority, o.effective_ms, o.expires_ms, o.created_ms, o.class_mask

    def ended(self, t):
        return 0 < self.ex <= t

    def live(self, t):
        return self.ef <= t and not self.ended(t)

    def serves(self, mclass):
        return self.mk >> mclass & 1


class Account:
    def __init__(self):
        self.packages, self.rank, self.state = {}, [], ''
        self.lease = collections.Counter()                     # (producer, package) -> units
        self.until, self.orders, self.used, self.overage = {}, {}, 0, 0

    def arrange(self, *more):
        """Order of use. Only adding a package, or bringing a settled one back, sorts anew."""
        def place(i):
            p = self.packages[i]
            return p.pr, p.ex or UNITS_MAX, p.ef, p.cr, i
        self.rank = sorted(self.rank + list(more), key=place)

    def fitting(self, mclass):
        return [(i, self.packages[i]) for i in self.rank if self.packages[i].serves(mclass)]

    def held(self, producer):
        return sum(n for (p, _), n in self.lease.items() if p == producer)

    def give_back(self, producer, t):
        """Returns what went where: (package, A or X, units)."""
        moved = []
        for i in self.rank:
            units = self.lease.pop((producer, i), 0)
            if units:
                p = self.packages[i]
                p.rs -= units
                if p.ended(t):
                    p.xp += units
                else:
                    p.av += units
                moved.append((i, 'X' if p.ended(t) else 'A', units))
        self.until.pop(producer, None)
        return moved


class Ledger:
    def __init__(self):
        self.accounts = collections.defaultdict(Account)
        self.months = collections.defaultdict(collections.Counter)  # (account, yyyymm, class) -> counters
        self.marks = {}                                        # (partition, producer) -> [pseq, hash8]

    def order(self, o, now_ms=0):
        a = self.accounts[o.account]
        terms = '|'.join(map(str, (o.op, o.package, o.units, o.priority, o.effective_ms, o.expires_ms, o.class_mask)))
        if o.id in a.orders:
            return 'DUP' if a.orders[o.id] == terms else 'CONFLICT'
        p = a.packages.get(o.package)
        if o.op == 'add':
            if p:
                return 'EXISTS'
            if len(a.rank) >= PACKAGES_MAX:
                return 'LIMIT'
            a.packages[o.package] = Package(o)
            a.arrange(o.package)
            a.state = a.state or 'A'
        elif not p:
            return 'NOPACKAGE'
        elif o.op == 'inc':
            if p.ended(now_ms):
                return 'EXPIRED'
            if p.gr + o.units > PACKAGE_MAX or (o.package not in a.rank and len(a.rank) >= PACKAGES_MAX):
                return 'LIMIT'
            if o.package not in a.rank:
                a.arrange(o.package)
            p.gr += o.units
            p.av += o.units
        else:
            p.xp, p.av, p.ex = p.xp + p.av, 0, 1
        a.orders[o.id] = terms
        return 'OK'

    def account_set(self, account, order_id, op):
        a = self.accounts[account]
        if order_id in a.orders:
            return 'DUP' if a.orders[order_id] == op else 'CONFLICT'
        a.state, a.orders[order_id] = 'A' if op == 'open' else 'C', op
        return 'OK'

    def reap(self, account, grace_ms, now_ms, producers=None):
        """producers: those whose leases are known to have ended (from a log), else by grace_ms."""
        a = self.accounts[account]
        if producers is None:
            producers = sorted(p for p, t in a.until.items() if t + grace_ms < now_ms)
        expired = sum(1 for i in a.rank if a.packages[i].ended(now_ms) and a.packages[i].av)
        for producer in producers:
            a.give_back(producer, now_ms)
        for i in list(a.rank):
            p = a.packages[i]
            if p.ended(now_ms):
                p.xp, p.av = p.xp + p.av, 0
            if not p.av and not p.rs:
                a.rank.remove(i)
        return 'OK', len(producers), expired

    def record(self, producer, r, until_ms=0):
        """Applies it; returns who paid, as the log has it, and its number (overage; a grant's answer; none)."""
        a = self.accounts[r.account]
        self.marks[r.partition, producer] = [r.pseq, r.hash8]
        if r.kind == 'W':
            self.months[r.account, r.month, r.mclass].update(wi=r.in_total, wo=r.out, wn=1)
            return '', '0'
        if r.kind == 'E':                                      # counted, paid by nobody
            self.months[r.account, r.month, r.mclass].update(en=r.energy_uj, ei=r.uj_idle_share, eg=r.green_uj, cl=r.ugco2_loc,
                                                             cm=r.ugco2_mkt, ne=1)
            return '', ''
        if r.kind == 'R':
            return self.text(a.give_back(producer, r.t_ms)), ''
        return self.charge(a, producer, r) if r.kind == 'F' else self.grant(a, producer, r, until_ms)

    @staticmethod
    def text(shares):
        return ';'.join('%s:%s:%d' % s for s in shares)

    def charge(self, a, producer, r):
        left, paid = r.units, []
        for i, p in a.fitting(r.mclass):
            q = min(left, a.lease[producer, i])
            if q:
                a.lease[producer, i] -= q
                p.rs, p.us, left = p.rs - q, p.us + q, left - q
                paid.append((i, 'L', q))
        for i, p in a.fitting(r.mclass):
            q = min(left, p.av) if p.live(r.t_ms) else 0
            if q:
                p.av, p.us, left = p.av - q, p.us + q, left - q
                paid.append((i, 'A', q))
        a.overage += left
        a.used += r.units
        self.months[r.account, r.month, r.mclass].update(im=r.in_miss, ih=r.in_hit, ou=r.out, un=r.units, n=1)
        return self.text(paid), str(left)

    def grant(self, a, producer, r, until_ms):
        want, take = min(r.want, UNITS_MAX - a.held(producer)), []
        for i, p in a.fitting(r.mclass) if a.state == 'A' else []:
            q = min(want, p.av) if p.live(r.t_ms) else 0
            if q:
                take.append((i, 'G', q))
                want -= q
        if sum(q for _, _, q in take) < r.least:
            take = []
        for i, _, q in take:
            a.packages[i].av -= q
            a.packages[i].rs += q
            a.lease[producer, i] += q
        if a.held(producer):
            a.until[producer] = until_ms
        return self.text(take), str(sum(a.lease[producer, i] for i, _ in a.fitting(r.mclass)))

    def account_fields(self, account):
        """The hash that stands for an account, without fields that are 0 or empty."""
        a = self.accounts[account]
        h = {'%s.%s' % (i, f): getattr(p, f) for i, p in a.packages.items()
             for f in ('gr', 'av', 'rs', 'us', 'xp', 'pr', 'ef', 'ex', 'cr', 'mk')}
        h.update({'L:%s:%s' % k: n for k, n in a.lease.items()})
        h.update({'X:' + p: t for p, t in a.until.items()})
        h.update({'o:' + o: t for o, t in a.orders.items()})
        h.update(us=a.used, ov=a.overage, ord=','.join(a.rank), st=a.state)
        return {k: str(v) for k, v in h.items() if v not in (0, '')}

    def month_fields(self, account):
        return {(m, 'c%d.%s' % (c, f)): str(v) for (a, m, c), n in self.months.items() if a == account
                for f, v in n.items() if v}

    def check(self):
        """The invariants; raises AssertionError."""
        for number, a in self.accounts.items():
            for i, p in a.packages.items():
                assert p.gr == p.av + p.rs + p.us + p.xp and min(p.av, p.rs, p.us, p.xp) >= 0, (number, i, vars(p))
                assert p.rs == sum(n for (_, q), n in a.lease.items() if q == i), (number, i)
            assert a.used == a.overage + sum(p.us for p in a.packages.values()), number
            assert a.used == sum(n['un'] for (m, _, _), n in self.months.items() if m == number), number
