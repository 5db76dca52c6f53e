"""Strict loading: every key is accounted for in the report, or loading fails and names it."""

from pydantic import ValidationError
from torch import Tensor

from vitdense.contracts import Backbone, BackboneConfig, LoadReport
from vitdense.errors import WeightsError
from vitdense.weights.contents import Fitting, Weights
from vitdense.weights.fitting import fit
from vitdense.weights.nearest import nearest_presets


def load_weights(backbone: Backbone, weights: Weights) -> LoadReport:
    """Puts `weights` into `backbone`; raises WeightsError where a key is missing, unexpected or of another shape."""
    fitting = fit(weights, backbone)
    faults = _faults(fitting.state, fitting.wanted)
    if faults:
        raise WeightsError(f"{weights.source} [{weights.family}] {_verdict(backbone, weights)}: {'; '.join(faults)}")
    backbone.load_state_dict(fitting.state, strict=True)
    return _report(weights, fitting)


def configured(config: BackboneConfig, weights: Weights) -> BackboneConfig:
    """`config` with what the weights tell of their network; WeightsError where it is none of this kind."""
    try:
        return config.with_defaults(weights.options)
    except ValidationError as error:
        faults = "; ".join(fault["msg"] for fault in error.errors())
        nearest = nearest_presets(weights.state, {})
        looks = f"looks like {' or '.join(nearest)}, expected" if nearest else "doesn't fit"
        raise WeightsError(f"{weights.source} [{weights.family}] {looks} {config.preset}: {faults}") from error


def _report(weights: Weights, fitting: Fitting) -> LoadReport:
    changed = {*fitting.resized, *fitting.adapted, *fitting.fresh}
    return LoadReport(
        source=weights.source,
        family=weights.family,
        matched=tuple(key for key in fitting.wanted if key not in changed),
        resized=tuple(fitting.resized),
        adapted=tuple(fitting.adapted),
        left_out=tuple(fitting.left_out),
        fresh=tuple(fitting.fresh),
    )


def _verdict(backbone: Backbone, weights: Weights) -> str:
    """What these weights look like, if they look more like a registered backbone than like this one."""
    config = backbone.config
    ours = type(backbone).__name__ if config is None else config.preset
    nearest = nearest_presets(weights.state, backbone.state_dict())
    if nearest and ours not in nearest:
        return f"looks like {' or '.join(nearest)}, expected {ours}"
    changed = {} if config is None or not nearest else config.given
    options = ", ".join(f"{name}={value!r}" for name, value in sorted(changed.items()))
    return f"doesn't fit {ours}{' with ' if options else ''}{options}"


def _faults(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    misshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    named = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
    return [f"{len(keys)} {name}: {_first(keys)}" for name, keys in named if keys]


def _first(keys: list[str], most: int = 6) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
