"""The benchmark's measures, against results by hand and, if it is installed, sed_eval."""

import numpy as np
import pytest

from modeling_ast.events import Event
from tests.benchmarks.detection_metrics import Counts, event_counts, onset_errors, segment_counts

TRUE = [Event(1.0, 3.0, "a", 1.0), Event(5.0, 6.0, "b", 1.0)]


def test_by_hand():
    found = [Event(1.15, 3.35, "a", 0.9), Event(5.0, 6.3, "b", 0.8), Event(8.0, 8.5, "a", 0.7)]
    # The second event ends 0.3 s late, but only 0.2 s are allowed.
    assert event_counts(found, TRUE) == Counts(1, 2, 1)
    assert segment_counts(found, TRUE, 10.0) == Counts(3, 3, 0)
    np.testing.assert_allclose(onset_errors(found, TRUE), [0.15, 0.0])
    assert event_counts([], TRUE) == Counts(0, 0, 2) and onset_errors([], TRUE) == []


@pytest.mark.sed
@pytest.mark.parametrize("seed", range(10))
def test_as_sed_eval_counts(seed):
    sed_eval = pytest.importorskip("sed_eval")
    rng = np.random.default_rng(seed)

    def some(shift):
        return [
            Event(float(onset), float(onset + length), str(rng.choice(["a", "b"])), 1.0)
            for onset, length in zip(np.arange(1, 50, 5) + shift, rng.uniform(0.5, 3, 10))
        ]

    true = some(rng.uniform(0, 0.5, 10))
    found = [
        event._replace(onset=event.onset + step, offset=event.offset + 2 * step)
        for event, step in zip(true, rng.normal(0, 0.15, 10))
    ]
    as_dicts = [
        [{"event_onset": e.onset, "event_offset": e.offset, "event_label": e.label} for e in events]
        for events in (true, found)
    ]
    judges = (
        sed_eval.sound_event.EventBasedMetrics(["a", "b"], True, True, 0.2, 0.2),
        sed_eval.sound_event.SegmentBasedMetrics(["a", "b"], time_resolution=1.0),
    )
    for judge, counts in zip(
        judges, (event_counts(found, true), segment_counts(found, true, 60.0))
    ):
        judge.evaluate(as_dicts[0], as_dicts[1])
        f_measure = judge.results_overall_metrics()["f_measure"]["f_measure"]
        assert counts.f1 == pytest.approx(f_measure)
