"""The twin's detectors: each has a kernel that is wrong on purpose (faults.cpp), in the build that must catch it."""

import re

import pytest

TWIN, ADDRESS, THREAD = "simt_faults", "simt_faults_address", "simt_faults_thread"

FAULTS = [
    ("missing_barrier", THREAD, "data race"),
    ("written_after_a_barrier", THREAD, "data race"),
    ("blocks_collide", THREAD, "data race"),
    ("source_race", THREAD, "data race"),
    ("flag_before_the_barrier", THREAD, "data race"),
    ("flag_seen_by_one", THREAD, "data race"),
    ("arrived_before_the_barrier", THREAD, "data race"),
    ("arrival_orders_nothing", THREAD, "data race"),
    ("shuffle_orders_nothing", THREAD, "data race"),
    ("copy_of_another", THREAD, "data race"),
    ("copy_into_what_is_read", THREAD, "data race"),
    ("shared_overrun", ADDRESS, "use-after-poison"),
    ("static_overrun", ADDRESS, "use-after-poison"),
    ("global_overrun", ADDRESS, "heap-buffer-overflow"),
    ("global_write_overrun", ADDRESS, "heap-buffer-overflow"),
    ("source_overrun", ADDRESS, "heap-buffer-overflow"),
    ("vector_overrun", ADDRESS, "heap-buffer-overflow"),
    ("copy_beyond_the_source", ADDRESS, "heap-buffer-overflow"),
    ("copy_beyond_the_target", ADDRESS, "use-after-poison"),
    ("index_overflow", ADDRESS, "signed integer overflow"),
    ("too_much_shared", TWIN, "out of shared memory: 512 bytes used, 496 launched with"),
    ("more_shared_than_there_is", TWIN, "a launch no GPU takes"),
    ("more_threads_than_there_are", TWIN, "a launch no GPU takes"),
    ("uninitialised", TWIN, "a result is NaN"),
    ("counter_not_reset", TWIN, "a result is NaN"),
    ("copy_too_early", TWIN, "a result is NaN"),
    ("copy_never_waited_for", TWIN, "an async copy was never waited for"),
    ("misaligned", TWIN, "misaligned access"),
    ("misaligned_load", TWIN, "misaligned access"),
    ("misaligned_copy", TWIN, "misaligned access"),
    ("divergent", TWIN, "divergent barrier: another thread waits at"),
    ("absent", TWIN, "missing at a barrier: thread 40 has returned"),
    ("absent_from_warp", TWIN, "missing at a warp collective: thread 40 has returned"),
    ("divergent_collective", TWIN, "divergent warp collective: another lane waits at"),
    ("no_cluster_barrier", THREAD, "data race"),
    ("written_behind_arrival", THREAD, "data race"),
    ("returned_too_early", TWIN, "returns while another may still read its shared memory"),
    ("read_too_late", TWIN, "block 1 of the cluster has returned, and its shared memory with it"),
    ("read_before_the_start", TWIN, "block 1 of the cluster has not started: a cluster barrier must come first"),
    ("read_outside_the_cluster", TWIN, "reads shared memory of block 2 in a cluster of 2"),
    ("arrived_twice", TWIN, "arrived twice at a cluster barrier"),
    ("waited_without_arrival", TWIN, "waits at a cluster barrier without having arrived"),
    ("absent_from_the_cluster", TWIN, "missing at a cluster barrier: thread 40 of block 1 of the cluster has returned"),
    ("block_and_cluster_barriers", TWIN, "missing at a barrier: thread 0 has returned"),
    ("part_of_a_cluster", TWIN, "a launch no GPU takes: clusters of 2 blocks"),
    ("larger_cluster_than_portable", TWIN, "a launch no GPU takes: clusters of 16 blocks"),
    ("loaded_before_the_wait", TWIN, "touches global memory before wait_for_earlier_launches"),
    ("copied_before_the_wait", TWIN, "touches global memory before wait_for_earlier_launches"),
    ("arrived_before_the_wait", TWIN, "touches global memory before wait_for_earlier_launches"),
    ("one_thread_waited", TWIN, "touches global memory before wait_for_earlier_launches"),
    ("returned_without_a_wait", TWIN, "thread 32 of 64: a thread has returned without wait_for_earlier_launches"),
    ("one_product_is_no_fp32", TWIN, "times the error of fp32"),
    ("sums_left_in_the_unit", TWIN, "times the error of fp32"),
]
# The twin finds these in the kernel's results or in its launch, so there is no line to name.
NAMELESS = {
    "more_shared_than_there_is",
    "more_threads_than_there_are",
    "uninitialised",
    "counter_not_reset",
    "copy_too_early",
    "copy_never_waited_for",
    "part_of_a_cluster",
    "larger_cluster_than_portable",
    "returned_without_a_wait",
    "one_product_is_no_fp32",
    "sums_left_in_the_unit",
}


@pytest.fixture(scope="module")
def names(root):
    """names(fault): the places, FILE:LINE, that a report must name."""
    lines = [
        (f"{name}:{i}", line)
        for name in ("faults.cpp", "cluster_faults.h", "order_faults.h")
        for i, line in enumerate((root / "tests" / "simt" / name).read_text().splitlines(), 1)
    ]
    return lambda fault: [place for place, line in lines if re.search(rf"\bnames {fault}\b", line)]


def test_every_fault_has_its_row(root):
    text = (root / "tests" / "simt" / "faults.cpp").read_text()
    assert set(re.findall(r'^      \{"(\w+)", ', text, re.MULTILINE)) == {"right"} | {f[0] for f in FAULTS}


@pytest.mark.parametrize("build", [TWIN, ADDRESS, THREAD])
def test_a_right_kernel_passes(start, build):
    done = start(build, "right")
    assert done.returncode == 0 and "nothing found" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("fault, build, words", FAULTS, ids=[f[0] for f in FAULTS])
def test_a_wrong_kernel_is_caught(start, names, fault, build, words):
    done = start(build, fault)
    output = done.stdout + done.stderr
    assert done.returncode != 0, f"not caught: {output}"
    assert words in output, output
    assert bool(names(fault)) == (fault not in NAMELESS), "the sources mark the lines"
    for place in names(fault):
        assert place in output, f"{place} is not named: {output}"
