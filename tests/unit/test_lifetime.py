"""The purchase models give the papers' figures, and find the parameters that data were made with."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from caudal.lifetime import Purchasing, Spending, fit_purchasing, fit_spending

CDNOW = Purchasing(r=0.243, alpha=4.414, a=0.793, b=2.426)
"""Fader, Hardie and Lee 2005, table 2: 2,357 customers over 39 weeks."""


def _one(*values):
    return (np.array([value], np.float64) for value in values)


def test_a_customer_of_the_published_example_makes_1_226_purchases_in_39_weeks():
    # http://brucehardie.com/notes/004/: x = 2, t_x = 30.43, T = 38.86
    assert CDNOW.expected(*_one(2, 30.43, 38.86), 39.0)[0] == pytest.approx(1.226, abs=0.0005)


def test_the_expected_purchases_are_those_of_the_untransformed_formula():
    from scipy.special import hyp2f1

    m, x, t_x, t, ahead = CDNOW, 5.0, 12.0, 30.0, 13.0
    plain = hyp2f1(m.r + x, m.b + x, m.a + m.b + x - 1, ahead / (m.alpha + t + ahead))
    whole = (m.a + m.b + x - 1) / (m.a - 1) * (1 - ((m.alpha + t) / (m.alpha + t + ahead)) ** (m.r + x) * plain)
    gone = m.a / (m.b + x - 1) * ((m.alpha + t) / (m.alpha + t_x)) ** (m.r + x)
    assert m.expected(*_one(x, t_x, t), ahead)[0] == pytest.approx(whole / (1 + gone))
    assert m.probability_alive(*_one(x, t_x, t))[0] == pytest.approx(1 / (1 + gone))


@pytest.mark.parametrize("x", [0.0, 3.0, 300.0])
@pytest.mark.parametrize(
    "model",
    [CDNOW, Purchasing(0.45, 2.4, 600.0, 1097.0), Purchasing(9.0, 50.0, 0.08, 800.0), Purchasing(0.1, 0.7, 2.0, 0.5)],
)
def test_the_expected_purchases_are_those_of_every_probability_to_drop_out_weighed(model, x):
    t_x, t, ahead = (80.0 if x else 0.0), 90.0, 52.0
    drop = beta(model.a, model.b + x).ppf((np.arange(4_000) + 0.5) / 4_000)
    bought = -np.expm1(-(model.r + x) * np.log1p(drop * ahead / (model.alpha + t))) / drop
    alive = model.probability_alive(*_one(x, t_x, t))[0]
    assert model.expected(*_one(x, t_x, t), ahead)[0] == pytest.approx(alive * bought.mean(), rel=0.02)


def test_busy_and_long_gone_customers_stay_numbers():
    x, t_x, t = np.array([5000.0, 3000, 0]), np.array([500.0, 1, 0]), np.array([501.0, 500, 0])
    expected, alive = CDNOW.expected(x, t_x, t, 52.0), CDNOW.probability_alive(x, t_x, t)
    assert np.all(np.isfinite(expected))
    assert np.all(np.isfinite(alive))
    assert (expected[1], alive[1], alive[2]) == (0.0, 0.0, 1.0)


def test_half_of_such_customers_have_bought_again_after_the_median_wait():
    wait = CDNOW.median_wait(*_one(3, 20))[0]
    rate = 1 / (CDNOW.alpha + 20)
    density = quad(lambda s: (CDNOW.r + 3) * rate * (1 + s * rate) ** (-CDNOW.r - 4), 0, wait)[0]
    assert density == pytest.approx(0.5)


def _simulated(seed, n, true, weeks=78.0):
    """Customers of known parameters, purchase by purchase: x, t_x and t."""
    rng = np.random.default_rng(seed)
    rates, drops = rng.gamma(true.r, 1 / true.alpha, n), rng.beta(true.a, true.b, n)
    t = rng.uniform(weeks / 2, weeks, n)
    x, t_x = np.zeros(n), np.zeros(n)
    for i in range(n):
        at = 0.0
        while (at := at + rng.exponential(1 / max(rates[i], 1e-12))) <= t[i]:
            x[i], t_x[i] = x[i] + 1, at
            if rng.random() < drops[i]:
                break
    return x, t_x, t


def test_a_fit_finds_the_parameters_that_the_data_were_made_with():
    true = Purchasing(r=0.6, alpha=6.0, a=0.9, b=2.5)
    found = fit_purchasing(*_simulated(11, 20_000, true))
    assert found is not None
    assert (found.r, found.alpha) == (pytest.approx(true.r, rel=0.1), pytest.approx(true.alpha, rel=0.1))
    assert found.a / (found.a + found.b) == pytest.approx(true.a / (true.a + true.b), rel=0.1)


def test_spending_is_found_and_pulls_the_few_purchases_to_the_mean_of_all():
    rng = np.random.default_rng(3)
    true = Spending(p=6.25, q=3.74, v=15.44)  # the published fit of the CDNOW customers
    count = rng.integers(1, 12, 20_000).astype(float)
    mean = rng.gamma(true.p * count, 1 / rng.gamma(true.q, 1 / true.v, len(count))) / count
    found = fit_spending(count, mean)
    assert found is not None
    assert (found.p, found.q, found.v) == (
        pytest.approx(true.p, rel=0.1),
        pytest.approx(true.q, rel=0.1),
        pytest.approx(true.v, rel=0.15),
    )
    of_all = true.p * true.v / (true.q - 1)
    once, often = found.mean(np.array([1.0, 100.0]), np.array([3 * of_all, 3 * of_all]))
    assert of_all < once < often < 3 * of_all


def test_values_without_a_mean_give_no_spending_model():
    values = np.random.default_rng(5).uniform(0, 1, 2_000) ** -2.0  # a tail so heavy that there is none
    assert fit_spending(np.ones(2_000), values) is None
