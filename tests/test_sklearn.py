"""The estimator: scikit-learn's own checks, agreement with scikit-learn's class, and random numbers that behave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import BernoulliRBM as Theirs
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from bm_fast.sklearn import BernoulliRBM


def binary(n: int, units: int, seed: int = 0) -> NDArray[np.float64]:
    return (np.random.default_rng(seed).random((n, units)) < 0.3).astype(np.float64)


def same_model(ours: BernoulliRBM, seed: int = 3) -> Theirs:
    """Strong weights for ours, and scikit-learn's estimator with the same ones."""
    rng = np.random.default_rng(seed)
    n_components, n_features = ours.components_.shape
    theirs = Theirs(n_components, random_state=seed)
    theirs.components_ = rng.normal(size=(n_components, n_features))
    theirs.intercept_hidden_ = rng.normal(size=n_components)
    theirs.intercept_visible_ = rng.normal(size=n_features)
    ours.components_, ours.intercept_hidden_ = theirs.components_, theirs.intercept_hidden_
    ours.intercept_visible_ = theirs.intercept_visible_
    return theirs


# scikit-learn's data are normal variates, of which the estimator warns
@pytest.mark.filterwarnings("ignore:X. expected values from 0 to 1:UserWarning")
@parametrize_with_checks([BernoulliRBM(n_components=8, n_iter=2)])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_parameters_are_those_of_scikit_learn() -> None:
    assert BernoulliRBM().get_params() == Theirs().get_params()


def test_attributes_are_those_of_scikit_learn() -> None:
    X = binary(25, 6)
    ours, theirs = (kind(4, batch_size=7, random_state=0).fit(X) for kind in (BernoulliRBM, Theirs))
    for name in ("components_", "intercept_hidden_", "intercept_visible_", "h_samples_"):
        assert getattr(ours, name).shape == getattr(theirs, name).shape
    assert ours.n_features_in_ == 6
    assert list(ours.get_feature_names_out()) == list(theirs.get_feature_names_out())


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
def test_transform_agrees_with_scikit_learn(grey: bool, sparse: bool) -> None:
    X = np.random.default_rng(1).random((40, 12)) if grey else binary(40, 12)
    ours = BernoulliRBM(5, random_state=0).fit(X)
    theirs = same_model(ours)
    given = scipy.sparse.csr_array(X) if sparse else X
    # weights of size 3 lie on a grid of 2^-13, so a field of 12 inputs is within 12 * 2^-14 = 7e-4
    np.testing.assert_allclose(ours.transform(given), theirs.transform(X), atol=2e-4)


def test_scores_average_to_the_exact_pseudo_likelihood() -> None:
    X = binary(30, 10)
    ours = BernoulliRBM(5, random_state=np.random.RandomState(0)).fit(X)
    theirs = same_model(ours)
    energy = theirs._free_energy(X)
    terms = np.empty((30, 10))
    for unit in range(10):
        flipped = X.copy()
        flipped[:, unit] = 1 - flipped[:, unit]
        terms[:, unit] = -10 * np.logaddexp(0, energy - theirs._free_energy(flipped))
    n_calls = 400
    scores = np.array([ours.score_samples(X) for _ in range(n_calls)])
    # each call flips one unit of each row, so its scores are among the terms of that row
    assert np.abs(scores[:, :, None] - terms).min(axis=2).max() < 0.02
    z = (scores.mean(0) - terms.mean(1)) / np.maximum(terms.std(1) / np.sqrt(n_calls), 1e-3)
    assert np.abs(z).max() < 5  # 30 rows: false alarm 2e-5


def test_scores_do_not_depend_on_the_other_rows() -> None:
    X = binary(50, 10)
    model = BernoulliRBM(5, random_state=0).fit(X)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(model.score_samples(X)[order], model.score_samples(X[order]))
    np.testing.assert_array_equal(model.score_samples(X)[:7], model.score_samples(X[:7]))


def test_gibbs_draws_from_the_conditional_distributions() -> None:
    ours = BernoulliRBM(3, random_state=0).fit(binary(20, 4))
    theirs = same_model(ours)
    start = np.tile(np.array([[1.0, 0, 1, 1]]), (20_000, 1))
    drawn = ours.gibbs(start)
    hidden = np.array([[i >> k & 1 for k in range(3)] for i in range(8)], dtype=float)
    on = theirs.transform(start[:1])[0]
    weights = np.prod(np.where(hidden == 1, on, 1 - on), axis=1)
    fields = hidden @ theirs.components_ + theirs.intercept_visible_
    expected = weights @ (1 / (1 + np.exp(-fields)))
    assert drawn.dtype == bool
    error = np.sqrt(expected * (1 - expected) / len(drawn))
    assert (np.abs(drawn.mean(0) - expected) < 5 * error).all()  # 4 units: false alarm 2e-6


