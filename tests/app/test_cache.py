from concurrent.futures import ThreadPoolExecutor

from app.cache import LRUCache


def cache_of(max_size: int) -> LRUCache[str, str]:
    return LRUCache(max_size, len)


def test_what_is_unused_for_longest_goes_first() -> None:
    cache = cache_of(4)
    cache.put("a", "11")
    cache.put("b", "22")
    assert cache.get("a") == "11"
    cache.put("c", "33")
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("11", None, "33")


def test_total_size_is_bounded() -> None:
    cache = cache_of(10)
    for i in range(50):
        cache.put(str(i), "x" * (i % 5))
        assert cache.size <= 10


def test_a_value_larger_than_the_cache_is_not_kept() -> None:
    cache = cache_of(3)
    cache.put("a", "1")
    cache.put("b", "2222")
    assert cache.get("b") is None
    assert cache.size == 0


def test_a_new_value_of_a_key_replaces_the_old() -> None:
    cache = cache_of(10)
    cache.put("a", "1234")
    cache.put("a", "12")
    assert (cache.get("a"), cache.size) == ("12", 2)


def test_threads_leave_the_size_right() -> None:
    cache = cache_of(100)

    def work(thread: int) -> None:
        for i in range(300):
            cache.put(f"{(thread * 7 + i) % 40}", "x" * (i % 9))
            cache.get(f"{i % 40}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    kept = [cache.get(str(i)) for i in range(40)]
    assert cache.size == sum(len(value) for value in kept if value is not None) <= 100
