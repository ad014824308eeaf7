"""Writes wilcoxon_reference.json: Wilcoxon signed-rank p-values by SciPy, which the Rust test must reproduce.

Run with: python wilcoxon_reference.py   (needs numpy and scipy >= 1.13)
The committed numbers were made with SciPy 1.17.1.
"""

import json
from pathlib import Path

import numpy as np
from scipy.stats import wilcoxon

rng = np.random.default_rng(20190626)


def case(name, a, b, method):
    a, b = np.asarray(a, float), np.asarray(b, float)
    scipy_method = {"exact": "exact", "normal": "asymptotic"}[method]
    result = wilcoxon(a, b, zero_method="wilcox", correction=False, alternative="two-sided", method=scipy_method)
    return {
        "name": name,
        "a": a.tolist(),
        "b": b.tolist(),
        "method": method,
        "statistic": float(result.statistic),
        "p": float(result.pvalue),
    }


cases = []
for n in (1, 2, 5, 8, 13, 25, 50):
    a = rng.gamma(4.0, 0.5, n)
    cases.append(case(f"exact, n = {n}", a, a + rng.normal(0.3, 0.5, n), "exact"))
# Strong effect: p far below 0.05.
a = rng.gamma(4.0, 0.5, 50)
cases.append(case("exact, strong effect", a, a + 1.0 + 0.01 * rng.normal(size=50), "exact"))
for n in (51, 80, 300):
    a = rng.gamma(4.0, 0.5, n)
    cases.append(case(f"large, n = {n}", a, a + rng.normal(0.1, 0.5, n), "normal"))
# One decimal gives ties and zeros (in tenths kept as whole numbers, so that equal differences are equal in binary).
for n in (12, 30, 60):
    a = rng.integers(10, 40, n)
    cases.append(case(f"ties and zeros, n = {n}", a, a + rng.integers(-4, 7, n), "normal"))
a = np.arange(1.0, 11.0)
cases.append(case("one zero, no ties", a, a + np.array([0, 1, -2, 3, -4, 5, 6, -7, 8, 9.0]), "normal"))

target = Path(__file__).with_name("wilcoxon_reference.json")
target.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