def test_successive_gibbs_calls_differ_and_runs_with_one_seed_agree() -> None:
    X = binary(40, 12)
    runs = []
    for _ in range(2):
        model = BernoulliRBM(5, random_state=7).fit(X)
        runs.append([model.gibbs(X), model.gibbs(X)])
    assert (runs[0][0] != runs[0][1]).any()
    np.testing.assert_array_equal(runs[0], runs[1])
    other = BernoulliRBM(5, random_state=8).fit(X)
    assert (other.gibbs(X) != runs[0][0]).any()


@pytest.mark.parametrize("random_layer", ["visible", "hidden"])
def test_rows_of_different_chunks_draw_different_numbers(random_layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer is drawn evenly and the other decides nothing, so the numbers of each show by themselves."""
    monkeypatch.setattr("bm_fast.sklearn.CHUNK", 32)
    model = BernoulliRBM(8, random_state=0, n_iter=1).fit(binary(10, 8))
    copies = random_layer == "hidden"  # the visible units are then the hidden ones again
    model.components_ = (100 * copies * np.eye(8)).astype(np.float32)
    model.intercept_hidden_ = np.zeros(8, np.float32)
    model.intercept_visible_ = np.full(8, -50 * copies, np.float32)
    drawn = model.gibbs(np.zeros((64, 8)))
    agreement = (drawn[:32] == drawn[32:]).mean()
    assert abs(agreement - 0.5) < 5 * 0.5 / 16  # 256 fair pairs: false alarm 6e-7


def test_fit_starts_anew_and_partial_fit_goes_on() -> None:
    X = binary(40, 12)
    model = BernoulliRBM(5, random_state=0, n_iter=3)
    first = model.fit(X).components_
    np.testing.assert_array_equal(model.fit(X).components_, first)
    model.partial_fit(X)
    assert (model.components_ != first).any()
    in_parts, again = clone(model), clone(model)
    for part in (X[:15], X[15:]):
        in_parts.partial_fit(part)
        again.partial_fit(part)
    np.testing.assert_array_equal(in_parts.components_, again.components_)


def test_learns_a_pattern_that_scikit_learn_learns() -> None:
    """Each row is one of two complementary halves, which independent units cannot say."""
    halves = np.repeat(np.eye(2), 8, axis=1)
    X = halves[np.random.default_rng(0).integers(0, 2, 200)]
    model = BernoulliRBM(4, learning_rate=0.1, n_iter=60, random_state=0).fit(X)
    independent = -16 * np.log(2)
    assert model.score_samples(X).mean() > independent / 3


def test_works_in_a_pipeline() -> None:
    X, y = binary(60, 8), np.arange(60) % 2
    X[y == 1, :4], X[y == 0, 4:] = 1, 0
    pipeline = make_pipeline(BernoulliRBM(6, n_iter=40, random_state=0), LogisticRegression()).fit(X, y)
    assert pipeline.score(X, y) > 0.9


def test_sparse_and_dense_data_train_alike() -> None:
    X = binary(40, 12)
    dense, sparse = (BernoulliRBM(5, random_state=0).fit(given) for given in (X, scipy.sparse.csr_matrix(X)))
    np.testing.assert_array_equal(dense.components_, sparse.components_)


def test_verbose_prints_a_line_for_each_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    BernoulliRBM(3, n_iter=2, verbose=1, random_state=0).fit(binary(20, 6))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["[BernoulliRBM] Iteration 1", "[BernoulliRBM] Iteration 2"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_components": 0}, "n_components: expected a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number of at least 1, got 2.5"),
        ({"n_iter": -1}, "n_iter: expected a whole number of at least 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a finite number above 0, got nan"),
    ],
)
def test_bad_parameters_are_named(parameters: dict[str, Any], message: str) -> None:
    model = BernoulliRBM(**parameters)
    for learn in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=message):
            learn(binary(10, 4))


def test_values_outside_the_range_of_a_unit_bring_a_warning() -> None:
    with pytest.warns(UserWarning, match="expected values from 0 to 1"):
        BernoulliRBM(3, n_iter=1, random_state=0).fit(2 * binary(10, 4))
