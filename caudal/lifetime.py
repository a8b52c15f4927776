"""How often and for how much customers will buy again: BG/NBD and Gamma-Gamma, fitted by maximum likelihood.

BG/NBD: P. S. Fader, B. G. S. Hardie, K. L. Lee, "Counting Your Customers" the Easy Way: An Alternative to the Pareto/NBD Model, Marketing
Science 24 (2005), 275-284 (http://brucehardie.com/papers/018/). A customer buys at a rate of their own and drops out after any purchase
with a probability of their own; rates are Gamma(r, alpha), probabilities Beta(a, b) over customers.

Gamma-Gamma: P. S. Fader, B. G. S. Hardie, The Gamma-Gamma Model of Monetary Value, 2013 (http://www.brucehardie.com/notes/025/). A
customer's purchases have a mean value of their own; means are spread over customers by p, q and v.

The libraries that have these models are unmaintained or need a probabilistic programming stack; the formulas are a page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Purchasing", "Spending", "fit_purchasing", "fit_spending"]

LARGEST = 7.0
"""Bound of a parameter's logarithm: customers who are all alike would drive it to infinity, and change nothing any more."""
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Purchasing:
    """A fitted BG/NBD model. Its methods take, of each customer: x, the repeat purchases; t_x, the time from the first purchase to the
    last; t, the time from the first purchase till now; all in the unit of time that it was fitted in.
    """

    r: float
    alpha: float
    a: float
    b: float

    def probability_alive(self, x: Numbers, t_x: Numbers, t: Numbers) -> Numbers:
        """That the customer has not dropped out yet; 1 for one purchase, since people drop out after repeat purchases only."""
        return 1 / (1 + self._odds_gone(x, t_x, t))

    def expected(self, x: Numbers, t_x: Numbers, t: Numbers, ahead: float) -> Numbers:
        """Expected purchases within the time `ahead` (equation 10).

        The hypergeometric function overflows for many purchases; by Euler's transformation it does for a large `a` instead.
        """
        from scipy.special import hyp2f1

        a = self.a if abs(self.a - 1) > 1e-6 else 1 + 1e-6  # the formula has a removable singularity there
        z = ahead / (self.alpha + t + ahead)
        c, euler = a + self.b + x - 1, self.r + x > a - 1
        first, second = np.where(euler, c - self.r - x, self.r + x), np.where(euler, a - 1, self.b + x)
        left = 1 - (1 - z) ** np.where(euler, a - 1, self.r + x) * hyp2f1(first, second, c, z)
        found: Numbers = c / (a - 1) * left / (1 + self._odds_gone(x, t_x, t))
        return np.maximum(found, 0)

    def median_wait(self, x: Numbers, t: Numbers) -> Numbers:
        """Time within which half of such customers buy again, if they have not dropped out: their rates are Gamma(r + x, alpha + t)."""
        found: Numbers = (self.alpha + t) * (2 ** (1 / (self.r + x)) - 1)
        return found

    def _odds_gone(self, x: Numbers, t_x: Numbers, t: Numbers) -> Numbers:
        repeat = x > 0
        with np.errstate(over="ignore"):  # certainly gone
            odds = self.a / (self.b + np.maximum(x, 1) - 1) * ((self.alpha + t) / (self.alpha + t_x)) ** (self.r + x)
        return np.where(repeat, odds, 0.0)


@dataclass(frozen=True, slots=True)
class Spending:
    """A fitted Gamma-Gamma model."""

    p: float
    q: float
    v: float

    def mean(self, count: Numbers, mean: Numbers) -> Numbers:
        """Expected mean value of a customer's purchases, of whom `count` of the mean value `mean` are known (equation 5)."""
        found: Numbers = self.p * (self.v + count * mean) / (self.p * count + self.q - 1)
        return found


def fit_purchasing(x: Numbers, t_x: Numbers, t: Numbers) -> Purchasing | None:
    """The BG/NBD model that fits best (equation 6); None when none does."""
    from scipy.special import gammaln

    repeat = x > 0
    before = np.maximum(x, 1) - 1

    def likelihood(r: float, alpha: float, a: float, b: float) -> Numbers:
        known = gammaln(r + x) - gammaln(r) + r * np.log(alpha)
        stayed = gammaln(a + b) + gammaln(b + x) - gammaln(b) - gammaln(a + b + x)
        alive = -(r + x) * np.log(alpha + t)
        gone = np.where(repeat, np.log(a) - np.log(b + before) - (r + x) * np.log(alpha + t_x), -np.inf)
        found: Numbers = known + stayed + np.logaddexp(alive, gone)
        return found

    found = _most_likely(likelihood, (1.0, max(float(np.mean(t)) / 4, 1e-3), 1.0, 2.0))
    return None if found is None else Purchasing(*found)


def fit_spending(count: Numbers, mean: Numbers) -> Spending | None:
    """The Gamma-Gamma model that fits customers with `count` purchases of the mean value `mean` best; None when none does.

    None also when it has no finite mean (q <= 1).
    """
    from scipy.special import gammaln

    scale = float(np.exp(np.mean(np.log(mean))))
    z = mean / scale

    def likelihood(p: float, q: float, v: float) -> Numbers:
        known = gammaln(p * count + q) - gammaln(p * count) - gammaln(q) + q * np.log(v)
        found: Numbers = (
            known + (p * count - 1) * np.log(z) + p * count * np.log(count) - (p * count + q) * np.log(count * z + v)
        )
        return found

    found = _most_likely(likelihood, (2.0, 3.0, 1.0))
    return None if found is None or found[1] <= 1 else Spending(found[0], found[1], found[2] * scale)


def _most_likely(likelihood: Callable[..., Numbers], start: Sequence[float]) -> list[float] | None:
    """Positive parameters of the greatest mean logarithmic likelihood; searched on a logarithmic scale."""
    from scipy.optimize import minimize

    def loss(logs: Numbers) -> float:
        with np.errstate(all="ignore"):
            value = -float(np.mean(likelihood(*np.exp(logs))))
        return value if np.isfinite(value) else 1e10

    options = {"ftol": 1e-12, "gtol": 1e-7}
    bounds = [(-LARGEST, LARGEST)] * len(start)
    found: Any = minimize(loss, np.log(start), method="L-BFGS-B", bounds=bounds, options=options)
    if found.fun >= 1e10:
        return None
    return [float(value) for value in np.exp(found.x)]
