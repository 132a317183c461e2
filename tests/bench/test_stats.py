from bench.stats import bootstrap_ratio, rank_test, summarize


def test_summary_is_median_and_range() -> None:
    summary = summarize([3.0, 1.0, 2.0])
    assert (summary.median, summary.low, summary.high, summary.count) == (2.0, 1.0, 3.0, 3)


def test_rank_test_agrees_with_the_published_example() -> None:
    # Mann and Whitney (1947) tables: U = 0 of 5 and 5 has the exact two-sided p 0.008; the approximation gives 0.012.
    assert 0.005 < rank_test([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) < 0.02


def test_rank_test_sees_no_difference_where_there_is_none() -> None:
    assert rank_test([1, 2, 3, 4], [1, 2, 3, 4]) == 1.0
    assert rank_test([5, 5, 5], [5, 5, 5]) == 1.0


def test_rank_test_has_no_side() -> None:
    assert rank_test([1, 5, 9], [2, 3, 11]) == rank_test([2, 3, 11], [1, 5, 9])


def test_ratio_lies_in_its_interval() -> None:
    ratio, low, high = bootstrap_ratio([2.0, 2.1, 1.9], [1.0, 1.1, 0.9])
    assert low <= ratio <= high
    assert ratio == 2.0
