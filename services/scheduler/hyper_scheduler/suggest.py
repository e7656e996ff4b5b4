"""Parameters chosen by what earlier tasks have come to: the tree-structured Parzen estimator.

Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NIPS 2011, as Optuna has it. The
choice is a function of the recipe, the index and what is known of the other tasks: nothing is
kept between calls, so that any leader goes on where another has stopped.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from hyper_scheduler.core.commands import TrialView
from hyper_scheduler.core.model import (
    Choice,
    Domain,
    Experiment,
    LogUniform,
    Steps,
    Uniform,
    Value,
)
from hyper_scheduler.core.parameters import step_value


def suggest(experiment: Experiment, index: int, history: Sequence[TrialView]) -> str:
    """The parameters of task `index` as JSON.

    Args:
        experiment: with an objective.
        index: of the task.
        history: the other tasks with parameters; those that run count as being as bad as any.

    Raises:
        ImportError: Optuna is not installed.
    """
    import optuna  # half a second, for those who use it

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = experiment.objective
    assert objective is not None
    space = {
        name: distribution
        for name, domain in experiment.parameters.items()
        if (distribution := _distribution(optuna, domain)) is not None
    }
    digest = blake2b(f"{experiment.seed}/{experiment.name}/{index}".encode(), digest_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=int.from_bytes(digest.digest()), multivariate=True, constant_liar=True
        )
    direction = optuna.study.StudyDirection(2 if objective.maximize else 1)
    study = optuna.create_study(sampler=sampler, direction=direction)
    trials = [_trial(optuna, experiment, space, each) for each in history]
    study.add_trials([each for each in trials if each is not None])
    chosen = study.ask(space).params if space else {}
    values = {
        name: _value(domain, chosen.get(name)) for name, domain in experiment.parameters.items()
    }
    return json.dumps(values)


def _distribution(optuna: Any, domain: Domain) -> Any:
    """Discrete values by their place: equal values need not be told apart."""
    match domain:
        case Choice(values_json):
            if len(values_json) == 1:
                return None
            return optuna.distributions.CategoricalDistribution(tuple(range(len(values_json))))
        case Steps(count=count):
            return optuna.distributions.IntDistribution(0, count - 1) if count > 1 else None
        case Uniform(low, high):
            return optuna.distributions.FloatDistribution(low, high)
        case LogUniform(low, high):
            return optuna.distributions.FloatDistribution(low, high, log=True)
    raise TypeError(f"{domain} has no values yet")


def _value(domain: Domain, chosen: Any) -> Value:
    match domain:
        case Choice(values_json):
            value: Value = json.loads(values_json[chosen or 0])
            return value
        case Steps():
            return step_value(domain, chosen or 0)
    return float(chosen)


def _place(domain: Domain, value: Value) -> int | float:
    """What `_value` made of it."""
    match domain:
        case Choice(values_json):
            return values_json.index(json.dumps(value))
        case Steps():
            assert isinstance(value, int | float)
            return round((value - domain.start) / domain.step)
    assert isinstance(value, int | float)
    return value


def _trial(optuna: Any, experiment: Experiment, space: dict[str, Any], view: TrialView) -> Any:
    values = json.loads(view.parameters_json)
    params = {name: _place(experiment.parameters[name], values[name]) for name in space}
    if view.running:
        state = optuna.trial.TrialState.RUNNING
    elif view.value is None:
        return None  # it failed, or said nothing of the objective
    else:
        state = optuna.trial.TrialState.COMPLETE
    return optuna.trial.create_trial(
        state=state,
        params=params,
        distributions=space,
        value=None if view.running else view.value,
    )
