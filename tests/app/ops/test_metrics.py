import math

from prometheus_client.parser import text_string_to_metric_families

from app.ops.metrics import OUTCOMES, Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    """Every number, by its name and labels."""
    text, content_type = metrics.exposition()
    assert content_type.startswith("text/plain")
    return {
        " ".join([sample.name, *map(sample.labels.get, sorted(sample.labels))]): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_requests_are_counted_by_how_they_ended() -> None:
    metrics = Metrics()
    metrics.count("computed", 0.2)
    metrics.count("computed", 2.0)
    metrics.count("busy", -1e-9)
    found = samples(metrics)
    assert {name: found[f"mae_requests_total {name}"] for name in OUTCOMES} == {
        "computed": 2, "cached": 0, "busy": 1, "refused": 0, "failed": 0, "timeout": 0,
        "waiting": 0,
    }  # fmt: skip
    assert found["mae_request_seconds_sum computed"] == 2.2
    assert found["mae_request_seconds_sum busy"] == 0
    assert found["mae_request_seconds_bucket 0.3 computed"] == 1


def test_the_sizes_of_batches_are_counted() -> None:
    metrics = Metrics()
    for size in (1, 4, 5):
        metrics.observe_batch(size)
    found = samples(metrics)
    assert (found["mae_batch_size_count"], found["mae_batch_size_sum"]) == (3, 10)
    assert found["mae_batch_size_bucket 4.0"] == 2


def test_a_number_is_read_when_it_is_asked_for() -> None:
    metrics, line = Metrics(), [1]
    metrics.watch("mae_line", "Jobs in line.", lambda: len(line))
    line.append(2)
    assert samples(metrics)["mae_line"] == 2


def test_a_number_that_cannot_be_read_hides_no_other() -> None:
    metrics = Metrics()
    metrics.watch("mae_broken", "Always fails.", lambda: 1 / 0)
    metrics.watch("mae_whole", "Never fails.", lambda: 3)
    found = samples(metrics)
    assert math.isnan(found["mae_broken"])
    assert found["mae_whole"] == 3


def test_objects_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.count("cached", 0)
    assert samples(other)["mae_requests_total cached"] == 0


def test_the_process_is_measured() -> None:
    assert samples(Metrics())["process_resident_memory_bytes"] > 1e6
