"""Other people's errors in a sentence of ours."""

from dpeq.dry_step.findings import in_a_line, step_fails


def test_errors_become_one_short_line():
    assert in_a_line(ValueError("two\n  lines")) == "two lines"
    assert in_a_line(KeyError()) == "KeyError"
    assert in_a_line(ValueError("x" * 1000)) == "x" * 300


def test_a_failed_step_ends_the_examination_with_the_engines_words():
    stop = step_fails(RuntimeError("shapes differ"))
    assert (stop.why, stop.mend) == ("the private step fails: shapes differ", "see its message")
