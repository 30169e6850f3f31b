"""Every architecture of which the pinned transformers makes a causal language model, tried as Prepare tries it. A minute or two on an idle machine.

`UPDATE_GOLDEN=1` records what is found: after an update of the libraries, a change in the record is what to look at.
"""

import json
import os
import warnings

import pytest

from tests.trainer.bench import ROOT
from tunesmith_trainer.training import rehearsal

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
RECORD = ROOT / "tests/trainer/recorded/architectures.json"


def distances(config):
    """How far each of Train's ways with rows is from a row alone, by name; the error's type where a model fails at it."""
    tried = rehearsal.rehearse(config)
    found = {}
    for name in ("alone", "padded", "packed") if tried else ():
        try:
            found[name] = getattr(tried, name)()
        except Exception as error:
            found[name] = type(error).__name__
    return found


def verdict(found):
    """What Prepare makes of an architecture: packed, padded alone, one row at a time, or none; or that it cannot be tried."""
    good = {name for name, distance in found.items() if isinstance(distance, float) and distance <= rehearsal.TOLERANCE}
    if not found:
        return "untried"
    if "alone" not in good:
        return "refused"
    return "packed" if "packed" in good else "padded" if "padded" in good else "alone"


def test_every_architecture_is_tried_and_none_is_near_the_tolerance():
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    found = {}
    for kind in NAMES:
        with warnings.catch_warnings(action="ignore"):
            try:
                config = CONFIG_MAPPING[kind]()
            except Exception:  # some have no defaults
                continue
            if hasattr(config, "is_decoder"):
                config.is_decoder = True
            found[kind] = distances(config)
    near = {
        (kind, name): distance
        for kind, each in found.items()
        for name, distance in each.items()
        if isinstance(distance, float) and 0.2 < distance / rehearsal.TOLERANCE < 5
    }
    assert near == {}
    verdicts = {kind: verdict(each) for kind, each in sorted(found.items())}
    if os.environ.get("UPDATE_GOLDEN"):
        RECORD.write_text(json.dumps(verdicts, indent=1) + "\n")
    assert verdicts == json.loads(RECORD.read_text())
