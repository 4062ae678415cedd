"""What autoencoders refuse, and in which words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bm_fast.vae import CIWAE, ELBO, IWAE, MIWAE, PIWAE, STL, VAE, DReG, Trainer, active_units, burda_schedule, evaluate
from bm_fast.vae import log_likelihood as likelihood

MODEL = VAE(4, (2,), [[3]])
REAL = VAE(4, (2,), [[3]], visible="gaussian")
X = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_visible": 0}, "n_visible: expected a whole number of at least 1, got 0"),
        ({"latents": ()}, "latents: expected the units of at least one layer"),
        ({"latents": (2, 0), "hidden": [[3], [3]]}, r"latents\[1\]: expected a whole number of at least 1, got 0"),
        ({"latents": (2, 2)}, "hidden: expected sizes for each of the 2 stochastic layers"),
        ({"hidden": [3]}, r"hidden\[0\]: expected a sequence of sizes, as in \[200, 200\], got 3"),
        ({"hidden": [[3, -1]]}, r"hidden\[0\]\[1\]: expected a whole number of at least 1, got -1"),
        ({"activation": "sine"}, "activation: expected one of tanh, relu, softplus, elu, got 'sine'"),
        ({"visible": "poisson"}, "visible: expected 'bernoulli' or 'gaussian', got 'poisson'"),
        ({"seed": -1}, "seed: expected 0 to 2"),
    ],
)
def test_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        VAE(**{"n_visible": 4, "latents": (2,), "hidden": [[3]], **arguments})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X - 0.5, "x: expected values from 0 to 1, got -0.5 to -0.5"),
        (X + 1.5, "x: expected values from 0 to 1, got 1.5 to 1.5"),
        (X + 0.5, "x: expected 0 and 1 only, got 0.5; binarise"),
        (X * float("nan"), "x: expected values from 0 to 1, got nan"),
        (torch.full((3, 4), 255, dtype=torch.uint8), "divide grey levels by 255 first"),
        (torch.zeros(3, 5), r"x: expected shape \[n, 4\] with n >= 1, got \[3, 5\]"),
        (torch.zeros(0, 4), r"x: expected shape \[n, 4\] with n >= 1, got \[0, 4\]"),
        (torch.zeros(4), r"x: expected shape \[n, 4\]"),
        (X.double(), "x: expected float32 or uint8, got torch.float64"),
        (np.zeros((3, 4)), "x: expected float32 or uint8, got torch.float64"),
        ([[0, 0, 0, 0]], "x: expected a torch tensor or a numpy array, got list"),
        (torch.zeros(3, 4, device="meta"), "x: expected a tensor on cpu, where the model is, got meta"),
    ],
)
def test_data_that_do_not_fit(x, message):
    for use in (MODEL.elbo, MODEL.reconstruct, lambda x: likelihood(MODEL, x), lambda x: evaluate(MODEL, x)):
        with pytest.raises(ValueError, match=message):
            use(x)


def test_arrays_of_no_numbers_are_named():
    for values in (np.full((3, 4), "a"), np.zeros((3, 4), object)):
        with pytest.raises(ValueError, match=r"x: expected numbers, got (<U1|object)"):
            MODEL.elbo(values)


def test_forms_and_routes_that_do_not_exist():
    with pytest.raises(ValueError, match="form: expected 'kl' or 'importance', got 'KL'"):
        MODEL.elbo(X, form="KL")
    with pytest.raises(ValueError, match="route: expected 'score' or 'path', got 'paths'"):
        MODEL.log_weights(X, route="paths")


def test_real_data_must_be_finite():
    with pytest.raises(ValueError, match="x: expected finite values"):
        REAL.elbo(X / 0)
    assert REAL.elbo(X - 7).shape == (3,)


@pytest.mark.parametrize("k", [0, -3, 2.0, "5"])
def test_numbers_of_samples_that_do_not_exist(k):
    for use in (MODEL.elbo, MODEL.iwae_bound, MODEL.log_weights, lambda x, k: likelihood(MODEL, x, k)):
        with pytest.raises(ValueError, match="k: expected a whole number of at least 1"):
            use(X, k)
    with pytest.raises(ValueError, match="ks: expected whole numbers of at least 1"):
        evaluate(MODEL, X, ks=(5, k))
    for estimator in (ELBO, STL, IWAE, DReG, lambda k: CIWAE(k, 0.5), lambda k: MIWAE(2, k), lambda k: PIWAE(2, k)):
        with pytest.raises(ValueError, match="k: expected a whole number of at least 1"):
            estimator(k)
    for estimator in (MIWAE, PIWAE):
        with pytest.raises(ValueError, match="m: expected a whole number of at least 1"):
            estimator(k, 2)


def test_other_settings_of_estimators():
    with pytest.raises(ValueError, match="form: expected 'kl' or 'importance', got 'exact'"):
        ELBO(1, "exact")
    with pytest.raises(ValueError, match=r"beta: expected a number from 0 to 1, got 1\.5"):
        CIWAE(5, 1.5)
    with pytest.raises(ValueError, match="ks: expected at least one"):
        evaluate(MODEL, X, ks=())


def test_bounds_that_are_not_finite_are_no_result():
    model = VAE(4, (2,), [[3]])
    with torch.no_grad():
        model.recognition[0].log_scale.bias.fill_(200.0)
    with pytest.raises(FloatingPointError, match="x: the bound of row 0 is"):
        likelihood(model, X, 10)
    with pytest.raises(FloatingPointError, match="x: the bound of row 0 is nan"):
        evaluate(model, X, ks=(2,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed: expected 0 to 2"),
        ({"binarise": "always"}, "binarise: expected 'dynamic' or 'none', got 'always'"),
    ],
)
def test_settings_of_the_trainer(arguments, message):
    with pytest.raises(ValueError, match=message):
        Trainer(MODEL, torch.optim.Adam(MODEL.parameters()), IWAE(2), **arguments)


def test_estimators_without_settings():
    for estimator, got in ((IWAE, "type"), (lambda model, x: x, "function")):
        with pytest.raises(ValueError, match=f"estimator: expected a dataclass, whose .* can hold, got {got}"):
            Trainer(MODEL, torch.optim.Adam(MODEL.parameters()), estimator)


def test_parts_that_do_not_belong_together():
    adam = torch.optim.Adam(MODEL.parameters())
    with pytest.raises(ValueError, match="optimizer: expected parameters of model only"):
        Trainer(REAL, adam, IWAE(2))
    with pytest.raises(ValueError, match="binarise: expected 'none' for Gaussian pixels"):
        Trainer(REAL, torch.optim.Adam(REAL.parameters()), IWAE(2), binarise="dynamic")
    other = torch.optim.lr_scheduler.ExponentialLR(torch.optim.Adam(REAL.parameters()), 0.5)
    with pytest.raises(ValueError, match="scheduler: expected a scheduler of the given optimizer"):
        Trainer(MODEL, adam, IWAE(2), scheduler=other)
    with pytest.raises(ValueError, match=r"epochs: expected those of whole stages, 1, 4, 13, .* got 5"):
        burda_schedule(adam, 5)


def test_training_data_that_do_not_fit():
    trainer = Trainer(MODEL, torch.optim.Adam(MODEL.parameters()), IWAE(2), binarise="none")
    for name, use in (
        ("train", lambda x: trainer.fit(x, 1)),
        ("validation", lambda x: trainer.fit(X, 1, validation=x)),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected 0 and 1 only, got 0.5"):
            use(X + 0.5)
        with pytest.raises(ValueError, match=rf"{name}: expected shape \[n, 4\]"):
            use(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="epochs: expected a whole number of at least 0, got -1"):
        trainer.fit(X, -1)
    with pytest.raises(ValueError, match=r"top: expected shape \[n, 2\]"):
        MODEL.decode(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"top: expected float32, got torch\.float64"):
        MODEL.decode(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="top: expected a torch tensor or a numpy array, got list"):
        MODEL.decode([[0.0, 0.0]])
    with pytest.raises(ValueError, match="n: expected a whole number of at least 1, got 0"):
        MODEL.sample(0)
    with pytest.raises(ValueError, match="n_samples: expected a whole number of at least 1, got 0"):
        active_units(MODEL, X, n_samples=0)
    with pytest.raises(ValueError, match="data: expected values that vary"):
        REAL.initialise_biases(X)
