"""Prefetching: what is announced is read ahead, once, and nothing outlives its use."""

import threading

import pytest

from mvar_models.data.prefetch import Prefetcher

PATIENCE = 30  # seconds


def test_an_announced_key_is_read_ahead_and_once():
    calls, ahead = [], threading.Event()

    def read(key):
        calls.append((key, threading.current_thread()))
        if key == 1:
            ahead.set()
        return 10 * key

    prefetcher = Prefetcher(read)
    assert prefetcher.get(0, following=1) == 0
    assert ahead.wait(PATIENCE), "key 1 should be read before anybody asks for it"
    assert prefetcher.get(1) == 10
    assert [key for key, _ in calls] == [0, 1]
    assert calls[0][1] is threading.current_thread()
    assert calls[1][1] is not threading.current_thread()
    prefetcher.close()


def test_a_key_that_was_passed_over_is_dropped():
    calls = []
    prefetcher = Prefetcher(lambda key: calls.append(key) or len(calls))
    prefetcher.get(0, following=1)
    prefetcher.get(5)
    prefetcher.get(1)
    prefetcher.close()
    assert calls.count(1) == 2


def test_an_error_is_raised_where_its_key_is_asked_for():
    def read(key):
        if key == 1:
            raise ValueError(f"key {key}")
        return key

    prefetcher = Prefetcher(read)
    assert prefetcher.get(0, following=1) == 0
    with pytest.raises(ValueError, match="key 1"):
        prefetcher.get(1)
    prefetcher.close()


def test_close_drops_what_has_not_begun():
    calls, threads, begun, release = [], [], threading.Event(), threading.Event()

    def read(key):
        calls.append(key)
        if key == 1:
            threads.append(threading.current_thread())
            begun.set()
            release.wait(PATIENCE)
        return key

    prefetcher = Prefetcher(read)
    prefetcher.get(0, following=1)
    assert begun.wait(PATIENCE)
    prefetcher.get(0, following=2)
    prefetcher.close()
    release.set()
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    assert calls == [0, 1, 0]
