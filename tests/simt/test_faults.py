"""The twin's detectors, each with a kernel that is wrong on purpose (faults.cpp), in the build that must catch it."""

import pytest

TWIN, ADDRESS, THREAD = "plain", "address", "thread"

FAULTS = [
    ("missing_barrier", THREAD, "data race", "faults.cpp"),
    ("shuffle_orders_nothing", THREAD, "data race", "faults.cpp"),
    ("copy_of_another", THREAD, "data race", "faults.cpp"),
    ("shared_overrun", ADDRESS, "AddressSanitizer", "shared_overrun"),
    ("static_overrun", ADDRESS, "AddressSanitizer", "static_overrun"),
    ("global_overrun", ADDRESS, "heap-buffer-overflow", "global_overrun"),
    ("too_much_shared", TWIN, "out of shared memory: 512 bytes taken, 496 launched with", "faults.cpp"),
    ("uninitialised", TWIN, "a result is NaN", ""),
    ("copy_too_early", TWIN, "a result is NaN", ""),
    ("copy_never_waited_for", TWIN, "an async copy was never waited for", ""),
    ("misaligned", TWIN, "misaligned access", "faults.cpp"),
    ("divergent", TWIN, "divergent barrier: another thread waits at", "faults.cpp"),
    ("absent", TWIN, "missing at a barrier: thread 40 has returned", "faults.cpp"),
    ("absent_from_warp", TWIN, "missing at a meeting of a warp: thread 40 has returned", "faults.cpp"),
    ("divergent_meeting", TWIN, "divergent meeting of a warp: another lane waits at", "faults.cpp"),
]


@pytest.mark.parametrize("sanitizer", [TWIN, ADDRESS, THREAD])
def test_a_right_kernel_passes(start, sanitizer):
    done = start(sanitizer, "simt_faults", "right")
    assert done.returncode == 0 and "nothing found" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("fault, sanitizer, words, place", FAULTS, ids=[f[0] for f in FAULTS])
def test_a_wrong_kernel_is_caught(start, fault, sanitizer, words, place):
    done = start(sanitizer, "simt_faults", fault)
    said = done.stdout + done.stderr
    assert done.returncode != 0, f"not caught: {said}"
    assert words in said and place in said, said
